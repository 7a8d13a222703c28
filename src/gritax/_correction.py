"""The coarse problem of the full approximation scheme, and what comes back from it."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._points import Points, by_interval
from ._relaxation import coarse_step


@per_level(("reached", "intervals", "reached"), c="points", e="points")
def restrict(level: Level, evolution: Evolution, c: Points, e: Points, exact: Array) -> tuple[Points, Points, Points]:
    """Right-hand side of `level` from the C-points `c` and arrivals `e` of the next finer one, its C-points, what they reach.

    `g[k] = v[k] - Phi_l(v[k-1]) + r[k]` with `v = c` and `r = e - c[1:]`, that is `g[k] = e[k] - Phi_l(c[k-1])`:
    what the fine level says of an interval, less what the coarse step says of it. So the first step from each C-point needs
    no evaluation: `Phi_l(c[k-1]) + g[k] = e[k]`. And up to point `exact`, to which relaxation has solved the finer level, the
    arrivals are the solution of this one, and right-hand sides are of no use.
    """
    steps = len(jax.tree.leaves(e)[0])
    points = jnp.clip(level.points.index()[:steps], exact, level.size - 1)
    predicted = jax.vmap(partial(coarse_step, level, evolution))(jax.tree.map(lambda x: x[:steps], c), points)
    g = jax.tree.map(jnp.subtract, e, predicted)
    group = level.layout.group if level.layout.is_shared else level.points.devices
    g, e = level.points.gathered((g, e), group, lanes=True)
    c = jax.tree.map(lambda x: x[:: level.factor][: level.layout.here], level.points.gathered(c, group))
    g, e = jax.tree.map(lambda x: by_interval(level, x[: level.num_steps]), (g, e))
    return g, c, e


@per_level("intervals", corrected="intervals", c="intervals", e="intervals")
def keep_exact(level: Level, corrected: Points, c: Points, e: Points, front: Array) -> Points:
    """`corrected`, but up to C-point `front` what relaxation, with `c` and arrivals `e`, had: serial training's states.

    The correction gives the same values there, to rounding, as long as the coarse propagators stay finite. Taking the arrivals
    makes finite termination hold whatever they do.
    """

    exact = level.layout.index() <= front

    def keep(x, y):
        return jnp.where(jax.lax.expand_dims(exact, range(1, x.ndim)), y, x)

    return jax.tree.map(keep, corrected, level.layout.arrivals(c, e))
