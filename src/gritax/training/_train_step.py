"""A training step of a JAX user's loss, Optax optimizer and data, as a propagator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .._state import traced
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
    - `coarse`: the coarse propagator; `None` for `RescaledRate()`. That one is unstable once stride times learning rate
      times curvature exceeds 2: for all but small learning rates, pass `RescaledRate(max_factor=…)`.

    Raises `ValueError` for arguments of another kind, and in `init` for a loss that is not a floating-point scalar.

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
        coarse = RescaledRate() if coarse is None else coarse
        for name, value, wanted in (("loss", loss, "(params, batch)"), ("batch", batch, "(step)")):
            if not callable(value):
                raise ValueError(f"{name} must be a function {name}{wanted}, not a {type(value).__name__}.")
        if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
            raise ValueError(f"optimizer must be an Optax transformation such as optax.sgd(0.1), not {optimizer!r}.")
        if isinstance(coarse, type) or not callable(coarse) or not callable(getattr(coarse, "depth", None)):
            raise ValueError(f"coarse must be a coarse propagator such as gritax.RescaledRate(), not {coarse!r}.")
        self.loss, self.optimizer, self.batch, self.coarse = loss, optimizer, batch, coarse

    def init(self, params: PyTree) -> TrainState:
        """The state of step 0, from the initial parameters."""

        def first_loss(params, step):
            return self.loss(params, self.data(step))

        value = eqx.filter_eval_shape(first_loss, params, jax.ShapeDtypeStruct((), jnp.int32))
        if isinstance(value, tuple):
            raise ValueError("loss must return a scalar alone, not a tuple: leave auxiliary values out.")
        shape = getattr(value, "shape", type(value).__name__)
        if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            found = f"{value.dtype}{list(shape)}" if isinstance(shape, tuple) else f"a {shape}"
            raise ValueError(f"loss must return a floating-point scalar, not {found}: sum or average over the batch.")
        return TrainState(params, self.optimizer.init(eqx.filter(params, eqx.is_inexact_array)))

    def data(self, step: Array) -> PyTree:
        """`batch(step)`, with an error that says so if it needs the value of a traced step."""
        return traced("batch(step)", "step", lambda _, step: self.batch(step), None, step)

    def params(self, state: TrainState) -> PyTree:
        return state.params

    def __call__(self, state: TrainState, start: Array, stride: int) -> TrainState:
        if not isinstance(state, TrainState):
            raise ValueError("state must come from TrainStep.init(params); these look like the parameters themselves.")
        if stride == 1:
            return self.update(state, self.data(start))
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
