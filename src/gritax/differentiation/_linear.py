"""Tangents and adjoints of a solve that has ended: linear evolutions, solved by multigrid along its C-points."""

import logging
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._adaptation import points_along
from .._attempt import Bounds, Progress
from .._evolution import Evolution, Phi, optional
from .._hierarchy import Level, Multigrid
from .._kernel import kernel, make_room
from .._points import Points
from .._window import Window, solve_window
from ._steps import AdjointStep, Linearised, TangentStep


logger = logging.getLogger("gritax")

# Of the distance that tangents and adjoints travel. Convergence is geometric: a few iterations more than to 1e-6.
AIM = 1e-10
_ITERATIONS = 100
_FACTOR = 16  # fewer levels to compile than by 4, and a power of it


def reversible(window: Window) -> Phi:
    """phi with coarse steps that have derivatives backwards: `phi.reversible(states, starts, num_steps)`, if it defines that.

    `states` are those at the steps `starts`, stacked.
    """
    phi, finest = window.adaptation.evolution.phi, window.hierarchy[0]
    choose = optional(phi, "reversible")
    if choose is None:
        return phi
    starts = points_along(finest.size, finest.factor)
    floating = jax.tree.map(lambda x: x[starts // finest.factor], window.evolution.natural(window.collected()))
    clocks = jax.vmap(window.evolution.clock)(jnp.asarray(starts))
    return choose(window.evolution.merge(floating, clocks), starts, finest.size)


def linearised(window: Window, phi: Phi, wrt: tuple[int, ...]) -> Linearised:
    """The evolution of `window` by `phi` along its C-points."""
    finest, evolution = window.hierarchy[0], window.evolution.with_phi(phi)
    points = evolution.natural(window.collected())
    units = jax.tree.map(_size, points)
    return Linearised(evolution, points, units, finest.factor, finest.size, wrt)


def _size(x: Array) -> Array:
    """The root mean square of a leaf along the run, or 1 where it is zero."""
    size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x)))) if x.size else jnp.ones((), x.dtype)
    return jnp.where(size > 0, size, jnp.ones_like(size))


def tangent(window: Window, along: Linearised, v: PyTree[Array], direction: list[Array]) -> tuple[PyTree[Array], str]:
    """(the derivative of the final state in the direction (v, direction), why it is not converged or "")."""
    step = TangentStep(along, direction)
    found, failure = _solved(window, step, v)
    return _rest_forwards(step, found.state), failure


def adjoint(window: Window, along: Linearised, mu: PyTree[Array]) -> tuple[PyTree[Array], list[Array], str]:
    """(derivatives of `mu` . final state by the initial state and by the arrays of phi, why they are not converged or "")."""
    step = AdjointStep(along)
    mu, by_arrays = _rest_backwards(step, mu)
    found, failure = _solved(window, step, mu)
    more = _by_arrays(found.hierarchy[0], step, _lanes(along), found.collected())
    return found.state, [x + y for x, y in zip(by_arrays, more, strict=True)], failure


def _lanes(along: Linearised) -> int:
    """So few intervals at once that the states within them are no more than all C-points."""
    return max(along.num_intervals // along.factor, 1)


def _solved(window: Window, step: Any, state: PyTree[Array]) -> tuple[Window, str]:
    num_intervals, evolution = step.along.num_intervals, Evolution(step, state)
    make_room((jax.tree.structure(evolution), num_intervals))
    found = solve_window(
        evolution,
        *evolution.split(state),
        num_intervals,
        Multigrid(_FACTOR),
        tolerance=None,
        max_iterations=_ITERATIONS,
        initial_guess="nested",
        progress=Progress(),
        bounds=Bounds(aim=AIM),
        lanes=_lanes(step.along),
        mesh=window.mesh,
    )
    assert isinstance(found, Window), "declined only where depth is bounded"
    logger.info("%s: %s", type(step).__name__, found.verdict.sentence)
    failure = found.verdict.sentence
    if not math.isfinite(found.reports[-1].residual):
        failure = (
            "not finite: somewhere along the run a step has no finite derivative, as that of Adam has none where a second "
            "moment is zero, of a parameter that nothing depends on, say. Give it an eps_root"
        )
    return found, "" if found.verdict.converged else failure


@kernel
def _rest_forwards(step: TangentStep, v: PyTree[Array]) -> PyTree[Array]:
    at = (step.along.point(-1), step.along.arrays)
    return jax.jvp(step.along.rest, at, (v, step.direction))[1]


@kernel
def _rest_backwards(step: AdjointStep, mu: PyTree[Array]) -> tuple[PyTree[Array], list[Array]]:
    return jax.vjp(step.along.rest, step.along.point(-1), step.along.arrays)[1](mu)


@partial(kernel, static_argnums=(0, 2))
def _by_arrays(level: Level, step: AdjointStep, lanes: int, c: Points) -> list[Array]:
    """The sum over all intervals of what they give for the arrays of phi, from the C-points of the adjoint."""
    along, arrays = step.along, step.along.arrays

    def interval(carry, j, first):
        """One interval of each lane, whose point is `first` - j; what they give is summed as it is found."""
        mu, found = carry
        k = first - j
        at = jnp.maximum(k, 0)
        across = lambda points, arrays: jax.vmap(lambda k, point: along.across(k, 1)(point, arrays))(at, points)
        _, pull = jax.vjp(across, along.point(at), arrays)
        mu, more = pull(jax.tree.map(lambda x: jnp.where(_along(k >= 0, x), x, 0), mu))
        return (mu, jax.tree.map(jnp.add, found, more)), None

    count = level.num_intervals + (level.tail > 0)
    rounds = -(-count // lanes)
    index = np.arange(rounds * lanes, dtype=np.int32)
    # Lanes past the end go on from the last point and find no interval.
    used = jax.tree.map(lambda x: x[np.minimum(index, count - 1)].reshape(rounds, lanes, *x.shape[1:]), c)

    def chunk(found, each):
        mu, index = each
        backwards = partial(interval, first=along.num_intervals - 1 - index * level.factor)
        return jax.lax.scan(backwards, (mu, found), jnp.arange(level.factor, dtype=jnp.int32))[0][1], None

    begun = [jnp.zeros_like(x) for x in arrays]
    return jax.lax.scan(chunk, begun, (used, jnp.asarray(index.reshape(rounds, lanes))))[0]


def _along(lanes: Array, x: Array) -> Array:
    return lanes.reshape(-1, *[1] * (x.ndim - 1))
