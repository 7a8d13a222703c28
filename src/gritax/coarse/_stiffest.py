r"""The stiffest directions along a run, in which a coarse step is exact, so that its stages need only serve the others.

The curvature of a network is large in few directions, about as many as it has outputs, and these turn slowly once training
is under way (Gur-Ari, Roberts and Dyer 2018, arXiv 1812.04754). With a basis Q of them and $Q^T P H Q = V \Lambda V^{-1}$,
the change that a stage makes is multiplied in each of these modes by the d that gives it its factor $e^{-M \lambda}$
(`exact`). It vanishes where it did: stiff modes go where the slow ones take them.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._kernel import kernel
from .._static import Static, data_of
from ._curvature import operator
from ._lapack import orthogonal_basis
from ._stages import exact


STEADY = 2.5  # the growth of the curvature within a coarse step up to which directions are followed
_POINTS = 8
_PRODUCTS = 8
_REST_PRODUCTS = 6
_SYMMETRIC = 1e-3
_WORST_CONDITION = 1e6
_TRUSTED = 30
_NEVER = np.iinfo(np.int32).max


class Stiffest(eqx.Module):
    """From step `steps[i]` on: a basis [n, k] of the stiffest directions, the modes in it and their kappas a training step.

    From there to the next of these steps all kappas change as the largest does.
    """

    steps: Array | np.ndarray
    basis: Array
    modes: Array
    inverse: Array
    kappas: Array

    @classmethod
    def nowhere(cls, params: PyTree, count: int) -> "Stiffest":
        """Of the same shapes as those to come, for the same programs."""
        flat = jax.eval_shape(lambda: ravel_pytree(params)[0])
        count = min(count, flat.size // 2)
        zeros = lambda *shape: jnp.zeros((_POINTS, *shape), flat.dtype)
        square = zeros(count, count)
        return cls(np.full(_POINTS, _NEVER, np.int32), zeros(flat.size, count), square, square, zeros(count))

    @property
    def count(self) -> int:
        return self.kappas.shape[-1]

    @property
    def anywhere(self) -> bool:
        return bool(np.any(self.steps != _NEVER))

    def forgotten(self) -> "Stiffest":
        return eqx.tree_at(lambda self: self.steps, self, np.full(_POINTS, _NEVER, np.int32))

    def along(self, steps: np.ndarray, basis: Array, in_basis: np.ndarray) -> "Stiffest":
        """With the basis [P, n, k] at these steps, and what the training step is in it, [P, k, k]."""
        modes, inverse, kappas = (np.stack(each).astype(basis.dtype) for each in zip(*map(_modes, in_basis), strict=True))
        pad = lambda x: jnp.pad(jnp.asarray(x), [(0, _POINTS - len(steps)), *[(0, 0)] * (x.ndim - 1)])
        starts = np.append(steps, np.full(_POINTS - len(steps), _NEVER)).astype(np.int32)
        return Stiffest(starts, pad(basis), pad(modes), pad(inverse), pad(kappas))

    @classmethod
    def of_quadratic(cls, curvatures: Array, exact_above: Array) -> "Stiffest":
        """For a quadratic loss with a mode for each parameter."""
        first, eye = jnp.arange(_POINTS) == 0, jnp.eye(len(curvatures), dtype=curvatures.dtype)
        alone = jnp.where(first[:, None, None], eye[None], 0)
        kappas = jnp.where(curvatures > exact_above.astype(curvatures.dtype), curvatures, 0)
        steps = jnp.where(first, 0, _NEVER).astype(jnp.int32)
        return cls(steps, alone, alone, alone, jnp.where(first[:, None], kappas[None], 0))

    def corrected(self, change: PyTree, start: Array, stride: int, count: Array, growth: Array) -> PyTree:
        """The change of one of `count` stages, in the stiffest directions made exact for `growth` times their curvature."""
        flat, unravel = ravel_pytree(change)
        begun = jnp.asarray(self.steps) <= start + stride // 2
        # All bases for all lanes: one product of matrices, where each lane's own would be copied for it.
        here = jnp.maximum(jnp.sum(begun) - 1, 0)
        coordinates = self.inverse[here] @ jnp.einsum("pnk,n->pk", self.basis, flat)[here]
        kappas = self.kappas[here] * self._ratio(here, start + stride // 2)
        longer = exact(stride * growth.astype(flat.dtype) * kappas, count) - 1
        followed = begun.any() & (growth <= STEADY)
        share = jnp.where(followed & (jnp.arange(_POINTS) == here), 1, 0).astype(flat.dtype)
        coefficients = share[:, None] * (self.modes[here] @ (longer * coordinates))[None]
        return unravel(flat + jnp.einsum("pnk,pk->n", self.basis, coefficients))

    def _ratio(self, here: Array, step: Array) -> Array:
        """The largest kappa at `step` over that at point `here`: a power of the step on the way to the next point."""
        largest = jnp.max(self.kappas, axis=-1)
        after = jnp.minimum(here + 1, jnp.maximum(jnp.sum(jnp.asarray(self.steps) != _NEVER) - 1, 0))
        place = jnp.log1p(jnp.asarray(self.steps).astype(largest.dtype))
        gone, way = jnp.log1p(step.astype(largest.dtype)) - place[here], place[after] - place[here]
        share = jnp.clip(gone / jnp.where(way > 0, way, 1), 0, 1)
        known = (largest[here] > 0) & (largest[after] > 0)
        return jnp.where(known, largest[after] / jnp.where(known, largest[here], 1), 1) ** share


def _modes(in_basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(V, its inverse, kappas), all real: where two modes turn into each other, V spans their plane."""
    kappas, modes = np.linalg.eig(in_basis)
    turning = np.imag(kappas) < 0
    modes = np.where(turning, np.imag(modes), np.real(modes))
    symmetric = np.abs(in_basis - in_basis.T).max() <= _SYMMETRIC * np.abs(in_basis).max()
    if symmetric or np.linalg.cond(modes) > _WORST_CONDITION:
        kappas, modes = np.linalg.eigh((in_basis + in_basis.T) / 2)
        return modes, modes.T, np.maximum(kappas, 0)
    return modes, np.linalg.inv(modes), np.where(np.real(kappas) > 0, np.abs(kappas), 0)


def stiffest_directions(
    step: Any, states: PyTree, starts: np.ndarray, span: int, chunk: int | None, known: Stiffest
) -> tuple[Stiffest, np.ndarray, np.ndarray, int, int]:
    """(the stiffest directions at these states, stacked; kappa there; kappa of the rest until the next state; depth; work).

    As many as in `known`, by orthogonal iteration with the frozen-gradient step of `span` training steps. With the directions
    of one state, the rest is measured there and at the state after it; between the two they turn by more than that shows.
    """
    both = step, states
    basis, in_basis, rest = _orthogonal_iteration(data_of(both), jnp.asarray(starts), Static(both), span, chunk, known.count)
    depth = 2 + _PRODUCTS + _REST_PRODUCTS
    work = (known.count * _PRODUCTS + 2 * _REST_PRODUCTS + 4) * span * len(starts)
    in_basis, rest = np.asarray(in_basis) / span, np.asarray(rest) / span
    if not (np.all(np.isfinite(in_basis)) and np.all(np.isfinite(rest))):
        nothing = np.full(len(starts), np.nan)
        return known, nothing, nothing, depth, work
    found = known.along(starts, basis, in_basis)
    kappas = np.maximum(np.asarray(found.kappas)[: len(starts)].max(axis=1), rest)
    return found, kappas, np.maximum(rest, kappas / _TRUSTED), depth, work


@partial(kernel, static_argnums=(2, 3, 4, 5))
def _orthogonal_iteration(data, starts, static, span, chunk, count):
    step, states = static.with_data(data)

    def at(state, start, after, start_after):
        product, params = operator(step, state, start, span, chunk)
        product_after, _ = operator(step, after, start_after, span, chunk)
        flat, unravel = ravel_pytree(params)
        on_flat = lambda product: lambda v: ravel_pytree(product(unravel(v)))[0]
        block = jax.vmap(on_flat(product), 1, 1)
        first = jax.random.normal(jax.random.key(0), (flat.size, count), flat.dtype)

        def next_basis(_, carry):
            return (basis := orthogonal_basis(carry[1])), block(basis)

        basis, products = jax.lax.fori_loop(0, _PRODUCTS, next_basis, (first, first))

        def rest(product):
            def next_product(v, _):
                v = v - basis @ (basis.T @ v)
                size = jnp.linalg.norm(v)
                v = on_flat(product)(v / jnp.where(size > 0, size, 1))
                return v, jnp.linalg.norm(v - basis @ (basis.T @ v))

            random = jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)
            return jax.lax.scan(next_product, random, length=_REST_PRODUCTS)[1][-1]

        return basis, basis.T @ products, jnp.maximum(rest(product), rest(product_after))

    arrays, constants = eqx.partition(states, eqx.is_array)
    after, starts_after = jax.tree.map(lambda x: jnp.append(x[1:], x[-1:], axis=0), (arrays, starts))
    whole = lambda arrays: eqx.combine(arrays, constants)
    return jax.vmap(lambda one, start, two, next_start: at(whole(one), start, whole(two), next_start))(
        arrays, starts, after, starts_after
    )
