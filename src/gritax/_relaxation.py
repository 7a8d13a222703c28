"""Relaxation: one interval between C-points is a loop, all intervals of a level are one batch.

On level l the equation of point k is `u[k] = Phi_l(u[k-1]) + g[k]`, with no `g` on the finest level. A level is held by
its C-points alone (`c`, leading axis `num_intervals + 1`). A *sweep* carries each of them through its interval and gives
the *arrivals* (`e`, leading axis `num_intervals`), the values that the equation wants at the next C-point. Hence
`e - c[1:]` is the residual, and a C-relaxation replaces `c[1:]` by `e`. Right-hand sides have the leading axis `size`.
All of these are in the stored form of `Evolution`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import kernel, per_level


Points = PyTree[Array]


@kernel
def arrived(c: Points) -> Points:
    """The C-points that intervals arrive at: all but the first."""
    return jax.tree.map(lambda x: x[1:], c)


@per_level
def relax_finest(level: Level, evolution: Evolution, c: Points, e: Points, sweeps: Array):
    """On the finest level, `sweeps` times {C-relaxation with the last arrivals, sweep}: `c`, `e` and the final state.

    To begin with an F-relaxation, pass `e = arrived(c)`: the C-relaxation then changes nothing. F-points are not kept; those
    after the last C-point are one more lane, of which the final state is. `sweeps` is traced: one kernel serves all.
    """
    lanes = level.num_intervals + (level.tail > 0)
    starts = _starts(level, lanes)

    def intervals(inputs, _):
        """(arrivals, the state after the tail if the last of these intervals is that)."""
        u, starts = inputs

        def step(j, carry):
            (u, clock), final = carry
            u, clock = _apply(level, evolution.advance, u, clock, starts + j)
            if level.tail:
                final = jax.tree.map(lambda f, x: jnp.where(j == level.tail - 1, x[-1], f), final, u)
            return (u, clock), final

        start = ((u, jax.vmap(evolution.clock)(starts)), jax.tree.map(lambda x: x[-1], u))
        (u, _), final = jax.lax.fori_loop(jnp.int32(0), jnp.int32(level.factor), step, start)
        return evolution.stored(u), final

    def sweep(c):
        u = evolution.natural(jax.tree.map(lambda x: x[:lanes], c))
        e, final = _together(intervals, level.lanes, ((u, starts), 0), (u, 0))
        last = evolution.natural(jax.tree.map(lambda x: x[-1], c))
        return jax.tree.map(lambda x: x[: level.num_intervals], e), final if level.tail else last

    def cycle(_, carry):
        c = _c_relax(carry[0], carry[1], level.weight)
        return c, *sweep(c)

    return jax.lax.fori_loop(jnp.int32(0), sweeps, cycle, (c, e, evolution.natural(jax.tree.map(lambda x: x[-1], c))))


@per_level
def relax_coarse(
    level: Level, evolution: Evolution, c: Points, g: Points, sweeps: Array, steps: Array, first: Array
) -> tuple[Points, Points, Points]:
    """On a coarse level, beginning with an F-relaxation, `sweeps` times {C-relaxation, sweep}: `c`, `e` and what was reached.

    That is the F-points, and arrivals where there is a C-point, as [point in its interval, interval]. A sweep goes from point
    `first` of each interval to point `steps`: 0 and `factor` for arrivals, one less for a plain F-relaxation.
    """
    lanes = level.num_intervals + (level.tail > 0)
    starts = _starts(level, lanes)
    g = jax.tree.map(partial(_by_interval, level, lanes), g)

    def intervals(inputs, reached):
        u, starts, g = inputs

        def step(j, carry):
            u, clock, reached = carry
            u, clock = _apply(level, evolution.advance_stored, u, clock, starts + j * level.stride)
            u = jax.tree.map(lambda x, y: x + jax.lax.dynamic_index_in_dim(y, j, 0, keepdims=False), u, g)
            return u, clock, jax.tree.map(lambda r, x: jax.lax.dynamic_update_index_in_dim(r, x, j, 0), reached, u)

        clock = jax.vmap(evolution.clock)(starts + first * level.stride)
        return jax.lax.fori_loop(first, steps, step, (u, clock, reached))[2], ()

    def sweep(c, reached):
        u = jax.tree.map(lambda x: x[:lanes], c)
        return _together(intervals, level.lanes, ((u, starts, g), (0, 0, 1)), (reached, 1))[0]

    def cycle(_, carry):
        c, reached = carry
        c = _c_relax(c, arrivals(reached), level.weight)
        return c, sweep(c, reached)

    def arrivals(reached):
        return jax.tree.map(lambda x: x[-1, : level.num_intervals], reached)

    reached = jax.tree.map(lambda x, y: jnp.zeros_like(y).at[-1, : level.num_intervals].set(x), arrived(c), g)
    c, reached = jax.lax.fori_loop(jnp.int32(0), sweeps, cycle, (c, reached))
    return c, arrivals(reached), reached


def _together(advance, most, inputs, outputs):
    """`(outputs, last) = advance(inputs, outputs)`, of at most `most` intervals at a time; `last` is that of the last ones.

    The axes that count intervals stand beside the values. A last batch that would be shorter takes some intervals again.
    """
    (values, axes), (found, axis) = inputs, outputs
    lanes = jax.tree.leaves(found)[0].shape[axis]
    if most is None or most >= lanes:
        return advance(values, found)
    axes = axes if isinstance(axes, tuple) else (axes,) * len(values)

    def batch(i, carry):
        found, _ = carry
        start = jnp.minimum(i * most, lanes - most)
        part = lambda axis: lambda x: jax.lax.dynamic_slice_in_dim(x, start, most, axis)
        new, last = advance(
            tuple(jax.tree.map(part(axis), x) for x, axis in zip(values, axes, strict=True)), jax.tree.map(part(axis), found)
        )
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis)
        return jax.tree.map(put, found, new), last

    last = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(advance, values, found)[1])
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(-(-lanes // most)), batch, (found, last))


def _starts(level, lanes):
    return jnp.arange(lanes, dtype=jnp.int32) * (level.factor * level.stride)


def _apply(level, advance, u, clock, starts):
    # Lanes past the end of the level repeat its last step; what they compute is not used.
    starts = jnp.minimum(starts, (level.size - 1) * level.stride)
    return jax.vmap(lambda u, clock, start: advance(u, clock, start, level.stride))(u, clock, starts)


def _c_relax(c, e, weight):
    def new(old, arrival):
        return arrival if weight == 1 else old + weight * (arrival - old)

    return jax.tree.map(lambda x, y: jnp.concatenate([x[:1], new(x[1:], y)]), c, e)


def _by_interval(level, lanes, x):
    """Values at the points 1, …, size as [point in its interval, interval]."""
    missing = lanes * level.factor - level.size
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)).reshape(lanes, level.factor, *x.shape[1:]).swapaxes(0, 1)


@per_level
def all_points(level: Level, c: Points, reached: Points) -> Points:
    """The points `0, …, size` of a coarse level from its C-points and the F-points in `reached`."""

    def interleave(c, reached):
        points = reached.at[-1, : level.num_intervals].set(c[1:]).swapaxes(0, 1)
        return jnp.concatenate([c[:1], points.reshape(-1, *c.shape[1:])[: level.size]])

    return jax.tree.map(interleave, c, reached)


@per_level
def march(level: Level, evolution: Evolution, c: Points, g: Points, first: Array) -> Points:
    """All points of the coarsest level, one after the other from point `first` in the state `c[0]`."""

    def step(k, carry):
        u, clock, points = carry
        u, clock = evolution.advance_stored(u, clock, k * level.stride, level.stride)
        u = jax.tree.map(lambda x, y: x + jax.lax.dynamic_index_in_dim(y, k, 0, keepdims=False), u, g)
        return u, clock, jax.tree.map(lambda p, x: jax.lax.dynamic_update_index_in_dim(p, x, k + 1, 0), points, u)

    u = jax.tree.map(lambda x: x[0], c)
    points = jax.tree.map(lambda x: jnp.broadcast_to(x, (level.size + 1, *x.shape)), u)
    return jax.lax.fori_loop(first, jnp.int32(level.size), step, (u, evolution.clock(first * level.stride), points))[2]


@partial(kernel, static_argnums=0)
def everywhere(num_points: int, u: PyTree[Array]) -> Points:
    """One state at so many points."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_points, *x.shape)), u)


@kernel
def first_arrival(reached: Points) -> PyTree[Array]:
    """Of all that was reached, the state at the end of the first interval."""
    return jax.tree.map(lambda x: x[-1, 0], reached)


@kernel
def begun_with(points: Points, u0: PyTree[Array], c: Points, reached: Points, first: Array) -> Points:
    """The points of a level, with `u0` and the first interval in `reached`, from point `first` on in the state `c[0]`."""

    def begin(points, u0, c, reached):
        begun = jnp.concatenate([u0[None], reached[:-1, 0]]).at[first].set(c[0])
        return points.at[: len(begun)].set(begun)

    return jax.tree.map(begin, points, u0, c, reached)
