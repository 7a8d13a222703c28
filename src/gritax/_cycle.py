"""The multigrid cycle: V and F of any depth, on the C-points of each level."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ._correction import restrict
from ._evolution import Evolution, cost
from ._hierarchy import Hierarchy, Level, Multigrid
from ._relaxation import Points, arrived, fill, march, relax


@dataclass
class Cost:
    """Network evaluations so far: on the critical path (`depth`) and in all (`work`)."""

    phi: object
    depth: int = 0
    work: int = 0

    def add(self, level: Level, in_sequence: int, lanes: int) -> None:
        self.depth += in_sequence * cost(self.phi, "depth", level.stride)
        self.work += in_sequence * lanes * cost(self.phi, "work", level.stride)


@dataclass
class Cycle:
    """One iteration's way down to the coarsest level and back (Schroder 2017, Algorithm 1), counting what it evaluates."""

    evolution: Evolution
    hierarchy: Hierarchy
    method: Multigrid
    cost: Cost = field(init=False)

    def __post_init__(self):
        self.cost = Cost(self.evolution.phi)

    def relax(self, level: Level, c: Points, e: Points, g: Points | None, sweeps: int):
        self.cost.add(level, sweeps * level.factor, level.num_intervals + (level.index == 0 and level.tail > 0))
        return relax(self.evolution, level, c, e, g, jnp.int32(sweeps), self.method.c_relaxation_weight)

    def correct(self, level: Level, c: Points, e: Points, cycle: str) -> Points:
        """The C-points of `level` from the level below it."""
        coarse = self.hierarchy[level.index + 1]
        self.cost.add(coarse, 1, coarse.size)
        g, coarse_c = restrict(self.evolution, coarse, c, e)
        return self.solve(coarse, coarse_c, g, cycle)

    def solve(self, level: Level, c: Points, g: Points, cycle: str) -> Points:
        """All points of a coarse level, improved from its C-points `c` for the right-hand side `g`."""
        if level is self.hierarchy[-1]:
            return self.march(c, g)
        c, e, _ = self.relax(level, c, arrived(c), g, level.sweeps + 1)
        c = self.correct(level, c, e, cycle)
        return self.fill(level, c, g) if cycle == "V" else self.solve(level, c, g, "V")

    def ascend(self, u0: Points, cycle: str) -> Points:
        """The C-points of level 0 by the way up alone: solve the coarsest level for its own propagator, fill the others."""
        finest, *middle = self.hierarchy.levels
        if not middle:
            c = jax.tree.map(lambda x: jnp.stack([x, x]), u0)
            _, e, _ = self.relax(finest, c, arrived(c), None, 1)
            return jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y]), c, e)
        coarsest = middle.pop()
        c = self.march(jax.tree.map(lambda x: x[None], u0), _zeros(u0, coarsest.size))
        for level in reversed(middle):
            g = _zeros(u0, level.size)
            c = self.fill(level, c, g) if cycle == "V" else self.solve(level, c, g, "V")
        return c

    def fill(self, level: Level, c: Points, g: Points) -> Points:
        self.cost.add(level, level.factor - 1, level.num_intervals + (level.tail > 0))
        return fill(self.evolution, level, c, g)

    def march(self, c: Points, g: Points) -> Points:
        coarsest = self.hierarchy[-1]
        self.cost.add(coarsest, coarsest.size, 1)
        return march(self.evolution, coarsest, jax.tree.map(lambda x: x[0], c), g)


def _zeros(u0: Points, size: int) -> Points:
    return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), u0)
