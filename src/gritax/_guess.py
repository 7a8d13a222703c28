"""Initial guesses at the C-points of the finest level."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._cycle import Cycle
from ._evolution import Phi, optional
from ._hierarchy import Level, Multigrid
from ._kernel import per_level
from ._layout import replicated
from ._points import Points, uniform
from ._state import called


InitialGuess = Literal["graded", "nested", "zeros", "constant"] | Callable[[Any], PyTree]
_NAMED = "graded", "nested", "zeros", "constant"


def proposed_guess(phi: Phi, method: Multigrid | None) -> InitialGuess:
    """What phi proposes; any will do where the first iteration replaces it."""
    if method is not None and method.skip_first_down:
        return "constant"
    guess = "graded" if (propose := optional(phi, "initial_guess")) is None else propose()
    if not isinstance(guess, str) or guess not in _NAMED:
        raise ValueError(f"phi.initial_guess() must return one of {', '.join(map(repr, _NAMED))}, not {guess!r}.")
    return guess


def require_known_guess(initial_guess: InitialGuess, state: PyTree) -> None:
    if callable(initial_guess):
        eqx.filter_eval_shape(partial(_guessed, initial_guess, state), jax.ShapeDtypeStruct((), jnp.int32))
    elif not isinstance(initial_guess, str) or initial_guess not in _NAMED:
        found = repr(initial_guess) if isinstance(initial_guess, str) else f"a {type(initial_guess).__name__}"
        raise ValueError(
            'initial_guess must be "graded", "nested", "zeros", "constant" or a function step -> state, '
            f"not {found}. For one state at every point pass a function that returns it."
        )


def first_guess(cycle: Cycle, u0: PyTree[Array], initial_guess: InitialGuess) -> Points:
    """C-points `0, m, 2 m, …` of level 0, as stored; point 0 is the initial state."""
    stored, finest = cycle.evolution.stored(u0), cycle.hierarchy[0]
    if initial_guess in ("graded", "nested"):
        return cycle.ascend_graded(stored) if initial_guess == "graded" else cycle.ascend(stored, "V")
    if not callable(initial_guess):
        return uniform(finest, stored, jax.tree.map(jnp.zeros_like, stored) if initial_guess == "zeros" else stored)
    steps = jnp.arange(1, finest.num_intervals + 1, dtype=jnp.int32) * finest.factor
    state = cycle.evolution.merge(u0, cycle.evolution.clock(jnp.int32(0)))

    def guess(step):
        return cycle.evolution.stored(cycle.evolution.split(_guessed(initial_guess, state, step))[0])

    c = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), stored, replicated(jax.vmap(guess)(steps), cycle.mesh))
    return own(finest, c)


def _guessed(initial_guess, state, step):
    def fit(x, like):
        if not eqx.is_inexact_array(like):  # clocks and constants are not guessed
            return like
        return jnp.asarray(x, like.dtype) if isinstance(x, int | float | complex) else x

    def guess(state, step):
        given = initial_guess(step)
        return jax.tree.map(fit, given, state) if jax.tree.structure(given) == jax.tree.structure(state) else given

    return called("initial_guess(step)", "step", guess, state, step)


@per_level("intervals")
def own(level: Level, c: Points) -> Points:
    """What each device is to hold of all C-points."""
    return level.layout.own(c)
