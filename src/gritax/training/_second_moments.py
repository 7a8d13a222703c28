"""Which leaves of an optimizer's state never turn negative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._optimizer import found_once, update


_TRIALS = 16
# Where some leaf has not moved, for the inner optimizer of a gradient accumulation may wait for its turn.
_MORE_TRIALS = 256


@found_once
def nonnegative(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """For every leaf of `optimizer.init(params)`, whether it is floating point and no step makes it negative.

    Found by trial, so that no optimizer need be known: of the leaves that start non-negative and depend on gradients, those
    that stay non-negative for random parameters, gradients and losses and for their opposites. What is odd in the gradient, a
    momentum, turns negative in one of the two; a mean of squares does in none.
    """
    state = jax.eval_shape(optimizer.init, params)
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state)):
        return jax.tree.map(lambda _: False, state)
    stay, waits = _stay(optimizer, params, _TRIALS)
    found = _stay(optimizer, params, _MORE_TRIALS)[0] if waits else stay
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _stay(optimizer, like, trials) -> tuple[tuple[bool, ...], bool]:
    """(which leaves stay non-negative, whether one has not moved that might)."""

    shapes, structure = jax.tree.flatten(like)

    def random(trial):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), len(shapes))
        leaves = [jax.random.normal(key, like.shape, like.dtype) for key, like in zip(keys, shapes, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def holds(leaf):
        return jnp.all(leaf >= 0) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(False)

    def run(sign, params, first_trial):
        """(whether each leaf stays non-negative, its last value) for these signs of gradients and loss."""

        def step(carry, trial):
            state, held = carry
            gradient = jax.tree.map(lambda g: g * sign.astype(g.dtype), random(trial))
            _, state = update(optimizer, gradient, state, params, sign.astype(shapes[0].dtype))
            return (state, held & jnp.stack([holds(leaf) for leaf in jax.tree.leaves(state)])), None

        state = optimizer.init(params)
        held = jnp.stack([holds(leaf) for leaf in jax.tree.leaves(state)])
        (state, held), _ = jax.lax.scan(step, (state, held), first_trial + jnp.arange(trials))
        return held, jax.tree.leaves(state)

    @jax.jit
    def all_runs():
        params = random(0)
        held, last = run(jnp.asarray(1.0), params, 1)
        opposite, _ = run(jnp.asarray(-1.0), jax.tree.map(jnp.negative, params), 1)
        # What does not depend on gradients, as a learning rate kept in the state, may yet change its sign.
        _, other = run(jnp.asarray(1.0), params, 1 + trials)
        depends = jnp.stack([jnp.any(x != y) for x, y in zip(last, other, strict=True)])
        moved = jnp.stack([jnp.any(x != y) for x, y in zip(jax.tree.leaves(optimizer.init(params)), last, strict=True)])
        return held & opposite & depends, jnp.any(held & ~moved)

    stay, waits = all_runs()
    return tuple(map(bool, np.asarray(stay))), bool(waits)
