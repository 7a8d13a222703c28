r"""Which of the first steps in flight are final, and what their errors add up to.

A correction $\delta$ of a step that shrinks by $\rho$ a sweep leaves an error of about $\rho / (1 - \rho) \delta$. Only the
state of the front is handed on, so each sweep adds one such term, and training amplifies by $\gamma$ what is there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._flight import Aim, Front, Rows, Shape
from ._prefix import largest_so_far
from ._response import Recurrence


# A rate of one step that is small by accident is none: it counts as the largest of all in the window, from the first of these
# to the second. A step whose correction grows has an error of several of them.
_LEAST_RATE, _LARGE_RATE, _STALLED, _GROWS, _GROWN = 0.1, 0.2, 0.9, 1.5, 4.0
# The share of what is left of the tolerance, squared, that one sweep may spend, and the least that it may always.
_SHARE, _LEAST = 0.25, 0.001
# A correction beyond this share of the distance travelled says that the step is far from right, and the model perhaps wrong.
_FAR = 0.5


class Acceptance(NamedTuple):
    """`accepted` steps are final, the first `kept` stay in flight; the error `added` [P] by this, the distance `travelled`.

    `moved` is how far each step was corrected, `rate` by how much the second correction of a step is smaller than the first.
    """

    accepted: Array
    kept: Array
    added: Array
    travelled: Array
    moved: Array
    rate: Array


def acceptance(
    shape: Shape, aim: Aim, front: Front, rows: Rows, new: Array, delta: Array, origin: Array, known: Recurrence
) -> Acceptance:
    """From the corrected states `new` after each step in flight, and their corrections `delta`."""
    index, last = jnp.arange(shape.capacity, dtype=jnp.int32), rows.live - 1
    norm = lambda x: jnp.linalg.norm(x, axis=1)
    # The first step begins at the front and is exact. The state after the last one is new, and as good as the one before.
    moved = jnp.where(index == last, norm(delta)[jnp.maximum(last - 1, 0)], norm(delta)).at[0].set(0)
    before = jnp.where(index == last, rows.moved[jnp.maximum(last, 0)], jnp.roll(rows.moved, -1))
    is_live = index < rows.live
    distance = largest_so_far(jnp.maximum(front.travelled, jnp.where(is_live, norm(known.of_trained(new - origin[None])), 0)))

    wild = is_live & ~(norm(known.of_trained(delta)) <= _FAR * distance) & (index > 0)
    first_wild = jnp.argmax(wild).astype(jnp.int32)
    kept = jnp.where(jnp.any(wild), jnp.maximum(2 * first_wild // 3, 1), rows.live)

    told = is_live & (index > 0) & (index < last) & jnp.isfinite(before) & (before > 0)
    rate = jnp.where(told, moved / jnp.where(told, before, 1), front.rate)
    second = told & (jnp.roll(rows.age, -1) == 1)
    usual = jnp.clip(jnp.maximum(jnp.max(jnp.where(second, rate, 0)), front.rate / 2), _LEAST_RATE, 1)
    usual = jnp.where(jnp.any(second), usual, front.rate)
    shrinks = jnp.clip(rate, jnp.minimum(usual, _LARGE_RATE), _STALLED)
    error = jnp.where(rate < _STALLED, shrinks / (1 - shrinks), jnp.where(rate > _GROWS, _GROWN, 1)) * moved
    progress = (front.taken + 1 + index).astype(moved.dtype) / shape.num_steps
    budget = jnp.square((aim.relative * distance + aim.absolute) * (0.5 + 0.5 * progress))
    there = jnp.sum(jnp.square(front.drift))
    # With what is there already, as far as it points the same way.
    both = jnp.square(error) + 2 * error * (known.of_trained(delta) @ front.drift) / jnp.where(moved > 0, moved, 1)
    fits = (jnp.square(error) <= _SHARE * (budget - there)) & (both + there <= budget)
    good = ((fits | (jnp.square(error) <= _SHARE * _LEAST * budget)) & (index < kept)).at[0].set(True)
    accepted = jnp.where(jnp.all(good), shape.capacity, jnp.argmin(good)).astype(jnp.int32)
    if shape.save_every:
        accepted = jnp.minimum(accepted, shape.save_every - front.taken % shape.save_every)
    # The last step in flight was corrected as the one before it.
    along = known.of_trained(delta)[jnp.minimum(accepted - 1, jnp.maximum(last - 1, 0))]
    length = jnp.linalg.norm(along)
    added = along * (error[accepted - 1] / jnp.where(length > 0, length, 1))
    return Acceptance(accepted, kept, added, distance[accepted - 1], moved, usual)
