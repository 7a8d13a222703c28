"""Which leaves of an optimizer's state never turn negative."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._optimizer import found_once, update


logger = logging.getLogger("gritax")

_TRIALS = 16
# Where some leaf has not moved, for the inner optimizer of a gradient accumulation may wait for its turn.
_MORE_TRIALS = 256


@found_once
def nonnegative(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """For every leaf of `optimizer.init(params)`, whether it is floating point and no step makes it negative.

    Found by trial, so that no optimizer need be known: of the leaves that start non-negative and depend on gradients, those
    that stay non-negative for irregular parameters, gradients and losses and for their opposites. What is odd in the gradient,
    a momentum, turns negative in one of the two; a mean of squares does in none.
    """
    state = jax.eval_shape(optimizer.init, params)
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state)):
        return jax.tree.map(lambda _: False, state)
    try:
        stay, waits = _stay(optimizer, params, _TRIALS)
        found = _stay(optimizer, params, _MORE_TRIALS)[0] if waits else stay
    except Exception as error:  # one that cannot be mapped over trials: its steps are taken one after the other
        logger.debug("nothing is known of the optimizer's state", exc_info=error)
        found = [False] * jax.tree.structure(state).num_leaves
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _stay(optimizer, like, trials) -> tuple[tuple[bool, ...], bool]:
    """(which leaves stay non-negative, whether one has not moved that might)."""
    shapes, structure = jax.tree.flatten(like)

    def irregular(phase, trial):
        """Numbers of both signs that repeat nowhere: far less to compile than those of a generator."""
        trial = jnp.asarray(trial, phase.dtype)
        turns = phase + 2.3 * trial + 0.9 * trial**2
        leaf = lambda i, like: (
            jnp.sin(turns + 1.7 * i + 1.3 * jnp.arange(like.size, dtype=phase.dtype)).astype(like.dtype).reshape(like.shape)
        )
        return jax.tree.unflatten(structure, [leaf(i, like) for i, like in enumerate(shapes)])

    def signed(sign, tree):
        return jax.tree.map(lambda x: x * sign.astype(x.dtype), tree)

    def holds(leaf):
        return jnp.all(leaf >= 0) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(False)

    def run(phase, sign, first_trial):
        """(first leaves, whether each stays non-negative, its last value) for this sign of parameters, gradients and loss."""
        params = signed(sign, irregular(phase, 0))

        def step(carry, trial):
            state, held = carry
            _, state = update(optimizer, signed(sign, irregular(phase, trial)), state, params, sign.astype(shapes[0].dtype))
            return (state, held & jnp.stack([holds(leaf) for leaf in jax.tree.leaves(state)])), None

        first = optimizer.init(params)
        held = jnp.stack([holds(leaf) for leaf in jax.tree.leaves(first)])
        (state, held), _ = jax.lax.scan(step, (first, held), first_trial + jnp.arange(trials))
        return jax.tree.leaves(first), held, jax.tree.leaves(state)

    @jax.jit
    def all_runs(phase):
        # What does not depend on gradients, as a learning rate kept in the state, may yet change its sign: the third run.
        firsts, held, lasts = jax.vmap(run, (None, 0, 0))(phase, jnp.array([1.0, -1.0, 1.0]), jnp.array([1, 1, 1 + trials]))
        depends = jnp.stack([jnp.any(x[0] != x[2]) for x in lasts])
        moved = jnp.stack([jnp.any(x[0] != y[0]) for x, y in zip(firsts, lasts, strict=True)])
        held = held[0] & held[1]
        return held & depends, jnp.any(held & ~moved)

    # With an argument, so that it is one program also where it is asked for while another is traced.
    stay, waits = all_runs(jnp.asarray(0.4))
    return tuple(map(bool, np.asarray(stay))), bool(waits)
