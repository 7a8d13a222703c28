"""What a stabilised coarse step knows of the run that it is a part of."""

import itertools
import math
import operator
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._stages import Curvature, reach
from ._stiffest import STEADY


_STABLE = 2.0
_FEWEST, _FACTOR = 6, 4
_ANY = 2**30


class KnownRun(eqx.Module):
    """The curvature along a run and that beside the stiffest directions, and how coarse steps follow from it.

    `single` is the longest stride of a level that takes one stage, `longest` that of any, `lasting` how long the optimizer
    remembers; levels are chosen for `levels_kappa` and stay, whatever is met later; `initial_kappa` is that of the initial
    state, without margins. These are arrays, since programs do not depend on them.
    """

    curvature: Curvature
    rest: Curvature
    single: int = eqx.field(static=True)
    longest: int = eqx.field(static=True)
    lasting: int = eqx.field(static=True)
    first_factor: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    levels_kappa: Array | np.ndarray = eqx.field(default_factory=lambda: np.zeros(()))
    initial_kappa: Array | np.ndarray = eqx.field(default_factory=lambda: np.zeros(()))

    @classmethod
    def of(
        cls, kappa: float | None, lasting: int = 1, first_factor: int = 1, num_steps: int = _ANY, longest: int = _ANY
    ) -> "KnownRun":
        none = Curvature.along(np.zeros(1), np.zeros(1))
        begun = cls(none, none, _ANY, longest, lasting, first_factor, num_steps)
        return begun.along(np.zeros(1), np.full(1, kappa or 0.0))

    def along(self, steps: np.ndarray, kappas: np.ndarray, rest: np.ndarray | None = None) -> "KnownRun":
        """With the curvature at these steps. Strides keep their one stage while that is stable: the programs stay the same."""
        most = float(np.max(kappas))
        curvature = Curvature.along(steps, kappas)
        beside = curvature if rest is None else Curvature.along(steps, rest)
        levels_kappa = self.levels_kappa if self.levels_kappa else np.asarray(most)
        known = replace(self, curvature=curvature, rest=beside, levels_kappa=levels_kappa)
        if self.single * most <= _STABLE:
            return known
        strides = itertools.accumulate(known.factors(self.num_steps), operator.mul)
        return replace(known, single=max((each for each in strides if each <= reach(1, most)), default=1))

    @property
    def is_measured(self) -> bool:
        """Whether the curvature is known at more than the first state."""
        return int(np.count_nonzero(self.curvature.kappas)) > 1

    def with_new_levels(self) -> "KnownRun":
        """With levels for the largest curvature known."""
        return replace(self, levels_kappa=np.asarray(self.curvature.largest))

    def factors(self, num_steps: int) -> list[int]:
        """Factors of 4 to a few steps on the coarsest level, or to the longest stride; the first one less, if 4 steps take more
        than one stage.

        With momentum the first interval is long enough for a velocity to decay in it.
        """
        first, most = self.first_factor, max(num_steps // _FEWEST, 2)
        if first == 1:
            first = min(_FACTOR, reach(1, float(self.levels_kappa)))
        factors = [min(first, most)] if first > 1 else []
        while math.prod(factors) * _FACTOR <= min(num_steps // _FEWEST, self.longest):
            factors.append(_FACTOR)
        return factors

    def within(self, start: Any, stride: int) -> tuple[Any, Any]:
        """(the kappa that stages are to serve, how much larger it gets than in the middle), for coarse steps from `start`.

        Directions that have been found in the middle do not do where the curvature changes by much more than twofold.
        """
        xp = jnp if isinstance(start, jax.Array) else np
        largest = self.curvature.within(start, stride)
        growth = largest / xp.maximum(self.curvature.within(start + stride // 2, 1), 1e-30)
        return xp.where(growth <= STEADY, self.rest.within(start, stride), largest), growth
