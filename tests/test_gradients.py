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
from jax.sharding import Mesh

import gritax
from gritax.differentiation import _linear
from gritax.differentiation._traced import _Call


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


class _Decay(eqx.Module):
    """Nonlinear, stiff and slow, with a right-hand side of the step's own."""

    rate: jax.Array
    forcing: jax.Array

    def __call__(self, u, start, stride):
        x = jnp.cos(0.01 * jnp.asarray(start, u.dtype))
        return (u + stride * self.forcing * x) / (1 + stride * self.rate * jnp.array([1.0, 10.0, 0.1]) * (1 + 0.1 * u**2))


def _serial(step, state, num_steps):
    """The final state by a loop that JAX differentiates."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def advance(w, i):
        return eqx.filter(step(eqx.combine(w, rest), i, 1), eqx.is_array), None

    found = jax.lax.scan(advance, arrays, jnp.arange(num_steps, dtype=jnp.int32))[0]
    return eqx.combine(found, rest)


def _solve(step, state, num_steps, **options):
    return gritax.solve(step, state, num_steps, **options).state


def _assert_near(found, wanted, tolerance=1e-6):
    found, wanted = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, wanted))
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)
    assert np.linalg.norm(wanted) > 0


_U, _RATE, _FORCING = jnp.array([1.0, 2.0, 3.0]), jnp.array(0.004), jnp.array([0.001, 0.002, 0.003])


def _final(run, rate, forcing, u, num_steps=1003, **options):
    return run(_Decay(rate, forcing), u, num_steps, **options)


def _loss(run, *arguments, **options):
    return jnp.sum(_final(run, *arguments, **options) ** 2)


@pytest.mark.parametrize("num_steps", [1, 5, 64, 1003])
@pytest.mark.parametrize("method", [gritax.Multigrid(4), gritax.Multigrid((16,), relaxation=0)])
def test_backwards(num_steps, method):
    found, wanted = (
        jax.grad(partial(_loss, run, num_steps=num_steps, **options), (0, 1, 2))(_RATE, _FORCING, _U)
        for run, options in ((_solve, {"method": method}), (_serial, {}))
    )
    for each, other in zip(found, wanted, strict=True):
        _assert_near(each, other, 1e-8)


def test_forwards():
    directions = (jnp.array(1.0), _FORCING, _U[::-1])
    found, wanted = (jax.jvp(partial(_final, run), (_RATE, _FORCING, _U), directions) for run in (_solve, _serial))
    _assert_near(found[0], wanted[0])
    _assert_near(found[1], wanted[1], 1e-8)


@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_jacobians(jacobian):
    found, wanted = (jacobian(partial(_final, run, num_steps=64), 1)(_RATE, _FORCING, _U) for run in (_solve, _serial))
    _assert_near(found, wanted, 1e-8)


def test_mapped_and_both():
    rates, us = _RATE * jnp.array([0.5, 1.0, 2.0]), jnp.stack([_U, 2 * _U, _U**2])
    for transform in (
        lambda f: jax.vmap(f, (0, None, 0))(rates, _FORCING, us),
        lambda f: jax.vmap(jax.grad(f, (0, 2)), (0, None, 0))(rates, _FORCING, us),
        lambda f: jax.grad(lambda rate: jnp.sum(jax.vmap(f, (0, None, 1))(rate * rates, _FORCING, us.T)))(_RATE),
        lambda f: jax.grad(lambda u: f(_RATE, u * _FORCING, u * _U) + jax.jvp(lambda x: x**2, (u,), (1.0,))[1])(jnp.array(1.0)),
    ):
        found, wanted = (transform(partial(_loss, run, num_steps=200)) for run in (_solve, _serial))
        _assert_near(found, wanted)


def test_on_several_devices():
    mesh = Mesh(np.array(jax.devices()[:3]), ("time",))
    found = jax.grad(partial(_loss, _solve, mesh=mesh), (0, 1, 2))(_RATE, _FORCING, _U)
    wanted = jax.grad(partial(_loss, _serial), (0, 1, 2))(_RATE, _FORCING, _U)
    _assert_near(found, wanted, 1e-8)


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


@pytest.mark.parametrize(
    ("name", "coarse", "dtype"),
    [
        ("adam", None, "float64"),
        ("momentum", None, "float32"),
        pytest.param("sgd", None, "float64", marks=pytest.mark.slow),
        pytest.param("momentum", None, "float64", marks=pytest.mark.slow),
        pytest.param("adam", None, "float32", marks=pytest.mark.slow),
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
    found, wanted = (jax.grad(partial(trained, run), range(5))(*arguments) for run in (_solve, _serial))
    for each, other in zip(found, wanted, strict=True):
        _assert_near(each, other, 1e-6 if dtype == "float64" else 2e-3)


def test_seeds_are_mapped():
    step = gritax.TrainStep(small.loss, optax.sgd(0.05), small.batches())
    batch = jax.vmap(small.params_of)(jax.random.split(jax.random.key(3), 3))

    def trained(params, run):
        return run(step, step.init(params), 200).params

    found, wanted = (jax.vmap(partial(trained, run=run))(batch) for run in (_solve, _serial))
    _assert_near(found, wanted)


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


def test_what_cannot_be():
    loss = partial(_loss, _solve, num_steps=64)
    with pytest.raises(ValueError, match="cannot be part of a compiled program"):
        jax.jit(loss)(_RATE, _FORCING, _U)
    with pytest.raises(ValueError, match="no Hessians"):
        jax.grad(jax.grad(loss))(_RATE, _FORCING, _U)
    with pytest.raises(ValueError, match="save_every is not for"):
        jax.grad(partial(loss, save_every=2))(_RATE, _FORCING, _U)
    with pytest.raises(ValueError, match="phi closes over values that are being traced"):
        jax.grad(lambda rate: gritax.solve(lambda u, start, stride: u / (1 + rate * stride), 1.0, 64).state)(0.01)


def test_a_step_that_cannot_be_differentiated_is_found_before_the_solve():
    def constant(u, start, stride):
        return u / (1 + 0.01 * jax.lax.while_loop(lambda s: s < stride, lambda s: s + 1.0, 0.0))

    def called_back(u, start, stride):
        return jax.pure_callback(lambda u: np.asarray(u / (1 + 0.01 * stride)), jax.ShapeDtypeStruct((), u.dtype), u)

    def looped(u, start, stride):
        if stride == 1:
            return 0.99 * u
        return jax.lax.while_loop(lambda each: each[0] < stride, lambda each: (each[0] + 1, 0.99 * each[1]), (0, u))[1]

    def solved(phi, u):
        return gritax.solve(phi, u, 64, progress=_Never()).state

    u = jnp.array(1.0)
    for phi, message in (
        (called_back, r"phi, .*called_back, cannot be differentiated backwards: phi\(state, start, 1\) raises"),
        (looped, r"phi, .*looped, cannot be differentiated backwards: phi\(state, start, 2\) raises .*while_loop"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.grad(partial(solved, phi))(u)
    assert jax.grad(lambda u: gritax.solve(constant, u, 64).state)(u) > 0  # its loop does not depend on the state
    derivative = jax.jvp(lambda u: gritax.solve(looped, u, 64).state, (u,), (u,))[1]
    assert derivative == pytest.approx(0.99**64, rel=1e-8)


class _Never(gritax.Progress):
    def begin(self, hierarchy):
        pytest.fail("the solve began")


def test_of_a_solve_that_did_not_converge():
    loss = partial(_loss, _solve, max_iterations=1)
    with pytest.raises(gritax.ConvergenceError):
        jax.grad(loss)(_RATE, _FORCING, _U)
    found = jax.grad(partial(loss, throw=False))(_RATE, _FORCING, _U)
    _assert_near(found, jax.grad(partial(_loss, _serial))(_RATE, _FORCING, _U), 0.1)


class _Two(eqx.Module):
    a: jax.Array
    b: jax.Array

    def __call__(self, u, start, stride):
        return (u + stride * 0.01 * self.b) / (1 + 0.01 * stride * self.a)


class _Again(_Two):
    def prepared(self, num_steps):
        return _Two(self.a, self.a)


def test_an_array_that_phi_has_twice():
    x, u = jnp.array(0.7), jnp.array(2.0)
    both, first, second = (lambda y: _Two(y, y)), (lambda y: _Two(y, x)), (lambda y: _Two(x, y))
    for made, same in ((both, both), (first, first), (second, second), (lambda y: _Again(y, x), both)):
        found, wanted = lambda y, made=made: _solve(made(y), u, 64), lambda y, same=same: _serial(same(y), u, 64)
        _assert_near(jax.grad(found)(x), jax.grad(wanted)(x))
        _assert_near(jax.jvp(found, (x,), (x,))[1], jax.jvp(wanted, (x,), (x,))[1])


def test_numbers_of_python():
    def phi(state, start, stride):
        rate, u = state
        return rate, u / (1 + 0.1 * stride * rate)

    def final(rate, u, run):
        return run(phi, (jnp.asarray(rate), u) if run is _serial else (rate, u), 64)[1]

    u = jnp.array(2.0)
    for argnums in (0, (0, 1)):
        found, wanted = (jax.grad(final, argnums)(0.5, u, run) for run in (_solve, _serial))
        _assert_near(found, wanted)
    found, wanted = (jax.grad(lambda b, run: run(_Two(jnp.array(0.7), b), u, 64))(0.5, run) for run in (_solve, _serial))
    _assert_near(found, wanted)


def test_solves_are_forgotten_with_their_derivatives():
    u = jnp.ones(1000)
    for _ in range(3):
        jax.grad(lambda u: jnp.sum(_solve(_Two(jnp.array(0.7), jnp.array(0.1)), u, 64)))(u)
    gc.collect()
    assert sum(isinstance(each, _Call) for each in gc.get_objects()) == 0


def test_closures_over_what_is_traced():
    def final(rate, params):
        step = gritax.TrainStep(small.loss, optax.sgd(rate), small.batches())
        return jnp.sum(gritax.solve(step, step.init(params), 48).params["w"])

    for argnums in (0, (0, 1)):
        with pytest.raises(ValueError, match="phi closes over values that are being traced"):
            jax.grad(final, argnums)(0.05, small.params())


def test_forwards_where_there_is_no_way_back():
    def looped(u, start, stride):
        return u + stride * 0.01 * jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, u)

    final = lambda u: gritax.solve(looped, u, 64).state
    u = jnp.array(1.5)
    _assert_near(jax.jacfwd(final)(u), jax.jvp(final, (u,), (jnp.ones(()),))[1], 1e-12)


def test_maps_that_cannot_be(tmp_path):
    final = lambda u, **options: gritax.solve(_Two(jnp.array(0.7), jnp.array(0.1)), u, 64, **options).state
    with pytest.raises(ValueError, match="over no members"):
        jax.vmap(final)(jnp.zeros(0))
    with pytest.raises(ValueError, match="checkpoint and resume are not for a solve under vmap"):
        jax.vmap(partial(final, checkpoint=tmp_path))(jnp.ones(2))


def test_a_second_moment_of_zero_is_named():
    x = jnp.linspace(-1.0, 1.0, 8)
    step = gritax.TrainStep(lambda w, batch: jnp.mean((w[0] * x - batch) ** 2), optax.adam(1e-2), lambda i: 2 * x)
    with pytest.raises(gritax.ConvergenceError, match=r"the adjoint is not finite: .* second moment is zero.* eps_root"):
        jax.grad(lambda w: jnp.sum(gritax.solve(step, step.init(w), 16).params ** 2))(jnp.zeros(2))
