"""Running statistics along a sliding window are those of serial training, whether or not the loss reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_problems import distance, relative_error

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def problem(optimizer, reads, dtype="float64"):
    """Batch normalisation of a hidden layer, by the batch or by the running statistics themselves."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (128, 4), dtype)
    y = jnp.sin(x[:, 0]) + x[:, 1]
    weights = {
        "w": jax.random.normal(jax.random.fold_in(key, 1), (4, 12), dtype) / 2,
        "v": jax.random.normal(jax.random.fold_in(key, 2), (12,), dtype) / 4,
    }

    def loss(w, stats, batch):
        x, y = batch
        h = x @ w["w"]
        mean, variance = jnp.mean(h, axis=0), jnp.var(h, axis=0)
        after = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, {"mean": mean, "variance": variance})
        by = stats if reads else {"mean": mean, "variance": variance}
        h = jnp.tanh((h - by["mean"][None]) / jnp.sqrt(by["variance"] + 1e-2)[None])
        return jnp.mean((h @ w["v"] - y) ** 2), after

    stats = {"mean": jnp.zeros(12, dtype), "variance": jnp.ones(12, dtype)}
    step = gritax.TrainStep(loss, optimizer, gritax.data.Epochs((x, y), 16, key=key), has_aux=True)
    return step, step.init(weights, stats)


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "reads", "dtype"),
    [
        (optax.sgd(0.05), False, "float64"),
        (optax.adam(2e-3), True, "float64"),
        (optax.sgd(0.05), False, "float32"),
        pytest.param(optax.sgd(0.02, momentum=0.9), True, "float64", marks=pytest.mark.long),
        pytest.param(optax.adam(2e-3), False, "float64", marks=pytest.mark.long),
    ],
)
def test_they_are_those_of_serial_training(optimizer, reads, dtype):
    step, state = problem(optimizer, reads, dtype)
    solution = gritax.solve(step, state, 300, gritax.Newton(), throw=False)
    serial = gritax.solve_serial(step, state, 300)
    bound = 2e-6 if dtype == "float64" else 2e-5
    if reads:  # which the model knows nothing of
        assert "from the final state of serial steps" in solution.reason
        bound = 2e-5
        assert solution.converged == (relative_error(step, state, 300, solution) <= 1e-6)
    else:
        assert solution.converged
    assert distance(solution.params, serial.params) < bound * distance(serial.params, state.params)
    assert distance(solution.state.stats, serial.stats) < bound * distance(serial.stats, state.stats)
    assert solution.depth < 150


@pytest.mark.slow
def test_they_follow_where_nothing_is_to_be_corrected():
    """The mean of the steps' numbers, which no parameter moves."""
    step = gritax.TrainStep(
        lambda w, s, i: (0.5 * jnp.sum((w - 1) ** 2), 0.5 * s + 0.5 * i.astype(s.dtype)),
        optax.sgd(0.1),
        lambda i: i,
        has_aux=True,
    )
    state = step.init(jnp.zeros(2), jnp.zeros(()))
    solution = gritax.solve(step, state, 100, gritax.Newton())
    serial = gritax.solve_serial(step, state, 100)
    np.testing.assert_allclose(solution.state.stats, serial.stats, rtol=1e-6)


def test_whole_numbers_are_refused():
    step = gritax.TrainStep(lambda w, s, i: (0.5 * jnp.sum((w - 1) ** 2), s + 1), optax.sgd(0.1), lambda i: i, has_aux=True)
    with pytest.raises(ValueError, match="some are int32"):
        gritax.solve(step, step.init(jnp.zeros(2), jnp.int32(0)), 60, gritax.Newton())
