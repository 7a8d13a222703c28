r"""Two tangents that ride along with the front: what training makes of a change in any direction, and of the errors so far.

For a small change $u$ of a state, $u_{i+1} = A_i u_i$, where $A_i$ is what the optimizer makes of the curvature of step i.
Over the steps that one sweep accepts, the low-rank model guesses u; the gradients of some of them at $w + \tau u$, evaluated
with the next sweep, tell by how much the curvature differs from the model, and correct the end. The error is of second order in
that difference. A block of steps takes one evaluation for each `STRIDE / 2` of them, and no evaluation in sequence.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._curvature import Curvature
from ._response import Recurrence, Response


TANGENTS = 2
# Points of each tangent at which a block of accepted steps is evaluated at most, and for how many steps one of them stands.
_POINTS, STRIDE = 32, 8
POINTS = TANGENTS * _POINTS
# Directions that the first tangent has never had, or has lost, are given back to it in this share.
_FRESH = 0.05
# What grows within a block compounds up to so many times, and errors may grow so many times as much as any change.
_COMPOUNDS, _BEYOND = 1.5, 1.2


class Tangents(NamedTuple):
    """The block of steps behind the front, over which the tangents are guessed and still to be evaluated.

    - `members` [tangents, k, P]: u and its part in the moments, in units of d, at the front, by the model alone, for
      a u that began with length 1 and is `size` times as long.
    - `points`, `gradients` [POINTS, P]: states $w + \\tau u$, those of the tangents in turn, and the gradients at w; `starts`
      are their steps, and `changes` is tau u in units of d.
    - `known` [POINTS, rank]: what the model says of the change of the gradient; `along` [POINTS, k]: what becomes of a unit of
      that change until the front. `scale` [POINTS] is tau.
    - `evaluated`: so many points are told. `added` [P] is the error that accepting the block has added at the front.
    """

    members: Array
    size: Array
    points: Array
    gradients: Array
    changes: Array
    starts: Array
    known: Array
    along: Array
    scale: Array
    evaluated: Array
    added: Array

    @classmethod
    def begun(cls, known: Recurrence, members: int, rank: int, dtype) -> "Tangents":
        """A unit tangent of the parameters in all directions, no error, nothing to be evaluated."""
        size = known.diagonal.size
        nothing, first = jnp.zeros((POINTS, size), dtype), known.of_trained(_direction(size, jnp.int32(0), dtype))
        return cls(
            jnp.zeros((TANGENTS, members, size), dtype).at[0, 0].set(first),
            jnp.ones(TANGENTS, dtype),
            nothing,
            jnp.copy(nothing),
            jnp.copy(nothing),
            jnp.zeros(POINTS, jnp.int32),
            jnp.zeros((POINTS, rank), dtype),
            jnp.zeros((POINTS, members), dtype),
            jnp.ones(POINTS, dtype),
            jnp.int32(0),
            jnp.zeros(size, dtype),
        )

    @property
    def told(self) -> Array:
        """Marks the points that are evaluated and differ from the state."""
        return (jnp.arange(POINTS, dtype=jnp.int32) < self.evaluated) & jnp.any(self.changes != 0, axis=1)


def arrived(block: Tangents, turns: Array, model: Curvature, units: Array) -> tuple[Array, Array]:
    """(tangents at the front, by how much the block has amplified the first), from the changes `turns` of gradients.

    The second tangent is the error at the front. `model` and `units` are those that the block was begun with.
    """
    change = jnp.where(block.told[:, None], turns / block.scale[:, None], 0) * units[None]
    of_tangent = jnp.arange(POINTS, dtype=jnp.int32)[None] % TANGENTS == jnp.arange(TANGENTS, dtype=jnp.int32)[:, None]
    along = jnp.where((of_tangent & block.told[None])[..., None], block.along[None], 0)
    off = jnp.einsum("tqk,qp->tkp", along, change) - jnp.einsum("tqk,qr,pr->tkp", along, block.known, model.directions)
    ends = block.members + off
    by = jnp.linalg.norm(units[None] * ends[:, 0], axis=1)
    # The correction is linear, and what grows compounds; what grows more within a block is a moment's doing.
    little = jnp.clip(by, 1, _COMPOUNDS)
    compound = jnp.exp(little - 1) / little
    # Errors begin in stiff directions, which a linear correction of a long block throws far to the other side.
    most = _BEYOND * jnp.maximum(by[0], 1)
    compound = compound.at[1].multiply(jnp.where(by[1] > most, most / by[1], 1))
    ends = ends * (compound * block.size)[:, None, None]
    return ends.at[1, 0].add(block.added / units), jnp.where(block.evaluated > 0, by[0] * compound[0], 1)


def rescaled(tangents: Array, ratio: Array) -> Array:
    """The same changes in units d that are smaller by `ratio`: what moments take from gradients goes the other way."""
    return jnp.concatenate([tangents[:, :1] * ratio[None, None], tangents[:, 1:] / ratio[None, None]], axis=1)


def departing(
    tangents: Array,
    block: tuple[Array, Array, Array, Array],
    model: Curvature,
    response: Response,
    known: Recurrence,
    sweep: Array,
    added: Array,
    eps: float,
) -> Tangents:
    """The next block: (states, gradients) of the window's rows, the step of the first of them, how many are accepted.

    `eps` is the precision that states are rounded to.
    """
    x, gradients, taken, accepted = block
    v, d = model.directions, response.units
    size = jnp.linalg.norm(d[None] * tangents[:, 0], axis=1)
    size = jnp.where(size > 0, size, 1)
    # The length of the first is told without what is given back to it, most of which is soon lost again.
    fresh = _direction(x.shape[1], sweep, x.dtype) * (_FRESH * jnp.sqrt(d.size).astype(x.dtype) / jnp.linalg.norm(d))
    tangents = (tangents / size[:, None, None]).at[0, 0].add(known.of_trained(fresh))

    each = jnp.minimum((accepted + STRIDE - 1) // STRIDE, _POINTS)
    index = jnp.arange(_POINTS, dtype=jnp.int32)
    edge = lambda j: (j * accepted) // jnp.maximum(each, 1)
    at, cell = (edge(index) + edge(index + 1)) // 2, edge(index + 1) - edge(index)
    at = jnp.clip(at, 0, len(x) - 1)

    transfer, gain = response.transfer[accepted // 2], response.gain[accepted // 2]
    curved = transfer[None] + model.values[:, None, None] * jnp.outer(gain, jnp.eye(len(gain), dtype=v.dtype)[0])[None]
    bits = len(x).bit_length()
    powers = _powers(jnp.concatenate([curved, transfer[None]]), jnp.concatenate([at, accepted[None]]), bits)
    # As if nothing curved: what the model says too much is then taken back exactly, where there is no curvature at all.
    after = _powers(transfer[None], jnp.maximum(accepted - 1 - at, 0), bits)[:, 0]
    in_modes = tangents @ v
    plain = powers[:, -1]
    modes = jnp.einsum("qrij,tjr->qtir", powers[:, :-1], in_modes)
    off = modes - jnp.einsum("qij,tjr->qtir", plain, in_modes)
    guess = jnp.einsum("qj,tjp->qtp", plain[:-1, 0], tangents) + off[:-1, :, 0] @ v.T
    ends = jnp.einsum("ij,tjp->tip", plain[-1], tangents) + off[-1] @ v.T

    # A moment may carry a tangent far beyond the length that it begins with.
    longest = jnp.maximum(jnp.max(jnp.linalg.norm(d[None, None] * guess, axis=2), axis=0), 1)
    scale = math.sqrt(eps) * jnp.maximum(jnp.linalg.norm(x[0]), 1e-3) / longest
    scale = jnp.tile(scale, _POINTS)
    in_turn = lambda rows: rows.reshape(POINTS, *rows.shape[2:])
    twice = lambda rows: jnp.repeat(rows, TANGENTS, axis=0)
    weight = jnp.where(index < each, cell, 0).astype(x.dtype)
    return Tangents(
        ends,
        size.at[0].set(1),
        twice(x[at]) + scale[:, None] * d[None] * in_turn(guess),
        twice(gradients[at]),
        scale[:, None] * in_turn(guess),
        twice(taken + at),
        in_turn(modes[:-1, :, 0] * model.values[None, None]),
        twice(weight[:, None] * (after @ gain)),
        scale,
        (TANGENTS * each).astype(jnp.int32),
        added,
    )


def _direction(size: int, sweep: Array, dtype) -> Array:
    """A unit vector that is as good as random, of its own for each sweep."""
    drawn = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), sweep), (size,), dtype)
    return drawn / jnp.sqrt(size).astype(dtype)


def _powers(matrices: Array, counts: Array, bits: int) -> Array:
    """Each of the `matrices` [m, k, k] to each of the powers, of so many bits: [counts, m, k, k]."""
    size = matrices.shape[-1]
    one = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), (*counts.shape, *matrices.shape))

    def bit(j, carry):
        power, square = carry
        is_set = ((counts >> j) & 1).astype(bool)[:, None, None, None]
        return jnp.where(is_set, square[None] @ power, power), square @ square

    return jax.lax.fori_loop(0, bits, bit, (one, matrices))[0]
