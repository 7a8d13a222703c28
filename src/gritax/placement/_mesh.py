"""The devices of a run."""

import jax
import numpy as np
from jax.sharding import Mesh

from .._layout import AXIS


def mesh() -> Mesh | None:
    """All devices of all processes along the axis `time`, for `gritax.solve`; None where there is only one.

    >>> import gritax
    >>> mesh = gritax.placement.mesh()
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000, mesh=mesh)
    >>> solution.iterations
    5
    """
    devices = jax.devices()
    return Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None
