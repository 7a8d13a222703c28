r"""A tangent that rides along with the front, and tells how training amplifies what it is given.

For a small change $u$ of a state, $u_{i+1} = A_i u_i$, where $A_i$ is what the optimizer makes of the curvature of step i.
Over the steps that one sweep accepts, the low-rank model guesses u; the gradients of some of them at $w + \tau u$, evaluated
with the next sweep, tell by how much the curvature differs from the model, and correct the end. The error is of second order in
that difference. A block of steps takes one evaluation for each `STRIDE` of them, and no evaluation in sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._curvature import Curvature
from ._response import Response


# Points at which a block of accepted steps is evaluated at most, and for how many steps one of them stands at least.
POINTS, STRIDE = 64, 4
# Directions that a tangent has never had, or has lost, are given back to it in this share.
_FRESH = 0.05
_BITS = 16  # of the longest block


class Twin(NamedTuple):
    """What was last measured, and the block of steps behind the front that is still to be evaluated.

    - `members` [k, P]: u and its part in the optimizer's moments, in units of d, at the front, by the model alone.
    - `points`, `gradients` [POINTS, P]: states $w + \\tau u$, and the gradients at w; `starts` are their steps, and `changes`
      is tau u in units of d.
    - `known` [POINTS, rank]: what the model says of the change of the gradient; `along` [POINTS, k]: what becomes of a unit of
      that change until the front. `scale` is tau.
    - `before`: |u| where the block began. `count` points are told. `added` [P] is the error that accepting the
      block has added at the front.
    """

    members: Array
    points: Array
    gradients: Array
    changes: Array
    starts: Array
    known: Array
    along: Array
    scale: Array
    before: Array
    count: Array
    added: Array

    @classmethod
    def begun(cls, size: int, members: int, rank: int, dtype) -> "Twin":
        """A unit tangent of the parameters in all directions, nothing to be evaluated."""
        zero = jnp.zeros((), dtype)
        first = _direction(size, jnp.int32(0), dtype)
        return cls(
            jnp.zeros((members, size), dtype).at[0].set(first),
            *(jnp.zeros((POINTS, size), dtype) for _ in range(3)),
            jnp.zeros(POINTS, jnp.int32),
            jnp.zeros((POINTS, rank), dtype),
            jnp.zeros((POINTS, members), dtype),
            zero + 1,
            zero + 1,
            jnp.int32(0),
            jnp.zeros(size, dtype),
        )

    @property
    def told(self) -> Array:
        return jnp.arange(POINTS, dtype=jnp.int32) < self.count


def arrived(twin: Twin, turns: Array, model: Curvature, units: Array) -> tuple[Array, Array]:
    """(members at the front, by how much the block has amplified them), from the changes `turns` of gradients at the points.

    `model` and `units` are those that the block was begun with.
    """
    change = jnp.where(twin.told[:, None], turns / twin.scale, 0) * units[None]
    along = jnp.where(twin.told[:, None], twin.along, 0)
    members = twin.members + along.T @ change - (along.T @ twin.known) @ model.directions.T
    length = jnp.linalg.norm(units * members[0])
    return members, jnp.where(twin.count > 0, length / twin.before, 1)


def rescaled(members: Array, ratio: Array) -> Array:
    """The same change in units d that are smaller by `ratio`: what moments take from gradients goes the other way."""
    return jnp.concatenate([members[:1] * ratio[None], members[1:] / ratio[None]])


def departing(
    members: Array,
    block: tuple[Array, Array, Array, Array],
    model: Curvature,
    response: Response,
    sweep: Array,
    added: Array,
) -> Twin:
    """The next block: (states, gradients) of the window's rows, the step of the first of them, how many are accepted."""
    x, gradients, taken, accepted = block
    v, d, rank = model.directions, response.units, len(model.values)
    length = jnp.linalg.norm(d * members[0])
    members = members / jnp.where(length > 0, length, 1)
    # Its length is told without what is given back, most of which is soon lost again.
    before = jnp.where(length > 0, jnp.ones_like(length), _FRESH)
    fresh = _direction(x.shape[1], sweep, x.dtype) * (_FRESH * jnp.sqrt(d.size).astype(x.dtype) / jnp.linalg.norm(d))
    members = members.at[0].add(fresh)

    count = jnp.minimum((accepted + STRIDE - 1) // STRIDE, POINTS)
    index = jnp.arange(POINTS, dtype=jnp.int32)
    edge = lambda j: (j * accepted) // jnp.maximum(count, 1)
    at, cell = (edge(index) + edge(index + 1)) // 2, edge(index + 1) - edge(index)
    at, told = jnp.clip(at, 0, len(x) - 1), index < count

    middle = accepted // 2
    transfer, gain = response.transfer[middle], response.gain[middle]
    curved = transfer[None] + model.values[:, None, None] * jnp.outer(gain, jnp.eye(len(gain), dtype=v.dtype)[0])[None]
    matrices = jnp.concatenate([curved, transfer[None]])
    powers = _powers(matrices, jnp.concatenate([at, accepted[None]]))
    until, to_end = powers[:POINTS], powers[-1]
    # As if nothing curved: what the model says too much is then taken back exactly, where there is no curvature at all.
    after = _powers(transfer[None], jnp.maximum(accepted - 1 - at, 0))[:, 0]

    in_modes = members @ v
    moved = lambda powers: jnp.einsum("...rij,jr->...ir", powers[..., :-1, :, :], in_modes)
    plain = lambda powers: jnp.einsum("...ij,jp->...ip", powers[..., -1, :, :], members)
    off = lambda powers: moved(powers) - jnp.einsum("...ij,jr->...ir", powers[..., -1, :, :], in_modes)
    guess_modes = moved(until)[:, 0]
    guess = jnp.einsum("qj,jp->qp", until[:, -1, 0], members) + off(until)[:, 0] @ v.T
    end = plain(to_end) + off(to_end) @ v.T

    scale = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.maximum(jnp.linalg.norm(x[0]), 1e-3) / before
    rows = x[at], gradients[at]
    weight = jnp.where(told, cell, 0).astype(x.dtype)
    along = weight[:, None] * (after @ gain)
    return Twin(
        end,
        rows[0] + scale * d[None] * guess,
        rows[1],
        scale * guess,
        taken + at,
        guess_modes * model.values[None, :rank],
        along,
        scale,
        before,
        count.astype(jnp.int32),
        added,
    )


def _direction(size: int, sweep: Array, dtype) -> Array:
    """A unit vector that is as good as random, of its own for each sweep."""
    drawn = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), sweep), (size,), dtype)
    return drawn / jnp.sqrt(size).astype(dtype)


def _powers(matrices: Array, counts: Array) -> Array:
    """Each of the `matrices` [m, k, k] to each of the powers: [counts, m, k, k]."""
    size = matrices.shape[-1]
    one = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), (*counts.shape, *matrices.shape))

    def bit(j, carry):
        power, square = carry
        is_set = ((counts >> j) & 1).astype(bool)[:, None, None, None]
        return jnp.where(is_set, square[None] @ power, power), square @ square

    return jax.lax.fori_loop(0, _BITS, bit, (one, matrices))[0]
