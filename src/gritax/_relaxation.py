"""Relaxation: one interval between C-points is a scan, all intervals of a level are one batch.

On level l the equation of point k is `u[k] = Phi_l(u[k-1]) + g[k]`, with no `g` on the finest level. A level is held by
its C-points alone (`c`, leading axis `num_intervals + 1`); a *sweep* carries each of them through its interval and gives
the *arrivals* (`e`, leading axis `num_intervals`), the values that the equation wants at the next C-point. Hence
`e - c[1:]` is the residual, and a C-relaxation replaces `c[1:]` by `e`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level


Points = PyTree[Array]


def arrived(c: Points) -> Points:
    """The C-points that intervals arrive at: all but the first."""
    return jax.tree.map(lambda x: x[1:], c)


@partial(jax.jit, static_argnames=("level", "weight"))
def relax(evolution: Evolution, level: Level, c: Points, e: Points, g: Points | None, sweeps: Array, weight: float = 1.0):
    """`sweeps` times {C-relaxation with the last arrivals, sweep}; gives `c`, `e` and, on level 0, the final state.

    To begin with an F-relaxation, pass `e = arrived(c)`: the C-relaxation then changes nothing.
    `sweeps` is traced, so that one compiled kernel serves all calls on a level.
    """

    def cycle(_, carry):
        c, e, _ = carry
        c = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], _weighted(x[1:], y, weight)]), c, e)
        return c, *_sweep(evolution, level, c, g)

    return jax.lax.fori_loop(0, sweeps, cycle, (c, e, jax.tree.map(lambda x: x[-1], c)))


def _weighted(old, new, weight):
    return new if weight == 1 else old + weight * (new - old)


def _sweep(evolution, level, c, g):
    """(arrivals, final state): each interval from its C-point, the F-points after the last C-point as one more lane."""
    lanes = level.num_intervals + (level.stride == 1 and level.tail > 0)
    u = jax.tree.map(lambda x: x[:lanes], c)
    final = jax.tree.map(lambda x: x[-1], c)
    starts = jnp.arange(lanes, dtype=jnp.int32) * (level.factor * level.stride)

    def step(carry, inputs):
        (u, clock), final = carry
        j, g_j = inputs
        u, clock = _apply(evolution, level, u, clock, starts + j * level.stride, g_j)
        if lanes > level.num_intervals:
            final = jax.tree.map(lambda f, x: jnp.where(j == level.tail - 1, x[-1], f), final, u)
        return ((u, clock), final), None

    steps = jnp.arange(level.factor, dtype=jnp.int32)
    start = ((u, jax.vmap(evolution.clock)(starts)), final)
    ((u, _), final), _ = jax.lax.scan(step, start, (steps, _by_step(level, g, level.num_intervals)))
    return jax.tree.map(lambda x: x[: level.num_intervals], u), final


def _apply(evolution, level, u, clock, starts, g):
    # Lanes past the end of the level repeat its last step; what they compute is cut off.
    starts = jnp.minimum(starts, (level.size - 1) * level.stride)
    u, clock = jax.vmap(lambda u, clock, start: evolution.advance(u, clock, start, level.stride))(u, clock, starts)
    return u if g is None else jax.tree.map(jnp.add, u, g), clock


def _by_step(level, g, lanes):
    """g of every point but the first, as [step in the interval, interval]."""

    def arrange(x):
        missing = lanes * level.factor - level.size
        x = jnp.pad(x, [(0, max(missing, 0))] + [(0, 0)] * (x.ndim - 1))[: lanes * level.factor]
        return jnp.swapaxes(x.reshape(lanes, level.factor, *x.shape[1:]), 0, 1)

    return None if g is None else jax.tree.map(arrange, g)


@partial(jax.jit, static_argnames="level")
def fill(evolution: Evolution, level: Level, c: Points, g: Points) -> Points:
    """F-relaxation: all points `0, …, size` of a coarse level from its C-points."""
    lanes = level.num_intervals + (level.tail > 0)
    starts = jnp.arange(lanes, dtype=jnp.int32) * (level.factor * level.stride)
    u = jax.tree.map(lambda x: x[:lanes], c)

    def step(carry, inputs):
        j, g_j = inputs
        carry = _apply(evolution, level, *carry, starts + j * level.stride, g_j)
        return carry, carry[0]

    steps = jnp.arange(level.factor - 1, dtype=jnp.int32)
    g = jax.tree.map(lambda x: x[: level.factor - 1], _by_step(level, g, lanes))
    _, f_points = jax.lax.scan(step, (u, jax.vmap(evolution.clock)(starts)), (steps, g))

    def interleave(first, f_points, c):
        points = jnp.concatenate([first[None], f_points]).swapaxes(0, 1)
        points = points.reshape(lanes * level.factor, *first.shape[1:])
        return jnp.concatenate([points, c[-1:]])[: level.size + 1]

    return jax.tree.map(interleave, u, f_points, c)


@partial(jax.jit, static_argnames="level")
def march(evolution: Evolution, level: Level, u: PyTree[Array], g: Points) -> Points:
    """All points of the coarsest level, one after the other from its first point `u`."""

    def step(carry, inputs):
        start, g_k = inputs
        floating, clock = evolution.advance(*carry, start, level.stride)
        floating = jax.tree.map(jnp.add, floating, g_k)
        return (floating, clock), floating

    starts = jnp.arange(level.size, dtype=jnp.int32) * level.stride
    _, points = jax.lax.scan(step, (u, evolution.clock(starts[0])), (starts, g))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), u, points)
