r"""The response of an optimizer to small changes of its gradients: a linear recurrence that all elements of a leaf share.

With the members u of a leaf's family (the parameters, their first moment, …) and a gradient g, one step is
$u' = T u + A g$ to first order, second moments as they are, where those moments multiply what reaches the parameters by a
diagonal P. In units of $d = \sqrt{D}$, $D = P |A_0|$, the recurrence has numbers only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._optimizer import found_once
from ..coarse._first_moment import first_moment, response
from ..coarse._linear import LinearOptimizer, linear
from ..training._second_moments import nonnegative
from ._chain import Chain, Training, flat


class Response(NamedTuple):
    """`units`: d, one for each parameter; `transfer` [steps, k, k] and `gain` [steps, k]: T and A in these units."""

    units: Array
    transfer: Array
    gain: Array

    def stays(self, row: Array) -> Array:
        """s: what the optimizer makes of a gradient that stays, a step, at this row of the window."""
        return stays(self.transfer[row], self.gain[row])


# A step that moves parameters by less of its gradient than this share clips it.
_CLIPPED = 0.7
_MOST_ROWS = 2**16  # of the recurrence along a run
_SETTLING = 16  # steps after which an unknown optimizer makes about the same of a gradient that stays


@found_once
def modelled(optimizer: Any, params: PyTree) -> tuple[Any, LinearOptimizer, PyTree | None, bool] | None:
    """None for an optimizer whose response is not known, or what tells it.

    That is a linear transformation that responds alike, its recurrence, which leaves of the state are second moments, and
    whether all parameters have the same recurrence up to a rate.
    """
    kind, second, reduced = linear(optimizer, params), None, optimizer
    if kind is None:
        second = nonnegative(optimizer, params)
        reduced = first_moment(optimizer, second)
        second = second if any(jax.tree.leaves(second)) else None
        if (kind := linear(reduced, params)) is None:
            return None
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    families = sorted({family for family in kind.families if family is not None})
    own = _later(jax.jit(reduced.init)(zeros), jnp.int32(10))
    found = jax.jit(lambda own: _coefficients(reduced, kind, zeros, own, families, jnp.float32))(own)
    transfers, gains = map(np.asarray, found)
    rates = gains[:, :1] + (gains[:, :1] == 0)
    same = lambda x: np.allclose(x, x[:1], rtol=1e-4, atol=1e-12)
    alike = same(transfers[:, 1:, 1:]) and same(gains[:, 1:]) and same(transfers[:, 0, 1:] / rates)
    return reduced, kind, second, bool(alike)


def drifts(chain: Chain) -> bool:
    """True if d changes along the run, as it does with second moments."""
    if not isinstance(chain, Training):
        return False
    found = modelled(chain.step.optimizer, chain.params)
    return found is not None and found[2] is not None


def members(chain: Chain) -> int:
    """k, the members of the recurrence."""
    if not isinstance(chain, Training) or (found := modelled(chain.step.optimizer, chain.params)) is None:
        return 1
    _, kind, _, alike = found
    return max(len(kind.members(family)) for family in kind.families if family is not None) if alike else 1


def understood(chain: Chain) -> bool:
    """True if the recurrence is what the optimizer does, and no rate of each leaf in its place."""
    if not isinstance(chain, Training):
        return True
    found = modelled(chain.step.optimizer, chain.params)
    return found is not None and found[3]


class Recurrence(NamedTuple):
    """What is known of the response before the first sweep: T and A of every so many steps of the run, second moments as 1.

    - `transfer` [n, k, k], `gain` [n, k]: of one step in each `stride`; n is 1 if all steps are alike.
    - `diagonal` [P]: the largest |A_0| of each parameter, in units of which they are.
    - `kept` [P]: what a step keeps of each element of the state where the model says nothing: 1 of a parameter, less of a
      running statistic; None if there are no statistics.
    """

    transfer: Array
    gain: Array
    diagonal: Array
    stride: Array
    kept: Array | None

    def of_trained(self, rows: Array) -> Array:
        """Rows of states without what is not trained."""
        return rows if self.kept is None else jnp.where(jnp.broadcast_to(self.kept == 1, rows.shape), rows, 0)

    def along(self, taken: Array, count: int) -> tuple[Array, Array]:
        """(T, A) of so many steps from step `taken` on."""
        rows = (taken + jnp.arange(count, dtype=jnp.int32)) // self.stride
        rows = jnp.minimum(rows, len(self.gain) - 1)
        return self.transfer[rows], self.gain[rows]


def recurrence(chain: Chain, num_steps: int) -> Recurrence:
    """The recurrence along the run, for `chain` as it begins."""
    size, dtype, one = chain.first.size, chain.first.dtype, jnp.int32(1)
    kept = None
    if isinstance(chain, Training) and chain.size < size:
        # Never 1, which parameters are known by.
        kept = jnp.concatenate([jnp.ones(chain.size, dtype), jnp.minimum(chain.kept(), 1 - jnp.finfo(dtype).eps).astype(dtype)])
    found = modelled(chain.step.optimizer, chain.params) if isinstance(chain, Training) else None
    if found is None:
        return Recurrence(jnp.ones((1, 1, 1), dtype), -jnp.ones((1, 1), dtype), jnp.ones(size, dtype), one, kept)
    assert isinstance(chain, Training)
    reduced, kind, second, alike = found
    own = chain.memory if second is None else jax.tree.map(lambda x, flag: None if flag else x, chain.memory, second)
    families = sorted({family for family in kind.families if family is not None})
    sizes = [leaf.size for leaf in jax.tree.leaves(chain.params)]
    stride = -(-num_steps // _MOST_ROWS) if None in kind.families else num_steps
    offsets = jnp.arange(0, num_steps, stride, dtype=jnp.int32)
    transfers, gains = jax.vmap(lambda j: _coefficients(reduced, kind, chain.params, _later(own, j), families, dtype))(offsets)
    if not alike:
        gains = -jax.vmap(jax.vmap(stays))(transfers, gains)[..., None]
        transfers = jnp.ones((*gains.shape, 1), dtype)
    reach = jnp.max(jnp.abs(gains[:, :, 0]), axis=0)
    reach = jnp.where(reach > 0, reach, 1)
    # What enters the parameters is in units of d^2.
    gains = gains.at[:, :, 0].divide(reach[None])
    transfers = transfers.at[:, :, 0, 1:].divide(reach[None, :, None])
    weights = jnp.asarray([sizes[family] for family in families], dtype)
    weights = weights / jnp.sum(weights)
    # `jnp.repeat` counts a table of as many rows as there are parameters, for which XLA compiles seconds for large networks.
    each = [jnp.full(count, of_leaf) for of_leaf, count in zip(reach, sizes, strict=True)]
    of_parameters = _with_statistics(jnp.concatenate(each), size)
    transfer, gain = jnp.einsum("f,nfij->nij", weights, transfers), jnp.einsum("f,nfi->ni", weights, gains)
    return Recurrence(transfer, gain, of_parameters, one * stride, kept)


def response_of(
    chain: Chain,
    known: Recurrence,
    taken: Array,
    x: Array,
    memory: PyTree,
    later: tuple[PyTree, PyTree] | None,
    gradient: Array,
    count: int,
) -> Response:
    """The response along `count` steps from the front, where the state is `x` and S is `memory`.

    `gradient` is that of the first step. Where second moments drift, `later` has S after that step, when they are no longer
    zero, and S at the ends of equal parts of these steps.
    """
    transfer, gain = known.along(taken, count)
    if not isinstance(chain, Training):
        return Response(jnp.ones_like(x), transfer, gain)
    if (found := modelled(chain.step.optimizer, chain.params)) is None:
        return Response(jnp.sqrt(_with_statistics(_rates(chain, x, memory, gradient), x.size)), transfer, gain)
    second, params, diagonal = found[2], chain.unflatten(x), known.diagonal
    if later is not None:
        of = lambda memory: _bounded(flat(response(chain.step.optimizer, second, memory, params))).astype(x.dtype)
        now, then = of(later[0]), jax.vmap(of)(later[1])
        along = jnp.concatenate([jnp.ones(1, x.dtype), (then @ now) / (now @ now)])
        diagonal = diagonal * _with_statistics(now, x.size)
        drift = jnp.interp(jnp.arange(count) * len(then) / count, jnp.arange(len(along)), along).astype(x.dtype)
        transfer = transfer.at[:, 0, 1:].multiply(drift[:, None])
        gain = gain.at[:, 0].multiply(drift)
    # What a moment takes from the parameters is in units of d^-2.
    transfer = transfer.at[:, 1:, 0].multiply(jnp.mean(diagonal[: chain.size]))
    return Response(jnp.sqrt(diagonal), transfer, gain * _taken(chain, second, x, gradient, memory, diagonal * -gain[0, 0]))


def stays(transfer: Array, gain: Array) -> Array:
    """s, where each step moves by s D g for a gradient g that stays, from T and A."""
    if len(gain) == 1:
        return -gain[0]
    rest = jnp.eye(len(gain), dtype=gain.dtype)[1:, 1:] - transfer[1:, 1:]
    settled = gain[1:] / rest[0] if len(gain) == 2 else jnp.linalg.solve(rest, gain[1:])
    return -(gain[0] + transfer[0, 1:] @ settled)


def _rates(chain: Training, x: Array, memory: PyTree, gradient: Array) -> Array:
    """By how much of a gradient that stays a step moves each leaf, for an optimizer of which nothing is known."""

    def step(_, carry):
        x, memory = carry
        return chain.follow(x, gradient, jnp.zeros((), x.dtype), memory, jnp.int32(0))

    half = jax.lax.fori_loop(0, _SETTLING, step, (x, memory))
    moved = chain.unflatten((jax.lax.fori_loop(0, _SETTLING, step, half)[0] - half[0]) / _SETTLING)

    def rate(moved, gradient):
        length = jnp.linalg.norm(gradient.ravel())
        return jnp.full(gradient.shape, jnp.linalg.norm(moved.ravel()) / jnp.where(length > 0, length, 1))

    found = flat(jax.tree.map(rate, moved, chain.unflatten(gradient))).astype(x.dtype)
    return jnp.where(found > 0, found, jnp.maximum(jnp.mean(found), jnp.finfo(x.dtype).tiny))


def _later(own: PyTree, j: Array) -> PyTree:
    return jax.tree.map(lambda x: x + j.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x, own)


def _coefficients(reduced, kind: LinearOptimizer, params, own, families, dtype) -> tuple[Array, Array]:
    """(T, A) of each family, [family, k, k] and [family, k], for one step; members that a family lacks are zeros."""
    found, size = kind.coefficients(reduced, params, own, 1), max(len(kind.members(family)) for family in families)

    def of(family):
        rows = [found[i] for i in kind.members(family)]
        missing = size - len(rows)
        transfer = jnp.pad(jnp.stack([row.astype(dtype) for row, _ in rows]), (0, missing))
        return transfer, jnp.pad(jnp.stack([weights[0].astype(dtype) for _, weights in rows]), (0, missing))

    transfers, gains = zip(*map(of, families), strict=True)
    return jnp.stack(transfers), jnp.stack(gains)


def _taken(chain: Training, second, x: Array, gradient: Array, memory: PyTree, wanted: Array) -> Array:
    """The share of a gradient that its own step takes: less than 1 where gradients are clipped, to which no response is linear.

    `wanted` is what each element of it would move x by.
    """
    flags = jax.tree.map(lambda _: False, memory) if second is None else second
    still = lambda x, flag: x if flag or not jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros_like(x)
    memory = jax.tree.map(still, memory, flags)
    moved, unmoved = (chain.follow(x, g, jnp.zeros((), x.dtype), memory, jnp.int32(0))[0] for g in (gradient, 0 * gradient))
    expected = jnp.linalg.norm((wanted * gradient)[: chain.size])
    share = jnp.linalg.norm((moved - unmoved)[: chain.size]) / jnp.where(expected > 0, expected, 1)
    return jnp.where((share < _CLIPPED) & (share > 0), share, 1)


def _with_statistics(of_parameters: Array, size: int) -> Array:
    return jnp.pad(of_parameters, (0, size - of_parameters.size), constant_values=1)


def _bounded(diagonal: Array) -> Array:
    """With the usual value for elements that have never had a gradient, whose second moment is zero or nearly so."""
    told = jnp.isfinite(diagonal) & (diagonal > 0)
    usual = jnp.exp(jnp.sum(jnp.log(jnp.where(told, diagonal, 1))) / jnp.maximum(jnp.sum(told), 1))
    return jnp.where(told & (diagonal < 100 * usual), diagonal, usual)
