r"""Damped Chebyshev stages: a long step of gradient descent from few gradients.

With `change(y)`, which is -x (y - rest) for a mode of stiffness x = steps times kappa, s stages take the distance from rest by

$$P(x) = T_s(w_0 - w_1 x) / T_s(w_0), \quad w_0 = 1 + \epsilon / s^2, \quad w_1 = T_s(w_0) / T_s'(w_0),$$

which is $e^{-x}$ to first order and below 1 for x up to $1.87 s^2$ with $\epsilon = .1$ (van der Houwen and Sommeijer 1980,
ZAMM 60, 479; Verwer, Hundsdorfer and Sommeijer 1990, Numer. Math. 57, 157).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


_DAMPING = 0.1
_REACH = 1.87
_PIECES = 16
_SLOW = 0.05


def stages(stiffness: Any) -> Any:
    """How many stages are stable for this much kappa in one coarse step: numbers or arrays, of NumPy or JAX."""
    xp = jnp if isinstance(stiffness, jax.Array) else np
    return xp.maximum(xp.ceil(xp.sqrt(stiffness / _REACH)), 1).astype(np.int32)


def reach(count: int, kappa: float) -> int:
    """The longest stride for which so many stages are stable."""
    return min(int(_REACH * count**2 / max(kappa, 1e-9)), 2**30)


class Curvature(eqx.Module):
    """kappa of one training step along the run: at most `kappas[i]` from step `steps[i]` to the next of these."""

    steps: Array | np.ndarray
    kappas: Array | np.ndarray

    @classmethod
    def along(cls, steps: np.ndarray, kappas: np.ndarray) -> "Curvature":
        """From values at these steps: between two of them, the larger. Always of the same shape, for the same programs."""
        steps, kappas = np.asarray(steps), np.asarray(kappas, float)
        pieces = np.maximum(kappas, np.append(kappas[1:], kappas[-1]))
        unused = _PIECES - len(steps)
        starts = np.concatenate([[0], steps[1:], np.full(unused, np.iinfo(np.int32).max)])
        # Arrays of NumPy until a kernel takes them: costs are counted without asking a device.
        return cls(starts.astype(np.int32), np.pad(pieces, (0, unused)).astype(np.float32))

    @property
    def largest(self) -> float:
        return float(np.max(self.kappas))

    def within(self, start: Any, stride: int) -> Any:
        """The largest kappa between `start` and `start + stride`, for any number of starts."""
        xp = jnp if isinstance(self.steps, jax.Array) or isinstance(start, jax.Array) else np
        ends = xp.append(self.steps[1:], np.int32(np.iinfo(np.int32).max))
        start = xp.asarray(start)[..., None]
        return xp.max(xp.where((self.steps < start + stride) & (ends > start), self.kappas, 0), axis=-1)


def _constants(s: Array) -> tuple[Array, Array, Array]:
    """(w_0, w_1, T_s(w_0))."""
    over = _DAMPING / s**2
    angle = jnp.log1p(over + jnp.sqrt(over * (2 + over)))
    return 1 + over, jnp.sinh(angle) / (s * jnp.tanh(s * angle)), jnp.cosh(s * angle)


def exact(stiffness: Array, count: Array) -> Array:
    """By what to multiply the changes of modes so that so many stages take them by $e^{-x}$: d where P(d x) is that."""
    s = count.astype(stiffness.dtype)
    w0, w1, largest = _constants(s)
    # The slowest are as good as exact, and the inverse of P has not the digits for them.
    x = jnp.maximum(stiffness, _SLOW)
    t = jnp.exp(-x) * largest
    inverse = jnp.where(t > 1, jnp.cosh(jnp.arccosh(jnp.maximum(t, 1)) / s), jnp.cos(jnp.arccos(jnp.minimum(t, 1)) / s))
    return jnp.where(stiffness > _SLOW, (w0 - inverse) / (w1 * x), 1)


def chebyshev(evaluate: Callable[[PyTree], tuple[PyTree, PyTree]], first: PyTree, count: Array) -> tuple[PyTree, PyTree]:
    """(the result of `count` stages from `first`, what `evaluate` returned beside the change in the last of them).

    `evaluate(y) -> (change, other arrays)`. The count may be traced: stages are one loop.
    """
    dtype = jnp.result_type(*jax.tree.leaves(first))
    w0, w1, _ = _constants(count.astype(dtype))

    def stage(j, carry):
        (before, t_before), (y, t), _ = carry
        change, other = evaluate(y)
        t_after = 2 * w0 * t - t_before
        share = jnp.where(j == 0, 1, 2) * w1 * t / t_after

        def combine(before, y, change):
            return ((2 * w0 * t * y - t_before * before) / t_after + share * change).astype(y.dtype)

        return (y, t), (jax.tree.map(combine, before, y, change), t_after), other

    other = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: evaluate(first)[1]))
    carry = ((first, w0), (first, jnp.ones((), dtype)), other)
    _, (result, _), other = jax.lax.fori_loop(jnp.int32(0), count, stage, carry)
    return result, other
