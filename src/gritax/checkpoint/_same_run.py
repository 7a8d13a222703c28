"""Whether what is to go on is what was begun."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._norms import norm
from .._validation import first_step


# A first step that differs by more is another's, not the same one rounded otherwise.
_SAME = 1e-3


def beginning(evolution, floating, clock) -> dict[str, float]:
    """What the first step makes of the first state: with another loss, rate, data or key it is something else."""
    after, _, loss = first_step(evolution, floating, clock)
    moved = {"a first update of length": float(norm(jax.tree.map(jnp.subtract, after, floating)))}
    return moved if loss is None else {"a loss at step 0 of": float(loss)} | moved


def is_same(before: Any, now: Any) -> bool:
    """Figures of a first step to what rounding makes of them, others exactly."""
    numbers = isinstance(before, float) and isinstance(now, float)
    return math.isclose(before, now, rel_tol=_SAME) if numbers else before == now


def require_same(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError` for the first thing that was other than now. "origin" is the digest of the first state."""
    cure = "Give it the same, or start again in another directory."
    if before["origin"] != now["origin"]:
        raise ValueError(f"resume: {what} began with another state than this. {cure}")
    for name, given in now.items():
        if not is_same(before[name], given):
            found, given = (f"{each:.6g}" if isinstance(each, float) else each for each in (before[name], given))
            raise ValueError(f"resume: {what} has {name} {found}, not {given}. {cure}")
