"""A solve evaluates many steps at once, so what gives other values then is refused, or taken one step after the other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_problems import data, distance, params

import gritax


KINDS = ("threefry2x32", "rbg", "unsafe_rbg")


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.parametrize("remainder", ["drop", "fill"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_of_a_step_do_not_depend_on_the_table_or_on_other_steps(kind, remainder):
    batch = gritax.data.Epochs(jnp.arange(10), 4, jax.random.key(3, impl=kind), remainder=remainder)
    one_by_one = [batch.indices(jnp.int32(step)).tolist() for step in range(20, 24)]
    assert jax.vmap(batch.indices)(jnp.arange(20, 24)).tolist() == one_by_one
    for num_steps, first in ((128, 0), (64, 16)):
        table = batch.tabulated(num_steps, first)
        assert [table.indices(jnp.int32(step)).tolist() for step in range(20, 24)] == one_by_one
    # As within a solve, where a batch that calls Epochs has no table and its key is an argument of the program.
    intervals = eqx.filter_jit(lambda batch, steps: jax.vmap(jax.vmap(batch.indices))(steps))
    assert intervals(batch, jnp.arange(20, 24)[None]).tolist() == [one_by_one]


def dropout(p, batch, key):
    x, y = batch
    keep = jax.random.bernoulli(key, 0.8, (8,))
    return jnp.mean(((jnp.tanh(x @ p["w"]) * keep[None].astype(x.dtype)) @ p["v"] - y) ** 2)


def dropout_step(kind):
    return gritax.TrainStep(dropout, optax.sgd(0.02), lambda step: data(), key=jax.random.key(0, impl=kind))


def counting():
    calls = iter(range(1000))
    like = jax.ShapeDtypeStruct((), jnp.float64)
    draw = lambda step: jax.pure_callback(lambda _: np.float64(next(calls)), like, step, vmap_method="sequential")
    return lambda u, start, stride: u + 0.01 * draw(start)


def drawn_batch():
    key = jax.random.key(1, impl="unsafe_rbg")
    noisy = lambda step: jax.random.normal(jax.random.fold_in(key, step), (3,))
    return gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 2), optax.sgd(0.1), noisy)


@pytest.mark.slow(1)
@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_that_draw_other_numbers_for_many_steps_at_once_are_refused_with_the_cure(kind):
    step = dropout_step(kind)
    with pytest.raises(ValueError, match=r"params\['[vw]'\] otherwise .* impl=\"threefry2x32\""):
        gritax.solve(step, step.init(params()), 64)


def test_data_and_callbacks_that_differ_for_many_steps_at_once_are_refused():
    step = drawn_batch()
    with pytest.raises(ValueError, match="threefry2x32"):
        gritax.solve(step, step.init(jnp.zeros(3)), 64)
    with pytest.raises(ValueError, match="pure_callback: what is called must be a pure function"):
        gritax.solve(counting(), jnp.zeros(()), 64)


def test_training_takes_such_steps_one_after_the_other_and_says_why():
    step = dropout_step("rbg")
    trained = gritax.train(dropout, optax.sgd(0.02), step.batch, params(), 64, key=jax.random.key(0, impl="rbg"), goal="depth")
    assert distance(trained.params, gritax.solve_serial(step, step.init(params()), 64).params) == 0
    assert all(window.kind == "serial" for window in trained.windows)
    assert "threefry2x32" in trained.windows[0].reason


def test_callbacks_and_keys_in_the_state_that_are_pure_are_solved():
    like = jax.ShapeDtypeStruct((), jnp.float64)
    called = lambda step: jax.pure_callback(lambda i: np.float64(int(i) % 3), like, step, vmap_method="sequential")

    def phi(state, start, stride):
        u, key = state
        return (u - 0.01 * stride * (u - called(start))), jax.random.wrap_key_data(
            jax.random.key_data(key), impl="threefry2x32"
        )

    state = jnp.ones(()), jax.random.key(4, impl="threefry2x32")
    solution = gritax.solve(phi, state, 40)
    assert abs(float(solution.state[0] - gritax.solve_serial(phi, state, 40)[0])) < 1e-6


def test_a_key_in_the_state_that_draws_otherwise_for_many_steps_is_refused():
    def phi(state, start, stride):
        u, key = state
        return u + 0.01 * jax.random.normal(jax.random.fold_in(key, start), ()), key

    with pytest.raises(ValueError, match="threefry2x32"):
        gritax.solve(phi, (jnp.zeros(()), jax.random.key(4, impl="rbg")), 40)


def test_steps_past_what_int32_counts_are_refused():
    step = dropout_step("threefry2x32").after(2**31 - 2)
    with pytest.raises(ValueError, match=r"num_steps: step 2147483648 cannot be counted"):
        step.after(2)
    with pytest.raises(ValueError, match=r"first \+ num_steps is 2147483648"):
        gritax.data.Epochs(jnp.arange(10), 4, jax.random.key(3)).tabulated(8, 2**31 - 8)
