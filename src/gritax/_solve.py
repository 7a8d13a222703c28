"""The verb: iterate multigrid cycles until the states of all steps have converged."""

import logging
import math
import time
import warnings

import numpy as np
from jaxtyping import Array, PyTree

from ._arguments import require_whole
from ._clocks import tabulate
from ._compilation import compile_ahead
from ._convergence import ConvergenceError, Monitor, Verdict, least_precise, require_tolerance
from ._cycle import Cycle
from ._diagnosis import diagnose
from ._evolution import Phi, optional
from ._guess import InitialGuess, first_guess, require_known_guess
from ._hierarchy import Hierarchy, Multigrid
from ._norms import Norms, measure
from ._relaxation import Points, arrived
from ._solution import Iteration, Solution
from ._validation import validated


logger = logging.getLogger("gritax")


class Progress:
    """Told of a solve as it runs; does nothing. Subclass it to show something."""

    def begin(self, hierarchy: Hierarchy) -> None:
        """The levels are known, nothing has been computed."""

    def iteration(self, iteration: Iteration) -> None:
        """An iterate has been measured; the first is the initial guess."""

    def end(self, solution: Solution) -> None:
        """The solve is over, converged or not."""


def solve(
    phi: Phi,
    state: PyTree,
    num_steps: int,
    method: Multigrid | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 50,
    initial_guess: InitialGuess = "nested",
    throw: bool = True,
    progress: Progress | None = None,
) -> Solution:
    r"""`w[i+1] = phi(w[i], i, 1)`, `i = 0, …, num_steps - 1`, solved for all steps at once by multigrid reduction in time.

    **Arguments**

    - `phi`: `phi(state, start, stride) -> state` advances from step `start` by `stride` steps: exactly for stride 1, by one
      coarse step that approximates them for more. `stride` is an `int`, `start` an `int32` scalar that may be traced. A pure
      function of its arguments. It may define `depth(stride)`, `work(stride)` (what it costs), `params(state)` (in what
      distances are measured) and `method(num_steps)` (the Multigrid it proposes).
    - `state`: `w[0]`, any pytree. Floating leaves are solved for. Integer, boolean and key arrays are clocks: phi must
      compute them from the step and from clocks alone. Other leaves are constants.
    - `num_steps`: N, at least 1.
    - `method`: the multigrid method; `None` for what phi proposes, else `Multigrid()`.
    - `tolerance`: on `Solution.residuals`, absolute. `None` stops when `Solution.relative_residuals` reaches 1e-6 and the
      final parameters have settled to 1e-6 of the distance travelled, or at the rounding floor of the dtype. 0 runs exactly
      `max_iterations` and never raises.
    - `max_iterations`: at most so many iterations.
    - `initial_guess`: `"nested"` solves the coarsest level with its own propagator and fills the finer ones from it; `"zeros"`
      and `"constant"` (the initial state) at every point; or a function `step -> state`, which may get a traced step.
    - `throw`: raise `ConvergenceError`, with the solution in its `solution`, if the tolerance is not reached.
    - `progress`: told of levels, iterations and the end.

    **Returns** a `Solution`.

    Raises `ValueError` for an argument that cannot be used, before any long work.

    Schroder 2017, arXiv 1708.02276, Algorithm 1.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
    >>> solution.level_sizes, solution.iterations
    ((1000, 250, 62, 15), 5)
    """
    began = time.perf_counter()
    require_whole("max_iterations", max_iterations, 0)
    require_tolerance(tolerance)
    if method is None:
        propose = optional(phi, "method")
        method = Multigrid() if propose is None else propose(num_steps)
    if not isinstance(method, Multigrid):
        raise ValueError(f"method must be a gritax.Multigrid, such as gritax.Multigrid(coarsening=4), not {method!r}.")
    if progress is not None and not isinstance(progress, Progress):
        raise ValueError(f"progress must be a gritax.Progress, such as gritax.progress.Lines(), not {progress!r}.")
    hierarchy = method.hierarchy(num_steps)
    evolution, floating, clock = validated(phi, state, num_steps)
    monitor = Monitor(tolerance, int(max_iterations), least_precise(floating))
    require_known_guess(initial_guess, evolution.merge(floating, clock))
    progress = progress or Progress()
    progress.begin(hierarchy)
    evolution, last_clock = tabulate(evolution, floating, clock, hierarchy[0])
    run = _Run(Cycle(evolution, hierarchy, method), monitor, progress, began)
    compile_ahead(run.cycle, floating)
    final, verdict = run.to_the_end(floating, clock, first_guess(run.cycle, floating, initial_guess))
    solution = _solution(run, evolution.merge(final, last_clock), verdict)
    progress.end(solution)
    if not verdict.converged and monitor.tolerance != 0:
        if throw:
            raise ConvergenceError(verdict.sentence + ".", solution)
        logger.warning("%s", verdict.sentence)
    return solution


class _Run:
    """The iterates of one solve, each measured and reported once."""

    def __init__(self, cycle: Cycle, monitor: Monitor, progress: Progress, began: float):
        self.cycle, self.monitor, self.progress, self.began = cycle, monitor, progress, began
        self.reports: list[Iteration] = []

    def to_the_end(self, u0: PyTree[Array], clock: PyTree[Array], c: Points) -> tuple[PyTree[Array], Verdict]:
        """(final state, why the solve ended), from the initial state and the initial guess `c`."""
        cycle, skip = self.cycle, self.cycle.method.skip_first_down and len(self.cycle.hierarchy) > 1
        relaxed: Array | float = math.nan
        final = u0
        while True:
            # One sweep gives the residual of this iterate, its final state, and the first arrivals of the next iteration.
            before = final
            c, e, final = cycle.relax_finest(c, arrived(c), 1)
            norms = Norms(*np.asarray(measure(cycle.hierarchy[0], cycle.evolution, c, e, final, before)).tolist())
            verdict = self._report(norms, relaxed)
            if verdict is not None and verdict.undiagnosed:
                verdict = verdict.because(_diagnosis(cycle, u0, clock))
            if verdict is not None:
                return final, verdict
            if skip and len(self.reports) == 1:
                c, relaxed = cycle.ascend(u0, cycle.method.cycle), math.nan
            else:
                c, relaxed = cycle.iterate(c, e)

    def _report(self, norms: Norms, relaxed: Array | float) -> Verdict | None:
        number = len(self.reports)
        before = self.reports[-1].residual if number else math.nan
        iteration = Iteration(
            number=number,
            residual=norms.residual,
            relaxed_residual=float(relaxed),
            relative_residual=norms.relative,
            factor=norms.residual / before if before else math.nan,
            exact_steps=self.cycle.exact_steps,
            seconds=time.perf_counter() - self.began,
        )
        self.reports.append(iteration)
        self.progress.iteration(iteration)
        logger.info("iteration %d: residual %.3e, relative %.3e", number, norms.residual, norms.relative)
        # Not before the first correction: the norm of an initial guess says nothing of the states to come.
        if number == 1 and (warning := self.monitor.unreachable(norms)):
            warnings.warn(warning, stacklevel=4)
        return self.monitor.verdict(number, norms, exact=self.cycle.exact_steps == self.cycle.hierarchy[0].size)


def _diagnosis(cycle: Cycle, u0: PyTree[Array], clock: PyTree[Array]) -> str:
    try:
        return diagnose(cycle.evolution, cycle.hierarchy, u0, clock)
    except Exception as error:  # whatever phi does on perturbed states, the verdict and the solution must get through
        logger.debug("no diagnosis", exc_info=error)
        return "Its cause could not be found"


def _solution(run: _Run, state: PyTree, verdict: Verdict) -> Solution:
    params = optional(run.cycle.evolution.phi, "params")
    hierarchy, last = run.cycle.hierarchy, run.reports[-1]
    return Solution(
        state=state,
        params=state if params is None else params(state),
        num_steps=hierarchy[0].size,
        converged=verdict.converged,
        reason=verdict.sentence,
        iterations=last.number,
        residuals=np.array([each.residual for each in run.reports]),
        relaxed_residuals=np.array([each.relaxed_residual for each in run.reports[1:]]),
        relative_residuals=np.array([each.relative_residual for each in run.reports]),
        hierarchy=hierarchy,
        depth=run.cycle.cost.depth,
        work=run.cycle.cost.work,
        exact_steps=last.exact_steps,
    )
