"""Linear recurrences along a sequence: equal to the serial ones, in values and gradients."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.problems import GILR, GILRLSTM, linear_recurrence


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _serial(gates, inputs):
    def advance(h, each):
        h = each[0] * h + each[1]
        return h, h

    return jax.lax.scan(advance, jnp.zeros_like(inputs[0]), (gates, inputs))[1]


def _sequence(length, dtype, seed=0):
    gate_key, input_key = jax.random.split(jax.random.key(seed))
    gates = jax.nn.sigmoid(3 + 2 * jax.random.normal(gate_key, (length, 3), dtype))
    return gates, jax.random.normal(input_key, (length, 3), dtype)


@pytest.mark.first(2)
@pytest.mark.slow(2)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("length", [1, 2, 1000, pytest.param(100_003, marks=pytest.mark.long)])
def test_values_and_gradients_are_those_of_the_serial_recurrence(length, dtype):
    sequence = _sequence(length, dtype)
    weights = jnp.cos(jnp.arange(length, dtype=dtype))[:, None]

    def total(recurrence, gates, inputs):
        return jnp.sum(weights * recurrence(gates, inputs))

    near = partial(np.testing.assert_allclose, rtol=0, atol=200 * jnp.finfo(dtype).eps)
    scale = float(jnp.max(jnp.abs(_serial(*sequence))))
    near(linear_recurrence(*sequence) / scale, _serial(*sequence) / scale)
    found, wanted = (jax.grad(partial(total, each), (0, 1))(*sequence) for each in (linear_recurrence, _serial))
    for each, other in zip(found, wanted, strict=True):
        size = float(jnp.max(jnp.abs(other))) or 1.0
        near(each / size, other / size)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layer", [GILR, GILRLSTM])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layers_are_those_of_the_serial_recurrence(layer, dtype, monkeypatch):
    made = layer(5, 4, jax.random.key(0), memory=50.0, dtype=dtype)
    x = jax.random.normal(jax.random.key(1), (700, 5), dtype)
    total = lambda layer: jnp.sum(layer(x)[-1] ** 2) + jnp.sum(layer(x))
    found = made(x), eqx.filter_grad(total)(made)
    monkeypatch.setattr("gritax.problems._recurrence.linear_recurrence", _serial)
    wanted = made(x), eqx.filter_grad(total)(made)
    for each, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(each, other, rtol=0, atol=500 * jnp.finfo(dtype).eps * float(jnp.max(jnp.abs(other))))


@pytest.mark.long
@pytest.mark.parametrize(("seed", "optimizer"), [(1, optax.sgd(0.5)), (2, optax.adam(1e-2))])
def test_training_on_long_memory_in_parallel_along_both_axes(seed, optimizer):
    problem = gritax.problems.long_memory(24, optimizer, seed, size=4, dtype="float64")
    solution = gritax.solve(problem.step, problem.state, 200, gritax.Multigrid((8,)))  # two levels to compile
    assert small.relative_error(problem.step, problem.state, 200, solution) <= 1e-6
    assert problem.loss(solution.params) < problem.loss(problem.state.params)


@pytest.mark.slow
def test_the_label_is_the_first_symbol():
    problem = gritax.problems.long_memory(10, symbols=3)
    x, y = problem.step.batch(jnp.int32(7))
    np.testing.assert_array_equal(jnp.argmax(x[:, 0, :3], axis=1), y)
    np.testing.assert_array_equal(x[:, :, 3].sum(axis=1), 1)
    assert len(set(np.asarray(y).tolist())) == 3
    assert not np.array_equal(problem.step.batch(jnp.int32(8))[0], x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_recurrence(jnp.ones((0, 2)), jnp.ones((0, 2))), "at least one time"),
        (lambda: linear_recurrence(jnp.full(3, 1.5), jnp.ones(3)), "gates must lie between 0 and 1"),
        (lambda: linear_recurrence(jnp.full(3, -0.5), jnp.ones(3)), "gates must lie between 0 and 1"),
        (lambda: linear_recurrence(jnp.full(3, jnp.nan), jnp.ones(3)), "gates must lie between 0 and 1"),
        (lambda: linear_recurrence(jnp.ones(3), jnp.ones(4)), "they must be alike"),
        (lambda: linear_recurrence(jnp.ones(3), jnp.ones(3, "float32")), "they must be alike"),
        (lambda: linear_recurrence(jnp.ones(3, int), jnp.ones(3, int)), "must be floating-point"),
        (lambda: GILR(3, 2, jax.random.key(0))(jnp.ones((0, 3))), "at least one time"),
        (lambda: GILR(3, 2, jax.random.key(0))(jnp.ones((5, 4))), r"x must be \[times, 3\]"),
        (lambda: GILR(3, 0, jax.random.key(0)), "size must be a whole number"),
        (lambda: GILR(3, 2, jax.random.key(0), memory=1.0), "memory must be"),
        (lambda: gritax.problems.long_memory(0), "length must be a whole number"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
