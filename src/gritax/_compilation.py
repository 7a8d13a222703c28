"""Compilation ahead of the first iteration: all kernels of a solve at once, on all cores.

Each level has its own stride and its own shapes, hence its own kernels, and XLA compiles one on little more than one
core. A kernel that was lowered and compiled for the right shapes is found again when it is called.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ._correction import keep_exact, restrict
from ._cycle import Cycle, from_nothing
from ._norms import measure, residual_norm
from ._relaxation import all_points, arrived, begun_with, everywhere, first_arrival, march, relax_coarse, relax_finest


def compile_ahead(cycle: Cycle, u0: PyTree[Array]) -> None:
    """Compiles what an iteration calls, for states like `u0`."""

    def points(*shape):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype), u0)

    evolution, count = cycle.evolution, np.int32(1)
    finest, *coarser = cycle.hierarchy.levels
    c, e = points(finest.num_intervals + 1), points(finest.num_intervals)
    kernels = [
        (relax_finest, (finest, evolution, c, e, count)),
        (measure, (finest, evolution, c, e, u0, u0, u0)),
        (residual_norm, (c, e)),
        (arrived, (c,)),
        (from_nothing, (cycle.hierarchy, u0)),
        (keep_exact, (c, e, count)),
    ]
    for level in coarser:
        g, c = points(level.size), points(level.num_intervals + 1)
        kernels.append((restrict, (level, evolution, points(level.size + 1), g)))
        if level is cycle.hierarchy[-1]:
            kernels.append((march, (level, evolution, c, g, count)))
            kernels.append((everywhere, (2, u0)))
        else:
            lanes = level.num_intervals + (level.tail > 0)
            reached = points(level.factor, lanes)
            kernels += [
                (relax_coarse, (level, evolution, c, g, count, count, count)),
                (all_points, (level, c, reached)),
                (everywhere, (level.num_intervals + 1, u0)),
                (first_arrival, (reached,)),
                (begun_with, (points(level.size + 1), u0, c, reached, count)),
            ]
    # Tracing stays in this thread: JAX's settings, such as a default device, may be those of a thread.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for compiled in [pool.submit(kernel.lower(*arguments).compile) for kernel, arguments in kernels]:
            compiled.result()
