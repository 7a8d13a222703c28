"""The coarse problem of the full approximation scheme, and what comes back from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._relaxation import Points


@per_level(("steps", "intervals", "intervals"), c="points", e="points")
def restrict(level: Level, evolution: Evolution, c: Points, e: Points, first: Array) -> tuple[Points, Points, Points]:
    """Right-hand side of `level` from the C-points `c` and arrivals `e` of the next finer one, its C-points, begun intervals.

    `g[k] = v[k] - Phi_l(v[k-1]) + r[k]` with `v = c` and `r = e - c[1:]`, that is `g[k] = e[k] - Phi_l(c[k-1])`:
    what the fine level says of an interval, less what the coarse step says of it. So the first step from each C-point needs
    no evaluation: `Phi_l(c[k-1]) + g[k] = e[k]`. Intervals are begun with the arrivals at their point `first`: 1, or on a
    coarsest level one up to which all arrivals are right. The right-hand sides before it are of no use there.
    """
    steps = len(jax.tree.leaves(e)[0])
    starts = jnp.clip(level.points.index()[:steps], first - 1, level.size - 1) * level.stride

    def coarse(u, start):
        return evolution.advance_stored(u, evolution.clock(start), start, level.stride)[0]

    predicted = jax.vmap(coarse)(jax.tree.map(lambda x: x[:steps], c), starts)
    g = jax.tree.map(jnp.subtract, e, predicted)
    group = level.layout.group if level.layout.is_shared else level.points.devices
    g, e = level.points.gathered((g, e), group, lanes=True)
    c = jax.tree.map(lambda x: x[:: level.factor][: level.layout.here], level.points.gathered(c, group))
    reached = jnp.arange(level.num_lanes, dtype=jnp.int32) * level.factor + first - 1
    begun = jax.tree.map(lambda x, y: x.at[: level.num_lanes].set(y[jnp.minimum(reached, len(y) - 1)]), c, e)
    return jax.tree.map(lambda x: x[: level.num_steps], g), c, begun


@per_level("intervals", corrected="intervals", c="intervals", e="intervals")
def keep_exact(level: Level, corrected: Points, c: Points, e: Points, front: Array) -> Points:
    """`corrected`, but up to C-point `front` what relaxation, with `c` and arrivals `e`, had: the solution of the level.

    The correction gives the same values there, to rounding, where it gives any, as long as the coarse propagators stay finite.
    Taking the arrivals makes finite termination hold whatever they do.
    """

    exact = level.layout.index() <= front

    def keep(x, y):
        return jnp.where(jax.lax.expand_dims(exact, range(1, x.ndim)), y, x)

    return jax.tree.map(keep, corrected, level.layout.arrivals(c, e))
