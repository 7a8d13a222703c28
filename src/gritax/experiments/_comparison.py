"""A solve beside the serial training that it replaces: the same weights, and did it pay?"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .._hierarchy import Multigrid
from .._method import Method
from .._norms import norm
from .._serial import solve_serial
from .._sharing import is_of_several_processes
from .._solution import Solution
from .._solve import Progress, solve
from ..problems import Problem


@dataclass(frozen=True)
class Comparison:
    """A solution and its serial twin.

    - `distance`, `relative_distance`: 2-norm of the difference of the final weights, and the same divided by `travelled`, the
      distance that the serial ones went from the first; 0 where both are.
    - `loss`, `metrics`: of the solution's weights; `serial_loss`, `serial_metrics`: of the serial ones.
    - `seconds`, `serial_seconds`: wall-clock time of the whole calls, compiled before, the median of the runs that were made.
    - `first_seconds`: of the first solve, with its compilation.
    """

    solution: Solution
    distance: float
    relative_distance: float
    travelled: float
    loss: float
    serial_loss: float
    metrics: dict[str, float]
    serial_metrics: dict[str, float]
    seconds: float
    serial_seconds: float
    first_seconds: float

    @property
    def sentence(self) -> str:
        """Whether it paid on this machine, in one sentence."""
        ratio, solution = self.serial_seconds / self.seconds, self.solution
        if not self.travelled:
            return "No step has moved the weights, so there was nothing to solve: raise the learning rate, or look at the loss."
        if not solution.converged:
            return "The solve did not reach its tolerance, so its time says nothing: train serially, or change the method."
        if 0.8 < ratio < 1.25:
            return "On this machine there is no difference that such a short run can measure."
        if ratio > 1:
            return f"It paid on this machine: {_times(ratio)} times as fast as serial training."
        sentence = f"It did not pay on this machine: serial training is {_times(1 / ratio)} times as fast"
        if solution.potential_speedup <= 1:
            return f"{sentence}, and with this method no number of devices would change that."
        evaluations = solution.work / solution.num_steps
        devices = f"{jax.device_count()} {jax.default_backend().upper()} device{'s' if jax.device_count() > 1 else ''}"
        return (
            f"{sentence}; with unlimited devices the solve could be {solution.potential_speedup:.1f} times faster than serial, "
            f"but it makes {evaluations:.0f} times as many evaluations, and here they share {devices}."
        )


def compare(
    problem: Problem, num_steps: int, method: Method | None = None, *, progress: Progress | None = None, **options
) -> Comparison:
    """Solves `problem` in parallel and serially and returns the `Comparison`; `options` as for `gritax.solve`.

    The first solve is shown and checked, and resumed if that is asked for; then both are timed. Never raises for want of
    convergence.

    >>> import gritax
    >>> comparison = gritax.experiments.compare(gritax.problems.xor(), 100)
    >>> comparison.relative_distance < 1e-4
    True
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a gritax.problems.Problem, such as gritax.problems.xor(), not {problem!r}.")
    began = time.perf_counter()
    solution = solve(problem.step, problem.state, num_steps, method, progress=progress, throw=False, **options)
    first_seconds = time.perf_counter() - began
    serial = problem.step.params(solve_serial(problem.step, problem.state, num_steps))
    distance, travelled = (_distance(serial, each) for each in (solution.params, problem.step.params(problem.state)))
    again = {**options, "checkpoint": None, "resume": False, "profile": False, "throw": False}
    if isinstance(method, Multigrid | None):  # others have as many for the same tolerance
        again |= {"tolerance": 0, "max_iterations": solution.iterations}
    # Processes of one run must agree on how often they run, and their clocks differ.
    at_most = 0.0 if is_of_several_processes(options.get("mesh")) else 2.0
    return Comparison(
        solution=solution,
        distance=distance,
        relative_distance=distance / travelled if travelled else math.inf if distance else 0.0,
        travelled=travelled,
        loss=problem.loss(solution.params),
        serial_loss=problem.loss(serial),
        metrics=problem.metrics(solution.params),
        serial_metrics=problem.metrics(serial),
        seconds=_seconds(lambda: solve(problem.step, problem.state, num_steps, method, **again).state, at_most),
        serial_seconds=_seconds(lambda: solve_serial(problem.step, problem.state, num_steps), at_most),
        first_seconds=first_seconds,
    )


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _distance(a, b) -> float:
    return float(norm(jax.tree.map(jnp.subtract, a, b)))


def _seconds(run: Callable, at_most: float) -> float:
    """Median of up to five runs, fewer once they have taken `at_most` seconds."""
    taken: list[float] = []
    while not taken or (len(taken) < 5 and sum(taken) < at_most):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
