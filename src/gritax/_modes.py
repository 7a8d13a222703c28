r"""What an iteration leaves of the error, mode by mode of a quadratic loss: in fact, and at most.

The modes of a quadratic loss do not mix. On level l a step multiplies a mode by $\mu_l$ ($\mu_0$ is the training step). With
m of its steps to an interval, $\nu$ FC sweeps of weight $\omega$, and z the factor of an error from one C-point to the next,
$|z| = 1$, relaxation and an exact solve on level l + 1 leave $A_l$ of the error, and that solve is to correct $B_l$ of it:

$$A_l(z) = \frac{\mu_l^m - \mu_{l+1}}{z - \mu_{l+1}} r, \quad B_l(z) = \frac{z - \mu_l^m}{z - \mu_{l+1}} r, \quad
r = (1 - \omega + \omega \mu_l^m / z)^\nu$$

$\max_z |A_l|$ is the factor of two levels (Dobrev, Kolev, Petersson and Schroder 2017, SIAM J. Sci. Comput. 39, S501).
A V-cycle from level l leaves at most $\max_z |A_l| + \max_z |B_l|$ times what one from level l + 1 leaves, which adds up the
worst of every level. What it leaves in fact is found by cycles on a mode itself, of a run of this length and with these
levels, from an error of one at all C-points: relaxation, restriction and F-relaxation are products with these numbers, and
a solve on a coarser level is a recurrence. Momentum makes matrices of these numbers.
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
_CYCLES = 6
_ENTRIES = 1 << 17  # of a block of modes, which a cache holds
_DIVERGES = 1e20
_NOTHING = 1e-20


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

    def modes(self, block: slice) -> "_Pair":
        """The same of some modes, [modes, s, s]."""
        flat = lambda matrices: matrices.reshape(-1, *matrices.shape[-2:])[block]
        return self._replace(interval=flat(self.interval), coarse=flat(self.coarse))

    def residual(self, error: np.ndarray) -> np.ndarray:
        """Of an error at the C-points, [modes, s, intervals]."""
        return error - _later(_product(self.interval, error))

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
    of_two_levels, bound_v, bound_f, amplified = [], nothing, nothing, nothing > 0
    for pair in reversed(pairs):
        z, amplifies = pair.circle() * np.exp(1j * pair.angles()), pair.amplifies()
        amplified = amplified | amplifies
        left = np.where(amplifies, _DIVERGES, _radius(pair.left(z)).max(axis=-1))
        passed = _radius(pair.passed(z)).max(axis=-1)
        of_two_levels.append(left)
        bound_f = left + passed * bound_f * (bound_v if cycle == "F" else 1)
        bound_v = left + passed * bound_v
    # What coarse steps amplify the first cycle makes large, and the others, whose ratios are played, may well reduce.
    in_fact = np.where(amplified, _DIVERGES, _of_cycles(pairs, cycle))
    return Prediction(np.stack(of_two_levels[::-1], axis=1), in_fact, bound_f)


def _of_cycles(pairs: list[_Pair], cycle: str) -> np.ndarray:
    """The largest ratio of the residuals of two iterations in a row, after the first, [P, modes]."""
    *shape, size, _ = pairs[0].coarse.shape
    modes, intervals = math.prod(shape), pairs[0].level.num_intervals
    together = max(_ENTRIES // (size * intervals), 1)
    found = np.zeros(modes)
    for first in range(0, modes, together):
        block = slice(first, first + together)
        of_block = [pair.modes(block) for pair in pairs]
        error = np.ones((*of_block[0].coarse.shape[:-1], intervals))
        norms = []
        for _ in range(_CYCLES):
            error = _after(of_block, error, cycle)
            norms.append(_norms(of_block[0].residual(error)))
        before, after = np.stack(norms[:-1]), np.stack(norms[1:])
        found[block] = np.where(before == 0, 0, after / before).max(axis=0)
    return found.reshape(shape)


def _after(pairs: list[_Pair], error: np.ndarray, cycle: str) -> np.ndarray:
    """What a cycle leaves of an error at the C-points but the first, which has none: [modes, s, intervals]."""
    pair, coarser = pairs[0], pairs[1:]
    for _ in range(pair.level.sweeps):
        error = (1 - pair.level.weight) * error + pair.level.weight * _later(_product(pair.interval, error))
    correction = _solved(pair.coarse, pair.residual(error))
    error = error - correction
    if not coarser:
        return error
    # The next level begins with no correction, which is an error of all of it, and F-relaxation spreads what it leaves.
    count = coarser[0].level.factor
    left = _after(coarser, correction[..., count - 1 :: count], cycle)
    if cycle == "F":
        left = _after(coarser, left, "V")
    at_c_points = np.concatenate([np.zeros_like(left[..., :1]), left], axis=-1)
    spread = np.repeat(at_c_points, count, axis=-1)[..., 1 : error.shape[-1] + 1]
    power = pair.coarse
    for j in range(count - 1):
        points = slice(j, None, count)
        spread[..., points] = _product(power, spread[..., points])
        power = pair.coarse @ power
    return error + spread


def _later(values: np.ndarray, by: int = 1) -> np.ndarray:
    """At every point what is `by` points before, and nothing before the first."""
    return np.concatenate([np.zeros_like(values[..., :by]), values[..., :-by]], axis=-1)


def _product(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...jt->...it", matrices, values)


def _solved(matrices: np.ndarray, right: np.ndarray) -> np.ndarray:
    """u with u[t] = matrix u[t - 1] + right[t], by doubling."""
    reach = 1
    while reach < right.shape[-1] and np.any(np.abs(matrices) > _NOTHING):
        right = right + _later(_product(matrices, right), reach)
        matrices, reach = matrices @ matrices, 2 * reach
    return right


def _norms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(values**2, axis=(-2, -1)))


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
