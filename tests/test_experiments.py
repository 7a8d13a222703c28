import math

import jax
import numpy as np
import pytest

import gritax
from gritax import experiments


def test_the_speedups_of_figure_6_follow_from_the_published_counts():
    for curve in experiments.paper_figure(6):
        table = experiments.paper_table(curve["table"])
        for num_steps, iterations, levels, plotted in zip(
            table.num_steps, table.iterations, curve["levels"], curve["speedup"], strict=True
        ):
            assert experiments.paper_levels(num_steps) == levels
            speedup = experiments.paper_potential_speedup(num_steps, iterations, curve["cycle"])
            np.testing.assert_allclose(speedup, plotted, rtol=2e-3)


def test_equation_16():
    for curve in experiments.paper_figure(7):
        for num_steps, per_iteration in zip(curve["num_steps"], curve["sigma_per_iteration"], strict=True):
            np.testing.assert_allclose(
                experiments.paper_potential_speedup(num_steps, 1, curve["cycle"]), num_steps / per_iteration, rtol=1e-12
            )


@pytest.mark.first(1)
# The paper does not state the seed of its tables, so counts agree within 3, and within 6 in Table 6.
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, *(pytest.param(number, marks=pytest.mark.long) for number in (6, 7))])
def test_tables_up_to_400_steps(number):
    rows = list(experiments.run_table(number, max_steps=400))
    assert [row.num_steps for row in rows] == [100, 200, 400]
    for row in rows:
        assert abs(row.iterations - row.published) <= (6 if number == 6 else 3)


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7])
def test_tables_up_to_6400_steps(number):
    for row in experiments.run_table(number, max_steps=6400):
        if row.published is None:
            assert row.iterations is None
        else:
            assert abs(row.iterations - row.published) <= 3


@pytest.mark.long
def test_table_6_depends_on_the_seed():
    """Within 6 up to 6,400 steps but for one row with seed 1, 7 below at 1,600; other seeds take more (docs/paper.md)."""
    off = {row.num_steps: row.iterations - row.published for row in experiments.run_table(6, max_steps=6400)}
    assert {num_steps for num_steps, difference in off.items() if abs(difference) > 6} == {1600}
    other = [experiments.run_row(experiments.paper_table(6), 1600, seed=seed) for seed in (2, 3, 4)]
    assert all(abs(row.iterations - row.published) <= 6 for row in other)


@pytest.mark.slow
def test_compare():
    comparison = experiments.compare(gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0)), 100)
    assert comparison.solution.converged
    assert comparison.relative_distance < 1e-5
    np.testing.assert_allclose(comparison.loss, comparison.serial_loss, rtol=1e-4)
    assert "on this machine" in comparison.sentence


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: experiments.paper_table(17), "tables 1 to 16"),
        (lambda: experiments.paper_figure(5), "Figures 6 and 7"),
        (lambda: experiments.paper_potential_speedup(100, 5, "W"), "cycle"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_need_float64():
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs float64"):
        next(experiments.run_table(1))


@pytest.mark.long
@pytest.mark.slow
def test_the_adder_takes_as_many_iterations_as_in_the_reproduction():
    """Montag and Formaggia (2020) count 11 and 13 for Table 13, where the paper prints 4 and 4; so do we, within 1."""
    rows = list(experiments.run_table(13, max_steps=200))
    assert [abs(row.iterations - count) <= 2 for row, count in zip(rows, (11, 13), strict=True)] == [True, True]
    assert [row.published for row in rows] == [4, 4]


@pytest.mark.long
@pytest.mark.parametrize("number", [8, 9, 10, 11, 12, 14, 15, 16])
def test_tables_of_the_adder(number):
    """The first row of each runs; what they count is in docs/paper.md."""
    first = experiments.paper_table(number).num_steps[0]
    assert all(row.iterations for row in experiments.run_table(number, max_steps=first))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_frozen_gradients_on_the_adder(seed):
    """Section 3 of the theory: one refresh a coarse step holds while stride times rate times curvature is small."""
    problem = gritax.problems.adder(seed=seed, reduction="mean", coarse=gritax.FrozenGradient(math.inf))
    solution = gritax.solve(problem.step, problem.state, 400, gritax.Multigrid(4))
    assert solution.iterations <= 4
    serial = gritax.solve_serial(problem.step, problem.state, 400).params
    error = sum(float(np.sum((x - y) ** 2)) for x, y in zip(solution.params, serial, strict=True)) ** 0.5
    travelled = sum(float(np.sum((x - y) ** 2)) for x, y in zip(problem.state.params, serial, strict=True)) ** 0.5
    assert error <= 1e-6 * travelled
