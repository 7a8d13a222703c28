"""Affine evolutions, whose coarse steps are known exactly: multigrid over them is a parallel scan."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._hierarchy import Multigrid
from ._state import CONTROL_FLOW_ERRORS


_FACTOR = 4  # two compositions of neighbours
_CHUNK = 1024


class LowRank(eqx.Module):
    r"""$I + U V^T$: the identity and a matrix of low rank.

    - `left`, `right`: U and V, [d, r].

    Raises `ValueError` for other shapes.

    >>> import gritax, jax.numpy as jnp
    >>> gritax.LowRank(jnp.ones((3, 1)), jnp.ones((3, 1))).right.shape
    (3, 1)
    """

    left: Array
    right: Array

    def __check_init__(self):
        shapes = [getattr(x, "shape", None) for x in (self.left, self.right)]
        if shapes[0] is None or len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise ValueError(f"left and right of LowRank must be arrays [d, r] of one shape, not {shapes[0]} and {shapes[1]}.")


Matrix = Array | LowRank


class _Map(eqx.Module):
    """$w \\mapsto A w + b$."""

    matrix: Matrix
    offset: Array

    def __call__(self, w: Array) -> Array:
        return _product(self.matrix, w) + self.offset

    def after(self, first: "_Map") -> "_Map":
        return _Map(_composed(self.matrix, first.matrix), self(first.offset))


def _product(matrix: Matrix, w: Array) -> Array:
    """Of a vector or, column by column, of a matrix."""
    if isinstance(matrix, LowRank):
        return w + matrix.left @ (matrix.right.T @ w)
    if matrix.ndim == 1:
        return (matrix[:, None] if w.ndim == 2 else matrix) * w
    return matrix @ w


def _composed(then: Matrix, first: Matrix) -> Matrix:
    if isinstance(first, LowRank):
        size, rank = first.left.shape
        if isinstance(then, LowRank) and then.left.shape[1] + rank < size:
            # (I + U' V'^T) (I + U V^T) = I + U' V'^T + (U + U' (V'^T U)) V^T
            left = jnp.concatenate([then.left, _product(then, first.left)], axis=1)
            return LowRank(left, jnp.concatenate([then.right, first.right], axis=1))
        first = _product(first, jnp.eye(size, dtype=first.left.dtype))
    return _product(then, first)


class AffineStep(eqx.Module):
    r"""$w_{i+1} = A_i w_i + b_i$, as `phi(state, start, stride)`, exactly for every stride.

    Compositions of neighbouring steps are made before a solve, of 4, of 16, …, all of one length at once. So its coarse steps
    are exact, and the initial guess is the solution, to rounding, in a depth of order $\log N$: multigrid is then the parallel
    scan of the steps (cyclic reduction), and its iterations but measure it.

    **Arguments**

    - `matrix`: A, an array [d, d]; the diagonal of one, [d]; `LowRank`, the identity and a matrix of low rank; or a function of
      the step, which may be traced, that returns one of these.
    - `offset`: b, [d], or a function of the step.

    Called with w, [d]. Raises `ValueError` for matrices that are not square, and for shapes or dtypes that do not fit together.

    Compositions of N dense steps that all differ take N d² / 3 numbers. With another `method` than the one it proposes, coarse
    steps of lengths that are no power of 4 are made of single ones.

    >>> import gritax, jax.numpy as jnp
    >>> step = gritax.AffineStep(jnp.array([0.99, 0.9]), jnp.array([0.01, 0.2]))
    >>> solution = gritax.solve(step, jnp.zeros(2), 4096)
    >>> solution.iterations <= 1, bool(jnp.allclose(solution.state, jnp.array([1.0, 2.0]), atol=1e-5))
    (True, True)
    """

    matrix: Matrix | Callable[[Any], Matrix]
    offset: Array | Callable[[Any], Array]
    compositions: dict[int, "_Compositions"]

    def __init__(self, matrix: Matrix | Callable[[Any], Matrix], offset: Array | Callable[[Any], Array]):
        self.matrix = matrix if isinstance(matrix, LowRank) or callable(matrix) else jnp.asarray(matrix)
        self.offset = offset if callable(offset) else jnp.asarray(offset)
        self.compositions = {}
        try:
            found = eqx.filter_eval_shape(self._at, jax.ShapeDtypeStruct((), jnp.int32))
        except CONTROL_FLOW_ERRORS as error:
            raise ValueError(
                "matrix and offset are called with a step that is traced: index jnp arrays with it, not NumPy ones, and use "
                "jnp.where or lax.cond in place of Python's if."
            ) from error
        _require_fitting(found)

    def _at(self, step: Array | int) -> _Map:
        matrix = self.matrix(step) if callable(self.matrix) else self.matrix
        offset = self.offset(step) if callable(self.offset) else self.offset
        return _Map(matrix if isinstance(matrix, LowRank) else jnp.asarray(matrix), jnp.asarray(offset))

    @property
    def _is_constant(self) -> bool:
        return not (callable(self.matrix) or callable(self.offset))

    def __call__(self, state: Array, start: Array, stride: int) -> Array:
        size = jax.tree.leaves(jax.eval_shape(self._at, jax.ShapeDtypeStruct((), jnp.int32)).offset)[0]
        if getattr(state, "shape", None) != size.shape or state.dtype != size.dtype:
            told = f"{state.dtype}{list(state.shape)}" if hasattr(state, "shape") else type(state).__name__
            raise ValueError(f"state is {told}, but matrix and offset are for {size.dtype}{list(size.shape)}.")
        if stride == 1:
            return self._at(start)(state)
        found = self.compositions.get(stride)
        if found is None:
            steps = start + jnp.arange(stride, dtype=jnp.int32)
            return jax.lax.scan(lambda w, step: (self._at(step)(w), None), state, steps)[0]
        return (found.maps if self._is_constant else found.at((start - found.first) // stride))(state)

    def method(self, num_steps: int) -> Multigrid:
        return Multigrid(_FACTOR)

    def initial_guess(self) -> str:
        """Its coarse steps are exact, long ones too."""
        return "nested"

    def depth(self, stride: int) -> int:
        return stride if stride not in self.compositions and stride > 1 else 1

    def work(self, stride: int) -> int:
        return self.depth(stride)

    def adapted(self, states: Array, starts: np.ndarray, num_steps: int, iteration: int | None):
        """With the compositions for so many steps, before a solve; composing counts as an evaluation for each column."""
        if iteration is not None or self.compositions:
            return None, 0, 0
        step, work = self._composed(num_steps, 0)
        return step, len(step.compositions) * int(math.log2(_FACTOR)), work

    def reversible(self, states: Array, starts: np.ndarray, num_steps: int) -> "AffineStep":
        """With compositions that end at the last of the `starts`, from where an adjoint counts its steps."""
        return self if self._is_constant else self._composed(int(starts[-1]), int(starts[-1]))[0]

    def _composed(self, num_steps: int, end: int) -> tuple["AffineStep", int]:
        """(with compositions of so many steps, of every length so that one ends at `end`; their work)."""
        compositions, work, stride = dict[int, _Compositions](), 0, 1
        while (stride := stride * _FACTOR) <= num_steps:
            count, first = num_steps // stride, end % stride
            maps = self._made_of(compositions.get(stride // _FACTOR), count, stride, first)
            compositions[stride] = _Compositions(maps, first)
            work += (1 if self._is_constant else count) * (_FACTOR - 1) * self._columns(maps)
        known = lambda x: x is self.compositions
        return eqx.tree_at(lambda step: step.compositions, self, compositions, is_leaf=known), work

    def _columns(self, found: _Map) -> int:
        matrix = found.matrix
        if isinstance(matrix, LowRank):
            return matrix.left.shape[-1]
        return 1 if matrix.ndim - (not self._is_constant) == 1 else matrix.shape[-1]

    def _made_of(self, finer: "_Compositions | None", count: int, stride: int, first: int) -> _Map:
        """Compositions of neighbours among the next finer ones, or among the steps: `count` of them from step `first` on."""
        if self._is_constant:
            return _twice(_twice(self._at(0) if finer is None else finer.maps))
        skipped = first - (finer.first if finer else 0)
        return _neighbours(self, finer, count, jnp.int32(skipped // (stride // _FACTOR)))


class _Compositions(eqx.Module):
    """Of steps one after the other from `first` on, all of one length; of a constant step, the one there is."""

    maps: _Map
    first: int = eqx.field(static=True)

    def at(self, index: Array) -> _Map:
        return jax.tree.map(lambda x: x[index], self.maps)


def _twice(step: _Map) -> _Map:
    return step.after(step)


@eqx.filter_jit
def _neighbours(step: AffineStep, finer: _Compositions | None, count: int, skipped: Array) -> _Map:
    def at(index):
        return step._at(index) if finer is None else finer.at(index)

    def composed(index):
        one, two, three, four = (at(skipped + _FACTOR * index + j) for j in range(_FACTOR))
        return four.after(three).after(two.after(one))

    return jax.lax.map(composed, jnp.arange(count, dtype=jnp.int32), batch_size=min(count, _CHUNK))


def _require_fitting(found: _Map) -> None:
    matrix, offset = found.matrix, found.offset
    if not isinstance(matrix, LowRank) and (not hasattr(matrix, "ndim") or matrix.ndim not in (1, 2)):
        shape = list(getattr(matrix, "shape", [])) or type(matrix).__name__
        raise ValueError(f"matrix must be [d, d], a diagonal [d] or a gritax.LowRank, not {shape}.")
    like = matrix.left if isinstance(matrix, LowRank) else matrix
    if not isinstance(matrix, LowRank) and matrix.ndim == 2 and matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, not {list(matrix.shape)}.")
    if offset.shape != (like.shape[0],):
        raise ValueError(f"offset must be [{like.shape[0]}] to fit the matrix, not {list(offset.shape)}.")
    if not jnp.issubdtype(like.dtype, jnp.inexact) or offset.dtype != like.dtype:
        raise ValueError(f"matrix and offset must be floating-point arrays of one dtype, not {like.dtype} and {offset.dtype}.")
