"""Losses with keys and running statistics, and parameters of every kind: in parallel as in series."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from flax import nnx

import gritax


def _noisy(params, batch, key):
    x, y = batch
    keep = jax.random.bernoulli(key, 0.8, (8,)).astype(x.dtype)
    return jnp.mean(((jnp.tanh(x @ params["w"] + params["b"][None]) * keep[None]) @ params["v"] - y) ** 2)


def _normalised(params, stats, batch):
    """Hidden units normalised by their own batch; running mean and a count of batches are kept."""
    x, y = batch
    hidden = x @ params["w"] + params["b"][None]
    mean = hidden.mean(axis=0)
    hidden = jnp.tanh((hidden - mean[None]) / jnp.sqrt(hidden.var(axis=0) + 1e-3)[None])
    stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "count": stats["count"] + 1}
    return jnp.mean((hidden @ params["v"] - y) ** 2), stats


def _stats():
    return {"mean": jnp.zeros(8), "count": jnp.int32(0)}


def _solved(step, state, num_steps=256):
    solution = gritax.solve(step, state, num_steps, gritax.Multigrid((8,)))
    assert solution.iterations <= 8
    assert small.relative_error(step, state, num_steps, solution) <= 1e-6
    return solution


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "key"), [(optax.sgd(0.02), jax.random.key(5)), (optax.adam(1e-3), jax.random.PRNGKey(5))]
)
def test_a_key_is_folded_with_the_step(optimizer, key):
    with jax.numpy_dtype_promotion("standard"):
        step = gritax.TrainStep(_noisy, optimizer, small.batches(), gritax.FrozenGradient(8), key=key)
        state = step.init(small.params())
        _solved(step, state)
        after = step(state, jnp.int32(3), 1)
        gradient = jax.grad(_noisy)(state.params, step.batch(3), jax.random.fold_in(key, 3))
        updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    np.testing.assert_allclose(after.params["w"], state.params["w"] + updates["w"], rtol=1e-12)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.005), optax.adam(1e-3)])
def test_statistics_evolve_with_the_state(optimizer):
    with jax.numpy_dtype_promotion("standard"):
        step = gritax.TrainStep(_normalised, optimizer, small.batches(), gritax.FrozenGradient(8), has_aux=True)
        state = step.init(small.params(), _stats())
        solution = _solved(step, state)
        serial = gritax.solve_serial(step, state, 256)
    np.testing.assert_allclose(solution.state.stats["mean"], serial.stats["mean"], rtol=1e-4)
    assert solution.state.stats["count"] == 256


@pytest.mark.long
@pytest.mark.slow
def test_a_coarse_step_carries_running_averages_exactly():
    """At frozen parameters the average of the batches' means, weighted as the steps weight them."""
    step = gritax.TrainStep(_normalised, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(6, chunk=4), has_aux=True)
    state = step.init(small.params(), _stats())
    found = step(state, jnp.int32(2), 6).stats["mean"]
    wanted = state.stats
    for k in range(2, 8):
        wanted = _normalised(state.params, wanted, step.batch(k))[1]
    np.testing.assert_allclose(found, wanted["mean"], rtol=1e-12)


@pytest.mark.slow
def test_key_and_statistics_together():
    def loss(params, stats, batch, key):
        value, stats = _normalised(params, stats, batch)
        return value + 1e-2 * jnp.sum(params["v"] * jax.random.normal(key, (8, 1))), stats

    key = jax.random.key(1)
    step = gritax.TrainStep(loss, optax.sgd(0.005), small.batches(), gritax.FrozenGradient(8), key=key, has_aux=True)
    _solved(step, step.init(small.params(), _stats()))


@pytest.mark.slow
def test_an_equinox_module_with_functions_in_it():
    model = eqx.nn.MLP(3, 1, 8, 1, activation=jax.nn.silu, key=jax.random.key(0))

    def loss(model, batch):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    step = gritax.TrainStep(loss, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(8))
    solution = gritax.solve(step, step.init(model), 256, gritax.Multigrid((8,)))
    serial = gritax.solve_serial(step, step.init(model), 256).params
    assert solution.params.activation is model.activation
    arrays = lambda tree: eqx.filter(tree, eqx.is_inexact_array)
    error = small.distance(arrays(solution.params), arrays(serial))
    assert error <= 1e-6 * small.distance(arrays(serial), arrays(model))


def test_flax_nnx_state():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = nnx.Sequential(
            nnx.Linear(3, 8, rngs=nnx.Rngs(0), param_dtype=jnp.float64),
            jnp.tanh,
            nnx.Linear(8, 1, rngs=nnx.Rngs(1), param_dtype=float),
        )
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, batch):
            x, y = batch
            return jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)

        step = gritax.TrainStep(loss, optax.adam(1e-3), small.batches(), gritax.FrozenGradient(8))
        solution = _solved(step, step.init(params))
        assert nnx.merge(graph, solution.params, rest)(small.data()[0]).shape == (40, 1)


@pytest.mark.slow
def test_what_is_not_trained_is_carried_along():
    params = {"w": jnp.ones((3, 1)), "offset": jnp.array([0.5]), "index": jnp.array([2, 0, 1]), "name": "linear", "on": True}

    def loss(params, batch):
        x, y = batch
        return jnp.mean((x[:, params["index"]] @ params["w"] + params["offset"][None] - y) ** 2)

    trainable = {"w": True, "offset": False, "index": False, "name": False, "on": False}
    step = gritax.TrainStep(loss, optax.adam(1e-3), small.batches(), gritax.FrozenGradient(8), trainable=trainable)
    with jax.numpy_dtype_promotion("standard"):
        solution = gritax.solve(step, step.init(params), 256, gritax.Multigrid((8,)))
        serial = gritax.solve_serial(step, step.init(params), 256).params
    np.testing.assert_allclose(solution.params["w"], serial["w"], atol=1e-8)
    assert solution.params["offset"] == 0.5 and solution.params["name"] == "linear"
    np.testing.assert_array_equal(solution.params["index"], [2, 0, 1])


@pytest.mark.slow
def test_statistics_count_in_the_default_tolerance():
    """Statistics that the weights do not depend on, and that are no average: the solve must wait for them."""

    def loss(params, stats, batch):
        return small.loss(params, batch), stats + 0.3 * jnp.sin(3 * stats + jnp.sum(params["w"])) + 0.05

    step = gritax.TrainStep(loss, optax.sgd(0.002), small.batches(), gritax.FrozenGradient(4), has_aux=True)
    state = step.init(small.params(), jnp.asarray(0.1))
    solution = gritax.solve(step, state, 96, gritax.Multigrid((4,)))
    np.testing.assert_allclose(solution.state.stats, gritax.solve_serial(step, state, 96).stats, rtol=1e-5)


@pytest.mark.slow
def test_an_optimizer_that_is_told_the_loss():
    optimizer = optax.polyak_sgd(max_learning_rate=0.02)
    with jax.numpy_dtype_promotion("standard"):
        step = gritax.TrainStep(small.loss, optimizer, small.batches(), gritax.FrozenGradient(8))
        _solved(step, step.init(small.params()))


@pytest.mark.slow
def test_a_composite_loss_is_a_loss():
    composite = gritax.CompositeLoss(
        lambda p, batch: small.network(p, batch[0]), lambda z, batch: jnp.mean((z - batch[1]) ** 2)
    )
    step = gritax.TrainStep(composite, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(8))
    plain = gritax.TrainStep(small.loss, optax.sgd(0.02), small.batches())
    solution = _solved(step, step.init(small.params()))
    assert small.relative_error(plain, plain.init(small.params()), 256, solution) <= 1e-6
    with pytest.raises(ValueError, match="criterion must be a function"):
        gritax.CompositeLoss(small.network, 3)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [pytest.param(64, marks=pytest.mark.long), 67])
def test_losses_and_states_along_the_steps(num_steps):
    step = gritax.TrainStep(small.loss, optax.sgd(0.02, momentum=0.5), small.batches(), gritax.FrozenGradient(8))
    state = step.init(small.params())
    solution = gritax.solve(step, state, num_steps, gritax.Multigrid((8,)), save_every=6)
    losses, states = [], []
    for i in range(num_steps):
        losses.append(float(small.loss(state.params, step.batch(i))))
        state = step(state, jnp.int32(i), 1)
        states.append(state)
    np.testing.assert_allclose(solution.losses, losses, rtol=1e-5)
    assert len(solution.states.params["w"]) == num_steps // 6
    for saved, wanted in zip(solution.states.params["w"], states[5::6], strict=True):
        np.testing.assert_allclose(saved, wanted.params["w"], rtol=1e-5, atol=1e-8)


def test_states_have_their_clocks_and_an_ode_has_no_losses():
    phi = lambda state, start, stride: {"u": state["u"] * 0.9**stride, "count": state["count"] + stride}
    solution = gritax.solve(phi, {"u": 1.0, "count": jnp.int32(3)}, 21, gritax.Multigrid(4), save_every=5)
    np.testing.assert_array_equal(solution.states["count"], [8, 13, 18, 23])
    np.testing.assert_allclose(solution.states["u"], 0.9 ** np.array([5, 10, 15, 20]))
    assert solution.losses is None
    assert gritax.solve(phi, {"u": 1.0, "count": jnp.int32(3)}, 21).states is None


def test_a_step_that_jumps_is_told_of():
    def loss(params, batch):
        x, y = batch
        return jnp.mean((small.network(params, x, jax.nn.relu) - y) ** 2)

    step = gritax.TrainStep(loss, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(8))
    with pytest.warns(UserWarning, match="discontinuous gradient"):
        solution = gritax.solve(step, step.init(small.params()), 512, gritax.Multigrid((8,)), max_iterations=12, throw=False)
    assert not solution.converged and "GELU" in solution.reason


@pytest.mark.long
@pytest.mark.slow
def test_numbers_of_a_model_stay_as_they_are():
    """A dropout rate is a Python float: a constant, no weight, though it stands among weights."""

    class Model(eqx.Module):
        first: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        last: eqx.nn.Linear

        def __call__(self, x, key):
            return self.last(self.dropout(jnp.tanh(self.first(x)), key=key))

    def loss(model, batch, key):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x, jax.random.split(key, len(x))) - y) ** 2)

    keys = jax.random.split(jax.random.key(3))
    model = Model(eqx.nn.Linear(3, 8, key=keys[0]), eqx.nn.Dropout(0.25), eqx.nn.Linear(8, 1, key=keys[1]))
    step = gritax.TrainStep(loss, optax.adam(1e-3), small.batches(), gritax.FrozenGradient(8), key=jax.random.key(1))
    with jax.numpy_dtype_promotion("standard"):
        state = step.init(model)
        solution = gritax.solve(step, state, 128, gritax.Multigrid((8,)))
        serial = gritax.solve_serial(step, state, 128)
    assert solution.params.dropout.p == 0.25 and isinstance(solution.params.dropout.p, float)
    weights = lambda model: eqx.filter(model, eqx.is_array)
    error = small.distance(weights(solution.params), weights(serial.params))
    assert error <= 1e-6 * small.distance(weights(serial.params), weights(model))
