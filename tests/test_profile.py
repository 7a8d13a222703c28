"""What a solution keeps for a report: its history, the cost of its levels, and where along the run its residuals are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import gritax
from gritax._cycle import Cost


def _decay(u, start, stride):
    x = jnp.asarray(start, u.dtype)
    return (u + stride / (100 + x)) / (1 + stride / (jnp.array([100.0, 3.0, 50.0]) + x / 8))


def _solve(steps=1003, method=None, **options):
    return gritax.solve(_decay, jnp.ones(3), steps, method, **options)


@pytest.mark.slow(1)
@pytest.mark.parametrize("steps", [3, 7, 1003, 2048])
def test_a_profile_adds_up_to_the_residuals(steps):
    solution = _solve(steps, profile=True)
    profile = solution.profile
    assert profile.residuals.shape == (solution.iterations + 1, len(profile.steps))
    np.testing.assert_allclose(np.linalg.norm(profile.residuals, axis=1), solution.residuals, rtol=1e-12, atol=1e-300)
    factor = solution.hierarchy[0].factor
    np.testing.assert_array_equal(profile.steps, factor * np.arange(1, steps // factor + 1))


@pytest.mark.slow
def test_a_long_run_has_the_largest_of_each_group():
    count, factor = 1537, 4  # groups of four C-points, the last one of a single point
    steps = count * factor + 3
    guess = lambda step: jnp.full(3, 0.5) * jnp.cos(0.01 * jnp.asarray(step, float))
    profile = _solve(steps, gritax.Multigrid(factor), initial_guess=guess, max_iterations=1, tolerance=0, profile=True).profile
    assert profile.steps.tolist() == [*range(4 * factor, 1536 * factor + 1, 4 * factor), count * factor]
    points = jax.vmap(guess)(jnp.arange(count + 1) * factor).at[0].set(1.0)
    u = points[:-1]
    for j in range(factor):
        u = jax.vmap(lambda u, start: _decay(u, start, 1))(u, jnp.arange(count) * factor + j)
    found = np.linalg.norm(u - points[1:], axis=1)
    groups = [found[first : first + 4].max() for first in range(0, count, 4)]
    np.testing.assert_allclose(profile.residuals[0], groups, rtol=1e-12)


def test_the_exact_states_have_no_residual():
    solution = _solve(profile=True)
    for report, row in zip(solution.history, solution.profile.residuals, strict=True):
        exact = solution.profile.steps <= report.exact_steps
        assert exact.sum() == report.exact_steps // 4
        assert row[exact].max(initial=0) < 1e-14


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 1, 8])
def test_on_a_mesh_it_is_the_same(count):
    alone = _solve(5003, profile=True).profile
    shared = _solve(5003, profile=True, mesh=Mesh(np.array(jax.devices()[:count]), ("time",))).profile
    np.testing.assert_array_equal(alone.steps, shared.steps)
    np.testing.assert_array_equal(alone.residuals, shared.residuals)


def _transfers(monkeypatch, **options):
    """The solution, and how many arrays were asked for on the host."""
    asked, count = np.asarray, itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(np, "asarray", lambda *given, **more: (next(count), asked(*given, **more))[1])
        return _solve(**options), next(count)


def test_it_changes_nothing_and_waits_for_nothing(monkeypatch):
    _solve(profile=True)  # compilation asks for arrays as well
    plain, transfers = _transfers(monkeypatch)
    recorded, more = _transfers(monkeypatch, profile=True)
    for name in ("state", "residuals", "depth", "work"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(recorded, name))
    assert plain.profile is None
    assert more - transfers == plain.iterations + 1  # the rows, once the solve is over


@pytest.mark.long
@pytest.mark.slow
def test_after_a_restart_it_is_of_the_last_attempt(mixed_dtypes):
    # Flat at the start, a hundred times as stiff where training goes.
    loss = lambda w, batch: jnp.sum(0.5 * w**2 * (0.01 + jax.nn.sigmoid(20 * (0.5 - w))))
    step = gritax.TrainStep(loss, optax.sgd(0.2), lambda step: None)
    solution = gritax.solve(step, step.init(jnp.array([1.0])), 600, profile=True)
    assert solution.restarts
    assert len(solution.profile.residuals) == solution.iterations + 1 == len(solution.history)
    np.testing.assert_allclose(np.linalg.norm(solution.profile.residuals, axis=1), solution.residuals, rtol=1e-9)


def test_a_resumed_solve_does_not_know_earlier_rows(tmp_path):
    kept = str(tmp_path / "run")
    whole = _solve(profile=True)
    _solve(max_iterations=2, throw=False, checkpoint=kept)
    resumed = _solve(resume=kept, profile=True)
    assert resumed.iterations == whole.iterations
    unknown = np.isnan(resumed.profile.residuals).all(axis=1)
    assert 0 < unknown.sum() <= 3 and unknown[: unknown.sum()].all()
    np.testing.assert_array_equal(resumed.profile.residuals[~unknown], whole.profile.residuals[~unknown])
    assert resumed.depth_by_level == whole.depth_by_level


@pytest.mark.slow
def test_history_method_and_the_depth_of_levels():
    method = gritax.Multigrid(4, cycle="F")
    solution = _solve(method=method)
    assert solution.method == method
    assert [each.residual for each in solution.history] == solution.residuals.tolist()
    assert solution.level_depths == (1,) * len(solution.level_sizes)
    assert sum(solution.depth_by_level) == solution.depth
    problem = gritax.problems.xor(coarse=gritax.FrozenGradient(8))
    solution = gritax.solve(problem.step, problem.state, 512, gritax.Multigrid(16))
    assert solution.level_depths == (1, 2)
    assert solution.depth_by_level[1] % 2 == 0 < solution.depth_by_level[1]
    assert sum(solution.depth_by_level) <= solution.depth


def test_depth_by_level_counts_steps_and_not_choices():
    cost = Cost()
    cost.spend(8, 5, 40)
    level = gritax.Multigrid(4).hierarchy(1000)[1]
    cost.add(_decay, level, np.zeros((6, 10), int))
    assert cost.depth == 11 and cost.by_level == {1: 6}


def test_profile_must_be_a_flag():
    with pytest.raises(ValueError, match="profile must be True or False, not 3"):
        _solve(profile=3)


def test_the_levels_are_timed_by_one_more_iteration_that_counts_for_nothing():
    solution, plain = _solve(1003, profile=True), _solve(1003)
    assert len(solution.level_seconds) == len(solution.level_sizes)
    assert all(seconds > 0 for seconds in solution.level_seconds)
    assert plain.level_seconds == ()
    assert (solution.depth, solution.work, solution.iterations) == (plain.depth, plain.work, plain.iterations)
    assert jnp.array_equal(solution.state, plain.state)
