"""The coarse problem of the full approximation scheme, and what comes back from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import kernel, per_level
from ._relaxation import Points


@per_level
def restrict(level: Level, evolution: Evolution, c: Points, e: Points) -> tuple[Points, Points]:
    """Right-hand side of `level` from the C-points `c` and arrivals `e` of the next finer one, and its own C-points.

    `g[k] = v[k] - Phi_l(v[k-1]) + r[k]` with `v = c` and `r = e - c[1:]`, that is `g[k] = e[k] - Phi_l(c[k-1])`:
    what the fine level says of an interval, less what the coarse step says of it.
    """
    starts = jnp.arange(level.size, dtype=jnp.int32) * level.stride

    def coarse(u, start):
        return evolution.advance_stored(u, evolution.clock(start), start, level.stride)[0]

    predicted = jax.vmap(coarse)(jax.tree.map(lambda x: x[: level.size], c), starts)
    return jax.tree.map(jnp.subtract, e, predicted), jax.tree.map(lambda x: x[:: level.factor], c)


@kernel
def keep_exact(c: Points, e: Points, front: Array) -> Points:
    """`c` after the correction, with the arrivals `e` up to C-point `front`, where they are serial training's states.

    The correction gives the same values there, to rounding, as long as the coarse propagators stay finite. Taking the arrivals
    makes finite termination hold whatever they do.
    """

    def keep(x, y):
        exact = jnp.arange(1, len(x), dtype=jnp.int32) <= front
        return x.at[1:].set(jnp.where(jax.lax.expand_dims(exact, range(1, x.ndim)), y, x[1:]))

    return jax.tree.map(keep, c, e)
