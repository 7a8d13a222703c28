r"""A low-rank model of the curvature, $d H d \approx V \mathrm{diag}(h) V^T$, learned from what sweeps evaluate anyway.

Two successive sweeps give for each step in flight a secant pair: the change of its state and the change of its gradient. One
model serves all steps of the window: a symmetric multi-secant update (Schnabel 1983) of the stiffest directions that all pairs
together have seen.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._prefix import cumulated


# A pair that is this many roundings long, or a combination of pairs that is this short, says nothing of the curvature.
_ROUNDINGS, _LEAST = 1e3, 0.5
# A ridge towards the old model, which averages the noise of minibatches.
_RIDGE = 2.0


class Curvature(NamedTuple):
    """`directions` V [P, rank], orthonormal or zero, and `values` h >= 0 [rank]."""

    directions: Array
    values: Array

    @classmethod
    def none(cls, size: int, rank: int, dtype) -> "Curvature":
        return cls(jnp.zeros((size, rank), dtype), jnp.zeros(rank, dtype))

    def times(self, rows: Array) -> Array:
        """`rows (V diag(h) V^T)`."""
        return ((rows @ self.directions) * self.values[None]) @ self.directions.T

    def rescaled(self, ratio: Array) -> "Curvature":
        """The same curvature in units d that are `ratio` times as large."""
        product = self.directions * ratio[:, None]
        basis, to_basis = _orthonormal(product)
        return _truncated(basis, to_basis @ (self.values[:, None] * to_basis.T), len(self.values))


def usable(changes: Array, x: Array, eps: float) -> Array:
    """Marks changes of the state `x` that are so far above rounding that changes of their gradients mean something."""
    least = _ROUNDINGS * eps * jnp.linalg.norm(x)
    return jnp.linalg.norm(changes, axis=1) > least


def secant_update(model: Curvature, changes: Array, gradients: Array, valid: Array, groups: int, new: int) -> Curvature:
    """The model after the `valid` pairs (changes of states, of gradients), both in units of d.

    Neighbouring pairs are added to `groups` of them; `new` directions at most are taken up.
    """
    scale = jnp.where(valid, 1 / jnp.where(valid, jnp.linalg.norm(changes, axis=1), 1), 0)
    # Sums of ones are exact in floating point, as long as there are fewer than 2^24.
    order = cumulated(valid[:, None].astype(changes.dtype))[:, 0].astype(jnp.int32) - 1
    group = jnp.where(valid, order * groups // jnp.maximum(order[-1] + 1, 1), groups)
    together = (group[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]).astype(changes.dtype)
    together = together / jnp.sqrt(jnp.maximum(jnp.sum(together, axis=1, keepdims=True), 1)) * scale[None]
    y, s = together @ changes, together @ gradients
    values, vectors = jnp.linalg.eigh(y @ y.T)
    values, vectors = values[-new:], vectors[:, -new:]
    told = values > _LEAST
    root = jnp.sqrt(jnp.where(told, values, 1))
    vectors = jnp.where(told[None], vectors, 0)
    q = y.T @ (vectors / root[None])
    e = (s - model.times(y)).T @ (vectors * (root / (values + _RIDGE**2))[None])
    v = model.directions
    z, _ = _orthonormal(q - v @ (v.T @ q))
    basis = jnp.concatenate([v, z], axis=1)
    in_q, in_e = basis.T @ q, basis.T @ e
    inner = in_q.T @ in_e
    known = jnp.pad(jnp.diag(model.values), (0, new))
    update = in_e @ in_q.T
    matrix = known + update + update.T - in_q @ ((inner + inner.T) / 2) @ in_q.T
    return _truncated(basis, matrix, len(model.values))


def _truncated(basis: Array, matrix: Array, rank: int) -> Curvature:
    """The largest positive eigenvalues: a negative one would make modes that grow without bound."""
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    directions = basis @ jnp.where(values > 0, vectors, 0)
    # One Newton-Schulz step keeps rounding from adding up.
    directions = directions @ (1.5 * jnp.eye(rank, dtype=basis.dtype) - 0.5 * directions.T @ directions)
    return Curvature(directions, jnp.maximum(values, 0))


def _orthonormal(columns: Array) -> tuple[Array, Array]:
    """(orthonormal columns of the same span, or zero; what they are multiplied by to give the given ones)."""
    values, vectors = jnp.linalg.eigh(columns.T @ columns)
    least = 1e3 * jnp.finfo(columns.dtype).eps * jnp.max(values, initial=0)
    kept = values > jnp.maximum(least, jnp.finfo(columns.dtype).tiny)
    root = jnp.sqrt(jnp.where(kept, values, 1))
    vectors = jnp.where(kept[None], vectors, 0)
    return columns @ (vectors / root[None]), root[:, None] * vectors.T
