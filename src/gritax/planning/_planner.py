"""Planning a run: speeds first, then a pilot window with the coarse steps that promise most."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._adaptation import prepared
from .._arguments import require_whole
from .._attempt import Bounds, Progress
from .._validation import validated
from .._window import Window, solve_window
from ..coarse import Automatic, Choice, CoarseStep, candidates
from ..training import TrainState, TrainStep
from ._plan import Pilot, Plan, predicted_seconds
from ._speeds import Speeds, measured


_PILOT = 512
_ITERATIONS = 12
# Evaluations for a training step: eight an iteration, two iterations. Nothing known makes fewer.
LEAST_WORK = 16.0


def can_pay(speeds: Speeds) -> bool:
    """Whether this device makes enough training steps at once for any solve to pay."""
    return speeds.gain > LEAST_WORK


def plan(
    loss: Any,
    optimizer: optax.GradientTransformation,
    batch: Any,
    params: PyTree,
    num_steps: int,
    *,
    coarse: Choice = "auto",
    key: Array | None = None,
    has_aux: bool = False,
    stats: PyTree = (),
    trainable: PyTree = eqx.is_inexact_array,
    window: int | None = None,
) -> Plan:
    """Measures the device at hand and a pilot window, and predicts what the run would take: a `Plan`, which says what to do.

    The arguments are those of `gritax.train`. It takes seconds, most of them for compilation: the serial training step and many
    at once are timed, coarse steps are chosen for the curvature at the start and for these times, and 512 steps are solved
    with them. Predictions are those of the pilot's iterations, of its seconds, and of the curvature at the start: where that
    falls along the run, a solve will take less.

    Raises `ValueError` as `gritax.train` does.

    >>> import gritax, jax.numpy as jnp, optax
    >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
    >>> plan = gritax.plan(loss, optax.sgd(0.01), lambda step: jnp.ones(2), jnp.zeros(2), 2000)
    >>> plan.pilot.num_steps, plan.pilot.converged
    (512, True)
    """
    step = TrainStep(loss, optimizer, batch, coarse, key=key, has_aux=has_aux, trainable=trainable)
    require_whole("num_steps", num_steps, 1)
    if window is not None:
        require_whole("window", window, 1)
    return planned(step, step.init(params, stats), int(num_steps), window)


def planned(
    step: TrainStep, state: TrainState, num_steps: int, window: int | None = None, speeds: Speeds | None = None
) -> Plan:
    """The plan of a run of `step`."""
    length = min(_PILOT, num_steps)
    evolution, floating, clock = validated(prepared(step, length), state, length)
    speeds = speeds or measured(evolution, floating, clock, num_steps)
    window = min(window or num_steps, num_steps)
    phi = evolution.phi
    assert isinstance(phi, TrainStep)
    chosen, depth = _chosen(phi, evolution.merge(floating, clock), window, speeds)
    of_pilot = evolution.with_phi(chosen)
    solved = solve_window(
        of_pilot,
        floating,
        clock,
        length,
        None,
        tolerance=None,
        max_iterations=_ITERATIONS,
        initial_guess="graded",
        progress=Progress(),
        bounds=Bounds(),
    )
    assert isinstance(solved, Window), "declined only where depth is bounded"
    phi = solved.evolution.phi
    assert isinstance(phi, TrainStep)
    return Plan(
        num_steps=num_steps,
        step=eqx.tree_at(lambda s: s.coarse, step, phi.coarse, is_leaf=lambda x: x is step.coarse),
        state=state,
        method=phi.method(window),
        window=window,
        speeds=speeds,
        pilot=_pilot(solved, phi, speeds),
        coarse_steps=solved.adaptation.coarse_steps,
        start_depth=depth,
    )


def _chosen(step: TrainStep, state: TrainState, num_steps: int, speeds: Speeds) -> tuple[TrainStep, int]:
    """(the step with the coarse propagator that promises to be fastest on a device with these speeds, depth spent)."""
    if not isinstance(step.coarse, Automatic):
        return step, 0
    states = jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, state)
    found, _, depth, _ = candidates(step, states, np.zeros(1, np.int32), num_steps)
    seconds = [
        predicted_seconds(each.method(num_steps).hierarchy(num_steps), each, speeds, each.usual_iterations) for each in found
    ]
    fastest: CoarseStep = found[int(np.argmin(seconds))]
    return eqx.tree_at(lambda s: s.coarse, step, fastest, is_leaf=lambda x: x is step.coarse), depth


def _pilot(solved: Window, phi: TrainStep, speeds: Speeds) -> Pilot:
    reports = solved.reports
    # The first iteration compiles what measures the curvature along the guess.
    taken = np.diff([each.seconds for each in reports[1:]])
    one, more = (predicted_seconds(solved.hierarchy, phi, speeds, count) for count in (1, 2))
    return Pilot(
        num_steps=solved.hierarchy[0].size,
        iterations=max(reports[-1].number, 1),
        converged=solved.verdict.converged,
        factor=reports[-1].factor if len(reports) > 1 else math.nan,
        correction=float(np.median(taken)) / (more - one) if len(taken) else 1.0,
    )
