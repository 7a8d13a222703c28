"""Leaves that are not floating point follow the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gritax


def _phi(state, start, stride):
    rate = 0.02 * stride / (1.0 + 0.01 * state["count"].astype(jnp.float64))
    return {"w": state["w"] * (1 - rate), "count": state["count"] + 3, "on": state["on"]}


def _state():
    return {"w": jnp.ones(2), "count": jnp.asarray(5, jnp.int32), "on": jnp.asarray(True)}


@pytest.mark.slow(1)
@pytest.mark.parametrize("num_steps", [40, 43])
def test_counters_equal_those_of_serial_training(num_steps):
    solution = gritax.solve(_phi, _state(), num_steps, tolerance=1e-11)
    serial = gritax.solve_serial(_phi, _state(), num_steps)
    assert int(solution.state["count"]) == int(serial["count"]) == 5 + 3 * num_steps
    np.testing.assert_allclose(solution.state["w"], serial["w"], rtol=1e-10)


@pytest.mark.slow(1)
@pytest.mark.parametrize("num_steps", [40, 43])
def test_random_keys_are_split_step_by_step(num_steps):
    def phi(state, start, stride):
        key, now = jax.random.split(state["key"])
        return {"key": key, "w": state["w"] - 0.02 * stride * (state["w"] - jax.random.normal(now, (2,)))}

    state = {"key": jax.random.key(0), "w": jnp.zeros(2)}
    solution = gritax.solve(phi, state, num_steps, tolerance=1e-11)
    serial = gritax.solve_serial(phi, state, num_steps)
    assert jnp.array_equal(jax.random.key_data(solution.state["key"]), jax.random.key_data(serial["key"]))
    np.testing.assert_allclose(solution.state["w"], serial["w"], rtol=1e-9)


def test_a_clock_that_is_no_counter_is_marched():
    def phi(state, start, stride):
        return {"w": state["w"] * (1 - 0.001 * stride * (1 + state["n"] % 3).astype(jnp.float64)), "n": state["n"] * 2 % 101}

    state = {"w": jnp.asarray(1.0), "n": jnp.asarray(7, jnp.int32)}
    solution = gritax.solve(phi, state, 57, tolerance=1e-12)
    serial = gritax.solve_serial(phi, state, 57)
    assert int(solution.state["n"]) == int(serial["n"])
    np.testing.assert_allclose(solution.state["w"], serial["w"], rtol=1e-11)


@pytest.mark.slow
def test_the_counter_of_an_optax_schedule():
    schedule = optax.cosine_decay_schedule(0.05, 60)
    step = gritax.TrainStep(lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(schedule), lambda step: jnp.ones(3))
    with jax.numpy_dtype_promotion("standard"):  # Optax multiplies the count by a float
        state = step.init(jnp.zeros(3))
        solution = gritax.solve(step, state, 60, tolerance=1e-12)
        serial = gritax.solve_serial(step, state, 60)
    assert [int(leaf) for leaf in jax.tree.leaves(solution.state.opt_state)] == [60]
    np.testing.assert_allclose(solution.params, serial.params, rtol=1e-10)


def test_a_clock_that_depends_on_floating_leaves_is_refused_by_name():
    def phi(state, start, stride):
        return {"w": 0.9 * state["w"], "n": state["n"] + (state["w"][0] > 0).astype(jnp.int32), "other": state["other"] + 1}

    state = {"w": jnp.ones(2), "n": jnp.asarray(0, jnp.int32), "other": jnp.asarray(0, jnp.int32)}
    with pytest.raises(ValueError, match=r"leaf \['n'\] is not floating point, but phi computes it from floating leaves"):
        gritax.solve(phi, state, 40)
