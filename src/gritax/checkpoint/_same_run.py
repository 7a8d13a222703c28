"""Whether what is to go on is what was begun."""

import logging
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from .._evolution import Evolution, optional
from .._kernel import kernel
from .._norms import norm
from .._state import at_leaf
from .._validation import first_step
from ..training import TrainStep
from ._facts import Unusable


logger = logging.getLogger("gritax")

_CURE = "Give it the same, or start again in another directory."
# Standard deviations and operations that rounding is allowed, on top of those of the sums.
_ROUNDINGS = 4


def taken(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], start: int = 0) -> dict[str, Any]:
    """The loss, and the length of the update of each leaf, of the step from this state, by which it is known again."""
    after, _, loss = _step(evolution, floating, clock, start)
    return {"loss": None if loss is None else float(loss), "lengths": [float(x) for x in _lengths(after, floating)]}


def difference(
    before: dict[str, Any], evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], start: int = 0
) -> tuple[str, str]:
    """("loss" or "update", the figures in words) of what tells the step from the one that was `taken` before, if anything.

    Other devices and compilers add in another order. A sum of m terms then differs by about √m roundings, the precision being
    float32 at least, and what is computed from it by a few more, of its own precision. What a rounding does to a figure,
    where terms cancel, is measured: by one of each number of the state, of the lowest precision that the step computes in. And
    one entry may come to be rounded to its other neighbour.
    """
    now = taken(evolution, floating, clock, start)
    if _flat(before) == _flat(now):
        return "", ""
    coarsest = _coarsest(evolution, floating, clock)
    others = [taken(evolution, _rounded_otherwise(floating, coarsest, seed), clock, start) for seed in (0, 1)]
    leaves, terms = tree_leaves_with_path(floating), _longest_axis(evolution, floating)
    sizes = [float(jnp.max(jnp.abs(x), initial=0)) for _, x in leaves]
    types = [jnp.finfo(x.dtype) for _, x in leaves]
    figures = [("update", "length ", at_leaf(path)) for path, _ in leaves]
    if now["loss"] is not None:
        figures, sizes, types = [("loss", "", ""), *figures], [0.0, *sizes], [max(types, key=lambda x: x.bits), *types]
    found, wanted, *moved = (_flat(each) for each in (now, before, *others))
    if len(found) != len(wanted):
        return "update", "other leaves"
    for (kind, of, where), a, b, size, dtype, *c in zip(figures, wanted, found, sizes, types, *moved, strict=True):
        eps = float(dtype.eps)
        roundings = _ROUNDINGS * (1 + math.sqrt(terms) * min(1.0, float(jnp.finfo(jnp.float32).eps) / max(eps, coarsest)))
        bound = roundings * (max(abs(x - b) for x in c) + eps * abs(b)) + eps * size
        if not (a == b or abs(a - b) <= bound or not (math.isfinite(a) or math.isfinite(b))):
            return kind, f"{of}{a:.9g}{where}, not {b:.9g}"
    logger.warning(
        "the step is the same but for its last digits, as on another device or with another version of XLA; a rate that "
        "differs by as little would not be told from it"
    )
    return "", ""


def require_same_step(
    what: str,
    step: int,
    before: dict[str, Any],
    evolution: Evolution,
    floating: PyTree[Array],
    clock: PyTree[Array],
    start: int = 0,
) -> None:
    """Raises `ValueError` if this step of the run, from this state, was another one before."""
    kind, figures = difference(before, evolution, floating, clock, start)
    if not kind:
        return
    if step == 0:
        figure = "a loss at step 0 of" if kind == "loss" else "a first update of"
        raise ValueError(f"resume: {what} has {figure} {figures}. {_CURE}")
    figure = "a loss of" if kind == "loss" else "an update of"
    raise ValueError(
        f"resume: {what} was to go on after step {step:,} with {figure} {figures}: its loss, optimizer, schedule or data was "
        f"another. {_CURE}"
    )


def require_same_method(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError` for a run of another method. One that names none is of multigrid, in windows."""
    then, this = (asked.get("method") or "multigrid in windows" for asked in (before, now))
    if then != this:
        raise ValueError(f"resume: {what} is by {then}, not by {this}. {_CURE}")


def require_same(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError` for the first thing that was other than now. "origin" is the digest of the first state."""
    for name, given in now.items():
        if name not in before:
            raise Unusable(f"one that does not say its {name}")
        if before[name] == given:
            continue
        if name == "origin":
            raise ValueError(f"resume: {what} began with another state than this. {_CURE}")
        raise ValueError(f"resume: {what} has {name} {before[name]}, not {given}. {_CURE}")


@kernel
def _later_step(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], start: Array):
    loss_at = optional(evolution.phi, "loss_at")
    loss = None if loss_at is None else loss_at(evolution.merge(floating, clock), start)
    return *evolution.advance(floating, clock, start, 1), loss


def _step(evolution, floating, clock, start):
    # The first has been compiled by now.
    return _later_step(evolution, floating, clock, jnp.int32(start)) if start else first_step(evolution, floating, clock)


@kernel
def _lengths(after: PyTree[Array], before: PyTree[Array]) -> list[Array]:
    return [norm(x - y) for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]


def _flat(taken: dict[str, Any]) -> list[float]:
    return [*([] if taken["loss"] is None else [taken["loss"]]), *taken["lengths"]]


def _coarsest(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]) -> float:
    """The rounding of 16-bit numbers if the step has any, as in mixed precision, else 0."""
    program = str(jax.make_jaxpr(first_step)(evolution, floating, clock))
    halves = {"bf16": jnp.bfloat16, "f16": jnp.float16}
    return max((float(jnp.finfo(halves[name]).eps) for name in re.findall(r"\b(bf16|f16)\[", program)), default=0.0)


def _rounded_otherwise(floating: PyTree[Array], least: float, seed: int) -> PyTree[Array]:
    """Each number one rounding up or down, or by `least` of it."""
    signs = np.random.default_rng(seed)

    def moved(x):
        return x * (1 + max(float(jnp.finfo(x.dtype).eps), least) * signs.choice((-1, 1), x.shape)).astype(x.dtype)

    return jax.tree.map(moved, floating)


def _longest_axis(evolution: Evolution, floating: PyTree[Array]) -> int:
    """The most terms that a step is likely to add up, of its state and of its data."""
    phi = evolution.phi
    other = jax.eval_shape(phi.data, jnp.int32(0)) if isinstance(phi, TrainStep) else evolution.data
    return max((length for x in jax.tree.leaves((floating, other)) for length in x.shape), default=1)
