"""The solution by multigrid, with levels of the caller's or those that phi proposes."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import PyTree

from ._amplification import judged_window
from ._attempt import Bounds
from ._evolution import Phi, evaluations, optional
from ._guess import proposed_guess, require_known_guess
from ._hierarchy import Multigrid
from ._method import Options, Task
from ._profile import Recording
from ._sharing import is_of_several_processes, unshared
from ._solution import Solution
from ._trajectory import losses, saved_states
from ._window import Window, solve_window
from .checkpoint import Iterates, digest
from .differentiation import AIM


@dataclass(frozen=True)
class Proposed(Multigrid):
    """Multigrid with the levels that phi proposes, for the coarse steps that it chooses."""


def solved(given: Multigrid, task: Task, options: Options) -> tuple[Solution, Window]:
    """The solution, and the window that its derivatives are made of."""
    evolution, floating, clock, num_steps = task.evolution, task.floating, task.clock, task.num_steps
    method = None if isinstance(given, Proposed) else given
    guess = proposed_guess(evolution.phi, method) if options.initial_guess is None else options.initial_guess
    require_known_guess(guess, evolution.merge(floating, clock))
    keep = None
    if options.checkpoint:
        directory, resume = options.checkpoint
        state, means = evolution.merge(floating, clock), str(method and replace(method, lanes=None))
        asked = {"num_steps": num_steps, "method": means, "origin": digest(state)}
        keep = Iterates(directory.path, resume, options.mesh, asked, (evolution, floating, clock))
    recording = Recording() if options.profile else None
    with keep or nullcontext():
        window = solve_window(
            evolution,
            floating,
            clock,
            num_steps,
            method,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
            initial_guess=guess,
            progress=options.progress,
            bounds=Bounds(aim=AIM) if options.exactly else Bounds(),
            mesh=options.mesh,
            began=options.began,
            keep=keep,
            profile=recording,
        )
    assert isinstance(window, Window), "declined only where depth is bounded"
    return _solution(window, num_steps, options.save_every, recording), window


def _solution(window: Window, num_steps: int, save_every: int | None, recording: Recording | None) -> Solution:
    evolution, hierarchy, reports = window.evolution, unshared(window.hierarchy), window.reports
    verdict, grown = judged_window(window)
    # Losses are computed later, if at all, and keep no more of the window than its C-points alive. Of several processes all
    # take part in collecting these, and later one may ask by itself.
    held = window.collected() if save_every or is_of_several_processes(window.mesh) else None
    collect = (lambda: held) if held is not None else window.collecting()
    return Solution(
        state=window.state,
        params=_params(evolution.phi, window.state),
        num_steps=num_steps,
        converged=verdict.converged,
        reason=verdict.sentence,
        iterations=reports[-1].number,
        residuals=np.array([each.residual for each in reports]),
        relaxed_residuals=np.array([each.relaxed_residual for each in reports[1:]]),
        relative_residuals=np.array([each.relative_residual for each in reports]),
        history=tuple(reports),
        hierarchy=hierarchy,
        method=window.method,
        level_depths=tuple(evaluations(evolution.phi, "depth", level.stride) for level in hierarchy.levels),
        depth_by_level=tuple(window.cost.by_level[level.index] for level in hierarchy.levels),
        level_seconds=recording.level_seconds if recording else (),
        profile=recording and recording.profile(window.hierarchy[0]),
        work=window.cost.work,
        exact_steps=reports[-1].exact_steps,
        coarse_steps=window.adaptation.coarse_steps,
        restarts=tuple(window.adaptation.restarts),
        amplification=grown and grown.growth,
        states=None if save_every is None else saved_states(hierarchy[0], evolution, collect(), save_every),
        _depth_by_lanes=window.cost.by_lanes,
        _losses=None if optional(evolution.phi, "loss_at") is None else lambda: losses(hierarchy[0], evolution, collect()),
    )


def _params(phi: Phi, state: PyTree) -> PyTree:
    params = optional(phi, "params")
    return state if params is None else params(state)
