"""Clocks: the leaves of a state that are not floating point, and whose value depends on the step alone."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import kernel
from ._state import leaf_name


_BATCH = 65_536


def tabulate(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], finest: Level):
    """(`evolution` with its clocks tabulated at the C-points of the finest level, the clocks after the last step).

    A counter, `c[i] = c[0] + i (c[1] - c[0])`, is written down and then checked at all steps at once, since on an
    accelerator a sequential pass over the steps may cost as much as the training. Any other clock is advanced step by step.
    """
    if not jax.tree.leaves(clock):
        return evolution, clock
    if all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(clock)):
        table, last, is_counter = _count(evolution, floating, clock, finest)
        if is_counter:
            return evolution.with_clocks(table, finest.factor), last
    table, last = _march(evolution, floating, clock, finest)
    return evolution.with_clocks(table, finest.factor), last


def dependence(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]) -> str:
    """What is wrong with a clock that depends on floating leaves; "" if none does."""

    def next_clocks(floating, clock, start):
        return jax.tree.leaves(evolution.advance(floating, clock, start, 1)[1])

    jaxpr = jax.make_jaxpr(next_clocks)(floating, clock, jnp.int32(0)).jaxpr
    num_floating = len(jax.tree.leaves(floating))
    for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(clock)):
        _, used = dce_jaxpr(jaxpr, [i == index for i in range(len(jaxpr.outvars))])
        if any(used[:num_floating]):
            return (
                f"state: {leaf_name(path)} is not floating point, but phi computes it from floating leaves, or in a way (a "
                "custom derivative, a while loop) that cannot be told from that. Such a leaf must depend on the step alone (a "
                "counter, a random key): make it floating point, or keep it out of the state."
            )
    return ""


@partial(kernel, static_argnames="finest")
def _count(evolution, floating, clock, finest):
    _, after_one = evolution.advance(floating, clock, jnp.int32(0), 1)
    rate = jax.tree.map(jnp.subtract, after_one, clock)

    def at(step: Array):
        return jax.tree.map(lambda c, r: c + r * step.astype(c.dtype), clock, rate)

    def holds(step: Array):
        _, following = evolution.advance(floating, at(step), step, 1)
        same = jax.tree.map(lambda x, y: jnp.all(x == y), following, at(step + 1))
        return jnp.all(jnp.stack(jax.tree.leaves(same)))

    steps = jnp.arange(finest.size, dtype=jnp.int32)
    is_counter = jnp.all(jax.lax.map(holds, steps, batch_size=min(_BATCH, finest.size)))
    points = jnp.arange(finest.num_intervals + 1, dtype=jnp.int32) * finest.factor
    return jax.vmap(at)(points), at(jnp.int32(finest.size)), is_counter


@partial(kernel, static_argnames="finest")
def _march(evolution, floating, clock, finest):
    def advance(clock, start, num_steps):
        def step(j, clock):
            return evolution.advance(floating, clock, start + j, 1)[1]

        return jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_steps), step, clock)

    starts = jnp.arange(finest.num_intervals, dtype=jnp.int32) * finest.factor
    last, table = jax.lax.scan(lambda clock, start: (advance(clock, start, finest.factor), clock), clock, starts)
    table = jax.tree.map(lambda values, end: jnp.concatenate([values, end[None]]), table, last)
    return table, advance(last, jnp.int32(finest.size - finest.tail), finest.tail)
