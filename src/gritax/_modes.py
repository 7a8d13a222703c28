r"""Bounds on what an iteration leaves of the error, mode by mode of a quadratic loss.

The modes of a quadratic loss do not mix. On level l a step multiplies a mode by $\mu_l$ ($\mu_0$ is the training step). With m
of its steps to an interval, $\nu$ FC sweeps of weight $\omega$, and z the factor of an error from one C-point to the next,

$$\rho_l = \max_z \left|\frac{\mu_l^m - \mu_{l+1}}{z - \mu_{l+1}} r\right|
+ \max_z \left|\frac{z - \mu_l^m}{z - \mu_{l+1}} r\right| \rho_{l+1},
\quad r = (1 - \omega + \omega \mu_l^m / z)^\nu, \quad |z| = 1$$

bounds what a V-cycle from level l leaves. The first term is that of an exact solve on level l + 1 (Dobrev, Kolev, Petersson and
Schroder 2017, SIAM J. Sci. Comput. 39, S501); the second is what a cycle leaves of what it was to correct. On the coarsest
level nothing is left. After an F-cycle $\rho_{l+1}$ is that of an F- and a V-cycle together. Momentum makes matrices
of these numbers, and their largest eigenvalues count.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

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


_ANGLES = 33
_DIVERGES = 1e20


def bounds(hierarchy: Hierarchy, cycle: str, transfer: Callable[[Level], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """([P, levels - 1, modes] for two levels, [P, modes] for the cycle)."""
    coarse = transfer(hierarchy[-1])
    after_v = after_f = np.zeros(coarse.shape[:-2])
    of_levels = []
    for level in reversed(hierarchy.levels[:-1]):
        fine = transfer(level)
        left, passed = _of_two_levels(level, np.linalg.matrix_power(fine, level.factor), coarse)
        of_levels.append(left)
        after_f = left + passed * after_f * (after_v if cycle == "F" else 1)
        after_v = left + passed * after_v
        coarse = fine
    if not of_levels:
        return np.zeros((len(coarse), 0, coarse.shape[1])), after_v
    return np.stack(of_levels[::-1], axis=1), after_f


def _of_two_levels(level: Level, interval: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what is left of an error after relaxation and an exact coarse solve, the share that the coarse solve is to correct)."""
    poles = np.linalg.eigvals(coarse)
    angles = np.broadcast_to(np.linspace(0, np.pi, _ANGLES), (*poles.shape[:-1], _ANGLES))
    # Slow modes feel that the run is short: errors count less the later they are, by a tenth over the run.
    radius = math.exp(0.1 / level.num_intervals)
    z = radius * np.exp(1j * np.concatenate([angles, np.angle(poles)], axis=-1))[..., None, None]
    eye, interval, coarse = np.eye(coarse.shape[-1]), interval[..., None, :, :], coarse[..., None, :, :]
    relaxed = np.linalg.matrix_power((1 - level.weight) * eye + level.weight * interval / z, level.sweeps)
    growing = np.abs(poles).max(axis=-1) >= radius

    def largest(right):
        found = np.abs(np.linalg.eigvals(np.linalg.solve(z * eye - coarse, right @ relaxed)))
        return np.where(growing, _DIVERGES, found.max(axis=(-1, -2)))

    return largest(interval - coarse), largest(z * eye - interval)


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
