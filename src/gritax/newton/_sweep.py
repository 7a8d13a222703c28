"""One sweep of the sliding window: evaluate all steps in flight, learn, correct, accept the first of them, let new ones in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._acceptance import Acceptance, acceptance
from ._chain import Chain, follow_all, follow_some
from ._correction import continued, correction
from ._curvature import Curvature, secant_update, usable
from ._evaluation import evaluated
from ._flight import Aim, Flight, Rows, Shape
from ._prefix import shifted
from ._response import drifts, response_of
from ._tangents import arrived, departing, rescaled


_PART = 32  # steps, after which the optimizer's state is looked at
_SMALLEST = 16
_NARROWER, _WIDER, _TOLERATED, _ALONE = 0.93, 1.15, 0.25, 0.01
_MEAN = 32  # steps at least over which gradients are averaged for the guess
_TRUSTED = 4  # steps that a model must be right for


def swept(chain: Chain, shape: Shape, aim: Aim, flight: Flight) -> Flight:
    """The flight after one sweep."""
    rows, index = flight.rows, jnp.arange(shape.capacity, dtype=jnp.int32)
    live = index < rows.live
    gradients, values, at_points = evaluated(chain, shape, flight)
    known = flight.known
    tangent_turns = known.of_trained(at_points - flight.tangents.gradients)
    small, grown = arrived(flight.tangents, tangent_turns, flight.model, flight.units)
    front = flight.front.grown(grown, flight.units * small[1, 0])
    following, memories = follow_all(
        chain, rows.x, gradients, values, flight.front.memory, flight.front.taken, shape.capacity // _PART
    )
    # The state that each step leads to, as it is in flight; the last one is taken as it comes.
    towards = jnp.where((index < rows.live - 1)[:, None], jnp.roll(rows.x, -1, axis=0), following)
    residuals = jnp.where(live[:, None], following - towards, 0)

    later, model = None, flight.model
    if drifts(chain):
        after = follow_some(chain, rows.x, gradients, values, flight.front.memory, flight.front.taken, jnp.int32(1))
        later = after, memories
    response = response_of(chain, known, front.taken, rows.x[0], front.memory, later, gradients[0], shape.capacity)
    if drifts(chain):
        ratio = flight.units / response.units
        model, small = model.rescaled(ratio), rescaled(small, ratio)
    told = live & (rows.age > 0) & usable(rows.x - rows.before, rows.x[0], chain.eps) & jnp.all(jnp.isfinite(gradients), axis=1)
    told = jnp.concatenate([told, flight.tangents.told & jnp.all(jnp.isfinite(tangent_turns), axis=1)])
    changes = jnp.concatenate([known.of_trained(rows.x - rows.before) / response.units[None], flight.tangents.changes])
    changes = jnp.where(told[:, None], changes, 0)
    turns = jnp.concatenate([known.of_trained(gradients - rows.gradients), tangent_turns])
    turns = jnp.where(told[:, None], turns, 0) * response.units[None]
    model = secant_update(model, changes, turns, told, shape.groups, shape.new)
    delta = correction(residuals, model, response, known.kept)
    new = (towards + delta).at[0].set(following[0])  # exact, whatever was in flight there

    found = acceptance(shape, aim, front, rows, new, delta, chain.first, known)
    model = Curvature(*(jnp.where(found.kept < _TRUSTED, 0, x) for x in model))
    memory = follow_some(chain, rows.x, gradients, values, front.memory, front.taken, found.accepted)
    block = rows.x, gradients, front.taken, found.accepted
    tangents = departing(small, block, model, response, known, flight.tally.sweeps + 1, found.added, chain.eps)
    front = front._replace(taken=front.taken + found.accepted, memory=memory, travelled=found.travelled, rate=found.rate)
    window = _window(shape, aim, flight, found)
    recent = (live & (index < found.kept) & (index >= found.kept - jnp.maximum(_MEAN, found.kept // 2))).astype(new.dtype)
    mean = lambda x: (recent / jnp.sum(recent)) @ jnp.where(live[:, None], x, 0)
    entering = continued(
        new[found.kept - 1], index, known.of_trained(mean(gradients)), mean(rows.x), model, response, found.kept - 1
    )
    recorded = (flight.front.taken, rows.live + flight.tangents.evaluated, jnp.linalg.norm(residuals))
    tally = flight.tally._replace(
        sweeps=flight.tally.sweeps + 1,
        history=flight.tally.history.at[flight.tally.sweeps % shape.sweeps].set(
            jnp.stack([x.astype(new.dtype) for x in recorded])
        ),
        losses=jax.lax.dynamic_update_slice_in_dim(flight.tally.losses, values, flight.front.taken, 0),
    )
    finite = jnp.all(jnp.isfinite(following[0])) & _finite(memory)
    moved_on = _moved_on(shape, flight, found, new, gradients, entering, window)
    return Flight(front, moved_on, tangents, model, known, response.units, window, tally, finite)


def _window(shape: Shape, aim: Aim, flight: Flight, found: Acceptance) -> Array:
    """How many steps are to be in flight: more, if those accepted had been for fewer sweeps than asked for."""
    age, index = flight.rows.age, jnp.arange(shape.capacity, dtype=jnp.int32)
    ages = jnp.where(index < found.accepted, jnp.roll(age, -1) + 1, 0).astype(flight.window.dtype)
    usual = jnp.sum(ages) / found.accepted.astype(ages.dtype)
    window = jnp.where(usual > aim.sweeps + _TOLERATED, flight.window * _NARROWER, flight.window)
    # After a single sweep there is nothing less to ask for.
    window = jnp.where(usual < jnp.maximum(aim.sweeps - _TOLERATED, 1 + _ALONE), flight.window * _WIDER, window)
    window = jnp.where(found.kept < flight.rows.live, jnp.minimum(window, found.kept.astype(window.dtype)), window)
    return jnp.clip(window, min(_SMALLEST, shape.room), shape.room).astype(flight.window.dtype)


def _moved_on(
    shape: Shape, flight: Flight, found: Acceptance, new: Array, gradients: Array, entering: Array, window: Array
) -> Rows:
    """The window from the new front on: states that were in flight, the one after the last of them, then new ones."""
    rows, index = flight.rows, jnp.arange(shape.capacity, dtype=jnp.int32)
    there = found.kept - found.accepted + 1
    left = shape.num_steps - flight.front.taken - found.accepted
    live = jnp.minimum(jnp.minimum(jnp.maximum(there, window.astype(jnp.int32)), left), shape.room)
    entries = jnp.roll(entering, there - 1, axis=0)
    x = jnp.where((index < there)[:, None], shifted(new, found.accepted - 1), entries)
    x = jnp.where((index < live)[:, None], x, x[jnp.maximum(live - 1, 0)][None])
    was = index < there - 1
    return Rows(
        x,
        shifted(rows.x, found.accepted),
        shifted(gradients, found.accepted),
        jnp.where(was, shifted(rows.age, found.accepted) + 1, 0),
        jnp.where(index < there, shifted(found.moved, found.accepted - 1), jnp.inf),
        jnp.maximum(live, 1),
    )


def _finite(memory: PyTree) -> Array:
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(memory) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)
