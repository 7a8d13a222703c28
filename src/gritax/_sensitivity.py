"""How much training amplifies a small change of its state: what errors of earlier windows become, and rounding."""

import math
from dataclasses import dataclass
from functools import partial

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

    So it turns into what training amplifies most (Benettin and others 1980, Meccanica 15, 9). `error` is how far the parameters
    may be from serial training's by now, and `rounding` how far rounding alone would take them.
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
        changed, length = _changed(evolution, floating, self._direction(evolution, floating))
        cost.spend(2, 0, num_steps)  # at the same time as the steps themselves
        twin, _ = advance(evolution, changed, clock, np.int32(num_steps))
        return self._follow(evolution, after, twin, length)

    def coarsely(self, evolution: Evolution, floating, coarsest: Level, num_steps: int, cost: Cost) -> float:
        """The same for the coarse steps of a level that come nearest to `num_steps` training steps."""
        count = min(max(round(num_steps / coarsest.stride), 1), coarsest.size)
        changed, length = _changed(evolution, floating, self._direction(evolution, floating))
        cost.add(evolution.phi, coarsest, np.zeros(2, int), count)
        after, twin = _both(coarsest, evolution, floating, changed, np.int32(count))
        return self._follow(evolution, after, twin, length)

    def _direction(self, evolution, floating):
        return _irregular(evolution, floating) if self.direction is None else self.direction

    def _follow(self, evolution, after, twin, length) -> float:
        self.direction, grown = _grown(evolution, after, twin, length)
        grown = float(grown)
        return grown if math.isfinite(grown) else math.inf


@kernel
def _irregular(evolution, floating):
    """A change of every leaf in proportion to its size."""
    leaves, structure = jax.tree.flatten(evolution.stored(floating))
    whole = norm(leaves)  # where all is zero there is no size to go by

    def change(i, x):
        size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x))))
        size = jnp.where(whole > 0, size, jnp.ones_like(size))
        return size * jnp.sin(0.4 + 1.7 * i + 1.3 * jnp.arange(x.size, dtype=size.dtype)).reshape(x.shape)

    return jax.tree.unflatten(structure, [change(i, x).astype(x.dtype) for i, x in enumerate(leaves)])


@kernel
def _changed(evolution, floating, direction):
    """(the state changed by the root of its precision along the direction, the length of the change), as stored."""
    stored = evolution.stored(floating)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(stored))
    size = norm(stored)
    share = math.sqrt(eps) * jnp.where(size > 0, size, jnp.ones_like(size)) / norm(direction)
    changed = jax.tree.map(lambda x, d: x + share.astype(x.dtype) * d, stored, direction)
    return evolution.natural(changed), norm(jax.tree.map(jnp.subtract, changed, stored))


@kernel
def _grown(evolution, after, twin, length):
    change = jax.tree.map(jnp.subtract, evolution.stored(twin), evolution.stored(after))
    return change, norm(change) / length


@partial(kernel, static_argnums=0)
def _both(level, evolution, floating, changed, count):
    def run(floating):
        def step(k, carry):
            return evolution.advance_stored(*carry, k * level.stride, level.stride)

        first = evolution.stored(floating), evolution.clock(jnp.int32(0))
        return evolution.natural(jax.lax.fori_loop(jnp.int32(0), count, step, first)[0])

    ends = jax.vmap(run)(jax.tree.map(lambda x, y: jnp.stack([x, y]), floating, changed))
    return tuple(jax.tree.map(lambda x, index=index: x[index], ends) for index in (0, 1))
