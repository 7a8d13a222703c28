"""How a solve ends, and what it says."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax


_CURVATURES = jnp.array([1.0, 10.0, 0.01])


def _descent(rate):
    def phi(w, start, stride):
        return w - jnp.asarray(rate(stride), w.dtype) * (_CURVATURES.astype(w.dtype) * w - 1)

    return phi


def test_divergence_names_iteration_level_and_cure():
    phi = _descent(lambda stride: 0.05 * stride)
    with pytest.raises(gritax.ConvergenceError) as caught:
        gritax.solve(phi, jnp.ones(3), 1000, gritax.Multigrid(4), initial_guess="zeros")
    message = str(caught.value)
    assert message.startswith("diverged at iteration ")
    # One step of stride M multiplies the stiffest mode by 1 - 0.05 M 10: by -1 for M = 4, by -7 for M = 16.
    assert "level 2 (stride 16) grew: it amplifies perturbations 7-fold" in message
    assert "max_levels=2" in message
    solution = caught.value.solution
    assert not solution.converged and solution.iterations in (1, 2)


def test_a_stall_names_the_unstable_level_and_the_cure_works():
    descent = _descent(lambda stride: 0.05 * stride)

    def phi(w, start, stride):  # driven: left alone the stiffest mode would be at rest, and grow from rounding
        return descent(w, start, stride) + 0.05 * stride * jnp.sin(7.0 * jnp.asarray(start, w.dtype))

    state = jnp.array([0.3, -1.0, 2.1])
    with pytest.raises(gritax.ConvergenceError, match=r"hardly falls. The propagator of level 3 \(stride 8\) grew.* 3-fold"):
        gritax.solve(phi, state, 1000, gritax.Multigrid(2), initial_guess="zeros", max_iterations=15)
    assert gritax.solve(phi, state, 1000, gritax.Multigrid(2, max_levels=2)).converged


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_an_unstable_coarse_step_is_not_blamed_on_the_training_step(rate):
    """A tanh regression that trains well serially, and whose coarse steps, rescaled without a limit, blow up."""
    inputs = jax.random.normal(jax.random.key(0), (64, 3))
    targets = jnp.sum(jnp.sin(inputs), axis=1)
    params = {"w": jax.random.normal(jax.random.key(1), (3, 8)), "v": jnp.zeros(8)}

    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]) ** 2)

    def solve(max_levels):
        step = gritax.TrainStep(loss, optax.sgd(rate), lambda step: (inputs, targets), gritax.RescaledRate())
        return gritax.solve(step, step.init(params), 2000, gritax.Multigrid(max_levels=max_levels))

    with pytest.raises(gritax.ConvergenceError, match=r"The propagator of level \d \(stride \d+\) grew") as caught:
        solve(None)
    message = str(caught.value)
    assert "training step itself" not in message
    assert solve(int(message.split("max_levels=")[1].split(",")[0])).converged


@pytest.mark.slow
def test_a_coarse_step_that_is_not_finite_is_named():
    with pytest.raises(gritax.ConvergenceError, match=r"level 1 \(stride 4\) grew: it is not finite"):
        gritax.solve(lambda u, start, stride: u * 0.99 if stride == 1 else u * jnp.nan, jnp.ones(2), 100)


@pytest.mark.slow
def test_a_residual_that_only_looks_smaller_is_no_hope():
    """The relative residual falls because the iterate runs away: no advice to go on."""
    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=1000.0))
    with pytest.raises(gritax.ConvergenceError) as caught:
        gritax.solve(problem.step, problem.state, 1600, max_iterations=4)
    assert "raise max_iterations" not in str(caught.value)


@pytest.mark.slow
def test_a_training_step_beyond_its_own_limit_is_told_from_a_coarse_one():
    with pytest.raises(gritax.ConvergenceError, match=r"training step itself amplifies perturbations, 1\.9-fold"):
        gritax.solve(_descent(lambda stride: 0.29 * stride), jnp.ones(3), 4000)


def test_too_few_iterations():
    phi = _descent(lambda stride: 0.05)
    with pytest.raises(gritax.ConvergenceError, match=r"not converged: relative residual .* raise max_iterations"):
        gritax.solve(phi, jnp.ones(3), 2000, max_iterations=3)
    solution = gritax.solve(phi, jnp.ones(3), 2000, max_iterations=3, throw=False)
    assert not solution.converged and solution.iterations == 3
    assert "not converged" in solution.reason and "not converged" in str(solution)


def test_tolerance_zero_runs_what_was_asked_and_never_raises():
    solution = gritax.solve(_descent(lambda stride: 0.05 * stride), jnp.ones(3), 1000, tolerance=0, max_iterations=4)
    assert solution.iterations == 4 and len(solution.residuals) == 5 and len(solution.relaxed_residuals) == 4
    exact = gritax.solve(_descent(lambda stride: 0.001 * stride), jnp.ones(3), 20, tolerance=0, max_iterations=7)
    assert exact.iterations == 7 and exact.residuals[-1] == 0 and exact.converged


def test_an_absolute_tolerance_is_on_residuals():
    phi = _descent(lambda stride: 0.001 * stride)
    solution = gritax.solve(phi, jnp.ones(3), 1000, tolerance=1e-9)
    assert solution.residuals[-1] <= 1e-9 < solution.residuals[-2]


@pytest.mark.slow
def test_relative_residuals_by_their_definition():
    phi = _descent(lambda stride: 0.001 * stride)
    method = gritax.Multigrid(4)
    solution = gritax.solve(
        phi, jnp.ones(3), 103, method, tolerance=0, max_iterations=0, initial_guess=lambda step: jnp.full(3, step, float)
    )
    points = [jnp.ones(3)] + [k * 4 * jnp.ones(3) for k in range(1, 26)]
    residuals = [
        np.linalg.norm(gritax.solve_serial(lambda w, i, m, s=4 * k: phi(w, i + s, m), points[k], 4) - points[k + 1])
        for k in range(25)
    ]
    final = gritax.solve_serial(phi, points[25], 3)
    np.testing.assert_allclose(solution.residuals[0], np.linalg.norm(residuals), rtol=1e-12)
    np.testing.assert_allclose(solution.state, final, rtol=1e-12)
    np.testing.assert_allclose(solution.relative_residuals[0], max(residuals) / np.linalg.norm(final - 1.0), rtol=1e-12)


def test_float32_warns_of_a_tolerance_below_its_floor_and_says_what_it_can():
    phi = _descent(lambda stride: 0.001 * stride)
    state = jnp.ones(3, jnp.float32)
    with pytest.warns(UserWarning, match="lies below what float32 can reach here") as caught:
        with pytest.raises(gritax.ConvergenceError, match="rounding floor of float32"):
            gritax.solve(phi, state, 4000, tolerance=1e-12, initial_guess="zeros")
    reachable = float(str(caught[0].message).split("Use tolerance=")[1].split(" ")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gritax.solve(phi, state, 4000, tolerance=reachable, initial_guess="zeros").converged


def test_float32_by_default_goes_as_far_as_its_precision():
    # A fifth level, of stride 256, would be unstable and amplify the rounding.
    phi = _descent(lambda stride: 0.001 * stride)
    solution = gritax.solve(phi, jnp.ones(3, jnp.float32), 4000, gritax.Multigrid(4, max_levels=4))
    assert solution.converged and solution.relative_residuals[-1] < 1e-5


def test_small_mismatches_that_add_up_are_not_taken_for_convergence():
    """A neutral evolution whose coarse step is wrong by a little at every one of 12,500 C-points."""

    def phi(u, start, stride):
        return u + 1e-4 * stride * (1 + (0.5 if stride == 1 else 0.4) * jnp.cos(u))

    guess = gritax.solve(phi, 0.0, 100_000, gritax.Multigrid(8, max_levels=2), tolerance=0, max_iterations=0)
    assert guess.relative_residuals[0] < 1e-5
    solution = gritax.solve(phi, 0.0, 100_000, gritax.Multigrid(8, max_levels=2))
    with pytest.raises(gritax.ConvergenceError, match="final parameters have not settled"):
        gritax.solve(phi, 0.0, 100_000, gritax.Multigrid(8, max_levels=2), max_iterations=2)
    serial = gritax.solve_serial(phi, 0.0, 100_000)
    assert abs(float(guess.state - serial)) > 1e-2 * float(serial)
    assert abs(float(solution.state - serial)) <= 1e-6 * float(serial)


def test_a_residual_that_rises_from_a_saddle_is_no_divergence():
    def phi(u, start, stride):
        grown = jnp.exp(jnp.asarray(0.02 * stride))
        return u * grown / (1 + u * (grown - 1)) if stride == 1 else u + 0.02 * stride * u * (1 - u)

    solution = gritax.solve(phi, 1e-9, 4000, gritax.Multigrid(4, max_levels=2), initial_guess="constant")
    assert solution.residuals.max() > 1e4 * solution.residuals[0]
    assert solution.converged


@pytest.mark.parametrize("size", [1e20, 1e-24])
def test_norms_of_float32_neither_overflow_nor_vanish(size):
    state = jnp.full(2, size, jnp.float32)
    method = gritax.Multigrid(4, max_levels=2)
    solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), state, 100, method, initial_guess="constant")
    serial = gritax.solve_serial(lambda u, start, stride: u / (1 + 0.01 * stride), state, 100)
    np.testing.assert_allclose(solution.state, serial, rtol=1e-5)


def test_a_final_state_that_overflows_after_the_last_c_point():
    def phi(u, start, stride):
        return jnp.where(start >= 41, u * jnp.float32(1e30) * jnp.float32(1e30), u * jnp.float32(0.99))

    with pytest.raises(gritax.ConvergenceError, match="not finite"):
        gritax.solve(phi, jnp.float32(1.0), 43)


def test_the_error_can_be_sent_between_processes():
    with pytest.raises(gritax.ConvergenceError) as caught:
        gritax.solve(_descent(lambda stride: 0.001 * stride), jnp.ones(3), 400, max_iterations=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.solution.iterations == 0


def test_a_state_that_does_not_move():
    solution = gritax.solve(lambda u, start, stride: u, jnp.ones(2), 40)
    assert solution.converged and solution.residuals[-1] == 0


def test_progress_sees_levels_iterations_and_the_end():
    seen = []

    class Recorder(gritax.Progress):
        def begin(self, hierarchy):
            seen.append(hierarchy.sizes)

        def iteration(self, iteration):
            seen.append(iteration)

        def end(self, solution):
            seen.append(solution)

    solution = gritax.solve(
        _descent(lambda stride: 0.001 * stride), jnp.ones(3), 200, tolerance=1e-10, initial_guess="zeros", progress=Recorder()
    )
    assert seen[0] == solution.level_sizes and seen[-1] is solution
    assert [each.number for each in seen[1:-1]] == list(range(solution.iterations + 1))
    assert [each.residual for each in seen[1:-1]] == solution.residuals.tolist()
    assert [each.exact_steps for each in seen[1:-1]][:3] == [0, 8, 16]
    assert seen[2].factor == solution.residuals[1] / solution.residuals[0]


@pytest.mark.long
@pytest.mark.slow
def test_a_second_moment_of_zero_is_no_reason_to_blame_serial_training(mixed_dtypes):
    """As of pixels that are always off: a difference below zero would have no root."""
    loss = lambda params, batch: small.loss(params["network"], batch) + 0 * jnp.sum(params["idle"])
    step = gritax.TrainStep(loss, optax.adam(1e-2), small.batches(), gritax.RescaledRate())
    state = step.init({"network": small.params(), "idle": jnp.ones(3)})
    method = gritax.Multigrid((4, 4))
    solution = gritax.solve(step, state, 64, method, max_iterations=2, initial_guess="nested", throw=False)
    assert "hardly falls" in solution.reason
    assert "stable" in solution.reason
    assert "Serial training" not in solution.reason
