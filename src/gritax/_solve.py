"""The verb: iterate multigrid cycles until the states of all steps have converged."""

import logging
import time
from functools import partial

import numpy as np
from jaxtyping import PyTree

from ._adaptation import Adaptation, prepared
from ._arguments import require_whole
from ._attempt import Attempt, Progress as Progress
from ._clocks import tabulate
from ._compilation import compile_ahead
from ._convergence import ConvergenceError, Monitor, least_precise, require_tolerance
from ._cycle import Cycle
from ._evolution import Phi, optional
from ._guess import InitialGuess, first_guess, require_known_guess
from ._hierarchy import Multigrid
from ._solution import Solution
from ._trajectory import losses, saved_states
from ._validation import validated


logger = logging.getLogger("gritax")


def solve(
    phi: Phi,
    state: PyTree,
    num_steps: int,
    method: Multigrid | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 50,
    initial_guess: InitialGuess = "graded",
    save_every: int | None = None,
    throw: bool = True,
    progress: Progress | None = None,
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
    - `method`: the multigrid method; `None` for what phi proposes, else `Multigrid()`.
    - `tolerance`: on `Solution.residuals`, absolute. `None` stops when `Solution.relative_residuals` reaches 1e-6 and the
      final parameters have settled to 1e-6 of the distance travelled, or at the rounding floor of the dtype. 0 runs exactly
      `max_iterations` and never raises.
    - `max_iterations`: at most so many iterations.
    - `initial_guess`: `"nested"` solves the coarsest level with its own propagator and fills the finer ones from it; `"graded"`
      does so too, but begins in the strides of level 1, which grow with the distance from the start; `"zeros"` and
      `"constant"` (the initial state) at every point; or a function `step -> state`, which may get a traced step.
    - `save_every`: keep the states after every so many steps, in `Solution.states`.
    - `throw`: raise `ConvergenceError`, with the solution in its `solution`, if the tolerance is not reached.
    - `progress`: told of levels, iterations and the end.

    **Returns** a `Solution`.

    Raises `ValueError` for an argument that cannot be used, before any long work. Warns once if convergence is slow because the
    training step is discontinuous.

    Schroder 2017, arXiv 1708.02276, Algorithm 1.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
    >>> solution.level_sizes, solution.iterations
    ((1000, 250, 62, 15), 5)
    """
    began = time.perf_counter()
    require_whole("max_iterations", max_iterations, 0)
    require_tolerance(tolerance)
    if save_every is not None:
        require_whole("save_every", save_every, 1)
    if method is not None and not isinstance(method, Multigrid):
        raise ValueError(f"method must be a gritax.Multigrid, such as gritax.Multigrid(coarsening=4), not {method!r}.")
    if progress is not None and not isinstance(progress, Progress):
        raise ValueError(f"progress must be a gritax.Progress, such as gritax.progress.Lines(), not {progress!r}.")
    (method or Multigrid()).hierarchy(num_steps)
    evolution, floating, clock = validated(prepared(phi, num_steps), state, num_steps)
    require_known_guess(initial_guess, evolution.merge(floating, clock))
    progress = progress or Progress()
    adaptation = Adaptation(evolution, floating, clock, int(num_steps), may_restart=tolerance != 0)
    while True:
        chosen = adaptation.method if method is None else method
        hierarchy = chosen.hierarchy(num_steps)
        progress.begin(hierarchy)
        evolution, last_clock = tabulate(adaptation.evolution, floating, clock, hierarchy[0])
        cycle = Cycle(evolution, hierarchy, chosen, adaptation.cost)
        compile_ahead(cycle, floating)
        c = first_guess(cycle, floating, initial_guess)
        if initial_guess == "graded" and adaptation.to_guess(cycle, c):
            progress.restart(adaptation.restarts[-1])
            continue
        monitor = Monitor(tolerance, int(max_iterations), least_precise(floating), adaptation.can_refine)
        attempt = Attempt(cycle, adaptation, monitor, progress, began)
        c, final, verdict = attempt.run(floating, clock, c)
        if not verdict.restart:
            break
        adaptation.refine(verdict.sentence)
        progress.restart(adaptation.restarts[-1])
    solution = Solution(
        state=evolution.merge(final, last_clock),
        params=_params(evolution.phi, evolution.merge(final, last_clock)),
        num_steps=int(num_steps),
        converged=verdict.converged,
        reason=verdict.sentence,
        iterations=attempt.reports[-1].number,
        residuals=np.array([each.residual for each in attempt.reports]),
        relaxed_residuals=np.array([each.relaxed_residual for each in attempt.reports[1:]]),
        relative_residuals=np.array([each.relative_residual for each in attempt.reports]),
        hierarchy=hierarchy,
        work=cycle.cost.work,
        exact_steps=attempt.reports[-1].exact_steps,
        coarse_steps=adaptation.coarse_steps,
        restarts=tuple(adaptation.restarts),
        states=None if save_every is None else saved_states(hierarchy[0], evolution, c, int(save_every)),
        _depth_by_lanes=cycle.cost.by_lanes,
        _losses=None if optional(evolution.phi, "loss_at") is None else partial(losses, hierarchy[0], evolution, c),
    )
    progress.end(solution)
    if not verdict.converged and tolerance != 0:
        if throw:
            raise ConvergenceError(verdict.sentence + ".", solution)
        logger.warning("%s", verdict.sentence)
    return solution


def _params(phi: Phi, state: PyTree) -> PyTree:
    params = optional(phi, "params")
    return state if params is None else params(state)
