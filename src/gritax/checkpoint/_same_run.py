"""Whether what is to go on is what was begun."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._norms import norm
from .._validation import first_step


# A step that differs by more is another's, not the same one rounded otherwise. Of what has become small little may be known.
_SAME, _SMALL = 1e-3, 1e-6


def beginning(evolution, floating, clock) -> dict[str, float]:
    """What the first step makes of the first state: with another loss, rate, data or key it is something else."""
    after, _, loss = first_step(evolution, floating, clock)
    moved = {"a first update of length": float(norm(jax.tree.map(jnp.subtract, after, floating)))}
    return moved if loss is None else {"a loss at step 0 of": float(loss)} | moved


def require_same_step(what: str, step: int, before: dict[str, float], now: dict[str, float], first: dict[str, float]) -> None:
    """Raises `ValueError` if what was to follow on this step was another one; `before` and `now` are as from `beginning`.

    `first` is that of the run: a schedule that begins at 0, or momentum, shows in a later step only.
    """
    for name in before.keys() & now.keys():
        if not math.isclose(before[name], now[name], rel_tol=_SAME, abs_tol=_SMALL * abs(first[name])):
            kind = "an update of length" if "update" in name else "a loss of"
            raise ValueError(
                f"resume: {what} was to go on after step {step:,} with {kind} {before[name]:.6g}, not {now[name]:.6g}: its "
                "loss, optimizer, schedule or data was another. Give it the same, or start again in another directory."
            )


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
