"""How stiff training is for a coarse step that freezes its gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._kernel import kernel
from .._norms import norm
from .._static import Static, data_of
from ._replay import Replay
from ._slow import at_rest


SPAN = 64
_PRODUCTS = 12
_DRAIN = 256


def kappas_along(
    step: Any, states: PyTree, starts: np.ndarray, num_steps: int, chunk: int | None
) -> tuple[np.ndarray, int, int]:
    """`largest_kappas` with as many minibatches as there are, of a run of `num_steps`."""
    span = min(SPAN, max(num_steps // 2, 1))
    # Twice the span of data is looked at, all of it that of steps that there are.
    return largest_kappas(step, states, np.clip(starts, 0, max(num_steps - 2 * span, 0)), span, chunk)


def largest_kappas(
    step: Any, states: PyTree, starts: Array | np.ndarray, span: int, chunk: int | None
) -> tuple[np.ndarray, int, int]:
    r"""($\kappa$ of one training step at each of the states, stacked; depth spent; work spent).

    $\kappa$ is the largest eigenvalue of $P H$: $H$ the mean curvature of the loss over the minibatches of `span` steps, $P$
    what the optimizer makes of a gradient in the long run: learning rate over $1 - \beta$ for heavy ball, learning rate over
    the root of the second moment for Adam. Frozen gradients of R steps are an explicit Euler step of length $R \kappa$.

    By power iteration with the frozen-gradient step itself, so no optimizer need be known. After the `span` gradients it takes
    a few hundred steps without any, in which momentum spends what it holds.
    """
    both = step, states
    found = np.asarray(_power_iteration(data_of(both), jnp.asarray(starts), Static(both), span, chunk)) / span
    evaluations = 2 + _PRODUCTS
    return found, evaluations, evaluations * span * len(found)


@partial(kernel, static_argnums=(2, 3, 4))
def _power_iteration(data, starts, static, span, chunk):
    step, states = static.with_data(data)
    arrays, constants = eqx.partition(states, eqx.is_array)

    def at(arrays, start):
        product, params = operator(step, eqx.combine(arrays, constants), start, span, chunk)

        def next_product(v, _):
            size = norm(v)
            v = product(jax.tree.map(lambda x: x / jnp.where(size > 0, size, 1).astype(x.dtype), v))
            return v, norm(v)

        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        first = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.lax.scan(next_product, jax.tree.unflatten(structure, first), length=_PRODUCTS)[1][-1]

    return jax.vmap(at)(arrays, starts)


def operator(step: Any, state: PyTree, start: Array, span: int, chunk: int | None) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """(v -> span P H v, the trainable parameters it is taken at), two evaluations, and one more for each product."""
    # Moments that are still empty would make any gradient look small; a few at these parameters fill them.
    state = state._replace(opt_state=_replayed(step, state, start, span, chunk).opt_state)
    params, others = step.split(state.params)

    def moved(params):
        after = _replayed(step, state._replace(params=eqx.combine(params, others)), start + span, span, chunk)
        return at_rest(step, after, _DRAIN)

    here = moved(params)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))
    # By differences: an optimizer may have no derivative where a gradient is zero, as the root of Adam's moment.
    length = math.sqrt(eps) * (1 + norm(params))

    def product(v):
        there = moved(jax.tree.map(lambda x, y: x + length.astype(x.dtype) * y, params, v))
        return jax.tree.map(lambda x, y, z: x - (y - z) / length.astype(x.dtype), v, there, here)

    return product, params


def _replayed(step, state, start, span, chunk):
    return Replay(step, state, start, span, chunk)(step.split(state.params)[0])
