"""What a run from window to window returns."""

import math

import numpy as np

from ._hierarchy import Hierarchy, Level
from ._run import Run
from ._solution import Solution, WindowReport


def solution_of(run: Run) -> Solution:
    """The solution of a run that is over."""
    converged, reason = _verdict(run)
    one_level = Hierarchy((Level(0, run.num_steps, 1, run.num_steps),))
    residuals, relative = _together(run.windows)
    return Solution(
        state=run.state,
        params=run.step.params(run.state),
        num_steps=run.num_steps,
        converged=converged,
        reason=reason,
        iterations=len(residuals) - 1,
        residuals=residuals,
        relaxed_residuals=np.full(len(residuals) - 1, math.nan),
        relative_residuals=relative,
        hierarchy=run.hierarchy or one_level,
        work=run.cost.work,
        exact_steps=_exact(run.windows),
        coarse_steps=run.coarse_steps,
        restarts=tuple(run.restarts),
        windows=tuple(run.windows),
        amplification=None if run.exact else run.sensitivity.growth,
        _depth_by_lanes=run.cost.by_lanes,
    )


def _verdict(run: Run) -> tuple[bool, str]:
    serially = sum(each.num_steps for each in run.windows if each.kind == "serial")
    if not run.is_finite:
        last = run.windows[-1]
        return False, (
            f"diverged: training one step after the other is not finite between steps {last.first:,} and "
            f"{last.first + last.num_steps:,}. Lower the learning rate, or look at the loss and the data of these steps"
        )
    if not (run.exact or (run.is_accurate and run.is_reproducible)):
        error = max(run.error, run.rounding)
        known = f"known to {error:.1g} of the distance travelled only" if error < 1 else "not known at all"
        return False, (
            f"not converged: training amplifies errors {run.sensitivity.growth:.2g}-fold, so that the final parameters are "
            f'{known}. Train one step after the other (goal="time"), or at a lower learning rate'
        )
    if run.exact:
        return True, f"serial: {run.windows[-1].reason}"
    return True, (
        f"converged: {run.num_steps - serially:,} steps solved in parallel, {serially:,} taken one after the other; "
        f"error of about {run.error:.1g} of the distance travelled"
    )


def _together(windows: list[WindowReport]) -> tuple[np.ndarray, np.ndarray]:
    """(residuals, relative residuals) of all windows after as many iterations each, those that ended before as they ended."""
    solved = [each for each in windows if each.residuals]
    if not solved:
        return np.zeros(1), np.zeros(1)
    count = max(len(each.residuals) for each in solved)
    padded = lambda values: np.append(values, np.full(count - len(values), values[-1]))
    residuals = np.sqrt(sum(padded(each.residuals) ** 2 for each in solved))
    return residuals, np.max([padded(each.relative_residuals) for each in solved], axis=0)


def _exact(windows: list[WindowReport]) -> int:
    """How many of the first steps are those of serial training by construction."""
    exact = 0
    for window in windows:
        if window.kind != "serial" and window.num_steps:
            break
        exact += window.num_steps
    return exact
