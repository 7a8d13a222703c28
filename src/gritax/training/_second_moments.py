"""Which leaves of an optimizer's state never turn negative."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree


# Enough for the inner optimizer of gradient accumulation to have its turn.
_TRIALS = 16


def nonnegative(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """For every leaf of `optimizer.init(params)`, whether it is floating point and no step makes it negative.

    Found by trial, so that no optimizer need be known: of the leaves that start non-negative and change, those that stay
    non-negative for random parameters and random gradients and for their opposites. What is odd in the gradient, a momentum,
    turns negative in one of the two; a mean of squares does in none.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    try:
        found = _found(optimizer, structure, shapes)
    except TypeError:  # an optimizer that is not hashable
        found = _found.__wrapped__(optimizer, structure, shapes)
    return jax.tree.unflatten(jax.tree.structure(jax.eval_shape(optimizer.init, params)), found)


@lru_cache
def _found(optimizer, structure, shapes) -> tuple[bool, ...]:
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, jax.tree.unflatten(structure, shapes)))
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in state):
        return (False,) * len(state)
    # The answer must be known while a kernel that depends on it is traced.
    with jax.ensure_compile_time_eval():
        return tuple(map(bool, np.asarray(_stay(optimizer, structure, shapes)())))


def _stay(optimizer, structure, shapes):
    def random(trial):
        key = jax.random.fold_in(jax.random.key(0), trial)
        keys = jax.random.split(key, len(shapes))
        leaves = [jax.random.normal(key, like.shape, like.dtype) for key, like in zip(keys, shapes, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def opposite(tree):
        return jax.tree.map(jnp.negative, tree)

    def holds(leaf):
        return jnp.all(leaf >= 0) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(False)

    def run(sign, params):
        def step(carry, trial):
            state, held, changed = carry
            before = jax.tree.leaves(state)
            gradient = jax.tree.map(lambda g: g * sign.astype(g.dtype), random(trial))
            extra = (
                {"value": jnp.ones((), shapes[0].dtype)} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
            )
            _, state = optimizer.update(gradient, state, params, **extra)
            after = jax.tree.leaves(state)
            changed |= jnp.stack([jnp.any(x != y) for x, y in zip(before, after, strict=True)])
            return (state, held & jnp.stack([holds(leaf) for leaf in after]), changed), None

        state = optimizer.init(params)
        held = jnp.stack([holds(leaf) for leaf in jax.tree.leaves(state)])
        _, held, changed = jax.lax.scan(step, (state, held, jnp.zeros_like(held)), jnp.arange(1, _TRIALS + 1))[0]
        return held & changed

    @jax.jit
    def both():
        params = random(0)
        return run(jnp.asarray(1.0), params) & run(jnp.asarray(-1.0), opposite(params))

    return both
