"""What a solution says of its solve, in numbers, text, lists and dicts alone."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._solution import Solution
from .._spectrum import Spectrum


_DIGITS = 4  # of what is only drawn


def figures(solution: Solution, spectrum: Spectrum | None = None) -> dict[str, Any]:
    """All that a report of a solve needs, ready for `json.dumps`; what is not finite is None.

    - `solution`: of `gritax.solve(..., profile=True)`; without a profile the report has no picture of where residuals are.
    - `spectrum`: of `gritax.spectrum` with the same arguments, if there is one.

    Raises `ValueError` for anything else.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000, profile=True)
    >>> run = gritax.reporting.figures(solution)
    >>> run["level_sizes"], run["iterations"], round(run["potential_speedup"], 2)
    ([1000, 250, 62, 15], 5, 3.8)
    """
    if not isinstance(solution, Solution):
        raise ValueError(f"solution must be what gritax.solve or gritax.train gives, not {solution!r}.")
    if spectrum is not None and not isinstance(spectrum, Spectrum):
        raise ValueError(f"spectrum must be what gritax.spectrum gives, not {spectrum!r}.")
    method, profile = solution.method, solution.profile
    return plain(
        {
            "num_steps": solution.num_steps,
            "converged": solution.converged,
            "reason": solution.reason,
            "iterations": solution.iterations,
            "residuals": solution.residuals,
            "relaxed_residuals": solution.relaxed_residuals,
            "relative_residuals": solution.relative_residuals,
            "exact_steps": solution.exact_steps,
            "level_sizes": solution.level_sizes,
            "levels": [
                {"size": level.size, "stride": level.stride, "factor": level.factor, "sweeps": level.sweeps}
                for level in solution.hierarchy.levels
            ],
            "level_depths": solution.level_depths,
            "depth_by_level": solution.depth_by_level,
            "level_seconds": solution.level_seconds,
            "method": None if method is None else str(method),
            "cycle": None if method is None else method.cycle,
            "depth": solution.depth,
            "work": solution.work,
            "potential_speedup": solution.potential_speedup,
            "speedup_on": [[devices, solution.num_steps / solution.depth_on(devices)] for devices in _counts(solution)],
            "coarse_steps": solution.coarse_steps,
            "restarts": solution.restarts,
            "history": [vars(each) for each in solution.history],
            "windows": [{name: vars(each)[name] for name in ("first", "num_steps", "kind")} for each in solution.windows],
            "profile": profile and {"steps": profile.steps, "residuals": _short(profile.residuals)},
            "spectrum": spectrum and _of_spectrum(spectrum),
        }
    )


def plain(value: Any) -> Any:
    """The same of what JSON knows: lists for arrays and tuples, None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _counts(solution: Solution) -> list[int]:
    """Powers of two, up to as many devices as there are intervals."""
    most = solution.hierarchy[0].num_intervals
    return [2**k for k in range((most - 1).bit_length() + 1)]


def _short(values: np.ndarray) -> list:
    return [[float(f"{x:.{_DIGITS - 1}e}") for x in row] for row in values.tolist()]


def _of_spectrum(spectrum: Spectrum) -> dict[str, Any]:
    """Where the run is stiffest, all curvatures; of the other steps the largest."""
    stiffest = int(np.argmax(spectrum.factors.max(axis=1)))
    return {
        "factor": spectrum.factor,
        "bound": spectrum.bound,
        "step": spectrum.steps[stiffest],
        "kappa": spectrum.kappas[stiffest],
        "curvatures": spectrum.curvatures[stiffest],
        "level_factors": spectrum.level_factors[stiffest],
        "factors": spectrum.factors[stiffest],
        "bounds": spectrum.bounds[stiffest],
    }
