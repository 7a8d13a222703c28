"""Whether a training step is continuous in the state: the limit of every coarse step, asked once convergence is slow."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._cycle import Cycle
from ._evolution import Evolution
from ._kernel import kernel
from ._layout import local
from ._norms import norm
from ._points import Points, states_at
from ._state import leaf_name


_SEGMENTS = 8
_ROUNDINGS = 16


def jumps(cycle: Cycle, c: Points) -> bool:
    """Whether phi jumps somewhere between neighbouring C-points.

    Along the segment between two of them the change of phi's update is bisected, always into the half where it changes more.
    Of a continuous update nothing remains; of one that jumps, the jump.
    """
    finest = cycle.hierarchy[0]
    points = np.unique(np.linspace(0, finest.num_intervals - 1, _SEGMENTS).astype(np.int32))
    updates = 2 + _tolerated(c)[1]
    cycle.cost.spend(len(points), updates, updates * len(points))
    found = cycle.evolution, states_at(finest, c, points), states_at(finest, c, points + 1)
    evolution, low, high = local(found, cycle.mesh)
    return bool(np.max(np.asarray(_remaining(evolution, low, high, points * finest.factor))) > _tolerated(low)[0])


def rounds(first: PyTree[Array], last: PyTree[Array]) -> str:
    """A sentence that names the leaves of fewer than 32 bits that have moved between these states; "" if there are none.

    Each step rounds them to two or three digits, and that jumps as the state changes.
    """
    names = [
        f"{leaf_name(path)} ({x.dtype})"
        for (path, x), y in zip(tree_leaves_with_path(first), jax.tree.leaves(last), strict=True)
        if jnp.finfo(x.dtype).bits < 32 and not np.array_equal(np.asarray(x), np.asarray(y))
    ]
    if not names:
        return ""
    return (
        f"Every step rounds {', '.join(names)}, and so jumps by more than the tolerance as the state changes: keep that in "
        "float32 (accumulator_dtype or mu_dtype of an Optax transformation), or take the steps one after the other"
    )


def _tolerated(u) -> tuple[float, int]:
    """(largest share of the change that a continuous update may leave, bisections)."""
    single = any(jnp.finfo(leaf.dtype).bits < 64 for leaf in jax.tree.leaves(u))
    return (1e-2, 12) if single else (1e-4, 26)


@kernel
def _remaining(evolution: Evolution, low: Points, high: Points, starts: Array) -> Array:
    def along(low, high, start):
        clock = evolution.clock(start)
        low, high = evolution.natural(low), evolution.natural(high)

        def update(t):
            u = jax.tree.map(lambda x, y: x + t.astype(x.dtype) * (y - x), low, high)
            after = evolution.params(*evolution.advance(u, clock, start, 1))
            return jax.tree.map(jnp.subtract, after, evolution.params(u, clock))

        def change(a, b):
            return norm(jax.tree.map(jnp.subtract, a, b))

        def bisect(_, carry):
            (s, at_s), (t, at_t), largest = carry
            middle = (s + t) / 2
            at_middle = update(middle)
            below, above = change(at_middle, at_s), change(at_t, at_middle)
            pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(below > above, x, y), a, b)
            largest = jnp.maximum(largest, jnp.maximum(below, above))
            return pick((s, at_s), (middle, at_middle)), pick((middle, at_middle), (t, at_t)), largest

        zero, one = jnp.zeros(()), jnp.ones(())
        at_zero, at_one = update(zero), update(one)
        # The update may be nearly the same at both ends and differ between them, as where training oscillates.
        ends = (zero, at_zero), (one, at_one), change(at_zero, at_one)
        (_, low_end), (_, high_end), largest = jax.lax.fori_loop(0, _tolerated(low)[1], bisect, ends)
        jump = change(low_end, high_end)
        # An update is a difference of states, whose rounding makes it jump as well.
        rounding = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(low)) * norm(evolution.params(high, clock))
        return jnp.where(jump > _ROUNDINGS * rounding, jump / jnp.where(largest > 0, largest, 1), 0)

    return jax.vmap(along)(low, high, starts)
