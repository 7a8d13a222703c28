"""The evaluation of all steps in flight, in blocks of rows, which the devices of a mesh share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._layout import AXIS
from ._chain import Chain
from ._flight import Flight, Shape
from ._tangents import POINTS


def evaluated(chain: Chain, shape: Shape, flight: Flight) -> tuple[Array, Array, Array]:
    """(gradients, losses) of the live rows, and the gradients at the points of the tangents, which fill up the last block.

    A device takes each block whose number is its own modulo the devices, and the others' rows are the sums over all of them: so
    the shapes are the same on any number of devices, and with them the order in which XLA adds up.
    """
    live, tangents, put = flight.rows.live, flight.tangents, jax.lax.dynamic_update_slice_in_dim
    places = -(-(shape.capacity + POINTS) // shape.block) * shape.block
    steps = jnp.minimum(flight.front.taken + jnp.arange(places, dtype=jnp.int32), shape.num_steps - 1)
    x = jnp.pad(flight.rows.x, ((0, places - shape.capacity), (0, 0)))
    x, steps = put(x, tangents.points, live, 0), put(steps, tangents.starts, live, 0)
    device = jax.lax.axis_index(AXIS).astype(jnp.int32) if shape.devices > 1 else jnp.int32(0)
    blocks = (live + tangents.evaluated + shape.block - 1) // shape.block

    def one(j, found):
        gradients, values = found
        at = (j * shape.devices + device) * shape.block
        part = lambda rows: jax.lax.dynamic_slice_in_dim(rows, at, shape.block)
        g, v = jax.vmap(chain.evaluate)(part(x), part(steps))
        return put(gradients, g.astype(x.dtype), at, 0), put(values, v.astype(x.dtype), at, 0)

    nothing, own = (jnp.zeros_like(x), jnp.zeros(len(x), x.dtype)), (blocks - device + shape.devices - 1) // shape.devices
    gradients, values = jax.lax.fori_loop(0, own, one, nothing)
    if shape.devices > 1:
        gradients, values = jax.lax.psum((gradients, values), AXIS)
    at_points = jax.lax.dynamic_slice_in_dim(gradients, live, POINTS)
    is_live = jnp.arange(shape.capacity, dtype=jnp.int32) < live
    return jnp.where(is_live[:, None], gradients[: shape.capacity], 0), values[: shape.capacity], at_points
