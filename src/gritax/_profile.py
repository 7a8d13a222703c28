"""Where along a run the residual is, iterate by iterate, and on which levels an iteration spends its time."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Array

from ._cycle import Cycle
from ._hierarchy import Level
from ._kernel import timed
from ._layout import local
from ._norms import group_size, residuals_along
from ._points import Points, arrived


@dataclass(frozen=True)
class ResidualProfile:
    """The residual along the run, of every iterate: where the states are known already, and where not yet.

    - `steps`: [P], at most 512 steps in their order, the last one of each group of C-points.
    - `residuals`: [iterations + 1, P], the largest 2-norm of `Phi(u[c-1]) - u[c]` at a C-point of the group. Rows of iterates
      that an earlier call computed, from which the solve was resumed, are nan.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000, profile=True)
    >>> solution.profile.steps[:3], solution.profile.residuals.shape
    (array([ 4,  8, 12]), (6, 250))
    """

    steps: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)


class Recording:
    """The rows of a profile while a solve runs. They stay on the devices, so nothing waits for them."""

    def __init__(self):
        self._rows: dict[int, Array] = {}
        self.level_seconds: tuple[float, ...] = ()

    def take(self, number: int, finest: Level, c, e) -> None:
        """The residuals of iterate `number`; the initial guess begins anew."""
        if number == 0:
            self._rows.clear()
        self._rows[number] = residuals_along(finest, c, e)

    def time(self, cycle: Cycle, c: Points) -> None:
        """One more iteration from these C-points, whose kernels are waited for. It counts for nothing else."""
        finest, again = cycle.hierarchy[0], Cycle(cycle.evolution, cycle.hierarchy, cycle.method)
        with timed() as seconds:
            c, e, _ = again.relax_finest(c, arrived(finest, c), 1)
            again.iterate(c, e)
        self.level_seconds = tuple(seconds[level.index] for level in cycle.hierarchy.levels)

    def profile(self, finest: Level) -> ResidualProfile:
        found = {number: np.asarray(local(row, finest.layout.mesh)) for number, row in self._rows.items()}
        last = max(found)
        unknown = np.full_like(found[last], np.nan)
        ends = np.arange(1, len(unknown) + 1) * group_size(finest)
        steps = np.minimum(ends, finest.num_intervals) * finest.factor
        return ResidualProfile(steps, np.stack([found.get(number, unknown) for number in range(last + 1)]))
