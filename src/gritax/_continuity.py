"""Whether a training step is continuous in the state: the limit of every coarse step, asked once convergence is slow."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._cycle import Cost
from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import kernel
from ._norms import norm
from ._relaxation import Points


_SEGMENTS = 8
_ROUNDINGS = 16


def jumps(evolution: Evolution, finest: Level, c: Points, cost: Cost) -> bool:
    """Whether phi jumps somewhere between neighbouring C-points.

    Along the segment between two of them the change of phi's update is bisected, always into the half where it changes more.
    Of a continuous update nothing remains; of one that jumps, the jump.
    """
    points = np.unique(np.linspace(0, finest.num_intervals - 1, _SEGMENTS).astype(np.int32))
    updates = 2 + _tolerated(c)[1]
    cost.spend(len(points), updates, updates * len(points))
    return bool(np.max(np.asarray(_remaining(evolution, c, points, points * finest.factor))) > _tolerated(c)[0])


def _tolerated(c) -> tuple[float, int]:
    """(largest share of the change that a continuous update may leave, bisections)."""
    single = any(jnp.finfo(leaf.dtype).bits < 64 for leaf in jax.tree.leaves(c))
    return (1e-2, 12) if single else (1e-4, 26)


@kernel
def _remaining(evolution: Evolution, c: Points, points: Array, starts: Array) -> Array:
    def along(point, start):
        clock = evolution.clock(start)
        low = evolution.natural(jax.tree.map(lambda x: x[point], c))
        high = evolution.natural(jax.tree.map(lambda x: x[point + 1], c))

        def update(t):
            u = jax.tree.map(lambda x, y: x + t.astype(x.dtype) * (y - x), low, high)
            after = evolution.params(*evolution.advance(u, clock, start, 1))
            return jax.tree.map(jnp.subtract, after, evolution.params(u, clock))

        def change(a, b):
            return norm(jax.tree.map(jnp.subtract, a, b))

        def bisect(_, ends):
            (s, at_s), (t, at_t) = ends
            middle = (s + t) / 2
            at_middle = update(middle)
            first = change(at_middle, at_s) > change(at_t, at_middle)
            pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)
            return pick((s, at_s), (middle, at_middle)), pick((middle, at_middle), (t, at_t))

        zero, one = jnp.zeros(()), jnp.ones(())
        ends = ((zero, update(zero)), (one, update(one)))
        whole = change(ends[0][1], ends[1][1])
        (_, low_end), (_, high_end) = jax.lax.fori_loop(0, _tolerated(c)[1], bisect, ends)
        jump = change(low_end, high_end)
        # An update is a difference of states, whose rounding makes it jump as well.
        rounding = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(low)) * norm(evolution.params(high, clock))
        return jnp.where(jump > _ROUNDINGS * rounding, jump / jnp.where(whole > 0, whole, 1), 0)

    return jax.vmap(along)(points, starts)
