"""One call of `solve` within a derivative or a map: the runs that were made for it, and where traced arrays are in them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jaxtyping import Array, PyTree

from .._convergence import ConvergenceError
from .._evolution import Phi, optional
from .._solution import Solution
from .._validation import CLOSES_OVER_TRACED
from .._window import Window


logger = logging.getLogger("gritax")


@dataclass
class Run:
    solution: Solution
    window: Window
    values: list[Array]


@dataclass(eq=False)
class Call:
    """One call of `solve`, with the runs that were made for it. `at`: which leaves of (phi, state) are traced."""

    solved: Callable[..., tuple[Solution, Window]]
    leaves: list[Any]
    structure: Any
    at: tuple[int, ...]
    throw: bool
    keeps: bool
    runs: list[Run] = field(default_factory=list)

    def run(self, values: list[Any], exactly: bool) -> list[Array]:
        """The arrays of the final state, and the number of the run."""
        # Each is an array of its own, for it is by its identity that it is found again in phi; JAX may pass Python's numbers.
        values = [jnp.array(value, copy=True) for value in values]
        leaves = list(self.leaves)
        for i, value in zip(self.at, values, strict=True):
            leaves[i] = value
        try:
            solution, window = self.solved(*jax.tree.unflatten(self.structure, leaves), exactly)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(CLOSES_OVER_TRACED) from error
        self.runs.append(Run(solution, window, values))
        return [*_arrays(solution.state), jnp.float32(len(self.runs) - 1)]

    def solution(self, phi: Any, found: list[Array]) -> Solution:
        slowest = max((run.solution for run in self.runs), key=lambda solution: solution.iterations)
        fresh = iter(found)
        state = jax.tree.map(lambda x: next(fresh) if eqx.is_array(x) else x, slowest.state)
        params = optional(phi, "params")
        return replace(
            slowest,
            state=state,
            params=state if params is None else params(state),
            converged=all(run.solution.converged for run in self.runs),
            _losses=_no_losses if slowest._losses else None,
        )

    @property
    def floats(self) -> list[Array]:
        """The floating arrays of the final state."""
        return [x for x in _arrays(self.runs[0].solution.state) if eqx.is_inexact_array(x)]

    def like(self, which: tuple[int, ...]) -> list[ShapedArray]:
        """What these of the traced leaves look like."""
        avals = [jax.typeof(self.leaves[self.at[i]]) for i in which]
        return [ShapedArray(aval.shape, aval.dtype) for aval in avals]

    def told(self, failure: str, what: str) -> None:
        if not failure:
            return
        if self.throw:
            raise ConvergenceError(f"the {what} is {failure}.", self.runs[0].solution)
        logger.warning("the %s is %s", what, failure)


# JAX remembers what a primitive gives for its parameters, and with them every call and its C-points, unless told otherwise.
try:
    from jax._src.util import weakref_cache_key_types
except ImportError:  # a JAX that keeps no such set: memory grows with the number of gradients then
    logger.debug("calls are remembered as long as JAX remembers their derivatives")
else:
    weakref_cache_key_types.add(Call)


def _arrays(state: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(state, eqx.is_array))


def _no_losses():
    raise ValueError("losses are not kept by a solve under grad, jvp or vmap: evaluate the loss on the states you ask for.")


def places(call: Call, run: Run, phi: Phi, which: tuple[int, ...]):
    """Of these of the traced leaves: (places in the arrays of `phi`, indices in these, index in the leaves of a state)."""
    num_phi = len(jax.tree.leaves(jax.tree.unflatten(call.structure, call.leaves)[0]))
    kept = run.window.evolution.with_phi(phi).data
    floating = [i for i, leaf in enumerate(call.leaves[num_phi:]) if eqx.is_inexact_array(leaf)]
    found_at, in_phi, in_state = [], [], []
    for i in which:
        leaf = call.at[i]
        if leaf >= num_phi:
            in_phi.append([])
            in_state.append(floating.index(leaf - num_phi))
            continue
        found = [place for place, array in enumerate(kept) if array is run.values[i]]
        if not found:
            raise ValueError(
                "phi cannot be differentiated by an array that its method prepared(num_steps) replaces: what it computes for a "
                "run must not depend on floating-point arrays."
            )
        in_phi.append(list(range(len(found_at), len(found_at) + len(found))))
        in_state.append(None)
        found_at += found
    return tuple(found_at), in_phi, in_state
