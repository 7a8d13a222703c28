"""Compilation ahead of the first iteration: all kernels of a solve at once, on all cores.

Each level has its own stride and its own shapes, hence its own kernels, and XLA compiles one on little more than one
core. A kernel that was lowered and compiled for the right shapes is found again when it is called.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ._correction import keep_exact, restrict
from ._cycle import Cycle
from ._norms import measure, residual_norm
from ._points import all_points, arrival, arrived, begun_with, everywhere, interval_points, uniform
from ._relaxation import march, relax_coarse, relax_finest
from ._twins import change_first, lengths


def compile_ahead(cycle: Cycle, u0: PyTree[Array]) -> None:
    """Compiles what an iteration calls, for states like `u0`."""
    # Tracing stays in this thread: JAX's settings, such as a default device, may be those of a thread.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for compiled in [pool.submit(kernel.lower(*arguments).compile) for kernel, arguments in kernels_of(cycle, u0)]:
            compiled.result()


def kernels_of(cycle: Cycle, u0: PyTree[Array]) -> list[tuple[Any, tuple]]:
    """The kernels of an iteration, each with its arguments, as shapes where these are states at many points."""

    evolution, count = cycle.evolution, np.int32(1)
    state = jax.eval_shape(evolution.stored, u0)

    def points(*shape):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype), state)

    finest, *coarser = cycle.hierarchy.levels
    c, e = points(finest.layout.total), points(finest.layout.lanes(finest.num_intervals))
    kernels = [
        (relax_finest, (finest, evolution, c, e, count)),
        (measure, (finest, evolution, c, e, u0, u0, u0)),
        (residual_norm, (finest, c, e)),
        (arrived, (finest, c)),
        (uniform, (finest, state, state)),
        (arrival, (finest, e, count)),
        (keep_exact, (finest, c, c, e, count)),
        (change_first, (finest, evolution, c, e if coarser else c)),
        (lengths, (finest, evolution, c, c)),
    ]
    for level in coarser:
        c, arrivals = points(level.layout.total), points(level.points.lanes(level.size))
        kernels.append((restrict, (level, evolution, points(level.points.total), arrivals, count)))
        kernels.append((everywhere, (level, state)))
        reached = g = points(level.factor, level.layout.lanes(level.num_lanes))
        if level is cycle.hierarchy[-1]:
            kernels.append((march, (level, evolution, c, reached, g, count)))
        else:
            kernels += [
                (relax_coarse, (level, evolution, c, reached, g, count, count, count, count)),
                (all_points, (level, c, reached)),
                (interval_points, (level, state, reached, count, count)),
                (begun_with, (level, points(level.points.total), points(level.factor), count, count)),
            ]
    return kernels
