"""The verb: iterate multigrid cycles until the states of all steps have converged."""

import logging
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._adaptation import prepared
from ._amplification import judged_window
from ._arguments import require_bool, require_steps, require_whole
from ._attempt import Bounds, Progress as Progress
from ._convergence import ConvergenceError, require_tolerance
from ._entry import entry
from ._evolution import Phi, evaluations, optional
from ._guess import InitialGuess, proposed_guess, require_known_guess
from ._hierarchy import Multigrid
from ._obstacles import require_no_obstacle
from ._profile import Recording
from ._sharing import as_mesh, is_of_several_processes, unshared
from ._solution import Solution
from ._trajectory import losses, saved_states
from ._validation import is_concrete, validated
from ._window import Window, solve_window
from .checkpoint import Iterates, digest, kept_in
from .differentiation import AIM, traced
from .newton import Newton, solution_by


logger = logging.getLogger("gritax")


class Planned(Protocol):
    """What a solve takes from a plan."""

    @property
    def method(self) -> Multigrid: ...


@entry
def solve(
    phi: Phi,
    state: PyTree,
    num_steps: int,
    method: Multigrid | Newton | Planned | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 50,
    initial_guess: InitialGuess | None = None,
    save_every: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    throw: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    profile: bool = False,
) -> Solution:
    r"""`w[i+1] = phi(w[i], i, 1)`, `i = 0, …, num_steps - 1`, solved for all steps at once by multigrid reduction in time.

    **Arguments**

    - `phi`: `phi(state, start, stride) -> state` advances from step `start` by `stride` steps: exactly for stride 1, by one
      coarse step that approximates them for more. `stride` is an `int`, `start` an `int32` scalar that may be traced. A pure
      function of its arguments. It may define `depth(stride)`, `work(stride)` (what it costs), `params(state)` (in what
      distances are measured), `method(num_steps)` (the Multigrid it proposes) and more: see `docs/solver.md`.
    - `state`: `w[0]`, any pytree. Floating leaves are solved for. Integer, boolean and key arrays are clocks: phi must
      compute them from the step and from clocks alone. Other leaves are constants.
    - `num_steps`: N, at least 1.
    - `method`: a `Multigrid`, or the `Plan` of `plan.step` for its own; `None` for what phi proposes, else `Multigrid()`. Or a
      `Newton`, which does not take `initial_guess`, `save_every`, `checkpoint`, `mesh` and `profile` yet, has no use for
      `max_iterations`, and wants a tolerance above 0: on the error of the final state.
    - `tolerance`: on `Solution.residuals`, absolute. `None` stops when `Solution.relative_residuals` reaches 1e-6 and the
      final parameters have settled to 1e-6 of the distance travelled, or at the rounding floor of the dtype. 0 runs exactly
      `max_iterations` and never raises.
    - `max_iterations`: at most so many iterations.
    - `initial_guess`: `"nested"` solves the coarsest level with its own propagator and fills the finer ones from it; `"graded"`
      does so too, but begins with training steps, in strides that grow with the distance from the start; `"zeros"` and
      `"constant"` (the initial state) at every point; or a function `step -> state`, which may get a traced step. `None` for
      what phi proposes, else `"graded"`.
    - `save_every`: keep the states after every so many steps, in `Solution.states`.
    - `checkpoint`: a directory for the iterates, each kept once it is computed, the last two of them, by orbax-checkpoint
      (`pip install orbax-checkpoint`). Each device keeps its own C-points.
    - `resume`: go on from the newest whole iterate in that directory, on these devices or on others, or begin if there is none;
      iterations and weights are those of an uninterrupted solve. A path stands for `checkpoint=path, resume=True`.
    - `throw`: raise `ConvergenceError`, with the solution in its `solution`, if the tolerance is not reached.
    - `progress`: told of levels, iterations and the end.
    - `mesh`: the devices that share the intervals, along an axis `time`, of one process or of many that all make this call:
      `jax.make_mesh((jax.device_count(),), ("time",))`. Other axes are phi's. The weights are the same. See `docs/devices.md`.
    - `profile`: record where along the run the residual of each iterate is, in `Solution.profile`, for which nothing waits,
      and time the levels in one more iteration at the end, in `Solution.level_seconds`.

    **Returns** a `Solution`.

    Raises `ValueError` for an argument that cannot be used, before any long work. Warns once if convergence is slow because the
    training step is discontinuous, and if the evolution amplifies rounding beyond 1e-6 of the distance travelled (in float32,
    100 roundings). Where rounding is amplified so much that the residual says nothing of the final state, the solve has not
    converged, and says so.

    Schroder 2017, arXiv 1708.02276, Algorithm 1.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
    >>> solution.level_sizes, solution.iterations
    ((1000, 250, 62, 15), 5)
    """
    began = time.perf_counter()
    require_steps(num_steps)
    require_whole("max_iterations", max_iterations, 0)
    require_tolerance(tolerance)
    if save_every is not None:
        require_whole("save_every", save_every, 1)
        save_every = int(min(save_every, num_steps + 1))
    for name, value in (("throw", throw), ("profile", profile)):
        require_bool(name, value)
    method = getattr(method, "method", method)
    if method is not None and not isinstance(method, Multigrid | Newton):
        raise ValueError(
            f"method must be a gritax.Multigrid, such as gritax.Multigrid(coarsening=4), or a gritax.Newton, not {method!r}."
        )
    if progress is not None and not isinstance(progress, Progress):
        raise ValueError(f"progress must be a gritax.Progress, such as gritax.progress.Lines(), not {progress!r}.")
    mesh, asked_for = as_mesh(mesh), kept_in(checkpoint, resume)
    num_steps, progress = int(num_steps), progress or Progress()
    if isinstance(method, Newton):
        multigrid_only = {"initial_guess": initial_guess, "save_every": save_every, "mesh": mesh, "checkpoint": asked_for}
        for name, value in multigrid_only.items() | {("profile", profile or None)}:
            if value is not None:
                raise ValueError(f"{name} is not for gritax.Newton yet: leave it out, or use a gritax.Multigrid.")
        return ended(solution_by(method, prepared(phi, num_steps), state, num_steps, tolerance, progress), throw, progress)
    (method or Multigrid()).hierarchy(num_steps)

    def solved(phi, state, exactly):
        evolution, floating, clock = validated(prepared(phi, num_steps), state, num_steps)
        require_no_obstacle(evolution, floating, clock, num_steps)
        guess = proposed_guess(phi, method) if initial_guess is None else initial_guess
        require_known_guess(guess, evolution.merge(floating, clock))
        keep = None
        if asked_for:
            state, means = evolution.merge(floating, clock), str(method and replace(method, lanes=None))
            asked = {"num_steps": num_steps, "method": means, "origin": digest(state)}
            keep = Iterates(*asked_for, mesh, asked, (evolution, floating, clock))
        recording = Recording() if profile else None
        with keep or nullcontext():
            window = solve_window(
                evolution,
                floating,
                clock,
                num_steps,
                method,
                tolerance=tolerance,
                max_iterations=int(max_iterations),
                initial_guess=guess,
                progress=progress,
                bounds=Bounds(aim=AIM) if exactly else Bounds(),
                mesh=mesh,
                began=began,
                keep=keep,
                profile=recording,
            )
        assert isinstance(window, Window), "declined only where depth is bounded"
        solution = _solution(window, num_steps, save_every, recording)
        return ended(solution, throw if tolerance != 0 else None, progress), window

    if is_concrete((phi, state)):
        return solved(phi, state, False)[0]
    if save_every is not None:
        raise ValueError("save_every is not for a solve under grad, jvp or vmap, which gives the final state: leave it out.")
    return traced(solved, phi, state, throw, asked_for is not None)


def ended(solution: Solution, throw: bool | None, progress: Progress) -> Solution:
    """`solution`, or `ConvergenceError` if it has not converged and `throw` is True; None leaves that untold."""
    progress.end(solution)
    if not solution.converged and throw is not None:
        if throw:
            raise ConvergenceError(solution.reason + ".", solution)
        logger.warning("%s", solution.reason)
    return solution


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
