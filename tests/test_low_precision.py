"""Leaves of few digits: the rounding of a leaf excuses what is left of that leaf, and of no other."""

import jax
import jax.numpy as jnp
import optax
import pytest
from small_problems import batches, distance, loss, params

import gritax


def solved_and_error(step, first, num_steps, method=None):
    solution = gritax.solve(step, step.init(first), num_steps, method, throw=False)
    serial = gritax.solve_serial(step, step.init(first), num_steps).params
    return solution, distance(solution.params, serial) / distance(serial, first)


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore:the evolution amplifies")
@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", [gritax.Multigrid((8,)), None])
def test_a_momentum_of_few_digits_ends_right_or_not_converged(narrow, method, mixed_dtypes):
    momentum = optax.sgd(0.02, momentum=0.9, accumulator_dtype=narrow)
    step = gritax.TrainStep(loss, momentum, batches(dtype="float32"), gritax.FrozenGradient(8))
    solution, error = solved_and_error(step, params(dtype="float32"), 128, method)
    assert error < 1e-5 if solution.converged else narrow in solution.reason, (error, solution)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the evolution amplifies", "ignore:Slow convergence")
def test_a_stall_near_the_floor_of_the_parameters_is_none_while_they_still_move(mixed_dtypes):
    nesterov = optax.sgd(0.003, momentum=0.9, nesterov=True, accumulator_dtype="bfloat16")
    x = jax.random.normal(jax.random.key(1), (128, 4), "float32")
    first = {"w": jax.random.normal(jax.random.key(2), (4, 16), "float32") / 2}
    first["v"] = jax.random.normal(jax.random.key(4), (16, 1), "float32") / 4
    batch = gritax.data.Epochs((x, jnp.sin(x).sum(1, keepdims=True)), 16, jax.random.key(3))
    perceptron = lambda p, batch: jnp.mean((jnp.tanh(batch[0] @ p["w"]) @ p["v"] - batch[1]) ** 2)
    step = gritax.TrainStep(perceptron, nesterov, batch, gritax.FrozenGradient(8))
    solution, error = solved_and_error(step, first, 400, gritax.Multigrid((8,)))
    assert error < 1e-5 or not solution.converged, (error, solution)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Slow convergence")
def test_a_frozen_leaf_of_few_digits_changes_nothing():
    rectified = lambda p, batch: jnp.mean((jax.nn.relu(batch[0] @ p["w"]) @ p["v"] - batch[1]) ** 2)

    def found(more):
        first = {name: params(dtype="float32")[name] for name in "wv"} | more
        sgd, is_trained = optax.sgd(0.05), lambda leaf: leaf.ndim == 2
        step = gritax.TrainStep(rectified, sgd, batches(dtype="float32"), gritax.FrozenGradient(8), trainable=is_trained)
        return solved_and_error(step, first, 512, gritax.Multigrid((8,)))

    (plain, error), (other, same) = found({}), found({"frozen": jnp.full(3, 7.0, jnp.bfloat16)})
    assert other.iterations == plain.iterations > 8
    assert error == same < 3e-6


@pytest.mark.slow
def test_a_stall_is_not_excused_by_a_helper_of_few_digits():
    def phi(state, start, stride):
        u, helper = state
        jump = jnp.where(jnp.sin(50 * u) > 0, 0.02, -0.02)  # a step that no coarse one follows
        return u + 0.01 * stride * (jnp.cos(u) + jump), (helper * 0.999).astype(jnp.bfloat16)

    state = jnp.zeros(()), jnp.full(1000, 3.0, jnp.bfloat16)
    solution = gritax.solve(phi, state, 400, throw=False, max_iterations=8)
    error = abs(float(solution.state[0] - gritax.solve_serial(phi, state, 400)[0]))
    assert not solution.converged or error < 1e-6


@pytest.mark.slow
def test_corrections_of_a_leaf_of_few_digits_keep_theirs():
    """An average in bfloat16 that steers nothing: parameters converge as they do without it."""

    def phi(state, start, stride):
        u, average = state
        return u + 0.01 * stride * jnp.cos(u), (0.9 * average + 0.1 * u.astype(jnp.bfloat16)).astype(jnp.bfloat16)

    state = jnp.zeros(()), jnp.zeros((), jnp.bfloat16)
    solution, serial = gritax.solve(phi, state, 400, throw=False), gritax.solve_serial(phi, state, 400)
    assert abs(float(solution.state[0] - serial[0])) < 1e-6
    assert solution.state[1].dtype == jnp.bfloat16
