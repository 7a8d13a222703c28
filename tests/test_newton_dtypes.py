"""Parameters, statistics and states whose leaves have several dtypes: each is rounded as serial training rounds it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _mixed():
    params = small.params()
    return params | {"w": params["w"].astype("float32"), "b": params["b"].astype("float32")}


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "modelled"),
    [(optax.adam(1e-2), True), (optax.sgd(0.05), True), (optax.sgd(0.01, momentum=0.9), True), (optax.lion(1e-4), False)],
    ids=["adam", "sgd", "heavy ball", "lion"],
)
def test_parameters(optimizer, modelled):
    step = gritax.TrainStep(small.loss, optimizer, small.batches())
    state = step.init(_mixed())
    solution, serial = gritax.solve(step, state, 400, gritax.Newton(), throw=False), gritax.solve_serial(step, state, 400)
    assert jax.tree.map(lambda x: x.dtype, solution.params) == jax.tree.map(lambda x: x.dtype, serial.params)
    error = small.relative_error(step, state, 400, solution)
    assert solution.converged or not modelled
    assert error < 2e-5 if solution.converged else "not converged" in solution.reason, (error, solution.reason)


@pytest.mark.slow
def test_states_of_any_phi():
    def phi(u, start, stride):
        pull = 0.01 * jnp.sin(start.astype("float64"))
        return {
            "a": u["a"] - 0.1 * (u["a"] - jnp.tanh(u["b"]).astype("float32")),
            "b": u["b"] - 0.05 * (u["b"] - pull * u["a"].astype("float64") - 0.3),
        }

    state = {"a": jnp.ones(3, "float32"), "b": jnp.linspace(-1, 1, 3)}
    solution, serial = gritax.solve(phi, state, 500, gritax.Newton()), gritax.solve_serial(phi, state, 500)
    assert solution.converged
    for name in ("a", "b"):
        assert solution.state[name].dtype == state[name].dtype
        np.testing.assert_allclose(solution.state[name], serial[name], atol=1e-5)


@pytest.mark.slow(1)
@pytest.mark.parametrize(("dtype", "of_stats"), [("float32", "float64"), ("float64", "float32")])
def test_statistics_of_another_precision_than_the_parameters(dtype, of_stats):
    def loss(w, stats, x):
        return 0.5 * jnp.sum((w - x) ** 2), 0.9 * stats + 0.1 * jnp.sum(w).astype(stats.dtype)

    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda i: jnp.sin(i.astype(dtype)), has_aux=True)
    state = step.init(jnp.zeros(2, dtype), jnp.zeros((), of_stats))
    solution, serial = gritax.solve(step, state, 200, gritax.Newton()), gritax.solve_serial(step, state, 200)
    assert solution.state.stats.dtype == of_stats and solution.params.dtype == dtype
    np.testing.assert_allclose(solution.state.stats, serial.stats, rtol=1e-5)
    np.testing.assert_allclose(solution.params, serial.params, rtol=1e-5)
