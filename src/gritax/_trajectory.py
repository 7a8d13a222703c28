"""What lies along the steps of a solve: losses and states, from its C-points by one sweep."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evolution import Evolution, optional
from ._hierarchy import Level
from ._kernel import kernel
from ._points import Points


@partial(kernel, static_argnums=0)
def losses(level: Level, evolution: Evolution, c: Points) -> Array:
    """`phi.loss_at(state, step)` of the states before each step, `level.size` of them."""
    loss_at = optional(evolution.phi, "loss_at")
    assert loss_at is not None, "asked of phi with losses only"

    def loss(u, clock, step):
        return loss_at(evolution.merge(u, clock), step)

    u, clock, steps = _lanes(level, evolution, c)
    like = jax.eval_shape(jax.vmap(loss), u, clock, steps)

    def record(found, step, before, after):
        u, clock = before
        return found.at[step].set(jax.vmap(loss)(u, clock, step), mode="drop")

    return _sweep(level, evolution, c, record, jnp.zeros(level.size, like.dtype))


def saved_states(level: Level, evolution: Evolution, c: Points, every: int) -> PyTree:
    """The states after the steps `every, 2 every, …`, stacked."""
    return evolution.merge(*_states(level, every, evolution, c))


@partial(kernel, static_argnums=(0, 1))
def _states(level: Level, every: int, evolution: Evolution, c: Points) -> tuple[PyTree[Array], PyTree[Array]]:
    count = level.size // every
    u, clock, _ = _lanes(level, evolution, c)

    def record(found, step, before, after):
        # What is not asked for goes past the end, and is dropped.
        index = jnp.where((step + 1) % every == 0, (step + 1) // every - 1, count)
        return jax.tree.map(lambda all_, one: all_.at[index].set(one, mode="drop"), found, after)

    return _sweep(level, evolution, c, record, jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), (u, clock)))


def _lanes(level, evolution, c):
    lanes = level.num_intervals + (level.tail > 0)
    starts = jnp.arange(lanes, dtype=jnp.int32) * level.factor
    return evolution.natural(jax.tree.map(lambda x: x[:lanes], c)), jax.vmap(evolution.clock)(starts), starts


def _sweep(level, evolution, c, record, found):
    """`found = record(found, step, (u, clock) before it, after it)` for all steps, those of all intervals at once."""
    u, clock, starts = _lanes(level, evolution, c)

    def step(j, carry):
        before, found = carry
        # Lanes past the end repeat the last step, and record it where it is dropped.
        run = jnp.minimum(starts + j, level.size - 1)
        after = jax.vmap(lambda state, start: evolution.advance(*state, start, 1))(before, run)
        return after, record(found, jnp.where(starts + j < level.size, run, level.size), before, after)

    return jax.lax.fori_loop(0, level.factor, step, ((u, clock), found))[1]
