"""Every kind of Optax optimizer: trained in parallel as in series, and what the coarse step makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.coarse._linear import LinearSteps, linear
from gritax.coarse._slow import memory
from gritax.training._second_moments import nonnegative


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _by_group(params):
    return {name: "slow" if name == "b" else "fast" for name in params}


def _average_of_weights(decay):
    """Beside the weights, their exponential average."""

    def update(updates, average, params):
        return updates, jax.tree.map(lambda a, p, u: decay * a + (1 - decay) * (p + u), average, params, updates)

    return optax.GradientTransformation(lambda params: params, update)


_SCHEDULES = {
    "cosine": optax.cosine_decay_schedule(0.05, 256),
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.05, 64, 256),
}

_OPTIMIZERS = {
    "sgd": optax.sgd(0.02),
    "momentum": optax.sgd(0.004, momentum=0.8),
    "nesterov": optax.sgd(0.004, momentum=0.8, nesterov=True),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(optax.cosine_decay_schedule(1e-3, 256), weight_decay=0.01),
    "rmsprop": optax.rmsprop(1e-3),
    "adagrad": optax.adagrad(1e-2),
    "adafactor": optax.adafactor(1e-3),
    "lamb": optax.lamb(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.02)),
    "decayed": optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.02)),
    "cosine": optax.sgd(_SCHEDULES["cosine"]),
    "warm-up": optax.sgd(_SCHEDULES["warm-up"]),
    "groups": optax.multi_transform({"fast": optax.sgd(0.02), "slow": optax.adam(1e-3)}, _by_group),
    "average of weights": optax.chain(optax.sgd(0.02), _average_of_weights(0.95)),
    "accumulation": optax.MultiSteps(optax.adam(1e-3), 4, accumulator_dtype=jnp.float64),
    "injected rate": optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(1e-3, 1e-4, 256)),
}


def _matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


# What does not run on one number a leaf: masks and labels by shape, masks of elements, keys in the state.
_NOT_BY_NUMBER = {
    "labels by shape": optax.multi_transform(
        {"matrix": optax.sgd(0.004, momentum=0.8), "vector": optax.sgd(0.02)},
        lambda params: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params),
    ),
    "masked by shape": optax.chain(optax.masked(optax.trace(0.8), _matrices), optax.sgd(0.004)),
    "pruned": optax.chain(
        optax.sgd(0.02),
        optax.stateless(lambda updates, params: {**updates, "v": updates["v"] * (jnp.arange(8) % 2)[:, None]}),
    ),
    "noise": optax.noisy_sgd(0.02, eta=1e-4, key=0),
}


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    "name", ["labels by shape", pytest.param("masked by shape", marks=pytest.mark.slow), "pruned", "noise"]
)
def test_what_does_not_run_on_single_numbers_trains_as_in_series(name):
    step = gritax.TrainStep(small.loss, _NOT_BY_NUMBER[name], small.batches(), gritax.FrozenGradient(8))
    state = step.init(small.params())
    solution = gritax.solve(step, state, 64, gritax.Multigrid((4,)))
    assert solution.iterations <= 6
    assert small.relative_error(step, state, 64, solution) <= 1e-6


def test_rates_that_part_late_are_two_sums():
    """One group's rate falls where the other's stays, after a few thousand steps."""
    falling = optax.sgd(optax.piecewise_constant_schedule(0.1, {2000: 0.1}))
    found = linear(optax.multi_transform({"fast": optax.sgd(0.1), "slow": falling}, _by_group), small.params())
    assert found is not None and found.num_sums == 2


def _step(optimizer, refresh=8, **options):
    step = gritax.TrainStep(small.loss, optimizer, small.batches(), gritax.FrozenGradient(refresh), **options)
    return step, step.init(small.params())


# Those that differ little from others are left to `pytest --all`.
_SLOW = {"adagrad", "lamb", "decayed", "cosine", "injected rate"}


@pytest.mark.first(5)
@pytest.mark.slow(1)
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in _SLOW else x for x in _OPTIMIZERS])
def test_parallel_training_equals_serial_training(name):
    step, state = _step(_OPTIMIZERS[name])
    solution = gritax.solve(step, state, 256, gritax.Multigrid((8,)))
    # Without a coarse step that is any good, 16 iterations would be needed.
    assert solution.iterations <= 8
    assert small.relative_error(step, state, 256, solution) <= 1e-6
    serial = gritax.solve_serial(step, state, 256)
    for x, y in zip(jax.tree.leaves(solution.state), jax.tree.leaves(serial), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if not jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_array_equal(x, y)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 3e-5)])
@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_on_three_levels(name, seed, dtype, tolerance):
    step = gritax.TrainStep(small.loss, _OPTIMIZERS[name], small.batches(seed, dtype), gritax.FrozenGradient(16))
    state = step.init(small.params(seed, dtype))
    solution = gritax.solve(step, state, 301)
    assert solution.level_sizes == (301, 75, 18)
    assert solution.params["w"].dtype == dtype
    assert small.relative_error(step, state, 301, solution) <= tolerance


@pytest.mark.slow
def test_signs_of_gradients_end_with_serial_weights_and_a_warning():
    """Lion's update jumps where the sign of its momentum does, which no coarse step follows: the end is finite termination."""
    step, state = _step(optax.lion(1e-2))
    with pytest.warns(UserWarning, match="the training step jumps") as warned:
        solution = gritax.solve(step, state, 256, gritax.Multigrid((8,)))
    assert warned[0].filename == __file__
    assert solution.iterations == 15  # two of the 32 intervals are exact in the guess, and two more after every iteration
    assert small.relative_error(step, state, 256, solution) <= 1e-6


@pytest.mark.slow
def test_nothing_diverges_to_a_negative_second_moment():
    """From a guess so poor that plain corrections of Adam's second moment make it negative, and its root nan."""
    step, state = _step(optax.adam(3e-3))
    solution = gritax.solve(step, state, 256, gritax.Multigrid((4, 4)), initial_guess="constant")
    assert np.all(solution.state.opt_state[0].nu["w"] >= 0)
    assert small.relative_error(step, state, 256, solution) <= 1e-6


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.sgd(0.1, momentum=0.9), [False]),
        (optax.adam(0.1), [False, False, True]),
        (optax.amsgrad(0.1), [False, False, True, True]),
        (optax.adabelief(0.1), [False, False, True]),
        (optax.rmsprop(0.1, momentum=0.9), [True, False]),
        (optax.adagrad(0.1), [True]),
        (optax.lion(0.1), [False, False]),
        (optax.yogi(0.1), [False, False, True]),
        (_average_of_weights(0.9), [False]),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=lambda count: 1 - count / 30.0), [False] * 3),
        (optax.MultiSteps(optax.rmsprop(0.1), 4), None),
        (optax.MultiSteps(optax.rmsprop(0.1), 40), None),
    ],
)
def test_which_leaves_never_turn_negative(optimizer, expected):
    if expected is None:  # counters, the moment of the inner optimizer, the sum of gradients
        assert jax.tree.leaves(nonnegative(optimizer, jnp.ones((4, 3)))).count(True) == 1
        return
    assert jax.tree.leaves(nonnegative(optimizer, jnp.ones((4, 3)))) == expected
    # A single element has only its sign to go by.
    assert jax.tree.leaves(nonnegative(optimizer, jnp.ones(()))) == expected


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("optimizer", "sums", "lasting"),
    [
        (optax.sgd(0.1), 1, 1),
        (optax.sgd(_SCHEDULES["cosine"]), 1, 1),
        (optax.sgd(0.1, momentum=0.9), 2, 29),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), 2, 28),
        (optax.sgd(0.1, momentum=0.99), 2, 299),
        (optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1)), 1, 1),
        (optax.multi_transform({"fast": optax.sgd(0.1), "slow": optax.sgd(0.01)}, _by_group), 2, 1),
        (optax.chain(optax.sgd(0.1), _average_of_weights(0.9)), 2, 1),
    ],
)
def test_linear_optimizers_need_one_or_two_sums_of_gradients(optimizer, sums, lasting):
    found = linear(optimizer, small.params())
    assert found is not None
    assert (found.num_sums, memory(optimizer, small.params())) == (sums, lasting)


@pytest.mark.slow(1)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        optax.multi_transform({"fast": optax.sgd(0.1), "slow": optax.sgd(0.01)}, _by_group),
    ],
)
def test_steps_that_are_all_alike_are_those_of_the_loop(optimizer, dtype, num_steps):
    params = jax.tree.map(lambda x: x.astype(dtype), small.params())
    kind, opt_state = linear(optimizer, params), optimizer.init(params)
    found = LinearSteps(kind, optimizer, params, opt_state, num_steps).coefficients
    wanted = kind.coefficients(optimizer, params, opt_state, num_steps)
    tolerance = 20 * num_steps**0.5 * np.finfo(dtype).eps
    for each, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert each.dtype == dtype
        np.testing.assert_allclose(each, expected, rtol=tolerance, atol=tolerance * np.max(np.abs(expected)))


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        optax.chain(optax.centralize(), optax.sgd(0.1)),
        # However small its updates are, at once or for a while.
        optax.chain(optax.centralize(), optax.sgd(1e-5)),
        optax.chain(optax.centralize(), optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.05, 1000, 5000))),
        optax.chain(optax.add_decayed_weights(1e-4, mask=_matrices), optax.sgd(0.1)),
        optax.chain(optax.sgd(0.1, momentum=0.9), _average_of_weights(0.9)),
        *_NOT_BY_NUMBER.values(),
    ],
)
def test_what_is_not_linear_element_by_element_is_replayed(optimizer):
    assert linear(optimizer, small.params()) is None


def _sam():
    return optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2)


def _loop(optimizer, loss, params, takes_value, steps):
    batch = small.batches()

    def step(carry, i):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch(i))
        updates, state = optimizer.update(gradient, state, params, **({"value": value} if takes_value else {}))
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0])()


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "takes_value"),
    [
        (_sam(), False),
        (optax.chain(_sam(), optax.scale(0.5)), False),
        (optax.polyak_sgd(max_learning_rate=0.02), True),
        (optax.chain(optax.sgd(0.02), optax.contrib.reduce_on_plateau()), True),
        (optax.contrib.schedule_free_sgd(0.02), False),
        (optax.contrib.prodigy(1.0), False),
        (optax.lbfgs(0.02, linesearch=None), False),
        (optax.sgd(np.float64(0.02), momentum=np.float64(0.8)), False),
    ],
)
def test_serial_steps_are_those_of_a_loop(optimizer, takes_value):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = _loop(optimizer, small.loss, small.params(), takes_value, 12)
        found = gritax.train(small.loss, optimizer, small.batches(), small.params(), 12)
    assert small.distance(found.params, wanted) <= 1e-12


def test_an_optimizer_that_wants_a_part_of_the_gradient_is_wrapped():
    ahead = optax.lookahead(optax.sgd(0.02), sync_period=5, slow_step_size=0.5)
    wrapped = optax.GradientTransformation(ahead.init, lambda updates, state, params: ahead.update(updates.fast, state, params))
    loss = lambda params, batch: small.loss(params.fast, batch)
    first = optax.LookaheadParams.init_synced(small.params())
    with pytest.raises(ValueError, match=r"optimizer\.update fails .*optax\.lookahead"):
        gritax.train(loss, ahead, small.batches(), first, 12)
    found = gritax.train(loss, wrapped, small.batches(), first, 12)
    assert small.distance(found.params, _loop(wrapped, loss, first, False, 12)) <= 1e-12


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.lbfgs(), r"optimizer\.update fails .*'value_fn'.*no function of the loss"),
        (optax.sgd(0.1, momentum=np.float64(0.9)), r"changes leaf .*float32\[3\] to float64\[3\].*make it a Python float"),
    ],
)
def test_optimizers_that_cannot_be_taken_are_refused(optimizer, message):
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 2), optimizer, lambda step: jnp.ones(3, "float32"))
    with pytest.raises(ValueError, match=message):
        step.init(jnp.zeros(3, "float32"))
