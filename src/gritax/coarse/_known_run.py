"""What a stabilised coarse step knows of the run that it is a part of."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._stages import Curvature, reach
from ._stiffest import STEADY


_STABLE = 2.0


class KnownRun(eqx.Module):
    """The curvature along a run and that beside the stiffest directions, and how coarse steps follow from it.

    `single` is the longest stride that takes one stage, `lasting` how long the optimizer remembers; levels are chosen for
    `levels_kappa` and stay, whatever is met later.
    """

    curvature: Curvature
    rest: Curvature
    single: int = eqx.field(static=True)
    lasting: int = eqx.field(static=True)
    first_factor: int = eqx.field(static=True)
    levels_kappa: float = eqx.field(static=True, default=0.0)

    @classmethod
    def of(cls, kappa: float | None, lasting: int = 1, first_factor: int = 1) -> "KnownRun":
        none = Curvature.along(np.zeros(1), np.zeros(1))
        return cls(none, none, 2**30, lasting, first_factor).along(np.zeros(1), np.full(1, kappa or 0.0))

    def along(self, steps: np.ndarray, kappas: np.ndarray, rest: np.ndarray | None = None) -> "KnownRun":
        """With the curvature at these steps. Strides keep their one stage while that is stable: the programs stay the same."""
        most = float(np.max(kappas))
        single = self.single if self.single * most <= _STABLE else reach(1, most)
        curvature = Curvature.along(steps, kappas)
        beside = curvature if rest is None else Curvature.along(steps, rest)
        return KnownRun(curvature, beside, max(single, 1), self.lasting, self.first_factor, self.levels_kappa or most)

    @property
    def is_measured(self) -> bool:
        """Whether the curvature is known at more than the first state."""
        return int(np.count_nonzero(self.curvature.kappas)) > 1

    def with_new_levels(self) -> "KnownRun":
        """With levels for the largest curvature known."""
        return replace(self, levels_kappa=self.curvature.largest)

    def within(self, start: Any, stride: int) -> tuple[Any, Any]:
        """(the kappa that stages are to serve, how much larger it gets than in the middle), for coarse steps from `start`.

        Directions that have been found in the middle do not do where the curvature changes by much more than twofold.
        """
        xp = jnp if isinstance(start, jax.Array) else np
        largest = self.curvature.within(start, stride)
        growth = largest / xp.maximum(self.curvature.within(start + stride // 2, 1), 1e-30)
        return xp.where(growth <= STEADY, self.rest.within(start, stride), largest), growth
