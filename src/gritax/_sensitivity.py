"""How much training amplifies a small change of its state: what errors of earlier windows become, and rounding."""

import math
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._cycle import Cost
from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import kernel
from ._norms import norm
from ._serial import advance


@dataclass
class Sensitivity:
    """The amplification of a change of the state that is carried along a run, made small again after each window.

    So it turns into what training amplifies most (Benettin and others 1980, Meccanica 15, 9). It begins in the parameters that
    the first window moves, in proportion to how far, as errors do, and its length is that in trained parameters: what no step
    changes, and statistics of any size, say nothing of errors. `error` is how far the parameters may be from serial training's
    by now, and `rounding` how far rounding alone would take them.
    """

    direction: PyTree[Array] | None = None
    growth: float = 1.0
    error: float = 0.0
    rounding: float = 0.0

    def take(self, grown: float, error: float, rounding: float) -> None:
        """A window that multiplies changes by `grown` and adds these errors of its own."""
        self.growth *= grown
        self.error = self.error * grown + error
        self.rounding = self.rounding * grown + rounding

    def serially(self, evolution: Evolution, floating, clock, after, num_steps: int, cost: Cost) -> float:
        """By how much `num_steps` training steps, which lead to `after`, multiply the change."""
        changed, length = self._changed(evolution, floating, after)
        if length == 0:
            return 1.0
        cost.spend(2, 0, num_steps)  # at the same time as the steps themselves
        twin, _ = advance(evolution, changed, clock, np.int32(num_steps))
        return self._follow(evolution, after, twin, length)

    def coarsely(self, evolution: Evolution, floating, after, coarsest: Level, num_steps: int, cost: Cost) -> float:
        """The same for the coarse steps of a level that come nearest to those `num_steps` training steps."""
        count = min(max(round(num_steps / coarsest.stride), 1), coarsest.size)
        changed, length = self._changed(evolution, floating, after)
        if length == 0:
            return 1.0
        cost.add(evolution.phi, coarsest, np.arange(count)[:, None] + np.zeros(2, int))
        after, twin = _both(coarsest, evolution, floating, changed, np.int32(count))
        return self._follow(evolution, after, twin, length)

    def _changed(self, evolution, floating, after) -> tuple[PyTree[Array], float]:
        direction = _begun(evolution, floating, after) if self.direction is None else self.direction
        changed, length = _changed(evolution, floating, direction)
        return changed, float(length)

    def _follow(self, evolution, after, twin, length) -> float:
        change, grown = _grown(evolution, after, twin)
        grown = float(grown) / length
        self.direction = change if grown else None
        return grown if math.isfinite(grown) else math.inf


def irregular(evolution: Evolution, before: PyTree[Array], after: PyTree[Array]) -> PyTree[Array]:
    """A change of every trained leaf in proportion to how far it has moved between these states, both as stored."""
    moves = jax.tree.map(jnp.subtract, evolution.trained(after), evolution.trained(before))
    leaves, structure = jax.tree.flatten(moves)

    def change(i, moved):
        pattern = jnp.sin(0.4 + 1.7 * i + 1.3 * jnp.arange(moved.size, dtype=jnp.float32)).reshape(moved.shape)
        return moved * pattern.astype(moved.dtype)

    changes = jax.tree.unflatten(structure, [change(i, x) for i, x in enumerate(leaves)])
    return eqx.combine(changes, jax.tree.map(jnp.zeros_like, before))


@kernel
def _begun(evolution, floating, after):
    return irregular(evolution, evolution.stored(floating), evolution.stored(after))


@kernel
def _changed(evolution, floating, direction):
    """(the state changed by the root of the precision along the direction, the length of the change); 0 for no direction."""
    stored, along = evolution.stored(floating), evolution.trained(direction)
    size = norm(jax.tree.map(lambda x, d: jnp.where(d != 0, x, 0), evolution.trained(stored), along))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(along))
    length = norm(along)
    share = math.sqrt(eps) * jnp.where(size > 0, size, 1) / jnp.where(length > 0, length, 1)
    changed = jax.tree.map(lambda x, d: x + share.astype(x.dtype) * d, stored, direction)
    moved = jax.tree.map(jnp.subtract, evolution.trained(changed), evolution.trained(stored))
    return evolution.natural(changed), jnp.where(length > 0, norm(moved), 0)


@kernel
def _grown(evolution, after, twin):
    change = jax.tree.map(jnp.subtract, evolution.stored(twin), evolution.stored(after))
    return change, norm(evolution.trained(change))


@partial(kernel, static_argnums=0)
def _both(level, evolution, floating, changed, count):
    def run(floating):
        def step(k, carry):
            return evolution.advance_stored(*carry, k * level.stride, level.stride)

        first = evolution.stored(floating), evolution.clock(jnp.int32(0))
        return evolution.natural(jax.lax.fori_loop(jnp.int32(0), count, step, first)[0])

    ends = jax.vmap(run)(jax.tree.map(lambda x, y: jnp.stack([x, y]), floating, changed))
    return tuple(jax.tree.map(lambda x, index=index: x[index], ends) for index in (0, 1))
