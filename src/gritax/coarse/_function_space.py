r"""A network to first order: its outputs on the data of some steps, as a linear function of the parameters.

$f(w) \approx f(w_*) + J (w - w_*)$. A gradient of the loss is $J^T c$, with c its derivative by the outputs. So the outputs
follow from the Gram matrix $K = J P J^T$ alone, P what the optimizer multiplies gradients by, if it does so at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree


@dataclass(frozen=True)
class Size:
    """How large a function space is: `rows` numbers a step, the same ones at all steps if the data is.

    `pass_bytes` are what a pass through the network keeps for the way back, and so what one row of the Jacobian takes on it.
    """

    rows: int
    same_data: bool
    num_params: int
    itemsize: int
    pass_bytes: int

    @classmethod
    def of(cls, step: Any, params: PyTree) -> "Size":
        """Raises `ValueError` if the function space is not to be seen."""
        if not hasattr(step.loss, "outputs"):
            raise ValueError(
                "loss must be a gritax.CompositeLoss(outputs, criterion) for Tangent, which trains on the outputs of the "
                "linearised network. Split it into these two, or take gritax.FrozenGradient() or gritax.Stabilized()."
            )
        outputs = eqx.filter_eval_shape(lambda params, k: _flat_outputs(step, params, k), params, jnp.int32(0))
        trained, others = step.split(params)
        kept = jax.eval_shape(
            lambda trained, k: jax.vjp(lambda x: _flat_outputs(step, eqx.combine(x, others), k), trained)[1],
            trained,
            jnp.int32(0),
        )
        leaves = jax.tree.leaves(trained)
        itemsize = max(leaf.dtype.itemsize for leaf in leaves)
        num_params = sum(leaf.size for leaf in leaves)
        return cls(
            outputs.size, step.same_data(), num_params, itemsize, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        )

    def num_rows(self, stride: int) -> int:
        return self.rows * (1 if self.same_data else stride)

    def gram_bytes(self, stride: int) -> int:
        """Gram matrix, the system made of it and its factors."""
        return 4 * self.itemsize * self.num_rows(stride) ** 2

    def bytes(self, stride: int, chunk: int) -> int:
        """With the Jacobian, as it is and scaled, and what it takes to compute `chunk` rows of it at a time."""
        rows = self.num_rows(stride)
        return self.gram_bytes(stride) + 2 * self.itemsize * rows * self.num_params + min(rows, chunk) * self.pass_bytes


class FunctionSpace:
    """The outputs at `params` on the data of `stride` steps, as [step, row]; one step stands for all on the same data.

    With `stored`, the Jacobian is held, and every product with it is linear algebra; else it is a pass through the network.
    """

    def __init__(self, step: Any, params: PyTree, start: Array, stride: int, stored: bool, chunk: int):
        self.step, self.start, self.stored, self.chunk = step, start, stored, chunk
        self.params, self._others = step.split(params)
        self.same_data = step.same_data()
        self.steps = start + jnp.arange(1 if self.same_data else stride, dtype=jnp.int32)
        if stored:
            rows = jax.eval_shape(self._at, self.params, self.steps[0]).size
            self.values, self._jacobian = _mapped(self._with_jacobian, self.steps, max(chunk // rows, 1))
        else:
            self.values, self._push = jax.linearize(
                lambda params: jax.vmap(lambda k: self._at(params, k))(self.steps), self.params
            )

    def _at(self, params, k):
        return _flat_outputs(self.step, eqx.combine(params, self._others), k)

    def _with_jacobian(self, k):
        values, pull = jax.vjp(lambda params: self._at(params, k), self.params)
        return values, _mapped(lambda row: pull(row)[0], jnp.eye(values.size, dtype=values.dtype), self.chunk)

    def output_gradient(self, outputs: Array, k: Array) -> Array:
        """c: the derivative of the loss of step `k` by its outputs, where these are `outputs`."""
        shapes = jax.eval_shape(lambda: self.step.loss.outputs(eqx.combine(self.params, self._others), *self._data(k)))
        unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))[1]
        criterion = lambda outputs: self.step.loss.criterion(unravel(outputs), self.step.data(k))
        return jax.grad(criterion)(outputs)

    def _data(self, k):
        return self.step.data(k), *self.step.keys(k)

    @cached_property
    def is_affine(self) -> bool:
        """Whether c is affine in the outputs, as of least squares: by its derivative, in which they do not occur."""

        def derivative(outputs, moved, k):
            return jax.jvp(lambda outputs: self.output_gradient(outputs, k), (outputs,), (moved,))[1]

        like = jax.ShapeDtypeStruct(self.values.shape[1:], self.values.dtype)
        jaxpr = jax.make_jaxpr(derivative)(like, like, jax.ShapeDtypeStruct((), jnp.int32)).jaxpr
        return not dce_jaxpr(jaxpr, [True])[1][0]

    def push(self, moved: PyTree) -> Array:
        """J times a change of parameters, whose leaves may be None, as [step, row]."""
        if not self.stored:
            return self._push(
                jax.tree.map(lambda x, y: jnp.zeros_like(x) if y is None else y, self.params, moved, is_leaf=_none)
            )
        leaves = zip(jax.tree.leaves(self._jacobian), jax.tree.leaves(moved, is_leaf=_none), strict=True)
        return sum((jnp.tensordot(j, x, x.ndim) for j, x in leaves if x is not None), jnp.zeros_like(self.values))

    def pull(self, rows: Array) -> PyTree:
        """The transpose of J times `rows`, [step, row]."""
        if not self.stored:
            return jax.linear_transpose(self._push, self.params)(rows)[0]
        return jax.tree.map(lambda j: jnp.tensordot(rows, j, 2), self._jacobian)

    def gradient(self, c: Array, index: Array) -> PyTree:
        """The gradient that belongs to c, [row], in the step of this index."""
        if self.stored:
            return jax.tree.map(lambda j: jnp.tensordot(c, j[0 if self.same_data else index], 1), self._jacobian)
        k = self.steps[0] if self.same_data else self.steps[index]
        return jax.vjp(lambda params: self._at(params, k), self.params)[1](c)[0]

    def gram(self, groups: Sequence[Sequence[int]], scale: PyTree | None) -> list[Array]:
        """K over all rows, of each group of parameter leaves by itself; P is diagonal, or None for the identity."""
        size = self.values.size
        if self.stored:
            scaled = self._jacobian if scale is None else jax.tree.map(lambda j, x: j * x[None, None], self._jacobian, scale)
            flat = [[x.reshape(size, -1) for x in jax.tree.leaves(tree)] for tree in (scaled, self._jacobian)]
            none = jnp.zeros((size, size), self.values.dtype)
            return [sum((flat[0][f] @ flat[1][f].T for f in group), none) for group in groups]

        def columns(row):
            moved = self.pull(row.reshape(self.values.shape))
            moved = moved if scale is None else jax.tree.map(jnp.multiply, moved, scale)
            return [self.push(only(moved, group)).ravel() for group in groups]

        return jax.lax.map(columns, jnp.eye(size, dtype=self.values.dtype), batch_size=self.chunk)


def only(tree: PyTree, group: Sequence[int]) -> PyTree:
    """The leaves of these indices; None for the others."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [x if i in group else None for i, x in enumerate(leaves)])


def _flat_outputs(step, params, k):
    return ravel_pytree(step.loss.outputs(params, step.data(k), *step.keys(k)))[0]


def _none(x) -> bool:
    return x is None


def _mapped(function: Callable, xs: Array, most: int) -> PyTree:
    return jax.vmap(function)(xs) if len(xs) <= most else jax.lax.map(function, xs, batch_size=most)


def in_batches(function: Callable, most: int) -> Callable:
    """`function`, of whose lanes under vmap at most `most` are taken at a time."""
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def _(axis_size, in_batched, *args):
        leaves, structure = jax.tree.flatten(args)
        flags = jax.tree.leaves(in_batched)

        def one(lane):
            lane = iter(lane)
            return function(
                *jax.tree.unflatten(structure, [next(lane) if f else x for x, f in zip(leaves, flags, strict=True)])
            )

        lanes = [x for x, f in zip(leaves, flags, strict=True) if f]
        out = jax.vmap(one)(lanes) if axis_size <= most else jax.lax.map(one, lanes, batch_size=most)
        return out, jax.tree.map(lambda _: True, out)

    return batched
