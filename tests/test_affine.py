"""Affine evolutions: exact coarse steps, so that a solve ends where it begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gritax
from gritax.differentiation import _linear


_SIZE, _EXAMPLES, _BATCH = 7, 60, 2


def _least_squares(dtype):
    """(data, targets) of a regression, and the learning rate of half the stability limit."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(_EXAMPLES, _SIZE)), rng.normal(size=_EXAMPLES)
    rate = _EXAMPLES / np.linalg.eigvalsh(x.T @ x)[-1]
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype), jnp.asarray(rate, dtype)


def _dense(dtype):
    x, y, rate = _least_squares(dtype)
    return gritax.AffineStep(jnp.eye(_SIZE, dtype=dtype) - rate / _EXAMPLES * x.T @ x, rate / _EXAMPLES * x.T @ y)


def _diagonal(dtype):
    return gritax.AffineStep(jnp.linspace(0.2, 0.999, _SIZE, dtype=dtype), jnp.linspace(-1, 1, _SIZE, dtype=dtype))


def _rotating(dtype):
    """A diagonal and an offset that follow the step."""
    return gritax.AffineStep(
        lambda step: jnp.linspace(0.2, 0.999, _SIZE, dtype=dtype) * jnp.cos(0.1 * step.astype(dtype)),
        lambda step: jnp.sin(jnp.arange(_SIZE, dtype=dtype) + step.astype(dtype)),
    )


def _minibatches(dtype, rank=_BATCH):
    """Gradient descent on minibatches: I - rate / batch X_i^T X_i."""
    x, y, rate = _least_squares(dtype)
    x, y = x.reshape(-1, rank, _SIZE), y.reshape(-1, rank)
    scale = rate / (4 * rank)
    at = lambda step: step % len(x)
    return gritax.AffineStep(
        lambda step: gritax.LowRank(-scale * x[at(step)].T, x[at(step)].T), lambda step: scale * x[at(step)].T @ y[at(step)]
    )


def _low_rank(dtype):
    x, _, rate = _least_squares(dtype)
    return gritax.AffineStep(gritax.LowRank(-rate / _EXAMPLES * x[:3].T, x[:3].T), jnp.ones(_SIZE, dtype))


@pytest.mark.first(4)
@pytest.mark.slow(1)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("make", [_dense, _diagonal, _rotating, _minibatches, _low_rank])
def test_the_guess_is_the_solution(make, dtype):
    step, state, steps = make(dtype), jnp.ones(_SIZE, dtype), 1003
    solution = gritax.solve(step, state, steps)
    serial = gritax.solve_serial(step, state, steps)
    np.testing.assert_allclose(solution.state, serial, rtol=1e3 * jnp.finfo(dtype).eps, atol=1e2 * jnp.finfo(dtype).eps)
    # As deep as a scan: log2 N compositions, and on each level 4 steps up and, to measure, 4 down.
    assert solution.iterations <= 1 and solution.depth <= 10 + (1 + solution.iterations) * 8 * len(solution.level_sizes)


@pytest.mark.slow(1)
@pytest.mark.parametrize("make", [_dense, _minibatches])
def test_other_factors_are_exact_as_well(make):
    step, state = make("float64"), jnp.ones(_SIZE)
    solution = gritax.solve(step, state, 500, gritax.Multigrid((3, 5)))
    np.testing.assert_allclose(solution.state, gritax.solve_serial(step, state, 500), rtol=1e-12)
    assert solution.iterations <= 1


@pytest.mark.slow(1)
@pytest.mark.parametrize("stride", [1, 4, 12, 16])
def test_a_coarse_step_is_so_many_training_steps(stride):
    step, w = _minibatches("float64"), jnp.ones(_SIZE)
    composed, _, _ = step.adapted(None, None, 64, None)
    found = composed(w, jnp.int32(2 * stride), stride)
    for i in range(2 * stride, 3 * stride):
        w = step(w, jnp.int32(i), 1)
    np.testing.assert_allclose(found, w, rtol=1e-12)


@pytest.mark.slow
def test_gradients_by_the_matrix():
    matrix = jnp.linspace(0.2, 0.999, _SIZE)

    def final(matrix, run):
        return jnp.sum(run(gritax.AffineStep(matrix, jnp.ones(_SIZE)), jnp.zeros(_SIZE), 300))

    def loop(step, state, steps):
        return jax.lax.fori_loop(0, steps, lambda i, w: step(w, i, 1), state)

    found = jax.grad(final)(matrix, lambda *arguments: gritax.solve(*arguments).state)
    np.testing.assert_allclose(found, jax.grad(final)(matrix, loop), rtol=1e-8)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [256, 1000, 1003])
def test_gradients_where_steps_differ(num_steps):
    """An adjoint counts its coarse steps from the last C-point: exact ones leave it nothing to iterate."""
    turns = jnp.sign(jax.random.normal(jax.random.key(0), (num_steps, 3)))

    def final(turns, run):
        matrix = jax.tree_util.Partial(lambda turns, i: 0.9999 * turns[i], turns)
        return jnp.sum(run(gritax.AffineStep(matrix, jnp.ones(3)), jnp.ones(3), num_steps))

    def loop(step, state, steps):
        return jax.lax.fori_loop(0, steps, lambda i, w: step(w, i, 1), state)

    iterations, solved = [], _linear._solved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_linear, "_solved", lambda *given: iterations.append(found := solved(*given)) or found)
        found = jax.grad(final)(turns, lambda *arguments: gritax.solve(*arguments).state)
    np.testing.assert_allclose(found, jax.grad(final)(turns, loop), rtol=1e-8, atol=1e-8)
    assert iterations[0][0].reports[-1].number == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gritax.AffineStep(lambda i: np.ones((8, 2))[i % 8], jnp.ones(2)), "index jnp arrays with it, not NumPy ones"),
        (lambda: gritax.AffineStep(jnp.ones(2), lambda i: 0.0), r"offset must be \[2\] to fit the matrix, not \[\]"),
        (lambda: gritax.AffineStep(jnp.ones((2, 3)), jnp.ones(2)), r"matrix must be square, not \[2, 3\]"),
        (lambda: gritax.AffineStep(jnp.ones((2, 2)), jnp.ones(3)), r"offset must be \[2\] to fit the matrix, not \[3\]"),
        (lambda: gritax.AffineStep(jnp.ones((2, 2, 2)), jnp.ones(2)), r"matrix must be \[d, d\], a diagonal"),
        (lambda: gritax.AffineStep(jnp.eye(2, dtype=int), jnp.ones(2)), "must be floating-point arrays of one dtype"),
        (lambda: gritax.AffineStep(jnp.eye(2), jnp.ones(2, "float32")), "must be floating-point arrays of one dtype"),
        (lambda: gritax.LowRank(jnp.ones((3, 1)), jnp.ones((2, 1))), r"\[d, r\] of one shape"),
        (lambda: gritax.solve(_diagonal("float64"), jnp.ones(3), 10), r"state is float64\[3\], but matrix and offset are for"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
