"""`coarse="auto"`: the coarse propagator that promises the least depth."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from .._expected import expected_depth
from ._curvature import kappas_along
from ._protocol import CoarseStep
from .frozen_gradient import FrozenGradient
from .stabilized import Stabilized
from .tangent import Tangent


_BEND = 0.5
_ROWS = 1024
_STRIDE = 64


class Words(str):
    """A sentence for the user: programs are the same whatever it says."""

    def __eq__(self, other):
        return isinstance(other, Words)

    def __hash__(self):
        return 0


@dataclass(frozen=True)
class Automatic:
    """One of `FrozenGradient`, `Stabilized` and `Tangent`, chosen for each solve; outside of a solve, the first.

    Each proposes its levels, relaxation, refresh or stages for the curvature at the initial state. The one whose depth is least
    is taken, counted for as many iterations as it has needed wherever training converges at a usual rate, its
    `usual_iterations` (`benchmarks/README.md`). Tangent takes part only if its coarse steps are few operations (closed form,
    or a triangular system of at most 1,024 rows for 64 training steps) and the network bends little in one, at a kappa of at
    most .5.
    """

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        return FrozenGradient()(step, state, start, stride)

    def depth(self, stride: int) -> int:
        return FrozenGradient().depth(stride)

    def work(self, stride: int) -> int:
        return FrozenGradient().work(stride)

    def choose(self, step: Any, states: PyTree, starts: np.ndarray, num_steps: int) -> tuple[CoarseStep, Words, int, int]:
        """(the propagator, why, depth and work spent on the choice), from the initial state."""
        found, refused, depth, work = candidates(step, states, starts, num_steps)
        depths = [_depth(coarse, num_steps) for coarse in found]
        chosen = found[int(np.argmin(depths))]
        expected = ", ".join(f"{type(coarse).__name__} {depth:,}" for coarse, depth in zip(found, depths, strict=True))
        words = f"expected depths: {expected}" + (f"; not Tangent, since {refused}" if refused else "")
        return chosen, Words(words), depth, work


_PROPAGATORS = {kind.__name__: kind for kind in (FrozenGradient, Stabilized, Tangent)}


def named(name: str) -> FrozenGradient | Stabilized | Tangent:
    """The candidate of this name, which has yet to look at the states of a solve."""
    return _PROPAGATORS[name]()


def candidates(
    step: Any, states: PyTree, starts: np.ndarray, num_steps: int
) -> tuple[list[FrozenGradient | Stabilized | Tangent], str, int, int]:
    """(coarse propagators for this curvature, why Tangent is none of them if so, depth and work spent)."""
    kappas, depth, work = kappas_along(step, states, starts, num_steps, FrozenGradient().chunk)
    frozen = FrozenGradient().adapted(step, states, starts, num_steps, None, kappas)[0]
    stabilized = Stabilized().adapted(step, states, starts, num_steps, None, kappas)[0]
    found: list[FrozenGradient | Stabilized | Tangent] = [frozen, stabilized]
    try:
        tangent = Tangent().adapted(step, states, starts, num_steps, None)[0]
    except ValueError as error:
        refused = str(error).partition(". ")[0].rstrip(".")
    else:
        refused = _refused(tangent, stabilized.largest_kappa)
        found += [] if refused else [tangent]
    return found, refused, depth, work


def _refused(tangent: Tangent, kappa: float) -> str:
    """Why Tangent is none of the candidates, if so."""
    if not tangent.direct:
        return "it would follow the optimizer step by step"
    rows = tangent.rows(_STRIDE)
    if rows > _ROWS:
        return f"a coarse step of {_STRIDE} has {rows:,} rows"
    return f"kappa is {kappa:.2g} a training step" if kappa > _BEND else ""


def _depth(coarse: FrozenGradient | Stabilized | Tangent, num_steps: int) -> int:
    hierarchy = coarse.method(num_steps).hierarchy(num_steps)
    return expected_depth(hierarchy, coarse.depth, coarse.usual_iterations)
