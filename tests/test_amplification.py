"""Where an evolution amplifies rounding, a residual at the rounding floor says nothing of the final state."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import gritax


def lorenz(x, y, z):
    return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def rounded_otherwise(x, y, z):
    return jnp.stack([10 * y - 10 * x, 28 * x - x * z - y, x * y - 8 / 3 * z])


def chaos(u, start, stride):
    if stride == 1:
        return u + 0.002 * lorenz(*u)
    return jax.lax.fori_loop(0, stride, lambda _, u: u + 0.002 * rounded_otherwise(*u), u)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "num_steps"), [("float32", 12_000), ("float64", 24_000)])
def test_a_chaotic_evolution_is_not_said_to_have_converged(dtype, num_steps):
    first = jnp.array([1, 1, 20], dtype)
    solution = gritax.solve(chaos, first, num_steps, throw=False)
    serial = gritax.solve_serial(chaos, first, num_steps)
    assert float(jnp.linalg.norm(solution.state - serial) / jnp.linalg.norm(serial - first)) > 1e-3
    assert not solution.converged
    assert "amplifies a small change of its state" in solution.reason
    with pytest.raises(gritax.ConvergenceError, match="amplifies"):
        gritax.solve(chaos, first, num_steps)


@pytest.mark.slow(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_change_that_is_soon_no_longer_small_bounds_nothing(dtype):
    """The logistic map multiplies a change by about 4 an interval: from the first few points on it is as large as can be."""

    def logistic(u, start, stride):
        if stride == 1:
            return 3.7 * u * (1 - u)
        return jax.lax.fori_loop(0, stride, lambda _, u: 3.7 * (u - u * u), u)

    first = jnp.array([0.2, 0.3, 0.45, 0.7], dtype)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        solution = gritax.solve(logistic, first, 200, throw=False)
    serial = gritax.solve_serial(logistic, first, 200)
    error = float(jnp.linalg.norm(solution.state - serial) / jnp.linalg.norm(serial - first))
    assert "amplifies a small change of its state" in f"{solution.reason} {[str(each.message) for each in told]}"
    assert error < 1e-5 if solution.converged else error > 1e-2


def test_amplification_that_leaves_some_digits_is_told():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        solution = gritax.solve(chaos, jnp.array([1, 1, 20], "float32"), 3000, throw=False)
    assert "amplifies" in f"{solution.reason} {[str(each.message) for each in told]}"


@pytest.mark.slow(1)
@pytest.mark.parametrize("method", [None, gritax.Multigrid(max_levels=1), gritax.Multigrid((4, 4), cycle="F", relaxation=0)])
def test_the_figure_is_that_of_the_evolution(method):
    """u <- 1.002 u grows by 1.002^496 from the first C-point, 4, to the last, 500; one level begins at 0.

    The length of the change is the largest over a few C-points, which costs the figure 3 percent.
    """
    grows = lambda u, start, stride: u * 1.002**stride
    found = gritax.solve(grows, jnp.ones(2), 500, method).amplification
    steps = 500 if method is not None and method.max_levels == 1 else 496
    np.testing.assert_allclose(found, 1.002**steps, rtol=0.04)
    # A rotation that decays does not amplify, although each of its components is small now and then.
    turns = jnp.array([[0.0, -0.05], [0.05, 0.0]]) - 0.005 * jnp.eye(2)
    decays = lambda u, start, stride: jax.scipy.linalg.expm(stride * turns) @ u
    assert gritax.solve(decays, jnp.ones(2), 500, method).amplification <= 1


@pytest.mark.slow
def test_the_figure_is_the_same_on_several_devices():
    phi = lambda u, start, stride: u + 0.002 * stride * u / (1 + 0.01 * u**2)
    alone = gritax.solve(phi, jnp.array([0.1, 1.0]), 600)
    mesh = Mesh(np.array(jax.devices()[:4]), ("time",))
    np.testing.assert_allclose(gritax.solve(phi, jnp.array([0.1, 1.0]), 600, mesh=mesh).amplification, alone.amplification)
    assert alone.amplification > 2


@pytest.mark.long
@pytest.mark.slow
def test_training_that_amplifies_is_not_said_to_have_converged():
    """Attention of one head with Adam, at a rate at which training is chaotic."""
    keys, d = jax.random.split(jax.random.key(0), 6), 8
    normal = lambda key, *shape: jax.random.normal(key, shape, "float32") / np.float32(d**0.5)
    params = {"q": normal(keys[0], d, d), "k": normal(keys[1], d, d), "v": normal(keys[2], d, d), "o": normal(keys[3], d, 1)}
    x = jax.random.normal(keys[4], (64, 6, d), "float32")

    def loss(p, batch):
        x, y = batch
        weights = jax.nn.softmax(jnp.einsum("bid,bjd->bij", x @ p["q"], x @ p["k"]), -1)
        return jnp.mean((((weights @ (x @ p["v"])) @ p["o"])[..., 0].mean(1) - y) ** 2)

    batch = gritax.data.Epochs((x, jnp.sin(x.sum((1, 2)))), 2, keys[5])
    with jax.numpy_dtype_promotion("standard"):
        step = gritax.TrainStep(loss, optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.077)), batch)
        solution = gritax.solve(step, step.init(params), 511, throw=False)
    assert not solution.converged
    assert solution.amplification > 500
