r"""The training evolution linearised along an iterate, one interval of its finest level a step.

$v_{k+1} = J_k v_k + B_k \dot\theta$ forwards, and backwards $\mu_k = J_k^T \mu_{k+1}$, where $J_k$ and $B_k$ are derivatives of
what interval k does to the state by the state and by the arrays of phi. More intervals in one step are a coarse step of phi,
linearised.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._evolution import Evolution, evaluations
from .._points import Points


class Linearised(eqx.Module):
    """`evolution` along its states `points`, each `factor` steps after the other.

    `wrt` says by which arrays of phi it is differentiated, and `units` how large each leaf of a state is. The last steps after
    the last point are no interval: see `rest`.
    """

    evolution: Evolution
    points: Points
    units: PyTree[Array]
    factor: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    wrt: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_intervals(self) -> int:
        return self.num_steps // self.factor

    @property
    def arrays(self) -> list[Array]:
        return self.evolution.arrays(self.wrt)

    def point(self, k: Array | int) -> PyTree[Array]:
        return jax.tree.map(lambda x: x[k], self.points)

    def across(self, k: Array, intervals: int) -> Callable:
        """The state after so many intervals from point k, as a function of the state there and of the arrays of phi."""
        start = k * self.factor
        if intervals == 1:
            return self._fine(start, self.factor)

        def coarse(floating, arrays):
            evolution = self.evolution.with_arrays(self.wrt, arrays)
            return evolution.advance(floating, evolution.clock(start), start, intervals * self.factor)[0]

        return coarse

    @property
    def rest(self) -> Callable:
        """The same for the steps after the last point."""
        size = self.num_intervals * self.factor
        return self._fine(jnp.int32(size), self.num_steps - size)

    def _fine(self, start, count):
        def steps(floating, arrays):
            evolution = self.evolution.with_arrays(self.wrt, arrays)

            # What happens within a step is computed again on the way back.
            @jax.checkpoint
            def step(carry, j):
                floating, clock = carry
                return evolution.advance(floating, clock, start + j, 1), None

            (floating, _), _ = jax.lax.scan(step, (floating, evolution.clock(start)), jnp.arange(count, dtype=jnp.int32))
            return floating

        return steps

    def depth(self, stride: int) -> int:
        return 2 * self._evaluations("depth", stride)

    def work(self, stride: int) -> int:
        return 2 * self._evaluations("work", stride)

    def _evaluations(self, name, stride):
        phi = self.evolution.phi
        return self.factor * evaluations(phi, name, 1) if stride == 1 else evaluations(phi, name, stride * self.factor)


class TangentStep(eqx.Module):
    r"""$v \mapsto J_k v + B_k \dot\theta$, `direction` being $\dot\theta$."""

    along: Linearised
    direction: list[Array]

    def __call__(self, v: PyTree[Array], start: Array, stride: int) -> PyTree[Array]:
        at = (self.along.point(start), self.along.arrays)
        return jax.jvp(self.along.across(start, stride), at, (v, self.direction))[1]

    def params(self, v: PyTree[Array]) -> PyTree[Array]:
        """In units of the state."""
        return jax.tree.map(jnp.divide, v, self.along.units)

    def depth(self, stride: int) -> int:
        return self.along.depth(stride)

    def work(self, stride: int) -> int:
        return self.along.work(stride)


class AdjointStep(eqx.Module):
    r"""$\mu \mapsto J_k^T \mu$, from the last point to the first."""

    along: Linearised

    def __call__(self, mu: PyTree[Array], start: Array, stride: int) -> PyTree[Array]:
        # Lanes past the end repeat the last step.
        k = jnp.maximum(self.along.num_intervals - stride - start, 0)
        arrays, across = self.along.arrays, self.along.across(k, stride)
        _, pull = jax.vjp(lambda floating: across(floating, arrays), self.along.point(k))
        return pull(mu)[0]

    def params(self, mu: PyTree[Array]) -> PyTree[Array]:
        """By a change of the state in its own units."""
        return jax.tree.map(jnp.multiply, mu, self.along.units)

    def depth(self, stride: int) -> int:
        return self.along.depth(stride)

    def work(self, stride: int) -> int:
        return self.along.work(stride)
