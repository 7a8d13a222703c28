"""The tangent coarse step: the optimizer's own steps on the network linearised where it starts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._arguments import require_whole
from .._hierarchy import Multigrid
from ._first_moment import first_moment, response
from ._function_space import FunctionSpace, Size, in_batches
from ._linear import LinearOptimizer, LinearSteps, linear, one_step
from ._linearised import LinearisedTraining, least_squares
from ._replay import Replay


_FACTOR = 4


@dataclass(frozen=True)
class Tangent:
    r"""The optimizer's own M steps on the linearised network, $f(w) \approx f(w_*) + J (w - w_*)$.

    For a `CompositeLoss` of few outputs. All is done in the space of these outputs, where a gradient step needs the Gram
    matrix $J J^T$ and no network:

    - least squares on the same data at every step, by gradient descent or with momentum: in closed form, by the M-th power of
      a small matrix for each eigenvector;
    - least squares on minibatches, with an optimizer that is linear in its gradients: a triangular system over all their rows;
    - any other criterion, cross-entropy say, and any schedule: one step after the other in function space, with the exact
      derivative of the criterion;
    - Adam and its like: the same, with the second moments of halfway through the coarse step; they then follow with moments and
      parameters from a replay of the optimizer's own steps.

    Exact for a network that is linear in its parameters: one iteration.

    A depth of 1, a pass forward and one backward, where the Jacobian fits into `memory`; else 2 (Adam: 4). A work of 1 and a
    pass backward for each row. Steps in function space are not counted: they evaluate no network.

    **Arguments**

    - `memory`: bytes for Jacobians and Gram matrices. Of many coarse steps, as many are taken together as fit.
    - `chunk`: at most so many rows of a Gram matrix, or gradients of a replay, are computed at a time.

    Raises `ValueError` for counts that are not whole; and, before anything is run, for a loss that is no `CompositeLoss`, an
    optimizer that is neither linear nor of Adam's kind, and where the Gram matrix does not fit into `memory`.

    Jacot, Gabriel and Hongler 2018, arXiv 1806.07572, for the Gram matrix of a linearised network.

    >>> import gritax
    >>> problem = gritax.problems.xor(coarse=gritax.Tangent())
    >>> gritax.solve(problem.step, problem.state, 400).iterations < 8
    True
    """

    usual_iterations: ClassVar[int] = 8

    memory: int = 2**30
    chunk: int = 64
    _known: "_Known | None" = field(default=None, repr=False)

    def __post_init__(self):
        require_whole("memory", self.memory, 1)
        require_whole("chunk", self.chunk, 1)

    def _stored(self, size: Size, stride: int) -> bool:
        return size.bytes(stride, self.chunk) <= self.memory

    def depth(self, stride: int) -> int:
        if self._known is None or self._stored(self._known.size, stride):
            return 1
        return 2 if self._known.is_linear else 4

    def work(self, stride: int) -> int:
        return 1 if self._known is None else 1 + self._known.size.num_rows(stride)

    def rows(self, stride: int) -> int:
        """Of the Gram matrix of a coarse step, once the size of the function space is known."""
        return self._known.size.num_rows(stride) if self._known else 0

    @property
    def direct(self) -> bool:
        """Whether a coarse step is known to be linear algebra alone, with no loop over the training steps."""
        return self._known is not None and self._known.is_direct

    def method(self, num_steps: int) -> Multigrid:
        """Factors of 4, for as long as the Gram matrix of a coarse step fits."""
        stride, levels = _FACTOR, 2
        while self._known and self._known.size.gram_bytes(stride * _FACTOR) <= self.memory and levels < 32:
            stride, levels = stride * _FACTOR, levels + 1
        return Multigrid(coarsening=_FACTOR, max_levels=levels)

    def adapted(
        self, step: Any, states: PyTree, starts: np.ndarray, num_steps: int, iteration: int | None
    ) -> tuple["Tangent", int, int]:
        """(this step with the size of its function space, nothing spent)."""
        if iteration is not None:
            return self, 0, 0
        state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
        size = Size.of(step, state.params)
        self._require_fit(size, _FACTOR)
        is_linear = _parts(step, state)[2] is None
        direct = []

        def look(state):
            space = FunctionSpace(step, state.params, jnp.int32(0), 1, False, 1)
            # On the same data a rate that changes from step to step leaves no closed form.
            direct.append(is_linear and space.is_affine and not (size.same_data and _counters(state.opt_state)))

        eqx.filter_eval_shape(look, state)
        return replace(self, _known=_Known(size, is_linear, direct[0])), 0, 0

    def _require_fit(self, size: Size, stride: int) -> None:
        if size.gram_bytes(stride) > self.memory:
            rows, needed = size.num_rows(stride), size.gram_bytes(stride) / 2**20
            raise ValueError(
                f"memory: the function space of a coarse step of {stride} training steps has {rows} rows, whose Gram matrix "
                f"and factors take {needed:.3g} MiB, more than the {self.memory / 2**20:.3g} MiB allowed. Give Tangent more, "
                "take a method with fewer levels, or gritax.FrozenGradient() or gritax.Stabilized(), which need none."
            )

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        size = self._known.size if self._known else Size.of(step, state.params)
        self._require_fit(size, stride)
        stored = self._stored(size, stride)
        arrays, constants = eqx.partition((step, state), eqx.is_array)

        def advance(arrays, start):
            step, state = eqx.combine(arrays, constants)
            return eqx.filter(self._advance(step, state, start, stride, stored), eqx.is_array)

        most = max(self.memory // (size.bytes(stride, self.chunk) if stored else size.gram_bytes(stride)), 1)
        return eqx.combine(in_batches(advance, most)(arrays, start), constants[1])

    def _advance(self, step, state, start, stride, stored):
        space = FunctionSpace(step, state.params, start, stride, stored, self.chunk)
        params, others = step.split(state.params)
        optimizer, kind, second = _parts(step, state)
        if second is not None:
            first = jax.vmap(space.output_gradient)(space.values, space.steps)
            opt_state = jax.tree.map(lambda x, flag: None if flag else x, state.opt_state, second)
            halfway = self._replayed(step, state, space, first, max(stride // 2, 1))
            scale = response(step.optimizer, second, halfway.opt_state, params)
            training = LinearisedTraining(space, optimizer, kind, opt_state, scale, stride)
            return self._replayed(step, state, space, training.output_gradients(), stride)
        training = LinearisedTraining(space, optimizer, kind, state.opt_state, None, stride)
        if space.same_data and space.is_affine and len(training.groups) == 1 and not _counters(state.opt_state):
            after, opt_state = _closed_form(training, params, state.opt_state)
        else:
            c = training.output_gradients()
            steps = LinearSteps(kind, optimizer, params, state.opt_state, stride)
            weighted = [row.astype(c.dtype)[:, None] * c for row in steps.rows]
            sums = [jnp.sum(y, axis=0, keepdims=True) if space.same_data else y for y in weighted]
            after, opt_state = steps.advance(params, state.opt_state, [space.pull(y) for y in sums])
        return state._replace(params=eqx.combine(after, others), opt_state=opt_state)

    def _replayed(self, step, state, space, c, length):
        """The optimizer's own steps with the gradients that belong to c: [step, row], or one step for all."""
        gradient = lambda j: space.gradient(c[0 if len(c) == 1 else j], j)
        return Replay(_GivenGradients(step, gradient, space.start), state, space.start, length, self.chunk)(space.params)

    def __str__(self) -> str:
        if self._known is None:
            return "Tangent()"
        size = self._known.size
        return f"Tangent, {size.rows} rows " + ("for all steps" if size.same_data else "a training step")


@dataclass(frozen=True)
class _Known:
    size: Size
    is_linear: bool
    is_direct: bool


def _counters(opt_state: PyTree) -> bool:
    return any(not jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(opt_state))


class _GivenGradients:
    """A training step whose gradients are given, by the index of the step after `start`."""

    def __init__(self, step: Any, gradient: Callable[[Array], PyTree], start: Array):
        self._gradient, self._start = gradient, start
        self.optimizer, self.split, self.apply = step.optimizer, step.split, step.apply

    def same_data(self) -> bool:
        return False

    def data(self, k: Array) -> Array:
        return k

    def gradient(self, params: PyTree, stats: PyTree, batch: Array, k: Array):
        return (jnp.zeros(()), stats), self._gradient(batch - self._start)


def _parts(step, state) -> tuple[Any, LinearOptimizer, PyTree | None]:
    """(an optimizer that is linear, of what kind, which second moments were taken out of it). Raises `ValueError`."""
    params = step.split(state.params)[0]
    kind = linear(step.optimizer, params)
    if kind is not None:
        return step.optimizer, kind, None
    second = step.nonnegative(state).opt_state
    optimizer = first_moment(step.optimizer, second)
    kind = linear(optimizer, params) if any(jax.tree.leaves(second)) else None
    if kind is None:
        raise ValueError(
            "optimizer is neither linear in its gradients, as optax.sgd, nor so at given second moments, as optax.adam: "
            "Tangent cannot follow it in function space. Take gritax.FrozenGradient() or gritax.Stabilized()."
        )
    return optimizer, kind, second


def _closed_form(training: LinearisedTraining, params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
    kind, optimizer = training.kind, training.optimizer
    change, sums = least_squares(training, *one_step((kind, optimizer), params)[0])
    pulled = [jax.tree.leaves(training.space.pull(y)) for y in sums]
    leaves, structure = jax.tree.flatten((params, opt_state))

    def new(index):
        family = kind.families[index]
        own = kind.members(family)
        i = own.index(index)
        return leaves[index] + sum((change[i, j] * leaves[m] for j, m in enumerate(own)), pulled[i][family])

    return jax.tree.unflatten(structure, [new(index) for index in range(len(leaves))])
