r"""Newton's correction of a window, and the guess for the steps that enter it, by the recurrence of each mode of the model.

For the residuals $r_{i+1} = \Phi_i(w_i) - w_{i+1}$ the correction solves $\delta_{i+1} = A_i \delta_i + r_{i+1}$,
$\delta_0 = 0$. In a direction of the model, $A_i$ is the k x k matrix $T_i + h A_i e_0^T$ of the optimizer; in all others
it is taken as 1, and the correction is a cumulative sum.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ._curvature import Curvature
from ._prefix import cumulated, recurrence
from ._response import Response


def correction(residuals: Array, model: Curvature, response: Response, kept: Array | None = None) -> Array:
    """delta after each step [steps, P], from the residuals of the steps, zero where there are none."""
    v, d = model.directions, response.units
    forcing = residuals @ (v / d[:, None])
    modes = recurrence(response.transfer, response.gain, model.values, forcing)
    off = modes - cumulated(forcing)
    return cumulated(residuals, kept) + (off @ v.T) * d[None]


def continued(last: Array, steps: Array, gradient: Array, at: Array, model: Curvature, response: Response, row: Array) -> Array:
    """The states so many `steps` after `last`, that of a `row`, for the mean `gradient` of steps whose mean state is `at`.

    `x <- x - s D (gradient + d^-1 V diag(h) V^T (x - at) / d)` in closed form, with what the optimizer makes of a gradient that
    stays, s.
    """
    v, d, h = model.directions, response.units, model.values
    s = response.stays(row)
    slope = d * gradient
    in_modes = slope @ v + h * (((last - at) / d) @ v)
    turned = jnp.minimum(s * h, 0.9)
    n = steps.astype(v.dtype)[:, None]
    curved = jnp.where(h > 0, jnp.expm1(n * jnp.log1p(-turned)[None]) / jnp.where(h > 0, h, 1)[None], 0)
    off = curved * in_modes[None] + s * n * jnp.where(h > 0, slope @ v, 0)[None]
    return last[None] + d[None] * (off @ v.T - s * n * slope[None])
