"""Problems whose definition can be checked otherwise, and their serial twins."""

import jax
import numpy as np
import optax
import pytest

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _error(problem, num_steps, **options):
    solution = gritax.solve(problem.step, problem.state, num_steps, **options)
    serial = problem.step.params(gritax.solve_serial(problem.step, problem.state, num_steps))
    difference = optax.tree.norm(optax.tree.sub(solution.params, serial))
    return float(difference / optax.tree.norm(optax.tree.sub(serial, problem.state.params)))


@pytest.mark.slow
def test_poisson_by_finite_differences():
    """The loss from the network's values alone, by central differences of the second order."""
    problem = gritax.problems.poisson(num_points=5, dtype="float64")
    params, (points, _) = problem.state.params, problem.step.batch(0)

    def u(x):
        hidden = x
        for layer in params[:-1]:
            hidden = np.tanh(hidden @ np.asarray(layer["w"]) + np.asarray(layer["b"]))
        return np.prod(x * (1 - x), axis=1) * (hidden @ np.asarray(params[-1]["w"]) + np.asarray(params[-1]["b"]))[:, 0]

    x, h = np.asarray(points), 1e-4
    laplacian = sum(u(x + h * e) - 2 * u(x) + u(x - h * e) for e in np.eye(2)) / h**2
    force = 5 * np.pi**2 * np.sin(np.pi * x[:, 0]) * np.sin(2 * np.pi * x[:, 1])
    np.testing.assert_allclose(problem.loss(params), np.mean((laplacian + force) ** 2) / 2, rtol=1e-6)


@pytest.mark.first(0)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "seed", "bound"), [("float64", 1, 1e-6), pytest.param("float32", 2, 1e-3, marks=pytest.mark.long)]
)
def test_poisson_has_the_serial_weights(dtype, seed, bound):
    problem = gritax.problems.poisson(seed=seed, widths=(8,), num_points=32, dtype=dtype)
    assert _error(problem, 200, tolerance=None if dtype == "float32" else 1e-9) <= bound


@pytest.mark.long
@pytest.mark.slow
def test_poisson_is_learned():
    problem = gritax.problems.poisson(widths=(16, 16), num_points=128)
    trained = problem.step.params(gritax.solve_serial(problem.step, problem.state, 4000))
    assert problem.metrics(trained)["relative error"] < 0.2 < problem.metrics(problem.state.params)["relative error"]


@pytest.mark.slow
def test_poisson_in_minibatches():
    problem = gritax.problems.poisson(num_points=10, batch_size=5, dtype="float64")
    first, second, third = (np.asarray(problem.step.batch(step)[0]) for step in range(3))
    assert first.shape == (5, 2) and not np.array_equal(first, third)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 10


def test_poisson_without_points():
    with pytest.raises(ValueError, match="num_points must be at least 1, not 0"):
        gritax.problems.poisson(num_points=0)


@pytest.mark.long
@pytest.mark.slow
def test_digits_without_hidden_layers_is_logistic_regression():
    problem = gritax.problems.digits(optax.sgd(0.05), widths=(), dtype="float64")
    assert sum(x.size for x in jax.tree.leaves(problem.state.params)) == 650
    x, y = (np.asarray(each) for each in problem.step.batch(3))
    logits = x @ np.asarray(problem.state.params[0]["w"]) + np.asarray(problem.state.params[0]["b"])
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(y)), y])
    np.testing.assert_allclose(problem.step.loss(problem.state.params, (x, y)), expected, rtol=1e-12)
    assert _error(problem, 300, tolerance=1e-9) <= 1e-6
