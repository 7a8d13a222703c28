"""Planning a run: speeds first, then a pilot window with the coarse steps that promise most."""

import itertools
import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from .._adaptation import prepared
from .._arguments import require_steps, require_whole
from .._attempt import Bounds, Progress
from .._entry import entry
from .._evolution import Evolution
from .._obstacles import obstacle
from .._serial import advance, solve_serial
from .._sharing import as_mesh, count, is_of_several_processes
from .._validation import require_concrete, validated
from .._window import Window, most_steps, solve_window
from ..coarse import Automatic, Choice, candidates, words
from ..training import TrainState, TrainStep
from ._plan import DEVICES, Pilot, Plan, predicted_seconds
from ._speeds import Speeds, measured, measured_coarse, seconds


_PILOT = 512
_ITERATIONS = 12
# Evaluations for a training step: eight an iteration, three iterations. Nothing known makes fewer.
LEAST_WORK = 24.0
_AHEAD = 2.0
_MOST_OVERHEAD = 5e-3
# A pilot is to take so long at most, at so many evaluations for each of its steps, unless it is as short as can be.
_PILOT_SECONDS, _PILOT_WORK, _SHORTEST_PILOT = 15.0, 64, 64


def can_pay(speeds: Speeds, devices: int = 1) -> bool:
    """Whether so many such devices make enough training steps at once for any solve to pay."""
    return speeds.gain * devices > LEAST_WORK


@entry
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
    mesh: Mesh | None = None,
) -> Plan:
    """Measures the device at hand and a pilot window, and predicts what the run would take: a `Plan`, which says what to do.

    The arguments are those of `gritax.train`. Most of what it takes is compilation: the serial training step and many at once
    are timed, coarse steps are chosen for the curvature along two seconds of serial training and for these times, and 512 steps
    (fewer, if they are to take more than half a minute) are solved with them, twice. Predictions go by the pilot's iterations
    and seconds, and by that curvature: where it falls later on, a solve will take less. One device of a mesh is measured; the
    others are taken to be as fast beside it, and to hear from each other in no time.

    Raises `ValueError` as `gritax.train` does.

    >>> import gritax, jax.numpy as jnp, optax
    >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
    >>> plan = gritax.plan(loss, optax.sgd(0.01), lambda step: jnp.ones(2), jnp.zeros(2), 2000)
    >>> plan.pilot.num_steps, plan.pilot.converged
    (512, True)
    """
    step = TrainStep(loss, optimizer, batch, coarse, key=key, has_aux=has_aux, trainable=trainable)
    require_steps(num_steps)
    if window is not None:
        require_whole("window", window, 1)
    mesh = as_mesh(mesh)
    if is_of_several_processes(mesh):
        raise ValueError("A plan goes by what each process measures, and they would not agree: plan in one process.")
    require_concrete("params", (params, stats))
    found = planned(step, step.init(params, stats), int(num_steps), window, devices=count(mesh))
    return replace(found, asked=words(coarse))


def planned(
    step: TrainStep,
    state: TrainState,
    num_steps: int,
    window: int | None = None,
    speeds: Speeds | None = None,
    devices: int = 1,
) -> Plan:
    """The plan of a run of `step` on so many devices, of which one is measured."""
    length = min(_PILOT, num_steps)
    evolution, floating, clock = validated(prepared(step, length), state, length)
    if refusal := obstacle(evolution, floating, clock, length):
        raise ValueError(
            f"{refusal.removesuffix('.')}. There is nothing to plan: gritax.train takes all steps of it one after the other."
        )
    state, window = evolution.merge(floating, clock), min(window or most_steps(floating), num_steps)
    speeds = speeds or measured(evolution, floating, clock, num_steps)
    chosen, depth = (step, 0) if not isinstance(step.coarse, Automatic) else _chosen(step, state, window, speeds, devices)
    length = min(length, max(int(_PILOT_SECONDS * speeds.gain / (_PILOT_WORK * speeds.step)), _SHORTEST_PILOT))
    window_of_pilot = partial(
        solve_window,
        evolution.with_phi(prepared(chosen, length)),
        floating,
        clock,
        length,
        None,
        tolerance=None,
        max_iterations=_ITERATIONS,
        initial_guess="graded",
        progress=Progress(),
        bounds=Bounds(),
        lanes=speeds.best_lanes,
    )
    solved, taken = window_of_pilot(), 0.0  # compiles
    assert isinstance(solved, Window), "declined only where depth is bounded"
    if solved.verdict.converged:
        began = time.perf_counter()
        solved = window_of_pilot()
        taken = time.perf_counter() - began
    assert isinstance(solved, Window), "declined only where depth is bounded"
    trained = solve_serial(step, state, length).params
    serial = seconds(lambda: solve_serial(step, state, length))
    phi = solved.evolution.phi
    assert isinstance(phi, TrainStep)
    return Plan(
        num_steps=num_steps,
        step=step.with_coarse(phi.coarse),
        state=state,
        method=replace(phi.method(window), lanes=speeds.best_lanes),
        window=window,
        speeds=speeds,
        pilot=_pilot(solved, phi, speeds, taken),
        coarse_steps=solved.adaptation.coarse_steps,
        chosen=type(chosen.coarse).__name__ if isinstance(step.coarse, Automatic) else "",
        start_depth=depth,
        call=max(serial - length * speeds.step, 0.0),
        devices=devices,
        diverges=not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(step.split(trained)[0])),
    )


def _chosen(step: TrainStep, state: TrainState, num_steps: int, speeds: Speeds, devices: int) -> tuple[TrainStep, int]:
    """(the step with the coarse propagator that promises to be fastest on devices with these speeds, depth spent).

    For the curvature at the initial state and where two seconds of serial training lead. Where serial training is faster than
    any of them, the one that is fastest on 64 devices.
    """
    ahead = min(num_steps, max(int(_AHEAD / speeds.step), 1))
    tabulated = step.prepared(ahead)
    evolution = Evolution(tabulated, state)
    points = [evolution.split(state)]
    starts = np.array([0, ahead // 8, ahead], np.int32)
    for first, last in itertools.pairwise(starts):
        floating, clock = points[-1]
        points.append(advance(Evolution(tabulated.after(int(first)), state), floating, clock, np.int32(last - first)))
    merged = [evolution.merge(floating, clock) for floating, clock in points]
    states = jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *merged)
    found, _, depth, _ = candidates(step, states, starts, num_steps)

    def predicted(coarse, devices):
        hierarchy = coarse.method(num_steps).hierarchy(num_steps)
        return predicted_seconds(hierarchy, coarse, speeds, (), coarse.usual_iterations, devices)

    pays = any(predicted(coarse, devices) < num_steps * speeds.step for coarse in found)
    fastest = min(found, key=lambda coarse: predicted(coarse, devices if pays else DEVICES[0]))
    return step.with_coarse(fastest), depth


def _pilot(solved: Window, phi: TrainStep, speeds: Speeds, taken: float) -> Pilot:
    reports = solved.reports
    iterations = np.diff([each.seconds for each in reports])
    coarse = measured_coarse(solved)
    guess, one = (predicted_seconds(solved.hierarchy, phi, speeds, coarse, count) for count in (0, 1))
    iteration = float(np.median(iterations)) if len(iterations) else one - guess
    # What an iteration takes beside its sweeps, on the host, does not grow with the steps.
    overhead = min(max(iteration - (one - guess), 0.0), _MOST_OVERHEAD)
    correction = (iteration - overhead) / (one - guess) if one > guess else 1.0  # a single level has no sweeps
    return Pilot(
        num_steps=solved.hierarchy[0].size,
        iterations=max(reports[-1].number, 1),
        converged=solved.verdict.converged,
        factor=reports[-1].factor if len(reports) > 1 else math.nan,
        coarse=coarse,
        start=max(taken - float(np.sum(iterations)) - correction * guess, 0.0),
        overhead=overhead,
        correction=correction,
    )
