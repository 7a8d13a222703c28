"""What is predicted of a run, and that a run goes by it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.planning import Pilot, Speeds


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

SGD = optax.sgd(0.05)


@pytest.mark.slow
def test_a_plan_that_pays_is_followed_while_it_is_faster(tmp_path):
    slowly = optax.sgd(0.002)
    plan = gritax.plan(small.loss, slowly, small.batches(), small.params(), 1024)
    assert "faster here" in plan.sentence and plan.sentence in str(plan)
    as_predicted = replace(plan.pilot, coarse=(), start=0.0, overhead=0.0, correction=1.0)
    slow = replace(plan, speeds=Speeds(10.0, ((4096, 10.0),), 1e-5, 0.1), pilot=as_predicted, window=512)
    assert slow.pays
    train = partial(gritax.train, small.loss, slowly, small.batches(), small.params(), 1024)
    trained = train(plan=slow)
    assert [window.kind for window in trained.windows] == ["parallel", "parallel"]
    assert small.relative_error(plan.step, plan.state, 1024, trained) <= 1e-6
    with pytest.raises(KeyboardInterrupt):
        train(plan=slow, checkpoint=tmp_path, progress=small.Interrupting(2))
    again = train(resume=tmp_path)  # the plan is kept
    assert [window.kind for window in again.windows] == ["parallel", "parallel"]
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), again.state, trained.state))
    fast = replace(plan, speeds=Speeds(1e-9, ((64, 1e-3),), 1e-5, 0.1))
    serial = train(plan=fast)
    assert serial.exact_steps == 1024 and "Serial is faster here" in serial.reason
    assert small.relative_error(plan.step, plan.state, 1024, serial) == 0


def test_speeds_between_those_measured():
    speeds = Speeds(1e-6, ((10, 2e-6), (1000, 2e-4)), 1e-5, 0.1)
    assert speeds.of(1) == pytest.approx(1e-6) and speeds.of(10) == pytest.approx(2e-6)
    assert speeds.of(100) == pytest.approx(2e-5) and speeds.of(4000) == pytest.approx(8e-4)
    assert speeds.gain == pytest.approx(5)
    assert not gritax.planning.can_pay(speeds)


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_counts_as_a_solve_does():
    plan = gritax.plan(small.loss, SGD, small.batches(), small.params(), 1024, coarse=gritax.FrozenGradient(8))
    assert isinstance(plan.pilot, Pilot) and plan.pilot.converged
    solution = gritax.solve(plan.step, plan.state, 1024, plan, tolerance=0, max_iterations=plan.pilot.iterations)
    assert (plan.depth, plan.hierarchy.sizes) == (solution.depth, solution.level_sizes)
    assert plan.work == pytest.approx(solution.work, rel=0.05)
    assert plan.seconds_on(64) <= plan.seconds
    assert plan.serial_seconds == plan.call + 1024 * plan.speeds.step


@pytest.mark.slow
def test_plans_of_other_runs_are_refused():
    plan = gritax.plan(small.loss, SGD, small.batches(), small.params(), 256)
    train = partial(gritax.train, small.loss, SGD, small.batches(), plan=plan)
    for other in (
        lambda: train(small.params(), 300),
        lambda: train(small.params(1), 256),
        lambda: gritax.train(small.loss, optax.sgd(0.3), small.batches(), small.params(), 256, plan=plan),
        lambda: gritax.train(lambda *args: 2 * small.loss(*args), SGD, small.batches(), small.params(), 256, plan=plan),
    ):
        with pytest.raises(ValueError, match="plan is for another run, of 256 steps"):
            other()
    with pytest.raises(ValueError, match=r"plan was made with coarse=auto for 1 device, .* FrozenGradient\(refresh=2"):
        train(small.params(), 256, coarse=gritax.FrozenGradient(2))


@pytest.mark.slow
def test_parameters_of_numpy_have_plans():
    params = jax.tree.map(np.asarray, small.params())
    plan = gritax.plan(small.loss, SGD, small.batches(), params, 128, coarse=gritax.FrozenGradient(8))
    assert gritax.train(small.loss, SGD, small.batches(), params, 128, plan=plan, coarse=gritax.FrozenGradient(8)).converged


@pytest.mark.slow
def test_windows_of_a_plan_fit_into_memory(monkeypatch):
    monkeypatch.setattr("gritax._window._MEMORY", 2**20)
    plan = gritax.plan(small.loss, SGD, small.batches(), small.params(), 4096, coarse=gritax.FrozenGradient(8))
    size = sum(x.nbytes for x in jax.tree.leaves(small.params()))
    assert plan.window == 2**20 // (20 * size) * 4 < 4096


def test_what_is_taken_serially_has_no_plan():
    with pytest.raises(ValueError, match=r"There is nothing to plan: gritax\.train takes all steps of it one after the other"):
        gritax.plan(small.loss, optax.apply_if_finite(SGD, 3), small.batches(), small.params(), 128)


@pytest.mark.long
@pytest.mark.slow
def test_a_pilot_that_does_not_converge_says_so():
    plan = gritax.plan(small.loss, optax.sgd(1e5), small.batches(), small.params(), 128, coarse=gritax.FrozenGradient(8))
    assert not plan.pays and "not finite after 128 steps" in plan.sentence and "nan" not in str(plan)
    assert "did not converge" in replace(plan, diverges=False).sentence
