"""How long an iteration takes on devices that are not at hand: its kernels, timed on one device, and the messages between."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import PyTree

from .._arguments import require_whole
from .._cycle import Cycle
from .._evolution import Phi
from .._hierarchy import Hierarchy, Level, Multigrid
from .._kernel import recorded
from .._layout import AXIS
from .._norms import measure
from .._points import arrived
from .._sharing import shared
from .._validation import validated


@dataclass(frozen=True)
class Exchange:
    """What messages take: `latency` seconds each, and `byte` seconds for each of their bytes."""

    latency: float = 0.0
    byte: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of seconds, at least 0, not {value!r}.")

    def neighbour(self, size: float) -> float:
        """A message to a neighbour while others do the same."""
        return self.latency + size * self.byte

    def all(self, size: float, devices: int) -> float:
        """All devices tell all others what they have of so many bytes."""
        return math.ceil(math.log2(devices)) * self.latency + size * self.byte if devices > 1 else 0.0


@dataclass(frozen=True)
class Task:
    """A kernel that all devices run at the same time, its level and how often it does what it does."""

    kernel: Any
    level: Level
    counts: tuple[int, ...]


def tasks(cycle: Cycle, u0: PyTree) -> list[Task]:
    """The kernels of an iteration of this cycle in their order, from the cycle itself, which computes nothing."""
    finest = cycle.hierarchy[0]

    def stored(count):
        state = jax.eval_shape(cycle.evolution.stored, u0)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), state)

    def iteration(c, e, final):
        c, e, final = cycle.relax_finest(c, arrived(finest, c), 1)
        measure(finest, cycle.evolution, c, e, final, final, final)
        return cycle.iterate(c, e)

    with recorded() as calls:
        jax.eval_shape(iteration, stored(finest.layout.total), stored(finest.layout.lanes(finest.num_intervals)), u0)
    return [Task(*call) for call in calls]


class Simulation:
    """Iterations of a solve on any number of devices, each as fast as the one at hand.

    All devices run the same kernels at the same time, each on its own intervals: so an iteration takes the sum of what they
    take on that many intervals, which is measured here, and of the messages, by `exchange`. `method` as for `gritax.solve`.

    >>> import gritax
    >>> method = gritax.Multigrid(4)
    >>> simulation = gritax.placement.Simulation(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 4096, method)
    >>> simulation.seconds(1) > 0
    True
    """

    def __init__(self, phi: Phi, state: PyTree, num_steps: int, method: Multigrid, exchange: Exchange | None = None):
        if not isinstance(method, Multigrid):
            raise ValueError(f"method must be a gritax.Multigrid, such as gritax.Multigrid(coarsening=4), not {method!r}.")
        if exchange is not None and not isinstance(exchange, Exchange):
            raise ValueError(f"exchange must be a gritax.placement.Exchange, not {exchange!r}.")
        method.hierarchy(num_steps)
        self._evolution, self._u0, _clock = validated(phi, state, num_steps)
        self._method, self._num_steps, self.exchange = method, num_steps, exchange or Exchange()
        self._stored = self._evolution.stored(self._u0)
        self._bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._stored))
        self._timed: dict[Task, float] = {}

    def hierarchy(self, devices: int) -> Hierarchy:
        """The levels with their layout on so many devices."""
        require_whole("devices", devices, 1)
        mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
        return shared(self._method.hierarchy(self._num_steps), mesh, self._evolution.phi)

    def seconds(self, devices: int) -> float:
        """Of an iteration, compiled before."""
        return sum(self._computing(task) + self._messages(task, devices) for task in self.tasks(devices))

    def evaluations(self, devices: int) -> int:
        """In sequence, of an iteration: as `Solution.depth_on` counts them, which knows no messages and no uneven levels."""
        require_whole("devices", devices, 1)
        cycle = Cycle(self._evolution, self._method.hierarchy(self._num_steps), self._method)
        tasks(cycle, self._u0)
        return sum(depth * -(-lanes // devices) for lanes, depth in cycle.cost.by_lanes.items())

    def tasks(self, devices: int) -> list[Task]:
        return tasks(Cycle(self._evolution, self.hierarchy(devices), self._method), self._u0)

    def _messages(self, task: Task, devices: int) -> float:
        name, level, exchange = task.kernel.name, task.level, self.exchange
        if name == "restrict":
            if not level.points.is_shared:
                return 0.0
            group = level.layout.group if level.layout.is_shared else devices
            return 3 * exchange.all(self._bytes * level.num_steps, group // level.points.group)
        if not level.layout.is_shared or level.layout.group == devices:
            return 0.0
        neighbour = exchange.neighbour(self._bytes)
        if name == "relax_finest":
            return task.counts[0] * neighbour + exchange.all(self._bytes, devices)
        if name == "relax_coarse":
            return task.counts[0] * neighbour
        if name in ("residual_norm", "measure"):
            return neighbour + exchange.all(8 * level.num_intervals, devices) * (4 if name == "measure" else 1)
        return neighbour if name == "keep_exact" else 0.0

    def _computing(self, task: Task) -> float:
        task = replace(task, level=_alone(task))
        if task not in self._timed:
            self._timed[task] = _usual(self._call(task))
        return self._timed[task]

    def _call(self, task: Task) -> Callable[[], Any]:
        """The kernel on arrays that one device has."""
        level, evolution, u = task.level, self._evolution, self._stored
        counts = [np.int32(each) for each in task.counts]

        def stacked(*shape):
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), u)

        c, e = stacked(level.num_intervals + 1), stacked(level.num_intervals)
        reached = stacked(level.factor, level.num_lanes)
        arguments = {
            "arrived": (c,),
            "relax_finest": (evolution, c, e, *counts),
            "measure": (evolution, c, e, self._u0, self._u0, self._u0),
            "residual_norm": (c, e),
            "keep_exact": (c, c, e, *counts),
            "restrict": (evolution, stacked(level.size + 1), stacked(level.size), *counts),
            "relax_coarse": (evolution, c, reached, reached, *counts),
            "all_points": (c, reached),
            "march": (evolution, c, reached, reached, *counts),
        }[task.kernel.name]
        return lambda: task.kernel(level, *arguments)


def _alone(task: Task) -> Level:
    """The part of a level that a device has, as if it were all."""
    level = replace(task.level, c_layout=None, point_layout=None)
    if task.kernel.name == "restrict" and task.level.points.is_shared:
        return replace(level, size=task.level.points.block, factor=task.level.points.block)
    return replace(level, size=task.level.num_steps)


def _usual(run: Callable[[], Any]) -> float:
    """Seconds, the median of some calls."""

    def calls() -> Iterator[float]:
        jax.block_until_ready(run())
        for _ in range(7):
            began = time.perf_counter()
            jax.block_until_ready(run())
            yield time.perf_counter() - began

    return statistics.median(calls())
