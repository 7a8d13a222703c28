r"""What an iteration leaves of the error, mode by mode of a quadratic loss: expected, and at most.

The modes of a quadratic loss do not mix. On level l a step multiplies a mode by $\mu_l$ ($\mu_0$ is the training step). With
m of its steps to an interval, $\nu$ FC sweeps of weight $\omega$, and z the factor of an error from one C-point to the next,
$|z| = 1$, relaxation and an exact solve on level l + 1 leave $A_l$ of the error, and that solve is to correct $B_l$ of it:

$$A_l(z) = \frac{\mu_l^m - \mu_{l+1}}{z - \mu_{l+1}} r, \quad B_l(z) = \frac{z - \mu_l^m}{z - \mu_{l+1}} r, \quad
r = (1 - \omega + \omega \mu_l^m / z)^\nu$$

$\max_z |A_l|$ is the factor of two levels (Dobrev, Kolev, Petersson and Schroder 2017, SIAM J. Sci. Comput. 39, S501). A
V-cycle from level l leaves at most $\max_z |A_l| + \max_z |B_l|$ times what one from level l + 1 leaves, which grows with the
levels. In fact level l + 1, whose intervals have n steps, sees of what it is to correct every n-th point, where the n
factors $\zeta$ with $\zeta^n = z^n$ are one, and its F-relaxation spreads what is left of it over the others:

$$\rho_l(z) = |A_l(z)|
+ \Big| \sum_{\zeta^n = z^n} B_l(\zeta) \frac1n \sum_{j < n} (\mu_{l+1} / \zeta)^j \Big| \rho_{l+1}(z^n)$$

is the factor expected: a Fourier analysis over all levels, with a number in place of each matrix that couples these factors.
On the coarsest level nothing is left. After an F-cycle $\rho_{l+1}$ is that of an F- and a V-cycle together. Momentum makes
matrices of these numbers, and their largest eigenvalues count.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from ._hierarchy import Hierarchy, Level
from ._kernel import kernel
from .training import CompositeLoss, TrainState, TrainStep


_ANGLES = 17
_DIVERGES = 1e20


class Prediction(NamedTuple):
    """[P, levels - 1, modes] for two levels; [P, modes] for the cycle, expected and at most."""

    of_two_levels: np.ndarray
    expected: np.ndarray
    bound: np.ndarray


class _Pair(NamedTuple):
    """Two neighbouring levels, and what an interval of the finer and a step of the coarser one make of a mode."""

    level: Level
    interval: np.ndarray
    coarse: np.ndarray

    def angles(self) -> np.ndarray:
        poles = np.linalg.eigvals(self.coarse)
        evenly = np.broadcast_to(np.linspace(0, np.pi, _ANGLES), (*poles.shape[:-1], _ANGLES))
        return np.concatenate([evenly, np.angle(poles)], axis=-1)

    def circle(self) -> float:
        # Slow modes feel that the run is short: errors count less the later they are, by a tenth over the run.
        return math.exp(0.1 / self.level.num_intervals)

    def amplifies(self) -> np.ndarray:
        return _radius(self.coarse) >= self.circle()

    def left(self, z: np.ndarray) -> np.ndarray:
        """A for these z, matrices of a mode's coordinates."""
        return self._solved(z, (self.interval - self.coarse)[..., None, :, :])

    def passed(self, z: np.ndarray) -> np.ndarray:
        """B for these z."""
        eye = np.eye(self.coarse.shape[-1])
        return self._solved(z, z[..., None, None] * eye - self.interval[..., None, :, :])

    def _solved(self, z: np.ndarray, right: np.ndarray) -> np.ndarray:
        z, weight, eye = z[..., None, None], self.level.weight, np.eye(self.coarse.shape[-1])
        relaxed = (1 - weight) * eye + weight * self.interval[..., None, :, :] / z
        return np.linalg.solve(
            z * eye - self.coarse[..., None, :, :], right @ np.linalg.matrix_power(relaxed, self.level.sweeps)
        )


def predicted(hierarchy: Hierarchy, cycle: str, transfer: Callable[[Level], np.ndarray]) -> Prediction:
    steps = [transfer(level) for level in hierarchy.levels]
    nothing = np.zeros(steps[0].shape[:-2])
    if len(steps) == 1:
        return Prediction(nothing[:, None][:, :0], nothing, nothing)
    pairs = [
        _Pair(level, np.linalg.matrix_power(fine, level.factor), coarse)
        for level, fine, coarse in zip(hierarchy.levels, steps, steps[1:], strict=False)
    ]
    of_two_levels, expected, bound_v, bound_f = [], nothing, nothing, nothing
    for index, pair in reversed(list(enumerate(pairs))):
        z = pair.circle() * np.exp(1j * pair.angles())
        left = np.where(pair.amplifies(), _DIVERGES, _radius(pair.left(z)).max(axis=-1))
        passed = _radius(pair.passed(z)).max(axis=-1)
        of_two_levels.append(left)
        bound_f = left + passed * bound_f * (bound_v if cycle == "F" else 1)
        bound_v = left + passed * bound_v
        # Seen from the finest level, what is at an angle here is at a part of it.
        angles = pair.angles() / math.prod(finer.level.factor for finer in pairs[1 : index + 1])
        of_cycle = _expected(pairs, pairs[0].circle() * np.exp(1j * angles), cycle).max(axis=-1)
        expected = np.maximum(expected, np.where(pair.amplifies(), _DIVERGES, of_cycle))
    return Prediction(np.stack(of_two_levels[::-1], axis=1), expected, bound_f)


def _expected(pairs: list[_Pair], z: np.ndarray, cycle: str) -> np.ndarray:
    left = _radius(pairs[0].left(z))
    if len(pairs) == 1:
        return left
    count, coarse, seen = pairs[1].level.factor, pairs[0].coarse[..., None, :, :], 0
    for root in np.exp(2j * np.pi * np.arange(count) / count):
        spread = sum(np.linalg.matrix_power(coarse / (root * z)[..., None, None], j) for j in range(count)) / count
        seen = seen + pairs[0].passed(root * z) @ spread
    after = _expected(pairs[1:], z**count, cycle)
    if cycle == "F":
        after = after * _expected(pairs[1:], z**count, "V")
    return left + _radius(np.asarray(seen)) * after


def _radius(matrices: np.ndarray) -> np.ndarray:
    if matrices.shape[-1] == 1:
        return np.abs(matrices[..., 0, 0])
    return np.abs(np.linalg.eigvals(matrices)).max(axis=-1)


def transfer(coarse: Any, lasting: int, curvatures: np.ndarray, along: np.ndarray, level: Level) -> np.ndarray:
    """[P, modes, s, s]: what a step of `level` that begins at or before the steps `along` makes of a mode's coordinates."""
    starts = np.minimum(along // level.stride, level.size - 1) * level.stride
    arrays, constants = eqx.partition(coarse, eqx.is_array)
    leaves, structure = jax.tree.flatten(constants)
    # Of a gradient's effect 5 percent are left after so many steps.
    beta = 0.05 ** (1 / lasting) if lasting > 1 else 0.0
    found = _of_modes(arrays, jnp.asarray(curvatures, float), jnp.asarray(starts), tuple(leaves), structure, level.stride, beta)
    return np.asarray(found, float)


@partial(kernel, static_argnums=(3, 4, 5, 6))
def _of_modes(arrays, curvatures, starts, constants, structure, stride, beta):
    coarse = eqx.combine(arrays, jax.tree.unflatten(structure, constants))
    optimizer = optax.sgd(1 - beta, momentum=beta or None)

    def at(curvatures, start):
        loss = CompositeLoss(Partial(_roots_of_curvature, jnp.sqrt(curvatures)), _half_of_squares)
        on_modes = getattr(coarse, "of_quadratic", None)
        model = TrainStep(loss, optimizer, _no_data, on_modes(curvatures, start, stride) if on_modes else coarse)
        structure = jax.tree.structure(TrainState(curvatures, optimizer.init(curvatures)))

        # In the slow variable w - beta v and beta v, the matrices of slow modes are nearly diagonal.
        def advance(z, *rest):
            leaves = [z + sum(rest), *(q / beta for q in rest)]
            after = jax.tree.leaves(model(jax.tree.unflatten(structure, leaves), start, stride))
            rest = [beta * v for v in after[1:]]
            return jnp.stack([after[0] - sum(rest), *rest])

        one, size = jnp.ones_like(curvatures), structure.num_leaves
        columns = [advance(*(one if i == j else 0 * one for i in range(size))) for j in range(size)]
        return jnp.moveaxis(jnp.stack(columns), (0, 1), (2, 1))

    return jax.vmap(at)(curvatures, starts)


def _roots_of_curvature(roots: Array, w: Array, _: Any) -> Array:
    return roots * w


def _half_of_squares(z: Array, _: Any) -> Array:
    return 0.5 * jnp.sum(z**2)


def _no_data(step: Array) -> tuple:
    return ()
