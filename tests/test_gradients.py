"""Derivatives of a solve are those of serial training: by autodiff through its loop, forwards, backwards and mapped."""

import gc
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from derivatives import FORCING, RATE, Two, U, assert_near, end, parallel, serial, sum_of_squares
from jax.sharding import Mesh

import gritax
from gritax.differentiation import _linear
from gritax.differentiation._call import Call


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize("num_steps", [1, 5, 64, 1003])
@pytest.mark.parametrize("method", [gritax.Multigrid(4), gritax.Multigrid((16,), relaxation=0)])
def test_backwards(num_steps, method):
    found, wanted = (
        jax.grad(partial(sum_of_squares, run, num_steps=num_steps, **options), (0, 1, 2))(RATE, FORCING, U)
        for run, options in ((parallel, {"method": method}), (serial, {}))
    )
    for each, other in zip(found, wanted, strict=True):
        assert_near(each, other, 1e-8)


@pytest.mark.slow
def test_forwards():
    directions = (jnp.array(1.0), FORCING, U[::-1])
    found, wanted = (jax.jvp(partial(end, run), (RATE, FORCING, U), directions) for run in (parallel, serial))
    assert_near(found[0], wanted[0])
    assert_near(found[1], wanted[1], 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_jacobians(jacobian):
    found, wanted = (jacobian(partial(end, run, num_steps=64), 1)(RATE, FORCING, U) for run in (parallel, serial))
    assert_near(found, wanted, 1e-8)


@pytest.mark.long
@pytest.mark.slow
def test_mapped_and_both():
    rates, us = RATE * jnp.array([0.5, 1.0, 2.0]), jnp.stack([U, 2 * U, U**2])
    for transform in (
        lambda f: jax.vmap(f, (0, None, 0))(rates, FORCING, us),
        lambda f: jax.vmap(jax.grad(f, (0, 2)), (0, None, 0))(rates, FORCING, us),
        lambda f: jax.grad(lambda rate: jnp.sum(jax.vmap(f, (0, None, 1))(rate * rates, FORCING, us.T)))(RATE),
        lambda f: jax.grad(lambda u: f(RATE, u * FORCING, u * U) + jax.jvp(lambda x: x**2, (u,), (1.0,))[1])(jnp.array(1.0)),
    ):
        found, wanted = (transform(partial(sum_of_squares, run, num_steps=200)) for run in (parallel, serial))
        assert_near(found, wanted)


@pytest.mark.slow
def test_on_several_devices():
    mesh = Mesh(np.array(jax.devices()[:3]), ("time",))
    found = jax.grad(partial(sum_of_squares, parallel, mesh=mesh), (0, 1, 2))(RATE, FORCING, U)
    wanted = jax.grad(partial(sum_of_squares, serial), (0, 1, 2))(RATE, FORCING, U)
    assert_near(found, wanted, 1e-8)


class _Decayed(eqx.Module):
    """A loss with weight decay, and a shift of the data."""

    decay: jax.Array
    shift: jax.Array

    def __call__(self, params, batch):
        x, y = batch
        return small.loss(params, (x + self.shift[None], y)) + 0.5 * self.decay * sum(
            jnp.sum(w**2) for w in jax.tree.leaves(params)
        )


def _optimizer(name):
    return {
        "sgd": optax.inject_hyperparams(optax.sgd)(learning_rate=0.05),
        "momentum": optax.inject_hyperparams(optax.sgd)(learning_rate=0.02, momentum=0.9),
        "adam": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    }[name]


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "coarse", "dtype"),
    [
        pytest.param("momentum", None, "float32", marks=pytest.mark.long),
        ("adam", None, "float64"),
        pytest.param("sgd", None, "float64", marks=pytest.mark.long),
        pytest.param("momentum", None, "float64", marks=pytest.mark.long),
        pytest.param("adam", None, "float32", marks=pytest.mark.long),
        ("sgd", gritax.Stabilized(), "float64"),
    ],
)
def test_training(name, coarse, dtype):
    """By initial parameters, learning rate, weight decay, and data."""
    optimizer, steps = _optimizer(name), 501

    def trained(run, params, rate, decay, shift, x):
        batch = eqx.tree_at(lambda batch: batch.arrays[0], small.batches(dtype=dtype), x)
        step = gritax.TrainStep(_Decayed(decay, shift), optimizer, batch, coarse)
        state = step.init(params)
        state = eqx.tree_at(lambda state: state.opt_state.hyperparams["learning_rate"], state, rate)
        return small.loss(run(step, state, steps).params, small.data(5, dtype))

    params = small.params(dtype=dtype)
    rate = optimizer.init(params).hyperparams["learning_rate"].astype(dtype)
    arguments = (params, rate, jnp.asarray(1e-3, dtype), jnp.zeros(3, dtype), small.data(dtype=dtype)[0])
    found, wanted = (jax.grad(partial(trained, run), range(5))(*arguments) for run in (parallel, serial))
    for each, other in zip(found, wanted, strict=True):
        assert_near(each, other, 1e-6 if dtype == "float64" else 2e-3)


@pytest.mark.long
@pytest.mark.slow
def test_seeds_are_mapped():
    step = gritax.TrainStep(small.loss, optax.sgd(0.05), small.batches())
    batch = jax.vmap(small.params_of)(jax.random.split(jax.random.key(3), 3))

    def trained(params, run):
        return run(step, step.init(params), 200).params

    found, wanted = (jax.vmap(partial(trained, run=run))(batch) for run in (parallel, serial))
    assert_near(found, wanted)


@pytest.mark.long
@pytest.mark.slow
def test_data_have_one_derivative_not_one_for_each_lane(monkeypatch):
    found, by_arrays = [], _linear._by_arrays

    def measured(*arguments):
        found.append(by_arrays.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
        return by_arrays(*arguments)

    def loss(params, batch):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2)

    def trained(x):
        step = gritax.TrainStep(loss, optax.sgd(0.01), gritax.data.Epochs((x, x[:, 0]), 4, jax.random.key(1)))
        return jnp.sum(gritax.solve(step, step.init(jnp.zeros(4)), 512).params)

    x = jax.random.normal(jax.random.key(0), (20_000, 4))
    monkeypatch.setattr(_linear, "_by_arrays", measured)
    jax.grad(trained)(x)
    lanes = 512 // 4 // 4
    assert 0 < found[0] < lanes * x.nbytes / 4


class _Again(Two):
    def prepared(self, num_steps):
        return Two(self.a, self.a)


@pytest.mark.long
@pytest.mark.slow
def test_an_array_that_phi_has_twice():
    x, u = jnp.array(0.7), jnp.array(2.0)
    both, first, second = (
        (lambda y: Two(y, y)),
        (lambda y: Two(y, x)),
        (lambda y: Two(x, y)),
    )
    for made, same in ((both, both), (first, first), (second, second), (lambda y: _Again(y, x), both)):
        found, wanted = (
            lambda y, made=made: parallel(made(y), u, 64),
            lambda y, same=same: serial(same(y), u, 64),
        )
        assert_near(jax.grad(found)(x), jax.grad(wanted)(x))
        assert_near(jax.jvp(found, (x,), (x,))[1], jax.jvp(wanted, (x,), (x,))[1])


@pytest.mark.slow
def test_numbers_of_python():
    def phi(state, start, stride):
        rate, u = state
        return rate, u / (1 + 0.1 * stride * rate)

    def final(rate, u, run):
        return run(phi, (jnp.asarray(rate), u) if run is serial else (rate, u), 64)[1]

    u = jnp.array(2.0)
    for argnums in (0, (0, 1)):
        found, wanted = (jax.grad(final, argnums)(0.5, u, run) for run in (parallel, serial))
        assert_near(found, wanted)
    found, wanted = (jax.grad(lambda b, run: run(Two(jnp.array(0.7), b), u, 64))(0.5, run) for run in (parallel, serial))
    assert_near(found, wanted)


@pytest.mark.slow
def test_solves_are_forgotten_with_their_derivatives():
    u = jnp.ones(1000)
    for _ in range(3):
        jax.grad(lambda u: jnp.sum(parallel(Two(jnp.array(0.7), jnp.array(0.1)), u, 64)))(u)
    gc.collect()
    assert sum(isinstance(each, Call) for each in gc.get_objects()) == 0


@pytest.mark.slow
def test_forwards_where_there_is_no_way_back():
    def looped(u, start, stride):
        return u + stride * 0.01 * jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, u)

    final = lambda u: gritax.solve(looped, u, 64).state
    u = jnp.array(1.5)
    assert_near(jax.jacfwd(final)(u), jax.jvp(final, (u,), (jnp.ones(()),))[1], 1e-12)
