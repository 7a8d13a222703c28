"""Iteration by iteration against XBraid and PyMGRIT."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference_problems import problem

import gritax


_CASES = json.loads((Path(__file__).parent / "reference" / "mgrit_histories.json").read_text())["cases"]
_WITHIN_THE_METHOD = [case for case in _CASES if set(case["requires"]) <= {"relaxation_per_level", "c_relaxation_weight"}]


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


_MARKED = [
    case if index % 6 == 0 else pytest.param(case, marks=pytest.mark.slow) for index, case in enumerate(_WITHIN_THE_METHOD)
]


@pytest.mark.first(8)
@pytest.mark.slow(2)
@pytest.mark.parametrize("case", _MARKED, ids=lambda case: case["id"])
def test_history(case):
    phi, state, guess = problem(case)
    method = gritax.Multigrid(
        coarsening=_tuple(case["coarsening"]),
        max_levels=case["max_levels"],
        min_coarse=case["min_coarse"],
        cycle=case["cycle"],
        relaxation=_tuple(case["relaxation"]),
        c_relaxation_weight=case["c_relaxation_weight"],
        skip_first_down=case["skip_first_down"],
    )
    steps, iterations = case["num_steps"], case["iterations"]
    solution = gritax.solve(phi, state, steps, method, tolerance=0, max_iterations=iterations, initial_guess=guess)
    assert list(solution.level_sizes) == case["level_sizes"]
    assert solution.iterations == iterations

    found = solution.relaxed_residuals if case["residual_convention"] == "relaxed" else solution.residuals[1:]
    stored = np.array([np.nan if r is None else r for r in case["residuals"]])
    first = stored[~np.isnan(stored)][0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(stored))
    allowed = 1e-5 * stored + 1e-12 * first + case.get("absolute_tolerance", 0.0)
    assert np.all((np.abs(found - stored) <= allowed)[~np.isnan(stored)])

    serial = gritax.solve_serial(phi, state, steps)
    # The error of the final state is that of the residuals, carried through evolutions that damp it or let it stand.
    assert np.linalg.norm(solution.state - serial) <= 3 * solution.residuals[-1] + 1e-11 * np.linalg.norm(serial)


def test_all_cases_of_the_method_are_run():
    assert len(_WITHIN_THE_METHOD) == 29
