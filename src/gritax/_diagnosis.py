"""Which level's propagator grew: asked once a solve has diverged."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._evolution import Evolution
from ._hierarchy import Hierarchy
from ._relaxation import Points


_POINTS = 64
_POWER_STEPS = 8
_EDGE = 1.5  # a training step that amplifies so much is beyond its own limit of stability


def diagnose(evolution: Evolution, hierarchy: Hierarchy, c: Points) -> str:
    """A sentence: the first level whose propagator is unstable, and what to change."""
    growth = [_amplification(evolution, hierarchy, index, c) for index in range(len(hierarchy))]
    if growth[0] > _EDGE:
        return (
            f"The training step itself amplifies perturbations, {growth[0]:.3g}-fold a step at the worst point: the learning "
            "rate is at its limit. Lower it, or train serially"
        )
    for level in hierarchy.levels[1:]:
        # Fine steps that grow by g each grow by g^stride together; only what exceeds that is the coarse step's own.
        if growth[level.index] > 1.1 * max(growth[0], 1.0) ** level.stride:
            return (
                f"The propagator of level {level.index} (stride {level.stride}) grew: it amplifies perturbations "
                f"{growth[level.index]:.3g}-fold a step, finer levels at most {max(growth[: level.index]):.3g}-fold. Use "
                f"max_levels={level.index}, a smaller coarsening factor, or a coarse propagator that stays stable at that "
                "stride (for RescaledRate, a smaller max_factor)"
            )
    return (
        "No level's propagator is unstable, so the coarse steps differ too much from the training steps they stand for: use a "
        "smaller coarsening factor, more relaxation, or a closer coarse propagator"
    )


def _amplification(evolution, hierarchy, index, c) -> float:
    """Largest amplification of a perturbation by one step of the level, over points along the iterate."""
    level, spacing = hierarchy[index], hierarchy[0].factor
    size = min(level.size, _POINTS)
    starts = np.unique(np.linspace(0, level.size - 1, size).astype(np.int32)) * level.stride
    starts = starts - starts % spacing
    u = jax.tree.map(lambda x: x[starts // spacing], c)
    finite = jnp.stack([jnp.all(jnp.isfinite(x.reshape(len(starts), -1)), axis=1) for x in jax.tree.leaves(u)])
    found = np.asarray(_power_iteration(evolution, u, jnp.asarray(starts), level.stride))
    found = found[np.asarray(jnp.all(finite, axis=0)) & np.isfinite(found)]
    return float(found.max(initial=0.0))


@partial(jax.jit, static_argnames="stride")
def _power_iteration(evolution, u, starts, stride):
    # Differences rather than derivatives: phi need not be differentiable.
    def at(u, start):
        clock = evolution.clock(start)
        flat, unravel = ravel_pytree(u)

        def advance(flat):
            return ravel_pytree(evolution.advance(unravel(flat), clock, start, stride)[0])[0]

        base, length = advance(flat), jnp.sqrt(jnp.finfo(flat.dtype).eps) * (1 + jnp.linalg.norm(flat))

        def step(v, _):
            moved = (advance(flat + length * v) - base) / length
            size = jnp.linalg.norm(moved)
            return moved / jnp.where(size == 0, 1, size), size

        # A direction with a part along every mode, the same at every call.
        first = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype) ** 2 + 1)
        _, sizes = jax.lax.scan(step, first / jnp.linalg.norm(first), length=_POWER_STEPS)
        return sizes[-1]

    return jax.vmap(at)(u, starts)
