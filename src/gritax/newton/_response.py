r"""The response of an optimizer to small changes of its gradients: a linear recurrence that all elements of a leaf share.

With the members u of a leaf's family (the parameters, their first moment, …) and a gradient g, one step is
$u' = T u + A g$ to first order, second moments as they are, where those moments multiply what reaches the parameters by a
diagonal P. In units of $d = \sqrt{D}$, $D = P |A_0|$, the recurrence has numbers only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._optimizer import found_once
from ..coarse._first_moment import first_moment, response
from ..coarse._linear import LinearOptimizer, linear
from ..training._second_moments import nonnegative
from ._chain import Chain, Training


class Response(NamedTuple):
    """`units`: d, one for each parameter; `transfer` [steps, k, k] and `gain` [steps, k]: T and A in these units."""

    units: Array
    transfer: Array
    gain: Array


@found_once
def modelled(optimizer: Any, params: PyTree) -> tuple[Any, LinearOptimizer, PyTree | None] | None:
    """(a linear transformation that responds alike, its recurrence, which leaves of the state are second moments), or None."""
    kind = linear(optimizer, params)
    if kind is not None:
        return optimizer, kind, None
    second = nonnegative(optimizer, params)
    reduced = first_moment(optimizer, second)
    kind = linear(reduced, params)
    return None if kind is None else (reduced, kind, second)


def drifts(chain: Chain) -> bool:
    """Whether d changes along the run, as it does with second moments."""
    if not isinstance(chain, Training):
        return False
    found = modelled(chain.step.optimizer, chain.params)
    return found is not None and found[2] is not None


def response_of(chain: Chain, x: Array, memory: PyTree, after: PyTree, memories: PyTree, count: int) -> Response:
    """The response along `count` steps from the front, where the state is `x` and S is `memory`.

    `after` is S a step later, when second moments are no longer zero; `memories` are S at the ends of equal parts of the run.
    """
    if not isinstance(chain, Training) or (found := modelled(chain.step.optimizer, chain.params)) is None:
        return Response(jnp.ones_like(x), jnp.ones((count, 1, 1), x.dtype), -jnp.ones((count, 1), x.dtype))
    reduced, kind, second = found
    params = chain.unflatten(x)
    own = memory if second is None else jax.tree.map(lambda x, flag: None if flag else x, memory, second)
    families = sorted({family for family in kind.families if family is not None})
    size = max(len(kind.members(family)) for family in families)

    def later(own, j):
        return jax.tree.map(lambda x: x + j.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x, own)

    def at(j):
        """(T, A) of each family, [family, k, k] and [family, k]; families that lack members are filled with zeros."""
        found = kind.coefficients(reduced, params, later(own, j), 1)

        def of(family):
            rows = [found[i] for i in kind.members(family)]
            missing = size - len(rows)
            transfer = jnp.pad(jnp.stack([row.astype(x.dtype) for row, _ in rows]), (0, missing))
            return transfer, jnp.pad(jnp.stack([weights[0].astype(x.dtype) for _, weights in rows]), (0, missing))

        return tuple(map(jnp.stack, zip(*map(of, families), strict=True)))

    transfers, gains = jax.vmap(at)(jnp.arange(count, dtype=jnp.int32))
    reach = jnp.max(jnp.abs(gains[:, :, 0]), axis=0)  # a schedule may begin at zero
    reach = jnp.where(reach > 0, reach, 1)
    sizes = [leaf.size for leaf in jax.tree.leaves(chain.params)]
    diagonal = jnp.concatenate([jnp.full(sizes[family], reach[i]) for i, family in enumerate(families)])
    drift = jnp.ones(count, x.dtype)
    if second is not None:
        flat = lambda memory: ravel_pytree(response(chain.step.optimizer, second, memory, params))[0]
        now, then = _bounded(flat(after)), jax.vmap(lambda each: _bounded(flat(each)))(memories)
        along = jnp.concatenate([jnp.ones(1, x.dtype), (then @ now) / (now @ now)])
        diagonal = diagonal * now
        drift = jnp.interp(jnp.arange(count) * len(then) / count, jnp.arange(len(along)), along).astype(x.dtype)
    weights = jnp.asarray(sizes, x.dtype)[jnp.asarray(families)] / sum(sizes)
    # What enters the parameters is in units of d^2 |A_0|; what a moment takes from the parameters, the other way round.
    scaled = gains.at[:, :, 0].divide(reach[None])
    moved = transfers.at[:, :, 0, 1:].divide(reach[None, :, None]).at[:, :, 1:, 0].multiply(jnp.mean(diagonal))
    transfer, gain = jnp.einsum("f,nfij->nij", weights, moved), jnp.einsum("f,nfi->ni", weights, scaled)
    transfer = transfer.at[:, 0, 1:].multiply(drift[:, None])
    gain = gain.at[:, 0].multiply(drift)
    return Response(jnp.sqrt(diagonal), transfer, gain)


def _bounded(diagonal: Array) -> Array:
    """With the usual value for elements that have never had a gradient, whose second moment is zero or nearly so."""
    told = jnp.isfinite(diagonal) & (diagonal > 0)
    usual = jnp.exp(jnp.sum(jnp.log(jnp.where(told, diagonal, 1))) / jnp.maximum(jnp.sum(told), 1))
    return jnp.where(told & (diagonal < 100 * usual), diagonal, usual)
