"""The points of a level, put where they are wanted: no step is taken here. Forms as in `_relaxation`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._hierarchy import Level
from ._kernel import per_level


Points = PyTree[Array]


@per_level("intervals", c="intervals")
def arrived(level: Level, c: Points) -> Points:
    """The C-points that intervals arrive at: all but the first."""
    return jax.tree.map(lambda x: x[1:], c)


def by_interval(level: Level, x: Array) -> Array:
    """Values at the points 1, …, size as [point in its interval, interval]."""
    missing = level.num_lanes * level.factor - len(x)
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(level.num_lanes, level.factor, *x.shape[1:]).swapaxes(0, 1)


@per_level("points", c="intervals", reached="reached")
def all_points(level: Level, c: Points, reached: Points) -> Points:
    """The points `0, …, size` of a coarse level from its C-points and the F-points in `reached`."""

    def interleave(c, reached):
        begun = jnp.concatenate([c[None, : level.num_lanes], reached[:-1]]).swapaxes(0, 1)
        return jnp.concatenate([begun.reshape(level.num_lanes * level.factor, *c.shape[1:]), c[level.num_lanes :]])

    return as_points(level, jax.tree.map(interleave, c, reached))


def as_points(level: Level, x: Array) -> Array:
    """What a device holds of the points of a level, from those of the intervals of its group."""
    if (level.layout.group == level.points.group and level.layout.is_shared) or not level.points.is_shared:
        return jax.tree.map(lambda x: x[: level.points.here], x)
    return level.points.own(x, level.layout.first() * level.factor)


@per_level(("intervals", "reached", "reached"))
def everywhere(level: Level, u: PyTree[Array]) -> tuple[Points, Points, Points]:
    """One state at all C-points, the same reached from them, and right-hand sides of zero."""

    def at_all(*shape):
        return lambda x: jnp.broadcast_to(x, (*shape, *x.shape))

    reached = jax.tree.map(at_all(level.factor, level.num_lanes), u)
    return jax.tree.map(at_all(level.layout.here), u), reached, jax.tree.map(jnp.zeros_like, reached)


@per_level("intervals")
def uniform(level: Level, u0: PyTree[Array], u: PyTree[Array]) -> Points:
    """One state at all C-points but the first."""

    def fill(first, other):
        is_first = jax.lax.expand_dims(level.layout.index() == 0, range(1, other.ndim + 1))
        return jnp.where(is_first, first[None], other[None])

    return jax.tree.map(fill, u0, u)


@per_level(None, e="intervals")
def arrival(level: Level, e: Points, interval: Array) -> PyTree[Array]:
    """What this interval, by number, arrives at."""
    place = jnp.maximum(interval - level.layout.first(), 0)
    return level.layout.from_lane(jax.tree.map(lambda x: x[jnp.minimum(place, len(x) - 1)], e), interval)


@per_level(None, reached="reached")
def interval_points(
    level: Level, begun: PyTree[Array], reached: Points, interval: Array, first: Array
) -> tuple[Points, PyTree[Array]]:
    """(the points of this interval, by number, from its point `first` on in the state `begun`; what it arrives at)."""
    place = interval - level.layout.first()

    def taken(begun, reached):
        lane = reached[:, jnp.clip(place, 0, reached.shape[1] - 1)]
        return jnp.concatenate([begun[None], lane]).at[first].set(begun)

    points = level.layout.from_lane(jax.tree.map(taken, begun, reached), interval)
    return jax.tree.map(lambda x: x[:-1], points), jax.tree.map(lambda x: x[-1], points)


@per_level("points", points="points")
def begun_with(level: Level, points: Points, known: Points, interval: Array, first: Array) -> Points:
    """The points of a level with those `known` of this interval, by number, from its point `first` on."""
    place = level.points.index() - interval * level.factor

    def begin(points, known):
        is_known = jax.lax.expand_dims((place >= first) & (place < level.factor), range(1, points.ndim))
        return jnp.where(is_known, known[jnp.clip(place, 0, level.factor - 1)], points)

    return jax.tree.map(begin, points, known)


@per_level(None, c="intervals")
def states_at(level: Level, c: Points, points: Array) -> PyTree[Array]:
    """The states at these C-points, by number."""
    return level.layout.at(c, points)


@per_level(None, c="intervals")
def collected(level: Level, c: Points) -> Points:
    """All C-points, on every device."""
    return level.layout.collected(c)
