"""The call for those who do not want to know what a C-point is."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import equinox as eqx
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._arguments import require_bool, require_steps, require_whole
from ._attempt import Progress
from ._convergence import DEFAULT_TOLERANCE, require_tolerance
from ._entry import entry
from ._evolution import Evolution
from ._method import Method, Options, Task
from ._obstacles import obstacle
from ._pace import InWindows, OneByOne, Pace
from ._run import TABLE, Run
from ._sharing import as_mesh, count, is_of_several_processes, require_agreement
from ._solution import Solution
from ._solve import ended
from ._trained import solution_of
from ._validation import require_concrete, validated
from ._warning import warn
from ._window import most_steps
from .checkpoint import Directory, Keeper, difference, digest, kept_in, taken
from .coarse import Choice, named, words
from .planning import LEAST_WORK, Plan, can_pay, measured, planned
from .training import TrainStep


logger = logging.getLogger("gritax")

_LONGEST_STRETCH = 2**22
# Serial training must take so many compilations of its step for trials of many steps at once, and for a pilot window, to be a
# tenth of it: they compile about eight and forty programs.
_TRIALS, _PILOT = 80, 400
_SHORTEST = 1.0  # seconds of serial training, where all is compiled


@entry
def train(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    batch: Callable[[Any], PyTree],
    params: PyTree,
    num_steps: int,
    *,
    goal: Literal["time", "depth"] = "time",
    plan: Plan | None = None,
    method: Method | None = None,
    coarse: Choice = "auto",
    key: Array | None = None,
    has_aux: bool = False,
    stats: PyTree = (),
    trainable: PyTree = eqx.is_inexact_array,
    tolerance: float | None = None,
    window: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    throw: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Solution:
    r"""The weights of serial training, $w_{i+1} = w_i + \mathrm{update}(\nabla \mathrm{loss}(w_i, \mathrm{batch}(i)))$.

    Steps are solved in windows, many at once, where that is expected to be faster, and taken one after the other where it is
    not. A window that does not converge is never passed on: the steps that have converged are kept, and the others are taken by
    a shorter window or one by one.

    **Arguments**

    - `loss`, `optimizer`, `batch`, `key`, `has_aux`, `trainable`: as for `gritax.TrainStep`; `coarse` too, here `"auto"`.
    - `params`, `stats`: the initial parameters and, with `has_aux`, statistics.
    - `num_steps`: N, at least 1.
    - `goal`: `"time"` takes what is faster on this device, as measured; on a CPU that is nearly always one step after the
      other. `"depth"` takes as few evaluations in sequence as it can, as if there were a device for every interval.
    - `plan`: from `gritax.plan` with the same arguments; otherwise the device is measured, for a small part of the time that
      serial training would take, and not at all where that is short.
    - `method`: a `gritax.Newton`, which takes all steps in one window that slides along them, in few evaluations for each; None
      for multigrid in windows. If training amplifies errors beyond the tolerance, all steps are taken one after the other after
      all. `goal`, `plan`, `coarse` and `window` are not for it.
    - `tolerance`: `None` for final parameters within 1e-6 of the distance that they travel; a number is an absolute tolerance
      on the residuals of all windows together, as for `gritax.solve`.
    - `window`: the most steps of a window; `None` for as many as fit into 2 GiB.
    - `checkpoint`: a directory for what is known after each window, or every few seconds of a `method` and at an interrupt. The
      last two are kept.
    - `resume`: go on from the newest whole checkpoint in that directory, or begin if there is none. The weights are those of an
      uninterrupted run. A path stands for `checkpoint=path, resume=True`.
    - `throw`: raise `ConvergenceError`, with the solution in its `solution`, if the weights are not those asked for.
    - `progress`: told of windows, levels, iterations and the end.
    - `mesh`: the devices that share a window, as for `gritax.solve`. Where they are of several processes, there must be a
      `method`, or the goal be `"depth"`, and the first process alone writes checkpoints, into a directory that all can read.

    **Returns** a `Solution`, whose `windows` say how the steps were taken. Evaluations in sequence are at most 1.5 N, with all
    that was given up. Where training turns not finite it ends, as serial training would.

    Warns if training amplifies rounding beyond the tolerance: then there is no answer to reproduce, and serial training itself
    would give other weights on another machine.

    Raises `ValueError` for an argument that cannot be used, before any long work.

    >>> import gritax, jax.numpy as jnp, optax
    >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
    >>> trained = gritax.train(loss, optax.sgd(0.01), lambda step: jnp.ones(2), jnp.zeros(2), 2000, goal="depth")
    >>> trained.converged, trained.depth < 500
    (True, True)
    >>> bool(jnp.allclose(trained.params, 1 - 0.99**2000, atol=1e-5))
    True
    """
    began = time.perf_counter()
    _require(num_steps, goal, plan, tolerance, window, throw, progress)
    if method is not None:
        _require_alone(method, goal, plan, coarse, window, checkpoint, resume, mesh)
    require_concrete("params", (params, stats))
    step = TrainStep(loss, optimizer, batch, coarse, key=key, has_aux=has_aux, trainable=trainable)
    num_steps, window = int(num_steps), window and int(window)
    tolerance = tolerance if tolerance is None else float(tolerance)
    mesh, asked_for = as_mesh(mesh), kept_in(checkpoint, resume)
    if is_of_several_processes(mesh) and goal == "time" and method is None:
        raise ValueError(
            'goal="time" goes by what each process measures, and they would not agree. For a mesh of several processes give '
            'goal="depth" or a method.'
        )
    # Somebody who writes there already is told of before anything is computed.
    with nullcontext() if asked_for is None else Keeper(Directory(asked_for[0]), asked_for[1], mesh) as keeper:
        first = step.init(params, stats)
        tabulated = step.prepared(min(num_steps, TABLE))
        evolution, floating, clock = validated(tabulated, first, num_steps)
        state, progress = evolution.merge(floating, clock), progress or Progress()
        asked = {"num_steps": num_steps, "tolerance": tolerance, "goal": goal, "window": window, "coarse": words(coarse)}
        asked |= method.asked if method else {}
        if keeper:
            asked["origin"] = digest(state)
        run = Run(step, state, num_steps, tolerance, DEFAULT_TOLERANCE, progress, asked, tabulated, mesh=mesh)
        longest = min(window or most_steps(floating), num_steps)
        pace = keeper and keeper.resumed(run)
        require_agreement(mesh, run.done)
        if pace is None and (refusal := obstacle(evolution, floating, clock, num_steps)):
            pace = OneByOne(refusal.removesuffix("."), TABLE)
        elif pace is None and method is not None:
            task = Task(evolution.with_phi(step.prepared(num_steps)), floating, clock, num_steps)
            kept = keeper and (keeper.directory, keeper.resumes)
            solution, _ = method.solved(task, Options(progress, began, tolerance, checkpoint=kept, mesh=mesh))
            if solution.converged:
                return ended(solution, throw, progress)
            run.give_up(solution)
            pace = OneByOne(solution.reason, TABLE)
        elif pace is None and goal == "depth":
            pace = InWindows(longest)
        elif pace is None:
            pace = _fastest(run, plan, evolution, floating, clock, longest)
            if keeper and run.done:
                keeper.save(run, pace)
        if isinstance(pace, InWindows) and pace.coarse:
            run.take(named(pace.coarse))
        try:
            pace = _to_the_end(run, pace, keeper)
        except KeyboardInterrupt:
            kept = f"; {keeper.directory.path} has what was reached: go on with resume=True" if keeper else ""
            logger.warning("interrupted after step %d of %d%s", run.done, run.num_steps, kept)
            raise
        return ended(solution_of(run), throw, progress)


def _require(num_steps, goal, plan, tolerance, window, throw, progress) -> None:
    require_steps(num_steps)
    if goal not in ("time", "depth"):
        raise ValueError(f'goal must be "time" or "depth", not {goal!r}.')
    if plan is not None and goal == "depth":
        raise ValueError('plan says what is faster on this device; goal="depth" is not about that. Leave one of them out.')
    if plan is not None and not isinstance(plan, Plan):
        raise ValueError(f"plan must come from gritax.plan, not be {plan!r}.")
    require_tolerance(tolerance)
    if tolerance == 0:
        raise ValueError("tolerance must be above 0 here: training goes on until it is reached.")
    if window is not None:
        require_whole("window", window, 1)
    require_bool("throw", throw)
    if progress is not None and not isinstance(progress, Progress):
        raise ValueError(f"progress must be a gritax.Progress, such as gritax.progress.Lines(), not {progress!r}.")


def _require_alone(method, goal, plan, coarse, window, checkpoint, resume, mesh) -> None:
    """Raises `ValueError` for what is no method of `train`, and for arguments that a method has no use for."""
    if not (isinstance(method, Method) and method.trains):
        raise ValueError(f"method must be a gritax.Newton, or None for multigrid in windows, not {method!r}.")
    given = {"plan": plan, "window": window, "goal": None if goal == "time" else goal}
    given["coarse"] = None if isinstance(coarse, str) and coarse == "auto" else coarse
    if "checkpoint" not in method.takes:
        given |= {"checkpoint": checkpoint, "resume": resume or None}
    if "mesh" not in method.takes:
        given["mesh"] = mesh
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is not for method={method.name}(...) yet: leave it out, or leave out the method.")


def _fastest(run: Run, plan: Plan | None, evolution, floating, clock, longest: int) -> Pace:
    """One step after the other, unless windows are to be faster on this device."""
    stretch = TABLE if getattr(run.step.batch, "tabulated", None) else _LONGEST_STRETCH
    if plan is not None:
        _require_same(plan, run, evolution, floating, clock)
    if plan is None:
        seconds, compilation = run.timed(run.num_steps // 4)
        left = run.left * seconds
        if not run.is_finite:
            return OneByOne("training is not finite", stretch)
        if left < max(_TRIALS * compilation, _SHORTEST):
            return OneByOne(
                f"in {run.num_steps * seconds:.2g} s, too short to measure whether windows would be faster", stretch
            )
        devices = count(run.mesh)
        speeds = measured(evolution, floating, clock, run.num_steps, enough=LEAST_WORK / devices)
        if not can_pay(speeds, devices):
            here = "this device makes" if devices == 1 else f"each of {devices} devices makes"
            return OneByOne(
                f"{here} {speeds.gain:.2g} steps of many states in the time of one, and a solve {LEAST_WORK:.0f} times as many "
                "at least",
                stretch,
            )
        if left < _PILOT * compilation:
            return OneByOne(f"in {left:.2g} s, too short for a pilot window to be worth it: see gritax.plan", stretch)
        plan = planned(run.step, run.origin, run.num_steps, longest, speeds, devices)
    if not plan.pays:
        return OneByOne(plan.sentence.removesuffix("."), stretch)
    run.lanes = plan.method.lanes
    return InWindows(min(plan.window, longest), step_seconds=plan.speeds.step, coarse=plan.chosen)


def _require_same(plan: Plan, run: Run, evolution, floating, clock) -> None:
    """Raises `ValueError` for the plan of another run, as far as its length, its state and its first step can tell."""
    given, devices = run.asked["coarse"], count(run.mesh)
    if (plan.asked, plan.devices) != (given, devices):
        raise ValueError(
            f"plan was made with coarse={plan.asked} for {plan.devices} device{'s' * (plan.devices > 1)}, and these arguments "
            f"say {given} and {devices}: make both with the same `coarse` and `mesh`."
        )
    same = plan.num_steps == run.num_steps and digest(plan.state) == digest(run.origin)
    if same:
        planned = Evolution(plan.step.prepared(min(run.num_steps, TABLE)), plan.state)
        same = not any(difference(taken(planned, floating, clock), evolution, floating, clock))
    if not same:
        raise ValueError(
            f"plan is for another run, of {plan.num_steps:,} steps with a first state and a first update of its own: make one "
            "by gritax.plan with these arguments."
        )


def _to_the_end(run: Run, pace: Pace, keeper: Keeper | None) -> Pace:
    told = False
    while run.left and run.is_finite:
        pace = pace.advance(run)
        sensitivity = run.sensitivity
        # Where training contracts it is the tolerance that is too small, which the warning about that says.
        if not told and run.is_finite and not run.is_reproducible and sensitivity.growth > 1:
            told = True
            warn(
                f"training amplifies a small change of its state {sensitivity.growth:.2g}-fold up to step {run.done:,}, and so "
                f"rounding to {run.rounding:.1g} of the distance travelled, beyond the tolerance: there is no answer "
                "to reproduce that another machine would agree with. Lower the learning rate, or train for fewer steps."
            )
        good = run.is_accurate and run.is_reproducible
        if run.is_finite and not good and run.last_chance(pace.longest):
            reason = f"training amplifies errors {sensitivity.growth:.2g}-fold, beyond the tolerance"
            if sensitivity.growth <= 1:
                reason = "the tolerance is below what rounding leaves of a solve"
            run.begin_again(reason)
            pace = OneByOne(reason, TABLE)
        if keeper:
            keeper.save(run, pace)
    return pace
