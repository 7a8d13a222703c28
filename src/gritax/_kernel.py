"""Compiled kernels: one for each level, which has its own stride and shapes, and no more of them than a process can hold."""

from collections.abc import Callable, Hashable
from functools import cache, update_wrapper
from typing import Any

import jax

from ._hierarchy import Level


# A kernel on so few numbers costs more to compile than to run: XLA's older code generator takes half the time, and its code
# runs up to twice as long. Never on the finest level, whose arithmetic is that of the serial twin.
_SMALL = 2**15
_QUICK = {"xla_cpu_use_fusion_emitters": False}


# Every phi, and every number of steps, has programs of its own, a few hundred memory maps each. Linux allows 65,530, and XLA
# crashes beyond.
_MOST_RUNS = 16
_kernels: list = []
_known: set[Hashable] = set()


def kernel(function: Callable, **options) -> Any:
    """`jax.jit`, whose programs are forgotten when there are too many."""
    _kernels.append(jax.jit(function, **options))
    return _kernels[-1]


def make_room(run: Hashable) -> None:
    """Forgets the programs of all earlier runs once there are too many; those of `run` are about to be compiled."""
    if run in _known:
        return
    if len(_known) >= _MOST_RUNS:
        for each in _kernels:
            each.clear_cache()
        _known.clear()
    _known.add(run)


@cache
def _quick_options() -> dict | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA without that option
        return None
    return _QUICK


class per_level:
    """`jax.jit` of `function(level, *arrays)`, where the level is static."""

    def __init__(self, function: Callable):
        self._function = function
        self._full = self._quick = kernel(function, static_argnums=0)
        update_wrapper(self, function)

    def _for(self, level: Level, arrays):
        if level.index == 0 or _quick_options() is None or sum(x.size for x in jax.tree.leaves(arrays)) > _SMALL:
            return self._full
        if self._quick is self._full:
            self._quick = kernel(self._function, static_argnums=0, compiler_options=_QUICK)
        return self._quick

    def __call__(self, level: Level, *arrays):
        return self._for(level, arrays)(level, *arrays)

    def lower(self, level: Level, *arrays) -> jax.stages.Lowered:
        return self._for(level, arrays).lower(level, *arrays)
