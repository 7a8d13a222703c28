"""The multigrid cycle: V and F of any depth, on the C-points of each level."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, PyTree

from . import _points, _relaxation
from ._correction import keep_exact, restrict
from ._evolution import Evolution, Phi, costs
from ._hierarchy import Hierarchy, Level, Multigrid
from ._norms import residual_norm
from ._points import Points, arrived


@dataclass
class Cost:
    """Network evaluations so far: on the critical path (`depth`), by how many lanes they were made for, and in all (`work`).

    `by_level` has those on the critical path that steps of a level make: not those that coarse steps are chosen with.
    """

    by_lanes: Counter[int] = field(default_factory=Counter)
    work: int = 0
    by_level: Counter[int] = field(default_factory=Counter)

    @property
    def depth(self) -> int:
        return self.by_lanes.total()

    def add(self, phi: Phi, level: Level, points: np.ndarray) -> None:
        """Applications from these points of the level, [sequence, lanes]."""
        if not points.size:  # relaxation knows the whole coarsest level
            return
        depth, work = costs(phi, level.stride, points * level.stride)
        self.by_level[level.index] += depth
        self.spend(points.shape[1], depth, work)

    def spend(self, lanes: int, depth: int, work: int) -> None:
        self.by_lanes[lanes] += depth
        self.work += work


@dataclass
class Cycle:
    """One iteration after the other (Schroder 2017, Algorithm 1), counting evaluations and the exactness front.

    `front` is the number of C-points of the finest level, after the first, that are exact by construction.
    """

    evolution: Evolution
    hierarchy: Hierarchy
    method: Multigrid
    cost: Cost = field(default_factory=Cost)
    front: int = 0

    @property
    def mesh(self) -> Mesh | AbstractMesh | None:
        """The devices that share the levels."""
        return self.hierarchy[0].layout.mesh

    @property
    def exact_steps(self) -> int:
        finest = self.hierarchy[0]
        return finest.size if self.front >= finest.num_intervals else self.front * finest.factor

    def _count(self, level: Level, points: np.ndarray) -> None:
        self.cost.add(self.evolution.phi, level, points)

    def iterate(self, c: Points, e: Points) -> tuple[Points, Array]:
        """(corrected C-points of the finest level, residual norm before the correction), from its C-points and arrivals."""
        finest = self.hierarchy[0]
        if finest.sweeps:
            c, e, _ = self.relax_finest(c, e, finest.sweeps)
        relaxed = residual_norm(finest, c, e)
        self.front += finest.exact_intervals
        exact = min(self.front, finest.num_intervals)
        corrected = c if len(self.hierarchy) == 1 else self.correct(finest, c, e, exact, self.method.cycle)
        return keep_exact(finest, corrected, c, e, np.int32(self.front)), relaxed

    def ascend(self, u0: PyTree[Array], cycle: str) -> Points:
        """The C-points of level 0 by the way up alone: solve the coarsest level for its own propagator, fill the others."""
        if len(self.hierarchy) == 1:
            return self.march_finest(u0)
        self.front = 0
        c, reached, g = _points.everywhere(self.hierarchy[-1], u0)
        c = self.march(c, reached, g, 0)
        for level in reversed(self.hierarchy.levels[1:-1]):
            _, reached, g = _points.everywhere(level, u0)
            c = self.fill(level, c, reached, g, 0) if cycle == "V" else self.solve(level, c, reached, g, 0, 0, "V")
        return c

    def ascend_graded(self, u0: PyTree[Array]) -> Points:
        """As `ascend` in a V-cycle, but each level begins where the next finer one has taken its first intervals by itself.

        So strides grow with the distance from the start. All intervals go along with the first ones, in the programs of the
        level's relaxation, which are compiled anyway.
        """
        if len(self.hierarchy) == 1:
            return self.march_finest(u0)
        finest, coarsest = self.hierarchy[0], self.hierarchy[-1]
        self.front, *counts = intervals_alone(self.hierarchy)
        c = _points.uniform(finest, u0, u0)
        relaxed, e, _ = self.relax_finest(c, arrived(finest, c), self.front)
        begun, first, alone = _points.arrival(finest, e, np.int32(self.front - 1)), self.front, {}
        for level, count in zip(self.hierarchy.levels[1:-1], counts, strict=True):
            for interval in range(count):
                c, reached, g = _points.everywhere(level, begun)
                reached = self.relax_coarse(level, c, reached, g, 1, level.factor, first, 0)[2]
                points, begun = _points.interval_points(level, begun, reached, np.int32(interval), np.int32(first))
                alone[level, interval], first = (points, first), 0
            first = count
        c, reached, g = _points.everywhere(coarsest, begun)
        c = self.march(c, reached, g, first)
        for level, count in reversed([*zip(self.hierarchy.levels[1:-1], counts, strict=True)]):
            _, reached, g = _points.everywhere(level, begun)
            c = self.fill(level, c, reached, g, 0)
            for interval in range(count):
                points, first = alone[level, interval]
                c = _points.begun_with(level, c, points, np.int32(interval), np.int32(first))
        return keep_exact(finest, c, relaxed, e, np.int32(self.front))

    def march_finest(self, u0: PyTree[Array]) -> Points:
        """The points of the only level there is."""
        finest = self.hierarchy[0]
        c = _points.uniform(finest, u0, u0)
        c, e, _ = self.relax_finest(c, arrived(finest, c), 1)
        self.front = 1
        return keep_exact(finest, c, c, e, np.int32(1))

    def correct(self, level: Level, c: Points, e: Points, exact: int, cycle: str) -> Points:
        """The C-points of `level` from the level below it: restrict, solve there, take its points.

        Up to C-point `exact` relaxation has what the solution will be, and nothing is computed.
        """
        coarse = self.hierarchy[level.index + 1]
        self._count(coarse, np.clip(np.arange(coarse.size), exact, coarse.size - 1)[None])
        g, c, reached = restrict(coarse, self.evolution, c, e, np.int32(exact))
        if coarse is self.hierarchy[-1]:
            return self.march(c, reached, g, exact)
        return self.solve(coarse, c, reached, g, 1, exact, cycle)

    def solve(self, level: Level, c: Points, reached: Points, g: Points, first: int, exact: int, cycle: str) -> Points:
        """All points of a level between, improved from its C-points `c` for the right-hand side `g`.

        In `reached` are the solution up to point `exact`, and what the C-points lead to up to point `first` of their intervals.
        """
        # One sweep more than FC sweeps: the F-relaxation that they begin with.
        c, e, reached = self.relax_coarse(level, c, reached, g, level.sweeps + 1, level.factor, first, exact)
        exact = _relaxation.exact_points(level, exact, level.sweeps + 1)
        c = self.correct(level, c, e, min(exact // level.factor, level.num_intervals), cycle)
        return self.fill(level, c, reached, g, exact) if cycle == "V" else self.solve(level, c, reached, g, 0, exact, "V")

    def relax_finest(self, c: Points, e: Points, sweeps: int) -> tuple[Points, Points, PyTree[Array]]:
        """`sweeps` times {C-relaxation, sweep}: C-points, arrivals, final state."""
        finest = self.hierarchy[0]
        for _ in range(sweeps):
            self._count(finest, _sweep(finest, finest.factor, 0, 0))
        return _relaxation.relax_finest(finest, self.evolution, c, e, np.int32(sweeps))

    def relax_coarse(
        self, level: Level, c: Points, reached: Points, g: Points, sweeps: int, steps: int, first: int, exact: int
    ) -> tuple[Points, Points, Points]:
        """`sweeps` times {C-relaxation, sweep to point `steps`}: C-points, arrivals, all that was reached."""
        self._count(level, _sweep(level, steps, first, exact))
        for sweep in range(1, sweeps):
            self._count(level, _sweep(level, steps, 0, _relaxation.exact_points(level, exact, sweep)))
        counts = map(np.int32, (sweeps, steps, first, exact))
        return _relaxation.relax_coarse(level, self.evolution, c, reached, g, *counts)

    def fill(self, level: Level, c: Points, reached: Points, g: Points, exact: int) -> Points:
        """F-relaxation: all points of the level. It stops short of the next C-point, which is known."""
        c, _, reached = self.relax_coarse(level, c, reached, g, 1, level.factor - 1, 0, exact)
        return _points.all_points(level, c, reached)

    def march(self, c: Points, reached: Points, g: Points, first: int) -> Points:
        """All points of the coarsest level, step by step from point `first`."""
        coarsest = self.hierarchy[-1]
        self._count(coarsest, np.arange(first, coarsest.size)[:, None])
        return _relaxation.march(coarsest, self.evolution, c, reached, g, np.int32(first))


def intervals_alone(hierarchy: Hierarchy) -> list[int]:
    """How many intervals each level but the coarsest takes by itself in the graded guess.

    As many as relaxation makes exact on it, if the next level has a step of its first interval left to take.
    """
    pairs = zip(hierarchy.levels, hierarchy.levels[1:], strict=False)
    return [max(min(level.exact_intervals, coarse.factor - 1), 1) for level, coarse in pairs]


def _sweep(level: Level, steps: int, first: int, known: int) -> np.ndarray:
    """The points that a sweep steps from, [sequence, lanes]."""
    lanes = np.arange(level.num_intervals + (level.tail > 0))
    return _relaxation.stepped_from(level, lanes, np.arange(first, steps)[:, None], known)[1]
