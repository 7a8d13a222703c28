r"""Adam and its like as linear optimizers: the second moment is frozen, the first is linear in the gradients.

At frozen second moments v an update is $P m$, with m a recursion in the gradients that all elements share, and P diagonal.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._optimizer import update


def first_moment(optimizer: Any, second: PyTree) -> optax.GradientTransformation:
    """The optimizer with second moments of 1, to first order in gradients, moments and parameters, without its second moments.

    `second` marks them among the leaves of the optimizer's state.
    """
    flags, structure = jax.tree.flatten(second)
    return _first_moment(optimizer, tuple(flags), structure)


@lru_cache
def _first_moment(optimizer, flags, structure) -> optax.GradientTransformation:
    second = jax.tree.unflatten(structure, flags)

    def init(params):
        return jax.tree.map(lambda x, flag: None if flag else x, optimizer.init(params), second)

    def step(updates, state, params=None):
        like = jax.eval_shape(optimizer.init, params)
        ones = jax.tree.map(lambda x, flag: jnp.ones(x.shape, x.dtype) if flag else None, like, second)
        full = jax.tree.map(lambda x, one, own: one if x else own, second, ones, state, is_leaf=lambda x: x is None)
        return linearised(optimizer, second, full, updates, params)

    return optax.GradientTransformation(init, step)


def linearised(optimizer: Any, second: PyTree, opt_state: PyTree, gradient: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """(updates, state without second moments): linear in gradients, moments and parameters, at second moments as given."""
    leaves, structure = jax.tree.flatten(opt_state)
    flags = jax.tree.leaves(second)
    moving = [jnp.issubdtype(x.dtype, jnp.floating) and not flag for x, flag in zip(leaves, flags, strict=True)]

    def step(gradient, moments, params):
        moments = iter(moments)
        state = jax.tree.unflatten(structure, [next(moments) if moves else x for x, moves in zip(leaves, moving, strict=True)])
        return update(optimizer, gradient, state, params, jnp.zeros(()))

    moments = [x for x, moves in zip(leaves, moving, strict=True) if moves]
    given = gradient, moments, params
    (_, after), (updates, moved) = jax.jvp(step, jax.tree.map(jnp.zeros_like, given), given)
    after, moved = jax.tree.leaves(after), jax.tree.leaves(moved)
    new = [None if flag else y if moves else x for x, y, moves, flag in zip(after, moved, moving, flags, strict=True)]
    return updates, jax.tree.unflatten(structure, new)


def response(optimizer: Any, second: PyTree, opt_state: PyTree, params: PyTree) -> PyTree:
    """P: what a gradient does to each parameter at the state's second moments, in units of what it does where they are 1."""
    ones = jax.tree.map(jnp.ones_like, params)
    tiny = lambda x: jnp.maximum(x, jnp.finfo(x.dtype).tiny)
    here = jax.tree.map(lambda x, flag: tiny(x) if flag else x, opt_state, second)
    unit = jax.tree.map(lambda x, flag: jnp.ones_like(x) if flag else x, opt_state, second)
    own, wanted = (
        linearised(optimizer, second, state, ones, jax.tree.map(jnp.zeros_like, params))[0] for state in (here, unit)
    )
    return jax.tree.map(lambda x, y: x / jnp.where(y == 0, 1, y), own, wanted)
