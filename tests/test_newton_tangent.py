"""The tangent that rides along with a window: amplification and errors as serial training has them, or it is said otherwise."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_problems import batches, distance, loss, params, relative_error

import gritax
from gritax.newton import _prefix


def tangent_growth(step, state, num_steps, change=1e-7):
    """By how much serial steps amplify a small change of all parameters."""
    moved = jax.tree.map(lambda x: x + change * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), state.params)
    twin = state._replace(params=moved)
    after, of_twin = (gritax.solve_serial(step, each, num_steps).params for each in (state, twin))
    return distance(after, of_twin) / distance(state.params, moved)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
def test_a_direction_that_grows_alone_is_measured_though_no_correction_shows_it(dtype):
    """w0 grows by 1.02 a step from zero, and stays there: nothing but a change of it ever moves."""
    curvatures = jnp.array([-0.2, 1.0, 3.0, 5.0], dtype)
    target = jnp.array([0.0, 1.0, 1.0, 1.0], dtype)
    step = gritax.TrainStep(
        lambda w, i: 0.5 * jnp.sum(curvatures * (w - target) ** 2), optax.sgd(0.1), lambda i: jnp.zeros(1, dtype)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = gritax.solve(step, step.init(jnp.zeros(4, dtype)), 400, gritax.Newton(verify=False), throw=False)
    assert solution.amplification is not None
    # Of four directions that are changed alike one grows, so that the length grows half as much.
    assert 1 / 4 < solution.amplification / (1.02**400 / 2) < 4


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["heavy ball", "sgd", pytest.param("nesterov", marks=pytest.mark.long)])
def test_amplification_is_that_of_serial_steps(name, mixed_dtypes):
    optimizer = {
        "sgd": optax.sgd(0.1),
        "heavy ball": optax.sgd(0.02, momentum=0.9),
        "nesterov": optax.sgd(0.02, momentum=0.9, nesterov=True),
    }[name]
    step = gritax.TrainStep(loss, optimizer, batches())
    state = step.init(params())
    solution = gritax.solve(step, state, 300, gritax.Newton(verify=False), throw=False)
    assert solution.amplification is not None
    assert 1 / 3 < solution.amplification / max(tangent_growth(step, state, 300), 1) < 3


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 3))])
def test_errors_along_one_slow_direction_are_added_up(seed, mixed_dtypes):
    """The full batch of XOR: each sweep errs in the same direction, and the sum of their squares alone is too small."""
    problem = gritax.problems.xor(seed=seed)
    solution = gritax.solve(problem.step, problem.state, 4096, gritax.Newton(), throw=False)
    error = relative_error(problem.step, problem.state, 4096, solution)
    assert error < 1e-6 or not solution.converged
    assert error < solution.relative_residuals[-1]


@pytest.mark.slow
def test_gradients_that_jump_are_seen_and_the_estimate_is_not_taken_for_one(mixed_dtypes):
    def absolute(w, batch):
        x, y = batch
        return jnp.mean(jnp.abs(x @ w - y))

    key = jax.random.key(0)
    x = jax.random.normal(key, (64, 3), "float64")
    data = gritax.data.Epochs((x, jnp.sin(x[:, 0])), 16, key=jax.random.key(1))
    step = gritax.TrainStep(absolute, optax.sgd(0.01), data)
    state = step.init(jnp.zeros(3))
    alone = gritax.solve(step, state, 400, gritax.Newton(verify=False), throw=False)
    assert not alone.converged
    assert "gradients may jump" in alone.reason
    compared = gritax.solve(step, state, 400, gritax.Newton(), throw=False)
    assert "from the final state of serial steps" in compared.reason
    assert compared.converged == (relative_error(step, state, 400, compared) < 1e-6)


@pytest.mark.slow
def test_an_optimizer_that_is_modelled_by_a_rate_is_compared_with_serial_steps(mixed_dtypes):
    step = gritax.TrainStep(loss, optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)), batches())
    solution = gritax.solve(step, step.init(params()), 60, gritax.Newton(), throw=False)
    assert "from the final state of serial steps" in solution.reason


@pytest.mark.slow
def test_a_usual_run_is_not_compared_and_its_tangent_is_counted(mixed_dtypes):
    step = gritax.TrainStep(loss, optax.sgd(0.05), batches())
    state = step.init(params())
    solution = gritax.solve(step, state, 300, gritax.Newton())
    assert "not compared with serial steps" in solution.reason
    assert relative_error(step, state, 300, solution) < 1e-6
    compared = gritax.solve(step, state, 300, gritax.Newton(verify=True))
    assert (compared.depth, compared.work) == (solution.depth, solution.work)


@pytest.mark.slow(1)
@pytest.mark.parametrize("members", [1, 2])
def test_what_runs_along_the_window_is_the_same_in_order_and_all_at_once(members, monkeypatch):
    draw = np.random.default_rng(members)
    given = [draw.uniform(-0.5, 0.5, shape) for shape in ((96, members, members), (96, members), (3,), (96, 3))]
    rows = draw.normal(size=(96, 5))

    def found():
        along = _prefix.recurrence(*map(jnp.asarray, given))
        return along, _prefix.cumulated(jnp.asarray(rows)), _prefix.largest_so_far(jnp.asarray(rows[:, 0]))

    in_order = found()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, cpu, default: default(*given))
    for one, other in zip(in_order, found(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    transfer, gain, values, forcing = given
    y = np.zeros((3, members))
    for i in range(96):
        y = y @ transfer[i].T + (values * y[:, 0])[:, None] * gain[i] + forcing[i][:, None] * np.eye(members)[0]
    np.testing.assert_allclose(in_order[0][-1], y[:, 0], rtol=1e-10, atol=1e-12)
