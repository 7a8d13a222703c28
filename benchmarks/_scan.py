"""The serial rival: a jitted `lax.scan` over the training steps, the order of the examples known, compiled as is fastest."""

import itertools
import math

import jax
import numpy as np
from _measuring import seconds


UNROLLED = (1, 8)
FEW = 4096
# On a GPU the whole loop may be one graph of kernels, which the driver then takes through without the processor.
IN_ONE_GRAPH = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
}
OPTIONS: dict[str, tuple[dict[str, str], ...]] = {"gpu": ({}, IN_ONE_GRAPH)}


def scan(step, state, steps, unroll, options=None):
    """So many calls of `step(state, i, 1)` as a function without arguments, compiled."""
    run = jax.jit(lambda state, at: jax.lax.scan(lambda state, i: (step(state, i, 1), None), state, at, unroll=unroll)[0])
    at = np.arange(steps, dtype=np.int32)
    run = run.lower(state, at).compile(compiler_options=options)
    return lambda: jax.block_until_ready(run(state, at))


def fastest(step, state, steps):
    """(the scan of a prepared step, how it is compiled): as is fastest on a few steps; what cannot run is left out."""
    (device,) = jax.tree.leaves(state)[0].devices()

    def taken(how):
        try:
            run = scan(step, state, min(steps, FEW), *how)
            run()
        except jax.errors.JaxRuntimeError:
            return math.inf
        return min(seconds(run) for _ in range(3))

    unroll, options = min(itertools.product(UNROLLED, OPTIONS.get(device.platform, ({},))), key=taken)
    words = f"unrolled by {unroll}" + (", in one graph" if options else "")
    return scan(step, state, steps, unroll, options), words
