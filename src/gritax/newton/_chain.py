"""The chain of steps that is solved, on flat vectors: what a step evaluates, and what follows from it without an evaluation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from .._clocks import tabulate as clocks_at
from .._convergence import least_precise
from .._evolution import Evolution
from .._hierarchy import Level
from .._optimizer import update
from ..training import TrainState, TrainStep


def flat(tree: PyTree[Array]) -> Array:
    """All leaves as one vector, in the widest dtype of them."""
    leaves = jax.tree.leaves(tree)
    widest = max((leaf.dtype for leaf in leaves), key=lambda dtype: dtype.itemsize, default=jnp.zeros(0).dtype)
    return jnp.concatenate([jnp.zeros(0, widest), *(leaf.ravel().astype(widest) for leaf in leaves)])


def shaped(x: Array, like: PyTree[Array]) -> PyTree[Array]:
    """The leaves that `flat` made one vector of, each rounded to its own dtype."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = [x[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype) for leaf, end in zip(leaves, ends, strict=True)]
    return structure.unflatten(parts)


def _eps(tree: PyTree[Array]) -> float:
    return float(jnp.finfo(least_precise(tree)).eps)


class Training:
    """`x' = x + update(g, S, x)`, `g = grad loss(x, batch(i))`: x are the trained parameters, S is the optimizer's state.

    An evaluation needs no S, so all steps in flight are evaluated at once. What the optimizer makes of their gradients is
    elementwise, and follows in the order of the steps. Running statistics s are the last elements of x, `s - s'` those of g.
    """

    def __init__(self, step: TrainStep, state: TrainState):
        self.step = step
        self.params, self._frozen = step.split(state.params)
        self.first, self.size = flat((self.params, state.stats)), sum(leaf.size for leaf in jax.tree.leaves(self.params))
        self.memory, self._stats, self.eps = state.opt_state, state.stats, _eps(self.params)
        self._has_narrower = any(leaf.dtype != self.first.dtype for leaf in jax.tree.leaves((self.params, self._stats)))

    def unflatten(self, x: Array) -> PyTree:
        """The trained parameters."""
        return shaped(x[: self.size], self.params)

    def _statistics(self, x: Array) -> PyTree:
        return shaped(x[self.size :], self._stats)

    def kept(self) -> Array:
        """The share of each statistic that the first step keeps: its derivative by itself, if no other moves it."""

        def after(stats):
            return self.evaluate(jnp.concatenate([self.first[: self.size], stats]), jnp.int32(0))[0][self.size :]

        stats = self.first[self.size :]
        return jnp.clip(1 - jax.jvp(after, (stats,), (jnp.ones_like(stats),))[1], 0, 1)

    def reads_statistics(self, x: Array) -> Array:
        """True if a change of the statistics alone changes the gradient of the first step."""
        gradients = lambda x: self.evaluate(x, jnp.int32(0))[0][: self.size]
        return jnp.any(gradients(x) != gradients(x.at[self.size :].multiply(1.5).at[self.size :].add(0.5)))

    def evaluate(self, x: Array, start: Array) -> tuple[Array, Scalar]:
        """(gradient, loss) of the step `start` at `x`."""
        params, stats = eqx.combine(self.unflatten(x), self._frozen), self._statistics(x)
        (value, after), gradient = self.step.gradient(params, stats, self.step.data(start), start)
        found = flat(gradient).astype(x.dtype)
        if x.size == self.size:
            return found, value
        return jnp.concatenate([found, x[self.size :] - flat(after).astype(x.dtype)]), value

    def follow(self, x: Array, gradient: Array, value: Scalar, memory: PyTree, start: Array) -> tuple[Array, PyTree]:
        """(the state after the step, S after it), with an evaluation at `x`."""
        updates, memory = update(self.step.optimizer, self.unflatten(gradient), memory, self.unflatten(x), value)
        after = x + jnp.concatenate([flat(updates).astype(x.dtype), -gradient[self.size :]])
        # Where leaves differ in their dtypes, serial training rounds the narrower ones after each step.
        return (flat((self.unflatten(after), self._statistics(after))) if self._has_narrower else after), memory

    def state(self, x: Array, memory: PyTree) -> TrainState:
        return TrainState(eqx.combine(self.unflatten(x), self._frozen), memory, self._statistics(x))


class Steps:
    """`x' = x - g`, `g = x - phi(x)`: all floating leaves of the state of any phi near the identity. Clocks are tabulated."""

    def __init__(self, evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]):
        self._evolution = evolution
        self.first, self._like, self.eps = flat(floating), floating, _eps(floating)
        self.memory, self.size = clock, self.first.size

    def unflatten(self, x: Array) -> PyTree:
        """The floating leaves of the state."""
        return shaped(x, self._like)

    def evaluate(self, x: Array, start: Array) -> tuple[Array, Scalar]:
        after, _ = self._evolution.advance(self.unflatten(x), self._evolution.clock(start), start, 1)
        return x - flat(after), jnp.zeros((), x.dtype)

    def follow(self, x: Array, gradient: Array, value: Scalar, memory: PyTree, start: Array) -> tuple[Array, PyTree]:
        return x - gradient, self._evolution.clock(start + 1)

    def state(self, x: Array, memory: PyTree) -> Any:
        return self._evolution.merge(self.unflatten(x), memory)


Chain = Training | Steps


def tabulated(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], num_steps: int) -> Evolution:
    """`evolution` with its clocks at every step. Those of a training step are in the optimizer's state, which is followed."""
    if isinstance(evolution.phi, TrainStep):
        return evolution
    return clocks_at(evolution, floating, clock, Level(0, num_steps, 1, 1))[0]


def chain_of(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]) -> Chain:
    """The chain of `evolution` from this state. Made anew wherever a program is traced."""
    if isinstance(evolution.phi, TrainStep):
        return Training(evolution.phi, evolution.merge(floating, clock))
    return Steps(evolution, floating, clock)


def follow_all(chain: Chain, x: Array, gradients: Array, values: Array, memory: PyTree, pos: Array, blocks: int):
    """(states after each step, S after each of so many equal parts of the window; None for S if nothing in it is floating)."""
    starts = pos + jnp.arange(len(x), dtype=jnp.int32)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(memory)):
        # Only counters go from one step to the next: these in their order, and then all states at once.
        count = lambda memory, start: (chain.follow(x[0], gradients[0], values[0], memory, start)[1], memory)
        _, memories = jax.lax.scan(count, memory, starts)
        return jax.vmap(lambda *given: chain.follow(*given)[0])(x, gradients, values, memories, starts), None

    def step(memory, given):
        x, gradient, value, start = given
        after, memory = chain.follow(x, gradient, value, memory, start)
        return memory, after

    def part(memory, given):
        last, after = jax.lax.scan(step, memory, given)
        return last, (after, last)

    given = jax.tree.map(lambda x: x.reshape(blocks, -1, *x.shape[1:]), (x, gradients, values, starts))
    _, (after, memories) = jax.lax.scan(part, memory, given)
    return after.reshape(x.shape), memories


def follow_some(chain: Chain, x: Array, gradients: Array, values: Array, memory: PyTree, pos: Array, count: Array) -> PyTree:
    """S after the first `count` steps of the window."""

    def step(j, memory):
        return chain.follow(x[j], gradients[j], values[j], memory, pos + j)[1]

    return jax.lax.fori_loop(jnp.int32(0), count, step, memory)
