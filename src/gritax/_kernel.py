"""Compiled kernels: one for each level, which has its own stride and shapes, and no more of them than a process can hold."""

import inspect
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial, update_wrapper
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ._hierarchy import Level
from ._layout import AXIS


# A kernel on so few numbers costs more to compile than to run: XLA's older code generator takes half the time, and its code
# runs up to twice as long. Never on the finest level of multigrid, whose arithmetic is that of the serial twin.
_SMALL = 2**15
_QUICK = {"xla_cpu_use_fusion_emitters": False}


# Every phi, and every number of steps, has programs of its own, a few hundred memory maps each. Linux allows 65,530, and XLA
# crashes beyond.
_MOST_RUNS = 16
_kernels: list = []
_known: set[Hashable] = set()
_seconds: dict[Hashable, float] = {}


def kernel(function: Callable, **options) -> Any:
    """`jax.jit`, whose programs are forgotten when there are too many."""
    _kernels.append(jax.jit(function, **options))
    return _kernels[-1]


def quickly_compiled(function: Callable, **options) -> Callable:
    """As `kernel`, by the older code generator on a CPU: a large program of small operations takes two thirds to compile."""
    program = cache(lambda: kernel(function, compiler_options=_quick_options(), **options))
    return update_wrapper(lambda *args, **kwargs: program()(*args, **kwargs), function)


def make_room(run: Hashable) -> None:
    """Forgets the programs of all earlier runs once there are too many; those of `run` are about to be compiled."""
    if run in _known:
        return
    if len(_known) >= _MOST_RUNS:
        forget()
    _known.add(run)


def forget() -> None:
    """All compiled programs."""
    for each in _kernels:
        each.clear_cache()
    _known.clear()


def most_seconds(program: Hashable, compilation: float) -> float:
    """What its compilation has taken at most: a second run finds the program compiled."""
    _seconds[program] = max(compilation, _seconds.pop(program, 0.0))
    if len(_seconds) > _MOST_RUNS:
        _seconds.pop(next(iter(_seconds)))
    return _seconds[program]


@cache
def _quick_options() -> dict | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA without that option
        return None
    return _QUICK


# An array that is shared between devices, by what its leading axis counts: intervals of the level, or points of it, which are
# intervals of the next finer one. "reached" has intervals as its second axis. None: the same on every device.
_Kind = Literal["intervals", "points", "reached"] | None


def _spec(level: Level, kind: _Kind) -> PartitionSpec:
    if kind is None:
        return PartitionSpec()
    if kind == "reached":
        return PartitionSpec(None, *level.layout.spec)
    return (level.points if kind == "points" else level.layout).spec


# Programs with messages that may wait for each other: with more of them JAX 0.10 hangs on several CPU devices a process.
_IN_FLIGHT = 16
_dispatched = itertools.count()
# Of this thread: another one may be solving, too.
_record: ContextVar[list[tuple["_PerLevel", Level, tuple[int, ...]]] | None] = ContextVar("record", default=None)
_stopwatch: ContextVar[defaultdict[int, float] | None] = ContextVar("stopwatch", default=None)


@contextmanager
def _within(variable: ContextVar, value):
    before = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(before)


def recorded():
    """What is called within: (kernel, level, how often it does what it does) of each kernel of a level."""
    return _within(_record, [])


def timed():
    """Seconds by level of the kernels that are called within. Each is waited for."""
    return _within(_stopwatch, defaultdict(float))


class per_level:
    """`jax.jit` of `function(level, *arrays)`, where the level is static, on one device or on those that share the level.

    The arrays that are shared are named, and `out` says so of the results, a tuple of them if there are several.
    """

    def __init__(self, out: _Kind | tuple[_Kind, ...], **shared: _Kind):
        self._out: _Kind | tuple[_Kind, ...] = out
        self._shared = shared

    def __call__(self, function: Callable) -> "_PerLevel":
        return _PerLevel(function, self._out, self._shared)


class _PerLevel:
    def __init__(self, function: Callable, out: _Kind | tuple[_Kind, ...], shared: dict[str, _Kind]):
        self._function, self.name = function, function.__name__
        self._out: tuple[_Kind, ...] | _Kind = out
        self._kinds: list[_Kind] = [shared.get(name) for name in list(inspect.signature(function).parameters)[1:]]
        update_wrapper(self, function)
        # Profiles and logs call a program by the name of its function.
        self._program = update_wrapper(partial(self._placed), function)
        self._full = self._quick = kernel(self._program, static_argnums=0)

    def _placed(self, level: Level, *arrays):
        if level.layout.mesh is None:
            return self._function(level, *arrays)
        outs = self._out if isinstance(self._out, tuple) else (self._out,)
        specs = tuple(_spec(level, kind) for kind in outs)
        return jax.shard_map(
            partial(self._function, level),
            mesh=level.layout.mesh,
            in_specs=tuple(_spec(level, kind) for kind in self._kinds),
            out_specs=specs if isinstance(self._out, tuple) else specs[0],
            axis_names={AXIS},
            check_vma=False,
        )(*arrays)

    def _for(self, level: Level, arrays):
        # By the sizes of the whole level: which compiler serves must not depend on the number of devices.
        if level.index == 0 or _quick_options() is None or self._numbers(level, arrays) > _SMALL:
            return self._full
        if self._quick is self._full:
            self._quick = kernel(self._program, static_argnums=0, compiler_options=_QUICK)
        return self._quick

    def _numbers(self, level: Level, arrays) -> int:
        counts = {"intervals": level.num_intervals + 1, "points": level.size + 1, "reached": level.size}

        def size(kind, x):
            return x.size if kind is None else math.prod(x.shape[2 if kind == "reached" else 1 :]) * counts[kind]

        return sum(size(kind, x) for kind, each in zip(self._kinds, arrays, strict=True) for x in jax.tree.leaves(each))

    def __call__(self, level: Level, *arrays):
        if (record := _record.get()) is not None:
            counts = tuple(int(x) for x in arrays if isinstance(x, np.integer))
            record.append((self, level, counts))
            return self._full(level, *arrays)  # traced within another program, where compiler options cannot be given
        began = time.perf_counter()
        found = self._for(level, arrays)(level, *arrays)
        if (stopwatch := _stopwatch.get()) is not None:
            jax.block_until_ready(found)
            stopwatch[level.index] += time.perf_counter() - began
        if level.layout.mesh is not None and next(_dispatched) % _IN_FLIGHT == 0:
            jax.block_until_ready(found)
        return found

    def lower(self, level: Level, *arrays) -> jax.stages.Lowered:
        """For arrays and their shapes alike; the latter get the shardings that a call will see."""
        mesh = level.layout.mesh
        if mesh is not None:

            def placed(kind, x):
                if not isinstance(x, jax.ShapeDtypeStruct):
                    return x
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, _spec(level, kind)))

            arrays = [jax.tree.map(partial(placed, kind), each) for kind, each in zip(self._kinds, arrays, strict=True)]
        return self._for(level, arrays).lower(level, *arrays)
