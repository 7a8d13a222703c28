"""The frozen-gradient coarse step: gradients in parallel at frozen parameters, replayed through the optimizer."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._arguments import require_whole
from .._hierarchy import Multigrid
from ._curvature import largest_kappa
from ._linear import linear


_KAPPA = 1.5
_LARGEST = 1024
_SPAN = 64
_FACTOR = 4


@dataclass(frozen=True)
class FrozenGradient:
    r"""$w_{k+1} = w_k + U_k(g_k)$, $g_k = \nabla \mathrm{loss}(w_*, \mathrm{batch}(k))$, $w_*$ renewed every `refresh` steps.

    The gradients of all minibatches that a coarse step replaces are evaluated at once, at the parameters it starts a block
    from, and then go through the optimizer's own updates $U_k$, one after the other: its schedule, moments, decay and clipping
    are those of training. An optimizer that is linear in its gradients (SGD, heavy ball, Nesterov) needs only one or two
    weighted sums of them, which cost one or two passes backward and no memory.

    A depth of `stride / refresh` evaluations, rounded up, and a work of `stride`.

    **Arguments**

    - `refresh`: training steps between two evaluations at new parameters; `math.inf` for one evaluation a coarse step.
      `None` chooses from the curvature: the largest power of two with $\kappa \le 1.5$, where $\kappa$ is `refresh` times
      effective learning rate times largest curvature of the loss, at the initial state and along the nested guess. A solve that
      then diverges is started again with half of it.
    - `chunk`: at most so many gradients of a coarse step are held at a time; those of one chunk are evaluated as one batch.

    Raises `ValueError` for a `refresh` or `chunk` below 1 or not whole.

    >>> import gritax
    >>> coarse = gritax.FrozenGradient(refresh=64)
    >>> coarse.depth(8), coarse.depth(512), coarse.work(512)
    (1, 8, 512)
    """

    refresh: int | float | None = None
    chunk: int = 16
    _chosen: "_Chosen | None" = field(default=None, repr=False)

    def __post_init__(self):
        if self.refresh is not None and not (isinstance(self.refresh, float) and self.refresh == math.inf):
            require_whole("refresh", self.refresh, 1)
        require_whole("chunk", self.chunk, 1)

    def length(self, stride: int) -> int:
        """Training steps on one evaluation, in a coarse step of this stride."""
        refresh = self.refresh if self.refresh is not None else self._chosen.refresh if self._chosen else math.inf
        return int(min(refresh, stride))

    def depth(self, stride: int) -> int:
        return -(-stride // self.length(stride))

    def work(self, stride: int) -> int:
        return stride

    def method(self, num_steps: int) -> Multigrid:
        """Factors of 4 up to the refresh, beyond which coarser levels save nothing; the first as long as the momentum.

        Two FC sweeps a level: the sweep of the coarsest level is what takes time, so that iterations are to be few.
        """
        factors, refresh = [self._chosen.m_0 if self._chosen else _FACTOR], self.length(_LARGEST)
        while (stride := math.prod(factors)) < refresh:
            factors.append(min(_FACTOR, -(-refresh // stride)))
        return Multigrid(coarsening=tuple(factors), relaxation=2)

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        length = self.length(stride)
        whole, rest = divmod(stride, length)
        if whole == 1:
            state = self.block(step, state, start, length)
        else:
            # Loops carry arrays only; a model may hold functions as well.
            arrays, constants = eqx.partition(state, eqx.is_array)

            def advance(j, arrays):
                return eqx.filter(self.block(step, eqx.combine(arrays, constants), start + j * length, length), eqx.is_array)

            state = eqx.combine(jax.lax.fori_loop(jnp.int32(0), jnp.int32(whole), advance, arrays), constants)
        return self.block(step, state, start + whole * length, rest) if rest else state

    def block(self, step, state, start, length):
        """`length` steps with the gradients at `state`."""
        params, others = step.split(state.params)
        optimizer = linear(step.optimizer, params)
        if optimizer is None:
            arrays, constants = eqx.partition(state, eqx.is_array)
            arrays = self._in_chunks(partial(_replay, step, state, constants), arrays, start, length)
            return eqx.combine(arrays, constants)
        outcomes = []

        def weigh(rows):
            sums = [jax.tree.map(jnp.zeros_like, params) for _ in rows]
            add = partial(_add_gradients, step, state, rows, start)
            sums, stats = self._in_chunks(add, (sums, state.stats), start, length)
            outcomes.append(stats)
            return sums

        params, opt_state = optimizer.advance(step.optimizer, params, state.opt_state, length, weigh)
        return type(state)(eqx.combine(params, others), opt_state, outcomes[0])

    def _in_chunks(self, advance, carry, start, length):
        """`carry = advance(carry, steps)` over all steps, a chunk of them at a time."""
        whole, rest = divmod(length, self.chunk)

        def chunk(j, carry):
            return advance(carry, start + j * self.chunk + jnp.arange(self.chunk, dtype=jnp.int32))

        if whole == 1:
            carry = chunk(0, carry)
        elif whole:
            carry = jax.lax.scan(lambda carry, j: (chunk(j, carry), None), carry, jnp.arange(whole, dtype=jnp.int32))[0]
        if rest:
            carry = advance(carry, start + whole * self.chunk + jnp.arange(rest, dtype=jnp.int32))
        return carry

    def adapted(
        self, step: Any, states: PyTree, starts: Array | np.ndarray, num_steps: int
    ) -> tuple["FrozenGradient", int, int]:
        """(this step with a refresh for these states, depth and work spent); never a longer refresh than before."""
        if self.refresh is not None:
            return self, 0, 0
        most = min(_LARGEST, max(num_steps // 8, 1))
        span = min(_SPAN, max(num_steps // 2, 1))
        # Twice the span of data is looked at, all of it that of steps that there are.
        starts = np.clip(starts, 0, max(num_steps - 2 * span, 0))
        found, depth, work = largest_kappa(self, step, states, starts, span)
        if not math.isfinite(found):
            found = 1.0
        refresh = 2 ** int(min(math.log2(most), max(math.log2(_KAPPA / max(found, 1e-9)), 0)))
        if self._chosen:
            refresh, m_0 = min(refresh, self._chosen.refresh), self._chosen.m_0
        else:
            optimizer = linear(step.optimizer, jax.tree.map(lambda x: x[0], step.split(states.params)[0]))
            m_0 = _FACTOR if optimizer is None else max(_FACTOR, 2 ** math.ceil(math.log2(optimizer.memory)))
        return replace(self, _chosen=_Chosen(refresh, min(m_0, max(most, 2)))), depth, work

    def finer(self) -> "FrozenGradient | None":
        """With half the refresh, if it was not the caller's and there is something left to halve."""
        if self._chosen is None or self._chosen.refresh == 1:
            return None
        return replace(self, _chosen=replace(self._chosen, refresh=self._chosen.refresh // 2))

    def __str__(self) -> str:
        if self.refresh is not None:
            return f"FrozenGradient(refresh={self.refresh})"
        return (
            f"FrozenGradient(refresh={self._chosen.refresh}), chosen from the curvature" if self._chosen else "FrozenGradient()"
        )


@dataclass(frozen=True)
class _Chosen:
    refresh: int
    m_0: int


def _replay(step, frozen, constants, arrays, steps):
    """The optimizer's own updates with the gradients of `steps` at the state `frozen`; a state is `arrays` and `constants`."""
    (values, stats), gradients = jax.vmap(lambda k: step.gradient(frozen.params, frozen.stats, step.data(k), k))(steps)

    def update(arrays, inputs):
        k, value, stats, gradient = inputs
        state = eqx.combine(arrays, constants)
        state = step.apply(state, gradient, value, _statistics(step, frozen, k, stats, state.stats))
        return eqx.filter(state, eqx.is_array), None

    return jax.lax.scan(update, arrays, (steps, values, stats, gradients))[0]


def _add_gradients(step, frozen, rows, start, carry, steps):
    """Weighted sums of the gradients of `steps` at `frozen`, without any of them by itself."""
    sums, stats = carry
    params, others = step.split(frozen.params)

    def losses(params):
        return jax.vmap(lambda k: step.evaluate(eqx.combine(params, others), frozen.stats, step.data(k), k))(steps)

    values, pull, new_stats = jax.vjp(losses, params, has_aux=True)
    sums = [
        jax.tree.map(jnp.add, total, pull(row[steps - start].astype(values.dtype))[0])
        for total, row in zip(sums, rows, strict=True)
    ]
    if jax.tree.leaves(stats):
        follow = lambda stats, inputs: (_statistics(step, frozen, inputs[0], inputs[1], stats), None)
        stats = jax.lax.scan(follow, stats, (steps, new_stats))[0]
    return sums, stats


def _statistics(step, frozen, k, at_frozen, stats):
    """Statistics after step `k`, to first order in their distance from the frozen ones: exact for running averages.

    An average is linear in what it was, so the derivative leaves nothing of the network to evaluate.
    """
    floating = eqx.filter(stats, eqx.is_inexact_array)
    if not jax.tree.leaves(floating):
        return at_frozen
    known, fixed = eqx.partition(frozen.stats, eqx.is_inexact_array)

    def after(known):
        new = step.evaluate(frozen.params, eqx.combine(known, fixed), step.data(k), k)[1]
        return eqx.filter(new, eqx.is_inexact_array)

    moved = jax.jvp(after, (known,), (jax.tree.map(jnp.subtract, floating, known),))[1]
    floating, others = eqx.partition(at_frozen, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jnp.add, floating, moved), others)
