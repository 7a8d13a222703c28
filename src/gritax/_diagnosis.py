"""Which level's propagator grew: asked once a solve has diverged or stalled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Hierarchy
from ._kernel import kernel
from ._points import Points


_POINTS = 64
_POWER_STEPS = 10
# |1 - x| > 1 for an x, an eigenvalue of I - J, beyond 2: less a margin for how well ten power steps know it.
_LIMIT = 2.05


def diagnose(evolution: Evolution, hierarchy: Hierarchy, u0: PyTree[Array], clock: PyTree[Array]) -> str:
    """A sentence: the first level whose propagator is unstable on states of the training itself, and what to change.

    With J the Jacobian of one step of a level, a perturbation along an eigenvector of I - J with the eigenvalue x is
    multiplied by 1 - x: for gradient descent, x is rate times curvature, and beyond 2 it is unstable. A saddle, where
    serial training grows by g a step, may let a coarse step grow by g^stride, but not by more.
    """
    states = _first_states(evolution, hierarchy[0].factor, min(_POINTS, hierarchy[0].num_intervals), u0, clock)
    found = [_amplification(evolution, hierarchy, index, states) for index in range(len(hierarchy))]
    stiffness, growth = found[0]
    if not np.isfinite(growth):
        return "Serial training is not finite either, on its first steps: lower the learning rate"
    if stiffness > _LIMIT:
        return (
            f"The training step itself amplifies perturbations, {growth:.3g}-fold a step at the worst point: the learning "
            "rate is at its limit. Lower it, or train serially"
        )
    for level in hierarchy.levels[1:]:
        x, coarse_growth = found[level.index]
        if np.isfinite(x) and x <= _LIMIT and np.log(coarse_growth) <= level.stride * np.log(max(growth, 1)) + 0.1:
            continue
        how = f"amplifies perturbations {coarse_growth:.3g}-fold a step" if np.isfinite(coarse_growth) else "is not finite"
        cap = f" (RescaledRate: a max_factor of at most {max(1.8 / stiffness, 1):.2g})" if stiffness > 0 and x > _LIMIT else ""
        return (
            f"The propagator of level {level.index} (stride {level.stride}) grew: it {how}, while finer levels are stable. "
            f"Use a coarse propagator that stays stable at that stride{cap}, max_levels={level.index}, or a smaller coarsening "
            "factor"
        )
    return (
        "No level's propagator is unstable on the first states, so the coarse steps differ too much from the training steps "
        "they stand for: use a smaller coarsening factor, more relaxation, or a closer coarse propagator"
    )


@partial(kernel, static_argnames=("spacing", "count"))
def _first_states(evolution, spacing, count, u0, clock) -> Points:
    """Serial training at the steps `0, spacing, …`: states that nothing has spoilt."""

    def interval(carry, start):
        def step(j, carry):
            return evolution.advance(*carry, start + j, 1)

        return jax.lax.fori_loop(jnp.int32(0), jnp.int32(spacing), step, carry), carry[0]

    return jax.lax.scan(interval, (u0, clock), jnp.arange(count, dtype=jnp.int32) * spacing)[1]


def _amplification(evolution, hierarchy, index, states) -> tuple[float, float]:
    """Largest |eigenvalue| over the states of I - J, and of J; inf where the level is not finite."""
    stride, spacing = hierarchy[index].stride, hierarchy[0].factor
    steps = np.arange(len(jax.tree.leaves(states)[0]), dtype=np.int32) * spacing
    starts = np.minimum(steps // stride * stride, (hierarchy[index].size - 1) * stride).astype(np.int32)
    found = np.asarray(_power_iterations(evolution, states, starts, stride))
    worst = np.max(np.where(np.isnan(found), np.inf, found), axis=0)
    return float(worst[0]), float(max(worst[1], np.finfo(float).tiny))


@partial(kernel, static_argnames="stride")
def _power_iterations(evolution, states, starts, stride):
    # Differences rather than derivatives: phi need not be differentiable.
    def at(u, start):
        clock = evolution.clock(start)
        # In the stored form: of a second moment a difference would take the root of a negative number.
        leaves, structure = jax.tree.flatten(evolution.stored(u))
        flat, unravel = ravel_pytree(leaves)
        size = jnp.linalg.norm(flat)
        length = (jnp.sqrt(jnp.finfo(flat.dtype).eps) * (1 + size)).astype(flat.dtype)

        def advance(flat):
            return ravel_pytree(evolution.advance_stored(structure.unflatten(unravel(flat)), clock, start, stride)[0])[0]

        base = advance(flat)

        def largest(operator):
            def step(v, _):
                moved = operator(v, (advance(flat + length * v) - base) / length)
                size = jnp.linalg.norm(moved)
                return moved / jnp.where(size == 0, 1, size).astype(flat.dtype), size

            # A direction with a part along every mode, the same at every call.
            first = jnp.cos(jnp.arange(flat.size, dtype=size.dtype) ** 2 + 1).astype(flat.dtype)
            return jax.lax.scan(step, first / jnp.linalg.norm(first).astype(flat.dtype), length=_POWER_STEPS)[1][-1]

        return jnp.stack([largest(lambda v, jv: v - jv), largest(lambda v, jv: jv)])

    return jax.vmap(at)(states, starts)
