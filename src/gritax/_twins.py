"""A twin of an evolution whose first state is changed a little, and how far it is from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._norms import norm
from ._points import Points
from ._sensitivity import irregular


ROUNDINGS = 2**10


def small_change(evolution: Evolution, first: PyTree[Array], last: PyTree[Array]) -> PyTree[Array]:
    """A change of a state, as stored, of 2^10 roundings of what is trained: irregular, along what has moved between two."""
    change = irregular(evolution, first, last)
    size, length = norm(evolution.trained(last)), norm(change)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(evolution.trained(evolution.natural(last))))
    share = ROUNDINGS * eps * jnp.where(length > 0, size / jnp.where(length > 0, length, 1), 0)
    return jax.tree.map(lambda x: share.astype(x.dtype) * x, change)


@per_level("intervals", c="intervals", values="intervals")
def change_first(level: Level, evolution: Evolution, c: Points, values: Points) -> Points:
    """`values`, of C-points or arrivals, with a small change of the first of them."""
    change = small_change(evolution, level.layout.at(c, 0), level.layout.at(c, level.num_intervals))

    def begin(x, change):
        is_first = level.layout.index()[: len(x)] == 0
        return jnp.where(jax.lax.expand_dims(is_first, range(1, x.ndim)), x + change[None], x)

    return jax.tree.map(begin, values, change)


@per_level((None, None, None), c="intervals", twin="intervals")
def lengths(level: Level, evolution: Evolution, c: Points, twin: Points) -> tuple[Array, Array, Array]:
    """(distance between the two at each C-point, size of the state there, distance of the last one from the first)."""

    def params(stored, point):
        return evolution.solved_for(evolution.natural(stored), evolution.clock(point * level.factor))

    def apart(x, y):
        return norm(jax.tree.map(jnp.subtract, x, y))

    points = jnp.minimum(level.layout.index(), level.num_intervals)
    between = jax.vmap(lambda x, y, k: apart(params(x, k), params(y, k)))(c, twin, points)
    sizes = jax.vmap(lambda x, k: norm(params(x, k)))(c, points)
    first, last = (params(level.layout.at(c, k), jnp.int32(k)) for k in (0, level.num_intervals))
    return *level.layout.collected((between, sizes)), apart(last, first)
