"""The optimizer's own steps with the gradients of their minibatches at frozen parameters, a chunk of them at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._linear import LinearSteps, linear


_UNROLLED = 16
_IN_CACHE = 16


def _suitable(length: int) -> int:
    return _IN_CACHE if jax.default_backend() == "cpu" else length


def _unrolled(length: int) -> int:
    """On a GPU, XLA makes as few kernels of several updates in a row as of one, and each of them takes as long. On a CPU they
    only take longer to compile, their derivatives minutes."""
    return 1 if jax.default_backend() == "cpu" else min(length, _UNROLLED)


class Replay:
    """`length` steps from `state` at step `start`, for gradients at any parameters; those of `chunk` steps are held at a time.

    None for as many as suit the device. An optimizer that is linear in its gradients takes one or two weighted sums of them
    instead, and no gradient is there by itself.
    """

    def __init__(self, step: Any, state: PyTree, start: Array, length: int, chunk: int | None):
        self.step, self.state, self.start, self.length = step, state, start, length
        self.params, self.others = step.split(state.params)
        optimizer = linear(step.optimizer, self.params)
        self.linear = optimizer and LinearSteps(optimizer, step.optimizer, self.params, state.opt_state, length)
        # Of steps that all train on the same data one gradient is enough, for a sum in one piece.
        self.alike = not jax.tree.leaves(state.stats) and step.same_data()
        self.chunk = length if self.alike and self.linear else _suitable(length) if chunk is None else chunk

    def __call__(self, params: PyTree) -> PyTree:
        """The state after the steps, with the gradients at `params`."""
        if self.linear is None:
            arrays, constants = eqx.partition(self.state, eqx.is_array)
            return eqx.combine(self._in_chunks(partial(self._update, params, constants), arrays), constants)
        zeros = [jax.tree.map(jnp.zeros_like, self.params) for _ in self.linear.rows]
        sums, stats = self._in_chunks(partial(self._add_gradients, params), (zeros, self.state.stats))
        after, opt_state = self.linear.advance(self.params, self.state.opt_state, sums)
        return type(self.state)(eqx.combine(after, self.others), opt_state, stats)

    def _in_chunks(self, advance: Callable, carry: Any) -> Any:
        """`carry = advance(carry, steps)` over all steps."""
        whole, rest = divmod(self.length, self.chunk)

        # A derivative backwards keeps what each chunk begins with, not all that is computed in it.
        @jax.checkpoint
        def chunk(j, carry):
            return advance(carry, self.start + j * self.chunk + jnp.arange(self.chunk, dtype=jnp.int32))

        if whole == 1:
            carry = chunk(0, carry)
        elif whole:
            carry = jax.lax.scan(lambda carry, j: (chunk(j, carry), None), carry, jnp.arange(whole, dtype=jnp.int32))[0]
        if rest:
            carry = advance(carry, self.start + whole * self.chunk + jnp.arange(rest, dtype=jnp.int32))
        return carry

    def _update(self, params, constants, arrays, steps):
        """The updates of these steps; a state is `arrays` and `constants`."""
        step, stats = self.step, self.state.stats
        frozen = eqx.combine(params, self.others)
        at = steps[:1] if self.alike else steps
        found = jax.vmap(lambda k: step.gradient(frozen, stats, step.data(k), k))(at)
        (values, new_stats), gradients = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(steps), *x.shape[1:])), found)

        def update(arrays, inputs):
            k, value, new_stats, gradient = inputs
            state = eqx.combine(arrays, constants)
            state = step.apply(state, gradient, value, self._statistics(params, k, new_stats, state.stats))
            return eqx.filter(state, eqx.is_array), None

        inputs = (steps, values, new_stats, gradients)
        return jax.lax.scan(update, arrays, inputs, unroll=_unrolled(len(steps)))[0]

    def _add_gradients(self, params, carry, steps):
        """Adds the weighted gradients of these steps."""
        sums, stats = carry
        step, frozen = self.step, self.state.stats

        def losses(params):
            params = eqx.combine(params, self.others)
            return jax.vmap(lambda k: step.evaluate(params, frozen, step.data(k), k))(steps[:1] if self.alike else steps)

        values, pull, new_stats = jax.vjp(losses, params, has_aux=True)
        totals = []
        for total, row in zip(sums, self.linear.rows, strict=True):
            weights = row[steps - self.start].astype(values.dtype)
            weights = jnp.sum(weights, keepdims=True) if self.alike else weights
            totals.append(jax.tree.map(jnp.add, total, pull(weights)[0]))
        if jax.tree.leaves(stats):
            follow = lambda stats, inputs: (self._statistics(params, inputs[0], inputs[1], stats), None)
            stats = jax.lax.scan(follow, stats, (steps, new_stats))[0]
        return totals, stats

    def _statistics(self, params, k, at_frozen, stats):
        """Statistics after step `k`, to first order in their distance from the frozen ones: exact for running averages.

        An average is linear in what it was, so the derivative leaves nothing of the network to evaluate.
        """
        floating = eqx.filter(stats, eqx.is_inexact_array)
        if not jax.tree.leaves(floating):
            return at_frozen
        step, params = self.step, eqx.combine(params, self.others)
        known, fixed = eqx.partition(self.state.stats, eqx.is_inexact_array)

        def after(known):
            new = step.evaluate(params, eqx.combine(known, fixed), step.data(k), k)[1]
            return eqx.filter(new, eqx.is_inexact_array)

        moved = jax.jvp(after, (known,), (jax.tree.map(jnp.subtract, floating, known),))[1]
        floating, others = eqx.partition(at_frozen, eqx.is_inexact_array)
        return eqx.combine(jax.tree.map(jnp.add, floating, moved), others)
