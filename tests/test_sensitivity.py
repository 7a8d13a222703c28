"""What training amplifies is measured and told, whatever else its state holds."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax._sensitivity import Sensitivity
from gritax._validation import validated


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _amplifying(growth):
    """Gradient descent away from a maximum: changes grow by this factor a step."""
    return lambda w, batch: -0.5 * (growth - 1) * jnp.sum((w - batch) ** 2)


def test_what_training_amplifies_is_measured():
    step = gritax.TrainStep(_amplifying(1.01), optax.sgd(1.0), lambda step: jnp.ones(3), gritax.FrozenGradient(1))
    evolution, floating, clock = validated(step, step.init(jnp.full(3, 2.0)), 200)
    sensitivity, cost = Sensitivity(), gritax._cycle.Cost()
    after = gritax._serial.advance(evolution, floating, clock, np.int32(200))[0]
    assert sensitivity.serially(evolution, floating, clock, after, 200, cost) == pytest.approx(1.01**200, rel=1e-4)
    coarsest = gritax._hierarchy.Level(1, 20, 10, 20)
    assert sensitivity.coarsely(evolution, floating, after, coarsest, 100, cost) == pytest.approx(1.01**100, rel=1e-4)
    assert cost.depth == 100 and cost.work == 200 + 2 * 100
    sensitivity.take(3.0, 1e-8, 0.0)
    sensitivity.take(5.0, 1e-9, 0.0)
    assert sensitivity.growth == 15 and sensitivity.error == pytest.approx(5e-8 + 1e-9)


@pytest.mark.long
@pytest.mark.slow
def test_weights_that_run_away_from_a_maximum_are_those_of_serial_training_or_not_converged():
    """A first window in parallel, and then a rate at which a small change grows by a twentieth a step."""
    rates = optax.piecewise_constant_schedule(1e-3, {512: 47.0})
    loss = _amplifying(2.0)
    batch, params = (lambda step: jnp.ones(2)), jnp.array([1.001, 0.5])
    # Errors grow, but so does the distance travelled, in units of which they count.
    trained = gritax.train(loss, optax.sgd(rates), batch, params, 1024, goal="depth", window=512, throw=False)
    assert trained.depth <= 1.5 * 1024
    step = gritax.TrainStep(loss, optax.sgd(rates), batch)
    serial = gritax.solve_serial(step, step.init(params), 1024).params
    error = small.distance(trained.params, serial) / small.distance(serial, params)
    assert error <= 1e-6 or not trained.converged


def _logistic(w):
    """Gradient descent at a rate of 1 is the logistic map at 3.9."""
    return jnp.sum(w**2 / 2 - 3.9 * (w**2 / 2 - w**3 / 3))


@pytest.mark.long
@pytest.mark.slow
def test_chaos_is_told():
    """Two-fold growth at every step or so."""
    loss = lambda w, batch: _logistic(w) + 0 * jnp.sum(batch)
    rates = optax.piecewise_constant_schedule(1e-3, {600: 1e3})
    params = jnp.array([0.3, 0.4])
    run = partial(gritax.train, loss, optax.sgd(rates), lambda step: jnp.ones(2), params, 900, goal="depth")
    with pytest.warns(UserWarning, match="there is no answer to reproduce"):
        trained = run(window=600, throw=False)
    # Begun again one step after the other where that is still to be had, and else not converged.
    assert trained.restarts or (not trained.converged and "training amplifies errors" in trained.reason)
    assert trained.depth <= 1.5 * 900


def _for_fifty_steps(params, loss=lambda w, batch: _logistic(w) + 0 * jnp.sum(batch), **options):
    """A window, fifty steps of chaos, and then none that moves: (solution, its error)."""
    optimizer = optax.sgd(optax.piecewise_constant_schedule(1e-3, {512: 1e3, 562: 1e-12}))
    batch = lambda step: jnp.ones(2)
    given = {"has_aux": "stats" in options, "trainable": options.get("trainable", eqx.is_inexact_array)}
    step = gritax.TrainStep(loss, optimizer, batch, gritax.FrozenGradient(), **given)
    serial = gritax.solve_serial(step, step.init(params, options.get("stats", ())), 640).params
    train = partial(gritax.train, loss, optimizer, batch, params, 640, goal="depth", window=512, coarse=step.coarse)
    trained = train(**given | options, throw=False)
    return trained, small.distance(trained.params, serial) / small.distance(serial, params)


@pytest.mark.long
@pytest.mark.slow
def test_what_training_does_not_move_hides_nothing():
    """Frozen parameters, unused ones, and a count among the statistics: each alone would drown the change."""

    def loss(params, stats, batch):
        unused = jnp.sum(batch) + jnp.sum(params["frozen"]) + jnp.sum(params["unused"])
        return _logistic(params["w"]) + 0 * unused, stats + 1.0

    params = {"w": jnp.array([0.3, 0.4]), "frozen": jnp.full(4, 1e6), "unused": jnp.full(4, 1e6)}
    trained, error = _for_fifty_steps(
        params, loss, stats=jnp.asarray(1e7), trainable={"w": True, "frozen": False, "unused": True}
    )
    assert error == 0 and "training amplifies errors" in trained.restarts[0]


@pytest.mark.slow
def test_a_tolerance_hides_nothing():
    trained, error = _for_fifty_steps(jnp.array([0.3, 0.4]), tolerance=1e-5)
    assert error == 0 and "training amplifies errors" in trained.restarts[0]


@pytest.mark.long
@pytest.mark.slow
def test_a_tolerance_of_the_callers_is_no_more_than_that():
    """Where errors are not amplified, residuals of the tolerance are what was asked for."""
    problem = (small.loss, optax.sgd(0.02), small.batches())
    trained = gritax.train(*problem, small.params(), 1024, goal="depth", window=512, tolerance=1e-3)
    step = gritax.TrainStep(*problem)
    serial = gritax.solve_serial(step, step.init(small.params()), 1024)
    assert trained.converged and not trained.restarts and {window.kind for window in trained.windows} == {"parallel"}
    assert 0 < small.distance(trained.params, serial.params) <= 1e-3 * 1024**0.5


@pytest.mark.long
@pytest.mark.slow
def test_what_is_not_trained_makes_no_alarm():
    """In float32, whose rounding of a large leaf would be as far as the others travel."""
    loss = lambda params, batch: 0.5 * jnp.sum(jnp.array([1, 0.3], jnp.float32) * (params["w"] - batch) ** 2)
    params = {"w": jnp.zeros(2, jnp.float32), "frozen": jnp.full(1000, 30, jnp.float32)}
    batch = lambda step: jnp.full(2, 0.01, jnp.float32)
    trained = gritax.train(loss, optax.sgd(0.003), batch, params, 512, goal="depth", trainable={"w": True, "frozen": False})
    assert trained.converged and {window.kind for window in trained.windows} == {"parallel"}


@pytest.mark.slow
def test_weights_that_do_not_move_are_known():
    loss = lambda w, batch: 0.5 * jnp.sum((w - batch) ** 2)
    trained = gritax.train(loss, optax.sgd(1e-3), lambda step: jnp.ones(2), jnp.ones(2), 512, goal="depth")
    assert trained.converged and not trained.restarts
    np.testing.assert_array_equal(trained.params, jnp.ones(2))
