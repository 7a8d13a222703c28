"""Predicted convergence factors against closed forms, against errors of actual cycles, and against solves."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gritax
from gritax._spectrum import NO_FACTOR


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_CURVATURES = np.geomspace(1e-3, 1, 40)


def _quadratic(coarse, optimizer=None, dtype="float64"):
    curvatures = jnp.asarray(_CURVATURES, dtype)
    loss = gritax.CompositeLoss(lambda w, _: jnp.sqrt(curvatures) * w, lambda z, _: 0.5 * jnp.sum(z**2))
    step = gritax.TrainStep(loss, optimizer or optax.sgd(0.1), lambda step: (), coarse)
    return step, step.init(jnp.ones(40, dtype))


@pytest.mark.slow(2)
@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_two_levels_have_the_factor_of_the_literature(sweeps):
    step, state = _quadratic(gritax.RescaledRate())
    found = gritax.spectrum(step, state, 100, gritax.Multigrid(4, max_levels=2, relaxation=sweeps))
    x = found.curvatures
    fine, coarse = (1 - x) ** 4, 1 - 4 * x
    wanted = fine**sweeps * np.abs(fine - coarse) / (np.exp(0.1 / 25) - np.abs(coarse))
    np.testing.assert_allclose(found.level_factors[:, 0], wanted, rtol=0.02, atol=1e-9)
    assert found.factor == found.factors.max()
    # The run is short, and relaxation makes more of it exact in every iteration.
    assert 0.8 * wanted.max() < found.factor <= 1.001 * wanted.max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cycle", "relaxation", "weight"),
    [
        ("V", 1, 1.0),
        ("F", 2, 1.3),
        *(pytest.param(*case, 1.0, marks=pytest.mark.long) for case in (("V", 0), ("F", 1), ("V", 2))),
    ],
)
def test_no_cycle_leaves_more_of_the_largest_error(cycle, relaxation, weight):
    """Than the bound, at every C-point and of every mode, from one iterate to the next."""
    method = gritax.Multigrid(2, max_levels=4, cycle=cycle, relaxation=relaxation, min_coarse=1, c_relaxation_weight=weight)
    step, state = _quadratic(gritax.RescaledRate())
    found = gritax.spectrum(step, state, 256, method)
    # The modes of the problem are not those of the prediction: between two of these the bound bends.
    bound = np.interp(0.1 * _CURVATURES, found.curvatures[0], found.bounds[0]) * 1.05 + 1e-9
    exact = (1 - 0.1 * _CURVATURES) ** np.arange(2, 257, 2)[:, None]

    def errors(iterations):
        solution = gritax.solve(
            step, state, 256, method, tolerance=0, max_iterations=iterations, initial_guess="zeros", save_every=2
        )
        return np.max(np.abs(np.asarray(solution.states.params) - exact), axis=0)

    before, after = errors(2), errors(3)
    assert np.all(after <= bound * before + 1e-14)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "levels", "cycle", "relaxation", "weight"),
    [
        (250, 4, "V", (1, 1, 0), 1.0),
        pytest.param(256, 4, "F", 2, 1.3, marks=pytest.mark.long),
        pytest.param(101, 3, "F", 1, 1.0, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("curvature", [0.3, 0.9])
def test_the_factor_of_a_mode_is_that_of_a_solve(steps, levels, cycle, relaxation, weight, curvature):
    """From a guess that is wrong by one everywhere, where the mode is the only parameter."""
    method = gritax.Multigrid(
        2, max_levels=levels, cycle=cycle, relaxation=relaxation, min_coarse=1, c_relaxation_weight=weight
    )
    loss = gritax.CompositeLoss(lambda w, _: jnp.sqrt(curvature) * w, lambda z, _: 0.5 * jnp.sum(z**2))
    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda step: (), gritax.RescaledRate())
    state, fine = step.init(jnp.ones(1)), 1 - 0.1 * curvature

    def residual(iterations):
        solution = gritax.solve(
            step,
            state,
            steps,
            method,
            tolerance=0,
            max_iterations=iterations,
            initial_guess=lambda at: state._replace(params=jnp.full(1, fine**at + 1)),
            save_every=2,
            throw=False,
        )
        count = steps // 2
        error = np.asarray(solution.states.params)[:count, 0] - fine ** (2 * np.arange(1, count + 1))
        return np.linalg.norm(error - fine**2 * np.append(0, error[:-1]))

    found = gritax.spectrum(step, state, steps, method)
    residuals = np.array([residual(iterations) for iterations in range(1, 5)])
    # A solve ends with a relaxation more.
    np.testing.assert_allclose(found.factors[0, -1], np.max(residuals[1:] / residuals[:-1]), rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "rate", "dtype"),
    [
        (optax.sgd(0.2), 0.2, "float64"),
        (optax.sgd(0.02, momentum=0.8), 0.1, "float32"),
        pytest.param(optax.sgd(0.2), 0.2, "float32", marks=pytest.mark.long),
        pytest.param(optax.sgd(0.02, momentum=0.8), 0.1, "float64", marks=pytest.mark.long),
        pytest.param(optax.sgd(optax.linear_schedule(0.2, 0.1, 1000)), None, "float64", marks=pytest.mark.long),
    ],
)
def test_kappa_is_the_rate_times_the_largest_curvature(optimizer, rate, dtype):
    step, state = _quadratic(gritax.FrozenGradient(), optimizer, dtype)
    found = gritax.spectrum(step, state, 1024)
    if rate is None:
        assert found.kappas[0] > 0.18 and found.kappas[-1] < 0.12
    else:
        # Power iteration comes from below.
        np.testing.assert_allclose(found.kappas, rate, rtol=0.05)
    assert found.steps[-1] == 1024 and len(found.steps) == len(found.kappas)


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("coarse", "problem"),
    [
        (gritax.FrozenGradient(), "quadratic"),
        (gritax.Stabilized(), "xor"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                (gritax.FrozenGradient(), "xor"),
                (gritax.Stabilized(), "quadratic"),
                (gritax.FrozenGradient(8), "quadratic"),
                (gritax.FrozenGradient(8), "xor"),
            )
        ),
    ],
    ids=str,
)
def test_within_a_factor_of_two_of_the_measured_one(coarse, problem):
    if problem == "quadratic":
        step, state = _quadratic(coarse)
    else:
        found = gritax.problems.xor(alpha=0.5, coarse=coarse)
        step, state = found.step, found.state
    predicted = gritax.spectrum(step, state, 1024)
    solution = gritax.solve(step, state, 1024, tolerance=1e-9)
    measured = solution.residuals[-1] / solution.residuals[-2]
    assert 0.5 < predicted.factor / measured < 2
    assert predicted.hierarchy.sizes == solution.level_sizes


@pytest.mark.slow
def test_tangent_is_exact_where_theory_is():
    step, state = _quadratic(gritax.Tangent())
    assert gritax.spectrum(step, state, 256).factor < 1e-10


@pytest.mark.long
@pytest.mark.slow
def test_momentum_is_predicted_on_the_safe_side():
    step, state = _quadratic(gritax.Stabilized(), optax.sgd(0.02, momentum=0.9))
    found = gritax.spectrum(step, state, 2048)
    solution = gritax.solve(step, state, 2048, tolerance=0, max_iterations=6)
    factors = solution.residuals[3:] / solution.residuals[2:-1]
    assert factors.max() < found.bound


def test_it_prints_as_a_table_and_has_a_picture():
    step, state = _quadratic(gritax.FrozenGradient(4))
    found = gritax.spectrum(step, state, 256, gritax.Multigrid(2, max_levels=3))
    lines = str(found).splitlines()
    assert lines[0] == "FrozenGradient(refresh=4)" and "levels 0, 1" in lines[1] and "levels 1, 2" in lines[1]
    assert lines[-1] == f"predicted factor an iteration: {found.factor:.3g}, bound {found.bound:.3g}"
    axes = found.plot()
    assert [line.get_label() for line in axes.get_lines()[:3]] == ["levels 0 and 1", "levels 1 and 2", "cycle"]


def test_factors_above_one_promise_nothing():
    step, state = _quadratic(gritax.FrozenGradient(64), optax.sgd(0.5))
    found = gritax.spectrum(step, state, 1024, gritax.Multigrid(64))
    assert found.factor > 1 and str(found).endswith(f"predicted factor an iteration: none, bound none\n{NO_FACTOR}")


def test_a_coarse_step_that_amplifies_promises_nothing():
    """However much relaxation leaves of what the first cycle has made large."""
    step, state = _quadratic(gritax.RescaledRate(), optax.sgd(0.7))
    found = gritax.spectrum(step, state, 1024, gritax.Multigrid(4, max_levels=2, relaxation=3))
    assert found.factors[0, -1] > 1 and str(found).endswith(f"none, bound none\n{NO_FACTOR}")


@pytest.mark.slow
def test_an_overflow_of_stiff_modes_leaves_the_slow_ones_their_factors():
    """Played together, the recurrence of one may end in no number while another goes on."""
    method = gritax.Multigrid(16, max_levels=2)
    step, state = _quadratic(gritax.RescaledRate(), optax.sgd(1.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gritax.spectrum(step, state, 100_000, method)
    x = found.curvatures[0]
    fine, coarse = (1 - x) ** 16, 1 - 16 * x
    slow = 16 * x < 0.5
    wanted = fine * np.abs(fine - coarse) / (1 - np.abs(coarse))
    assert found.factors[0, -1] > 1 and np.all(np.isfinite(found.factors))
    np.testing.assert_allclose(found.factors[0, slow], wanted[slow], rtol=0.05, atol=1e-4)


def test_unusable_arguments():
    with pytest.raises(ValueError, match=r"step must be a gritax\.TrainStep.*not a function"):
        gritax.spectrum(lambda u, start, stride: u, 1.0, 100)
    step, state = _quadratic(gritax.FrozenGradient(4))
    with pytest.raises(ValueError, match=r"num_steps must be a whole number"):
        gritax.spectrum(step, state, 0)
    with pytest.raises(ValueError, match=r"TrainStep\.init"):
        gritax.spectrum(step, jnp.ones(40), 100)


def test_training_that_diverges_has_no_spectrum():
    step, state = _quadratic(gritax.FrozenGradient(4), optax.sgd(40.0))
    with pytest.raises(ValueError, match=r"serial training is not finite after [0-9]+ steps"):
        gritax.spectrum(step, state, 1024)


@pytest.mark.long
@pytest.mark.parametrize("coarse", [gritax.FrozenGradient(), gritax.Stabilized(directions=0)], ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_on_minibatches_it_errs_on_the_safe_side(coarse, seed):
    problem = gritax.problems.digits(optax.sgd(0.1), seed, coarse=coarse)
    predicted = gritax.spectrum(problem.step, problem.state, 1024)
    solution = gritax.solve(problem.step, problem.state, 1024, tolerance=1e-12)
    late = solution.residuals[solution.iterations // 2 :]
    measured = (late[-1] / late[0]) ** (1 / (len(late) - 1))
    assert measured < predicted.factor < 0.2


@pytest.mark.long
@pytest.mark.slow
def test_the_stiffest_directions_are_predicted_as_they_are_taken():
    """A network whose spectrum is wide: without them the same stages would be unstable."""
    step, state = _quadratic(gritax.Stabilized(directions=20), optax.sgd(0.2))
    predicted = gritax.spectrum(step, state, 2048)
    assert "beside 20 directions" in str(predicted)
    solution = gritax.solve(step, state, 2048, tolerance=1e-9)
    # From one iteration to the next it swings between half of what is predicted and a tenth more.
    after = solution.residuals[1:]
    measured = (after[-1] / after[0]) ** (1 / (len(after) - 1))
    assert 0.5 < predicted.factor / measured < 2
