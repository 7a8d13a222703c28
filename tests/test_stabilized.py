"""The stabilised coarse step against its polynomial and the training steps it stands for, and what it makes of a solve."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from numpy.polynomial import chebyshev

import gritax
from gritax.coarse._stages import Curvature, stages


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


_OPTIMIZERS = {
    "sgd": optax.sgd(0.02),
    "scheduled": optax.sgd(optax.linear_schedule(0.02, 0.01, 4096)),
    "momentum": optax.sgd(0.004, momentum=0.8),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3, weight_decay=0.01),
}


def _quadratic(curvatures, coarse):
    return gritax.TrainStep(lambda w, x: 0.5 * jnp.sum(curvatures * w**2), optax.sgd(1.0), lambda step: None, coarse)


@pytest.mark.slow(2)
@pytest.mark.parametrize("stride", [3, 16, 64, 1024])
def test_on_a_quadratic_it_is_the_damped_chebyshev_polynomial(stride):
    curvatures = np.array([1e-4, 0.003, 0.02, 0.1])
    step = _quadratic(curvatures, gritax.Stabilized(0.1))
    found = jax.jit(lambda state: step(state, jnp.int32(0), stride).params)(step.init(jnp.ones(4)))
    s = math.ceil(math.sqrt(0.1 * stride / 1.87))
    w0 = 1 + 0.1 / s**2
    t = [0] * s + [1]
    w1 = chebyshev.chebval(w0, t) / chebyshev.chebval(w0, chebyshev.chebder(t))
    wanted = chebyshev.chebval(w0 - w1 * stride * curvatures, t) / chebyshev.chebval(w0, t)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert np.all(np.abs(wanted) < 1)
    assert step.depth(stride) == s and step.work(stride) == s * stride


def test_stages_follow_the_curvature_at_each_step():
    """In one batch, each lane takes as many stages as the curvature within its step asks for."""
    curvature = Curvature.along(np.array([0, 64, 512]), np.array([0.1, 0.1, 0.01]))
    starts = np.array([0, 64, 448, 512, 4096])
    wanted = [0.1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(curvature.within(starts, 64), wanted, rtol=1e-6)
    within = jax.jit(jax.vmap(partial(curvature.within, stride=64)))
    np.testing.assert_allclose(within(jnp.asarray(starts)), wanted, rtol=1e-6)
    assert stages(64 * curvature.within(starts, 64)).tolist() == [2, 2, 2, 1, 1]


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_one_stage_is_the_frozen_gradient(name):
    step = gritax.TrainStep(small.loss, _OPTIMIZERS[name], small.batches(), gritax.Stabilized(0.05))
    frozen = gritax.TrainStep(small.loss, _OPTIMIZERS[name], small.batches(), gritax.FrozenGradient(math.inf))
    state = gritax.solve_serial(step, step.init(small.params()), 5)
    found, wanted = (jax.jit(lambda s, step=step: step(s, jnp.int32(5), 12))(state) for step in (step, frozen))
    assert step.depth(12) == 1
    assert small.distance(found.params, wanted.params) <= 1e-12


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", ["sgd", "scheduled", "momentum", "adam"])
def test_of_constant_gradients_it_is_the_training_steps(name):
    """Parameters and optimizer state, whatever the number of stages."""
    params = {"w": jnp.arange(3.0), "b": jnp.ones(2)}
    loss = lambda params, x: jnp.sum(params["w"] * jnp.array([1.0, -2.0, 0.5])) - jnp.sum(params["b"])
    step = gritax.TrainStep(loss, _OPTIMIZERS[name], lambda step: step, gritax.Stabilized(0.5))
    step, *_ = step.adapted(jax.tree.map(lambda x: jnp.asarray(x)[None], step.init(params)), np.zeros(1, int), 64, None)
    state = gritax.solve_serial(step, step.init(params), 300)
    found = jax.jit(lambda state: step(state, jnp.int32(300), 64))(state)
    wanted = gritax.solve_serial(lambda state, start, stride: step(state, start + 300, 1), state, 64)
    assert step.coarse.cost(64, np.zeros((1, 1), int))[0] == 5
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [pytest.param("sgd", 3.3, marks=pytest.mark.long), ("momentum", 3.3)])
def test_it_is_of_first_order(name, least):
    """Half the learning rate, a quarter of the error of a step of the same stride, once it is small."""

    def error(rate):
        optimizer = optax.sgd(rate, momentum=None if name == "sgd" else 0.5)
        step = gritax.TrainStep(small.loss, optimizer, lambda step: small.data(), gritax.Stabilized(0.2))
        step, *_ = step.adapted(
            jax.tree.map(lambda x: jnp.asarray(x)[None], step.init(small.params())), np.zeros(1, int), 64, None
        )
        start = step.init(small.params())
        state = gritax.solve_serial(step, start, 32)
        coarse = jax.jit(lambda state: step(state, jnp.int32(32), 32))(state)
        return small.distance(coarse.params, gritax.solve_serial(step, state, 32).params)

    assert error(1e-3) / error(5e-4) >= least


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("sgd", "float64", 1e-6),
        ("sgd", "float32", 3e-5),
        pytest.param("momentum", "float64", 1e-6, marks=pytest.mark.long),
        ("adam", "float64", 1e-6),
        pytest.param("adamw", "float32", 3e-5, marks=pytest.mark.long),
        pytest.param("scheduled", "float64", 1e-6, marks=pytest.mark.long),
    ],
)
def test_parallel_training_equals_serial_training(name, dtype, tolerance):
    step = gritax.TrainStep(small.loss, _OPTIMIZERS[name], small.batches(1, dtype), gritax.Stabilized())
    state = step.init(small.params(1, dtype))
    solution = gritax.solve(step, state, 1024)
    assert "kappa" in solution.coarse_steps
    assert solution.iterations <= 9
    assert small.relative_error(step, state, 1024, solution) <= tolerance


def test_steps_that_train_on_the_same_data_share_a_gradient():
    """As a batch that only seems to depend on the step does not."""
    inputs, targets = small.data()
    for optimizer in (_OPTIMIZERS["momentum"], _OPTIMIZERS["adam"]):
        found = []
        for batch in (lambda step: (inputs, targets), lambda step: (inputs + 0 * step, targets)):
            step = gritax.TrainStep(small.loss, optimizer, batch, gritax.FrozenGradient(math.inf, chunk=4))
            found.append((step.same_data(), jax.jit(lambda s, step=step: step(s, jnp.int32(0), 10))(step.init(small.params()))))
        (same, shared), (different, each) = found
        assert same and not different
        for x, y in zip(jax.tree.leaves(shared), jax.tree.leaves(each), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_more_stages_after_a_failure():
    """Up to a point; a kappa of the caller's is kept, and that it was too small is an error."""
    step = gritax.TrainStep(small.loss, _OPTIMIZERS["sgd"], small.batches(), gritax.Stabilized())
    states = jax.tree.map(lambda x: jnp.asarray(x)[None], step.init(small.params()))
    coarse = step.adapted(states, np.zeros(1, int), 1024, None)[0].coarse
    depths = []
    while coarse is not None:
        depths.append(coarse.depth(1024))
        coarse = coarse.finer()
    assert len(depths) > 3 and depths == sorted(depths)

    step = _quadratic(np.array([1e-3, 0.5]), gritax.Stabilized(0.05))
    with pytest.raises(gritax.ConvergenceError, match="diverged"):
        gritax.solve(step, step.init(jnp.ones(2)), 4000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gritax.Stabilized(0.0), "kappa, the learning rate times the largest curvature, must be positive"),
        (lambda: gritax.Stabilized(math.inf), "kappa, .* must be positive, not inf"),
        (lambda: gritax.Stabilized(True), "kappa, .* must be positive, not True"),
        (lambda: gritax.Stabilized(chunk=0), "chunk must be"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "at_guess", "after_one"),
    [
        (optax.sgd(0.1), "directions", None),
        (optax.sgd(0.02, momentum=0.9), "curvature", "directions"),
        (optax.adam(1e-3), None, "directions"),
    ],
)
def test_what_is_measured_along_a_guess_is_what_a_guess_is_good_enough_for(optimizer, at_guess, after_one):
    step = gritax.TrainStep(small.loss, optimizer, small.batches())
    states = jax.tree.map(lambda x: jnp.stack([x, x]), step.init(small.params()))
    starts = np.array([0, 32], np.int32)
    first = jax.tree.map(lambda x: x[:1], states)
    coarse, *_ = gritax.Stabilized(directions=2).adapted(step, first, starts[:1], 64, None)
    levels = coarse.method(64)
    for iteration, measured in enumerate((at_guess, after_one, None)):
        had = "directions" in str(coarse)
        coarse, depth, _ = coarse.adapted(step, states, starts, 64, iteration)
        assert (depth > 0) == (measured is not None)
        assert ("directions" in str(coarse)) == (had or measured == "directions")
        assert coarse.method(64) == levels


@pytest.mark.slow
def test_directions_are_found_again_after_one_failure():
    """After a second there are none: a solve that they slow down does not begin again with them until it may no more."""
    step = gritax.TrainStep(small.loss, optax.sgd(0.1), small.batches())
    states = jax.tree.map(lambda x: jnp.stack([x, x]), step.init(small.params()))
    starts = np.array([0, 32], np.int32)
    first = jax.tree.map(lambda x: x[:1], states)
    coarse, *_ = gritax.Stabilized(directions=2).adapted(step, first, starts[:1], 64, None)
    for found in (True, True, False, False):
        along, *_ = coarse.adapted(step, states, starts, 64, 0)
        assert ("directions" in str(along)) == found
        coarse = along.finer()


@pytest.mark.slow
def test_a_guess_that_is_too_stiff_is_forgotten_after_the_first_iteration():
    """The curvature is 1 + 9 w^2: 10 in the guess, 1 at the initial state and where training is."""
    loss = lambda w, batch: 0.01 * jnp.sum(w**2 / 2 + 0.75 * w**4)
    step = gritax.TrainStep(loss, optax.sgd(0.02, momentum=0.9), lambda step: None)
    at = lambda value: jax.tree.map(lambda x: x[None], step.init(jnp.full(4, value)))
    coarse, *_ = gritax.Stabilized(directions=2).adapted(step, at(0.0), np.zeros(1, np.int32), 64, None)
    begun = coarse.largest_kappa
    along, *_ = coarse.adapted(step, at(1.0), np.array([32], np.int32), 64, 0)
    after, *_ = along.adapted(step, at(0.0), np.array([32], np.int32), 64, 1)
    assert along.largest_kappa > 5 * begun
    np.testing.assert_allclose(after.largest_kappa, begun / 1.15, rtol=1e-3)  # without the margin of what is not yet known


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "first", "last", "longest"),
    [(optax.sgd(0.1), 4, 0, 4096), (optax.sgd(0.1, momentum=0.8), 28, 1, 7168), (optax.adam(1e-3), 8, 1, 512)],
)
def test_levels_are_those_that_the_memory_of_the_optimizer_asks_for(optimizer, first, last, longest):
    """28 steps are twice those after which a velocity of .8 has had 95 percent of its effect. Second moments end at 512."""
    step = gritax.TrainStep(lambda w, x: 0.005 * jnp.sum(w**2), optimizer, lambda step: None, gritax.Stabilized())
    phi = step.adapted(jax.tree.map(lambda x: x[None], step.init(jnp.ones(4))), np.zeros(1, np.int32), 65536, None)[0]
    method = phi.method(65536)
    assert method.coarsening[0] == first and max(method.coarsening[1:]) == 4
    assert math.prod(method.coarsening) == longest
    assert method.relaxation == (*[1] * (len(method.coarsening) - 1), last)
