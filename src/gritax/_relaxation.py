"""Relaxation: one interval between C-points is a loop, all intervals of a level are one batch.

On level l the equation of point k is `u[k] = Phi_l(u[k-1]) + g[k]`, with no `g` on the finest level. A level is held by
its C-points alone (`c`, leading axis `num_intervals + 1`). A *sweep* carries each of them through its interval and gives
the *arrivals* (`e`, leading axis `num_intervals`), the values that the equation wants at the next C-point. Hence
`e - c[1:]` is the residual, and a C-relaxation replaces `c[1:]` by `e`. Right-hand sides `g` and what C-points lead to
(`reached`) have all points as [point in its interval, interval].
All of these are in the stored form of `Evolution`. On a mesh each device has the intervals that its `Layout` says, and these
axes are as long as that.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._points import Points, as_points


@per_level(("intervals", "intervals", None), c="intervals", e="intervals")
def relax_finest(level: Level, evolution: Evolution, c: Points, e: Points, sweeps: Array):
    """On the finest level, `sweeps` times {C-relaxation with the last arrivals, sweep}: `c`, `e` and the final state.

    To begin with an F-relaxation, pass `e = arrived(c)`: the C-relaxation then changes nothing. F-points are not kept; those
    after the last C-point are one more lane, of which the final state is. `sweeps` is traced: one kernel serves all.
    """
    starts, last = _starts(level), level.num_intervals

    def intervals(inputs, _, final):
        """(arrivals, the state after the tail if one of these intervals is that, else `final`)."""
        u, starts = inputs
        tail = jnp.argmax(starts == last * level.factor)

        def step(j, carry):
            (u, clock), final = carry
            u, clock = _apply(level, evolution, u, clock, starts + j)
            if level.tail:
                ends = (j == level.tail - 1) & (starts[tail] == last * level.factor)
                final = jax.tree.map(lambda f, x: jnp.where(ends, x[tail], f), final, u)
            return (u, clock), final

        start = ((u, jax.vmap(evolution.clock)(starts)), final)
        (u, _), final = jax.lax.fori_loop(jnp.int32(0), jnp.int32(level.factor), step, start)
        return evolution.stored(u), final

    def sweep(c):
        u = evolution.natural(jax.tree.map(lambda x: x[: level.num_lanes], c))
        final = jax.tree.map(lambda x: x[0], u)
        e, final = _together(intervals, level.lanes, ((u, starts), 0), (u, 0), final)
        return jax.tree.map(lambda x: x[: level.num_arrivals], e), final

    def cycle(_, carry):
        c = _c_relax(level, carry[0], carry[1])
        return c, *sweep(c)

    first = evolution.natural(jax.tree.map(lambda x: x[0], c))
    c, e, final = jax.lax.fori_loop(jnp.int32(0), sweeps, cycle, (c, e, first))
    if level.tail:
        return c, e, level.layout.from_lane(final, last)
    return c, e, evolution.natural(level.layout.at(c, last))


@per_level(("intervals", "intervals", "reached"), c="intervals", reached="reached", g="reached")
def relax_coarse(
    level: Level,
    evolution: Evolution,
    c: Points,
    reached: Points,
    g: Points,
    sweeps: Array,
    steps: Array,
    first: Array,
    exact: Array,
) -> tuple[Points, Points, Points]:
    """On a coarse level, beginning with an F-relaxation, `sweeps` times {C-relaxation, sweep}: `c`, `e` and what was `reached`.

    That is the F-points, and arrivals where there is a C-point. Given are in it the solution up to point `exact` of the level,
    and what C-points lead to up to point `first` of their intervals, from where the first sweep goes. Sweeps go to point
    `steps`: `factor` for arrivals, one less for a plain F-relaxation.
    """
    lanes = level.layout.index()[: level.num_lanes]

    def intervals(known, first, inputs, reached, _):
        u, lanes, g = inputs

        def step(j, carry):
            u, reached = carry
            wanted, points = stepped_from(level, lanes, j, known)

            def new(x, g, r):
                return jnp.where(jax.lax.expand_dims(wanted, range(1, x.ndim)), x + _at(g, j), _at(r, j))

            u = jax.tree.map(new, jax.vmap(partial(coarse_step, level, evolution))(u, points), g, reached)
            return u, jax.tree.map(lambda r, x: jax.lax.dynamic_update_index_in_dim(r, x, j, 0), reached, u)

        return jax.lax.fori_loop(first, steps, step, (u, reached))[1], ()

    def cycle(i, carry):
        c, reached = carry
        c = jax.tree.map(lambda x, y: jnp.where(i == 0, x, y), c, _c_relax(level, c, arrivals(reached)))
        begun, known = jnp.where(i == 0, first, 0), jnp.where(i == 0, exact, exact_points(level, exact, i))
        at = jnp.maximum(begun - 1, 0)
        u = jax.tree.map(lambda x, r: jnp.where(begun > 0, _at(r, at), x[: level.num_lanes]), c, reached)
        sweep = partial(intervals, known, begun)
        return c, _together(sweep, level.lanes, ((u, lanes, g), (0, 0, 1)), (reached, 1))[0]

    def arrivals(reached):
        return jax.tree.map(lambda x: x[-1, : level.num_arrivals], reached)

    c, reached = jax.lax.fori_loop(jnp.int32(0), sweeps, cycle, (c, reached))
    return c, arrivals(reached), reached


def exact_points(level: Level, exact: Any, sweeps: Any) -> Any:
    """Up to which point a level has the solution after so many sweeps, if its C-points before point `exact` had it."""
    xp = jnp if isinstance(exact, jax.Array) else np
    return (xp.maximum(exact - 1, 0) // level.factor + (sweeps if level.weight == 1 else 1)) * level.factor


def stepped_from(level: Level, lanes: Any, j: Any, known: Any) -> tuple[Any, Any]:
    """(in which lanes a step from point `j` of the interval leads beyond point `known`; the points that lanes step from).

    The other lanes, and those past the end of the level, repeat what is computed elsewhere: a coarse step may take the
    longer the earlier it is, and lanes wait for each other.
    """
    xp = jnp if isinstance(lanes, jax.Array) else np
    first = xp.maximum(-((j - known) // level.factor), 0)
    return lanes >= first, xp.minimum(xp.maximum(lanes, first) * level.factor + j, level.size - 1)


def coarse_step(level: Level, evolution: Evolution, u: PyTree[Array], point: Array) -> PyTree[Array]:
    """`Phi_l(u)` from this point of a coarse level."""
    start = point * level.stride
    return evolution.advance_stored(u, evolution.clock(start), start, level.stride)[0]


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _together(advance, most, inputs, outputs, final=()):
    """`(outputs, final) = advance(inputs, outputs, final)`, of at most `most` intervals at a time.

    The axes that count intervals stand beside the values. A last batch that would be shorter takes some intervals again.
    """
    (values, axes), (found, axis) = inputs, outputs
    lanes = jax.tree.leaves(found)[0].shape[axis]
    if most is None or most >= lanes:
        return advance(values, found, final)
    axes = axes if isinstance(axes, tuple) else (axes,) * len(values)

    def batch(i, carry):
        found, final = carry
        start = jnp.minimum(i * most, lanes - most)
        part = lambda axis: lambda x: jax.lax.dynamic_slice_in_dim(x, start, most, axis)
        given = tuple(jax.tree.map(part(axis), x) for x, axis in zip(values, axes, strict=True))
        new, final = advance(given, jax.tree.map(part(axis), found), final)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis)
        return jax.tree.map(put, found, new), final

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(-(-lanes // most)), batch, (found, final))


def _starts(level):
    return level.layout.index()[: level.num_lanes] * (level.factor * level.stride)


def _apply(level, evolution, u, clock, starts):
    # Lanes past the end of the level repeat its last step; what they compute is not used.
    starts = jnp.minimum(starts, level.size - 1)
    return jax.vmap(lambda u, clock, start: evolution.advance(u, clock, start, 1))(u, clock, starts)


def _c_relax(level, c, e):
    def new(old, arrival):
        return arrival if level.weight == 1 else old + level.weight * (arrival - old)

    return jax.tree.map(new, c, level.layout.arrivals(c, e))


@per_level("points", c="intervals", reached="reached", g="reached")
def march(level: Level, evolution: Evolution, c: Points, reached: Points, g: Points, first: Array) -> Points:
    """All points of the coarsest level, one after the other; those up to point `first` are in `reached`, or `c[0]`."""

    def step(k, carry):
        u, points = carry
        u = jax.tree.map(lambda x, y: x + _at(y, k)[0], coarse_step(level, evolution, u, k), g)
        return u, jax.tree.map(lambda p, x: jax.lax.dynamic_update_index_in_dim(p, x, k + 1, 0), points, u)

    points = jax.tree.map(lambda x, r: jnp.concatenate([x[:1], r[:, 0]]), c, reached)
    u = jax.tree.map(lambda p: _at(p, first), points)
    return as_points(level, jax.lax.fori_loop(first, jnp.int32(level.size), step, (u, points))[1])
