"""A training step of a JAX user's loss, Optax optimizer and data, as a propagator."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree, Scalar

from .._arguments import require_key, require_whole
from .._entry import entry
from .._hierarchy import Multigrid
from .._optimizer import update
from .._state import traced
from ..coarse import Automatic, Choice, CoarseStep, FrozenGradient, Words
from ._first_step import require_state, require_usable
from ._second_moments import nonnegative


logger = logging.getLogger("gritax")


class TrainState(NamedTuple):
    """What a training step changes. `stats` are the running statistics of a loss with `has_aux`, else empty."""

    params: PyTree
    opt_state: PyTree
    stats: PyTree = ()


class TrainStep(eqx.Module):
    r"""$w_{i+1} = w_i + \mathrm{update}(\nabla_w \mathrm{loss}(w_i, \mathrm{batch}(i)))$, as `phi(state, start, stride)`.

    A stride of 1 is the training step itself; a larger one is taken by `coarse`.

    **Arguments**

    - `loss`: `loss(params, batch) -> scalar`, a sum or mean over the batch. With a `key`, `loss(params, batch, key)`; with
      `has_aux`, `loss(params, stats, batch[, key]) -> (scalar, new_stats)`.
    - `optimizer`: any Optax transformation whose state has a fixed structure.
    - `batch`: `batch(step) -> pytree`, the data of a step, such as `gritax.data.Epochs`. Pure, and `step` may be traced.
    - `coarse`: the coarse propagator; `None` for `FrozenGradient()`; `"auto"` for the one of `FrozenGradient`, `Stabilized` and
      `Tangent` whose depth promises to be least, for each solve, from the curvature and the sizes. `Solution.coarse_steps` says
      which, and why.
    - `key`: a JAX random key; the loss of step `i` gets it folded with `i`.
    - `has_aux`: whether the loss takes running statistics and returns the new ones.
    - `trainable`: which leaves of `params` are trained, an Equinox filter (a function of a leaf, or a pytree of bools). By
      default all floating-point arrays. The others are carried along.

    Raises `ValueError` for arguments of another kind.

    >>> import gritax, jax.numpy as jnp, optax
    >>> step = gritax.TrainStep(lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(0.01), lambda step: jnp.ones(2))
    >>> solution = gritax.solve(step, step.init(jnp.zeros(2)), 500)
    >>> bool(jnp.allclose(solution.params, 1 - 0.99**500, atol=1e-5))
    True
    """

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    batch: Callable[[Any], PyTree]
    coarse: CoarseStep
    key: Array | None
    has_aux: bool
    trainable: PyTree
    first: Array
    _why: Words

    @entry
    def __init__(
        self,
        loss,
        optimizer,
        batch,
        coarse: Choice = None,
        *,
        key=None,
        has_aux=False,
        trainable=eqx.is_inexact_array,
    ):
        coarse = FrozenGradient() if coarse is None else Automatic() if isinstance(coarse, str) and coarse == "auto" else coarse
        for name, value, wanted in (("loss", loss, "(params, batch)"), ("batch", batch, "(step)")):
            if not callable(value):
                raise ValueError(f"{name} must be a function {name}{wanted}, not a {type(value).__name__}.")
        if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
            raise ValueError(f"optimizer must be an Optax transformation such as optax.sgd(0.1), not {optimizer!r}.")
        if isinstance(coarse, type) or not callable(coarse) or not callable(getattr(coarse, "depth", None)):
            raise ValueError(f'coarse must be "auto" or a coarse propagator such as gritax.FrozenGradient(), not {coarse!r}.')
        if not isinstance(has_aux, bool):
            raise ValueError(f"has_aux must be True or False, not {has_aux!r}.")
        require_key(key)
        self.loss, self.optimizer, self.batch, self.coarse = loss, optimizer, batch, coarse
        self.key, self.has_aux, self.trainable, self._why = key, has_aux, trainable, Words()
        self.first = jnp.int32(0)

    @entry
    def init(self, params: PyTree, stats: PyTree = ()) -> TrainState:
        """The state of step 0, from the initial parameters and, with `has_aux`, statistics.

        Raises `ValueError` for a loss that is not a floating-point scalar, a batch that is not a pure function of the step,
        parameters that cannot be trained, and an optimizer that does not take them.
        """
        return TrainState(params, require_usable(self, params, stats), stats)

    @entry
    def after(self, num_steps: int) -> "TrainStep":
        """The same training after its first `num_steps` steps: step 0 of this one is step `num_steps` of that.

        For a window of a longer run. The programs are the same for all of them.
        """
        require_whole("num_steps", num_steps, 0)
        if not isinstance(self.first, Tracer) and int(self.first) + int(num_steps) >= 2**31:
            raise ValueError(
                f"num_steps: step {int(self.first) + int(num_steps)} cannot be counted: steps are int32, below 2^31."
            )
        return eqx.tree_at(lambda step: step.first, self, self.first + jnp.int32(num_steps))

    def params(self, state: TrainState) -> PyTree:
        return state.params

    def trained(self, state: TrainState) -> TrainState:
        """The parameters that are trained, with None for every other leaf of the state."""
        nothing = lambda tree: jax.tree.map(lambda _: None, tree)
        return TrainState(self.split(state.params)[0], nothing(state.opt_state), nothing(state.stats))

    def __call__(self, state: TrainState, start: Array, stride: int) -> TrainState:
        if not isinstance(state, TrainState):
            raise ValueError("state must come from TrainStep.init(params); these look like the parameters themselves.")
        if stride == 1:
            return self.update(state, self.data(start), start)
        return self.coarse(self, state, start, stride)

    def data(self, step: Array) -> PyTree:
        """`batch(step)`, with an error that says so if it needs the value of a traced step."""
        return traced("batch(step)", "step", lambda _, step: self.batch(step), None, self.first + step)

    def same_data(self) -> bool:
        """Whether all steps train on the same data, with no key of their own."""
        if self.key is not None:
            return False
        jaxpr = jax.make_jaxpr(lambda step: jax.tree.leaves(self.data(step)))(jax.ShapeDtypeStruct((), jnp.int32)).jaxpr
        return not any(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1])

    def evaluate(self, params: PyTree, stats: PyTree, batch: PyTree, step: Array) -> tuple[Scalar, PyTree]:
        """(loss, new statistics) on `batch`, with the key of `step`."""
        # A copy: eqx.nn.State may be used only once.
        before = (params, jax.tree.map(lambda x: x, stats)) if self.has_aux else (params,)
        out = self.loss(*before, batch, *self.keys(step))
        return out if self.has_aux else (out, stats)

    def keys(self, step: Array) -> tuple[Array, ...]:
        """The key of `step`, if the loss takes one."""
        return () if self.key is None else (jax.random.fold_in(self.key, self.first + step),)

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """(trainable leaves, the others)."""
        return eqx.partition(params, self.trainable)

    def gradient(self, params: PyTree, stats: PyTree, batch: PyTree, step: Array) -> tuple[tuple[Scalar, PyTree], PyTree]:
        """((loss, new statistics), gradient) on `batch`, with the key of `step`."""
        trainable, rest = self.split(params)
        evaluate = lambda trainable: self.evaluate(eqx.combine(trainable, rest), stats, batch, step)
        return jax.value_and_grad(evaluate, has_aux=True)(trainable)

    def apply(self, state: TrainState, gradient: PyTree, value: Scalar, stats: PyTree, factor: float = 1.0) -> TrainState:
        """The optimizer's step with this gradient and loss, its update multiplied by `factor`."""
        trainable, rest = self.split(state.params)
        updates, opt_state = update(self.optimizer, gradient, state.opt_state, trainable, value)
        if factor != 1:
            updates = optax.tree.scale(factor, updates)
        return TrainState(eqx.combine(optax.apply_updates(trainable, updates), rest), opt_state, stats)

    def update(self, state: TrainState, batch: PyTree, step: Array, factor: float = 1.0) -> TrainState:
        """One training step on `batch`, with the key of `step`, its update multiplied by `factor`."""
        (value, stats), gradient = self.gradient(state.params, state.stats, batch, step)
        return self.apply(state, gradient, value, stats, factor)

    def loss_at(self, state: TrainState, step: Array) -> Scalar:
        """The loss on the batch of `step`, before its update."""
        return self.evaluate(state.params, state.stats, self.data(step), step)[0]

    def nonnegative(self, state: TrainState) -> PyTree:
        """Which leaves of the state no step makes negative: Adam's second moments and the like."""
        require_state(self, state)
        nothing = lambda tree: jax.tree.map(lambda _: False, tree)
        found = nonnegative(self.optimizer, self.split(state.params)[0])
        return TrainState(nothing(state.params), found, nothing(state.stats))

    def prepared(self, num_steps: int) -> "TrainStep":
        """The same step with what can be computed once for a run of `num_steps`: the order of the examples."""
        tabulated = getattr(self.batch, "tabulated", None)
        return self if tabulated is None else eqx.tree_at(lambda step: step.batch, self, tabulated(num_steps, int(self.first)))

    def adapted(
        self, states: TrainState, starts: np.ndarray, num_steps: int, iteration: int | None
    ) -> tuple["TrainStep | None", int, int]:
        """(this step with another coarse propagator for `states`, stacked, at the steps `starts`; depth and work spent)."""
        if isinstance(self.coarse, Automatic):
            coarse, why, depth, work = self.coarse.choose(self, states, starts, num_steps)
            logger.info("%s, %s", coarse, why)
            return eqx.tree_at(lambda step: step._why, self.with_coarse(coarse), why), depth, work
        adapt = getattr(self.coarse, "adapted", None)
        coarse, depth, work = (self.coarse, 0, 0) if adapt is None else adapt(self, states, starts, num_steps, iteration)
        return None if coarse is self.coarse else self.with_coarse(coarse), depth, work

    def finer(self) -> "TrainStep | None":
        """With a coarse propagator closer to the training steps, to try after a failure; None if there is none."""
        refine = getattr(self.coarse, "finer", None)
        coarse = None if refine is None else refine()
        return None if coarse is None else self.with_coarse(coarse)

    def reversible(self, states: TrainState, starts: np.ndarray, num_steps: int) -> "TrainStep":
        """This step with coarse steps that have derivatives backwards too: frozen gradients, if its own have none."""
        if getattr(self.coarse, "reversible", True):
            return self
        frozen = self.with_coarse(FrozenGradient())
        return frozen.adapted(states, starts, num_steps, None)[0] or frozen

    def with_coarse(self, coarse: CoarseStep) -> "TrainStep":
        """The same step with another coarse propagator."""
        return eqx.tree_at(lambda step: step.coarse, self, coarse, is_leaf=lambda x: x is self.coarse)

    def describe(self) -> str:
        """The coarse propagator, in words."""
        return f"{self.coarse}; {self._why}" if self._why else str(self.coarse)

    def depth(self, stride: int) -> int:
        return 1 if stride == 1 else self.coarse.depth(stride)

    def work(self, stride: int) -> int:
        return 1 if stride == 1 else self.coarse.work(stride)

    def cost(self, stride: int, starts: np.ndarray) -> tuple[int, int]:
        """(depth, work) of the steps from `starts`, [sequence, lanes], the lanes together."""
        cost = getattr(self.coarse, "cost", None)
        if cost is None:
            return len(starts) * self.depth(stride), starts.size * self.work(stride)
        return cost(stride, starts)

    def usual_iterations(self) -> int:
        """How many the coarse propagator has needed where training converges at a usual rate."""
        return getattr(self.coarse, "usual_iterations", 8)

    def method(self, num_steps: int) -> Multigrid:
        """The multigrid method that suits the coarse propagator."""
        propose = getattr(self.coarse, "method", None)
        return Multigrid() if propose is None else propose(num_steps)
