"""States along a run of gritax.Newton that are asked for are those of serial training, with all that they hold."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _problem(optimizer):
    step = gritax.TrainStep(small.loss, optimizer, small.batches())
    return step, step.init(small.params())


@pytest.mark.parametrize("save_every", [7, pytest.param(100, marks=pytest.mark.slow)])
def test_states_that_are_asked_for_are_those_of_serial_training(save_every):
    step, state = _problem(optax.sgd(0.02, momentum=0.9))
    solution = gritax.solve(step, state, 200, gritax.Newton(), save_every=save_every)
    after, serial, count = jax.jit(lambda state, i: step(state, i, 1)), [state], 200 // save_every
    for i in range(200):
        serial.append(after(serial[-1], jnp.int32(i)))
    travelled = small.distance(serial[-1].params, state.params)
    assert all(len(leaf) == count for leaf in jax.tree.leaves(solution.states))
    for i in range(count):
        saved, wanted = jax.tree.map(itemgetter(i), solution.states), serial[save_every * (i + 1)]
        assert jax.tree.structure(saved) == jax.tree.structure(wanted)
        assert small.distance(saved.params, wanted.params) < 2e-6 * travelled
        # The velocity moves the parameters at the rate.
        assert small.distance(saved.opt_state, wanted.opt_state) < 2e-6 * travelled / 0.02
    assert count <= solution.depth < 100


@pytest.mark.long
@pytest.mark.slow
def test_states_have_their_clocks_and_there_are_as_many_as_multigrid_gives():
    phi = lambda state, start, stride: {"u": state["u"] * 0.9**stride, "count": state["count"] + stride, "name": state["name"]}
    state = {"u": 1.0, "count": jnp.int32(3), "name": "decay"}
    for save_every, counts in ((5, [8, 13, 18, 23]), (21, [24]), (22, []), (10**30, [])):
        states = gritax.solve(phi, state, 21, gritax.Newton(), save_every=save_every).states
        np.testing.assert_array_equal(states["count"], counts)
        np.testing.assert_allclose(states["u"], 0.9 ** (np.array(counts) - 3.0), rtol=1e-5)
        assert states["name"] == "decay"
    assert gritax.solve(phi, state, 21, gritax.Newton()).states is None


@pytest.mark.slow
def test_every_state_that_is_asked_for_is_a_step_one_after_the_other():
    step, state = _problem(optax.sgd(0.05))
    solution = gritax.solve(step, state, 20, gritax.Newton(), save_every=1)
    assert solution.depth == 20
    np.testing.assert_allclose(solution.states.params["b"][-1], solution.params["b"])


@pytest.mark.slow
def test_states_that_training_has_not_reached_are_not_numbers():
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 4), optax.sgd(0.5), lambda step: jnp.ones(2))
    solution = gritax.solve(step, step.init(jnp.full(2, 3.0)), 100, gritax.Newton(), throw=False, save_every=1)
    assert np.isfinite(solution.states.params[0]).all() and np.isnan(solution.states.params[-1]).all()
