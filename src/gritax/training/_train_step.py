"""A training step of a JAX user's loss, Optax optimizer and data, as a propagator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from ..coarse import CoarseStep, RescaledRate


class TrainState(NamedTuple):
    """What a training step changes."""

    params: PyTree
    opt_state: PyTree


class TrainStep(eqx.Module):
    r"""$w_{i+1} = w_i + \mathrm{update}(\nabla_w \mathrm{loss}(w_i, \mathrm{batch}(i)))$, as `phi(state, start, stride)`.

    A stride of 1 is the training step itself; a larger one is taken by `coarse`.

    **Arguments**

    - `loss`: `loss(params, batch) -> scalar`, a plain sum or mean; differentiated with respect to the floating arrays of
      `params`. Other leaves are carried along.
    - `optimizer`: an Optax transformation without state of its own, such as `optax.sgd(0.1)`. Optimizers with moments
      run, but `RescaledRate` is a poor coarse step for them.
    - `batch`: `batch(step) -> pytree`, the data of a step. Pure, and `step` may be traced: index arrays, fold keys.
    - `coarse`: the coarse propagator; `None` for `RescaledRate()`.

    Raises `ValueError` in `init` for a loss that is not a floating-point scalar.

    >>> import gritax, jax.numpy as jnp, optax
    >>> step = gritax.TrainStep(lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(0.01), lambda step: jnp.ones(2))
    >>> solution = gritax.solve(step, step.init(jnp.zeros(2)), 500)
    >>> bool(jnp.allclose(solution.params, 1 - 0.99**500, atol=1e-5))
    True
    """

    loss: Callable[..., Scalar]
    optimizer: optax.GradientTransformation
    batch: Callable[[Any], PyTree]
    coarse: CoarseStep

    def __init__(self, loss, optimizer, batch, coarse: CoarseStep | None = None):
        self.loss, self.optimizer, self.batch = loss, optimizer, batch
        self.coarse = RescaledRate() if coarse is None else coarse

    def init(self, params: PyTree) -> TrainState:
        """The state of step 0, from the initial parameters."""
        value = eqx.filter_eval_shape(lambda params: self.loss(params, self.batch(jnp.int32(0))), params)
        shape = getattr(value, "shape", type(value).__name__)
        if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            found = f"{value.dtype}{list(shape)}" if isinstance(shape, tuple) else f"a {shape}"
            raise ValueError(f"loss must return a floating-point scalar, not {found}: sum or average over the batch.")
        return TrainState(params, self.optimizer.init(eqx.filter(params, eqx.is_inexact_array)))

    def params(self, state: TrainState) -> PyTree:
        return state.params

    def __call__(self, state: TrainState, start: Array, stride: int) -> TrainState:
        if stride == 1:
            return self.update(state, self.batch(start))
        return self.coarse(self, state, start, stride)

    def update(self, state: TrainState, batch: PyTree, factor: float = 1.0) -> TrainState:
        """One optimizer step on `batch`, its update multiplied by `factor`."""
        trainable, rest = eqx.partition(state.params, eqx.is_inexact_array)
        gradient = jax.grad(lambda trainable: self.loss(eqx.combine(trainable, rest), batch))(trainable)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, trainable)
        if factor != 1:
            updates = optax.tree.scale(factor, updates)
        return TrainState(eqx.combine(optax.apply_updates(trainable, updates), rest), opt_state)

    def depth(self, stride: int) -> int:
        return 1 if stride == 1 else self.coarse.depth(stride)

    def work(self, stride: int) -> int:
        return 1 if stride == 1 else self.coarse.work(stride)
