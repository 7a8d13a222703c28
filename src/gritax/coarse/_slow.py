r"""The slow variable of an optimizer: where its parameters come to rest if no more gradients come.

For heavy ball $z = w - \alpha \beta / (1 - \beta) v$, which obeys $z_{k+1} = z_k - \alpha / (1 - \beta) \, g_k$ exactly.
"""

import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._optimizer import found_once
from ._linear import replay


logger = logging.getLogger("gritax")

_IMPULSE_STEPS = 1024


@found_once
def memory(optimizer: optax.GradientTransformation, params: PyTree) -> int:
    """After how many steps a gradient has had 95 percent of its effect on the parameters."""
    try:
        return _lasting(optimizer, jax.tree.map(lambda x: jnp.ones((1,) * x.ndim, x.dtype), params))
    except Exception as error:  # masks and labels that go by shape, say
        logger.debug("not an optimizer of single numbers", exc_info=error)
        return _lasting(optimizer, jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params))


def _lasting(optimizer, ones):
    @jax.jit
    def run(ones):
        zeros = jax.tree.map(jnp.zeros_like, ones)

        def step(carry, index):
            gradient = jax.tree.map(lambda x: jnp.where(index == 0, x, jnp.zeros_like(x)), ones)
            params, state = carry
            carry = replay(optimizer, params, state, jax.tree.map(lambda x: x[None], gradient))
            return carry, jnp.max(jnp.stack([jnp.max(jnp.abs(x.astype(jnp.float32))) for x in jax.tree.leaves(carry[0])]))

        return jax.lax.scan(step, (zeros, optimizer.init(zeros)), jnp.arange(_IMPULSE_STEPS))[1]

    # With an argument, so that it is one program also where it is asked for while another is traced.
    moved = np.asarray(run(ones))
    return int(np.argmax(moved >= 0.95 * np.max(moved))) + 1


def at_rest(step: Any, state: PyTree, num_steps: int) -> PyTree:
    """The trainable parameters of `state` after so many steps with gradients of zero."""
    nothing = jax.tree.map(jnp.zeros_like, step.split(state.params)[0])
    arrays, constants = eqx.partition(state, eqx.is_array)

    def idle(arrays, _):
        state = eqx.combine(arrays, constants)
        return eqx.filter(step.apply(state, nothing, jnp.zeros(()), state.stats), eqx.is_array), None

    return step.split(eqx.combine(jax.lax.scan(idle, arrays, length=num_steps)[0], constants).params)[0]
