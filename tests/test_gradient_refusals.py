"""What a derivative or a map of a solve cannot be, and how that is said."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from derivatives import FORCING, RATE, Two, U, assert_near, parallel, serial, sum_of_squares

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def test_what_cannot_be():
    loss = partial(sum_of_squares, parallel, num_steps=64)
    with pytest.raises(ValueError, match="cannot be part of a compiled program"):
        jax.jit(loss)(RATE, FORCING, U)
    with pytest.raises(ValueError, match="no Hessians"):
        jax.grad(jax.grad(loss))(RATE, FORCING, U)
    with pytest.raises(ValueError, match="save_every is not for"):
        jax.grad(partial(loss, save_every=2))(RATE, FORCING, U)
    with pytest.raises(ValueError, match="phi closes over values that are being traced"):
        jax.grad(lambda rate: gritax.solve(lambda u, start, stride: u / (1 + rate * stride), 1.0, 64).state)(0.01)


def test_a_step_that_cannot_be_differentiated_is_found_before_the_solve():
    def constant(u, start, stride):
        return u / (1 + 0.01 * jax.lax.while_loop(lambda s: s < stride, lambda s: s + 1.0, 0.0))

    def called_back(u, start, stride):
        return jax.pure_callback(lambda u: np.asarray(u / (1 + 0.01 * stride)), jax.ShapeDtypeStruct((), u.dtype), u)

    def looped(u, start, stride):
        if stride == 1:
            return 0.99 * u
        return jax.lax.while_loop(lambda each: each[0] < stride, lambda each: (each[0] + 1, 0.99 * each[1]), (0, u))[1]

    def solved(phi, u):
        return gritax.solve(phi, u, 64, progress=_Never()).state

    u = jnp.array(1.0)
    for phi, message in (
        (called_back, r"phi, .*called_back, cannot be differentiated backwards: phi\(state, start, 1\) raises"),
        (looped, r"phi, .*looped, cannot be differentiated backwards: phi\(state, start, 2\) raises .*while_loop"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.grad(partial(solved, phi))(u)
    assert jax.grad(lambda u: gritax.solve(constant, u, 64).state)(u) > 0  # its loop does not depend on the state
    derivative = jax.jvp(lambda u: gritax.solve(looped, u, 64).state, (u,), (u,))[1]
    assert derivative == pytest.approx(0.99**64, rel=1e-8)


class _Never(gritax.Progress):
    def begin(self, hierarchy):
        pytest.fail("the solve began")


def test_of_a_solve_that_did_not_converge():
    loss = partial(sum_of_squares, parallel, max_iterations=1)
    with pytest.raises(gritax.ConvergenceError):
        jax.grad(loss)(RATE, FORCING, U)
    found = jax.grad(partial(loss, throw=False))(RATE, FORCING, U)
    assert_near(
        found,
        jax.grad(partial(sum_of_squares, serial))(RATE, FORCING, U),
        0.1,
    )


def test_closures_over_what_is_traced():
    def final(rate, params):
        step = gritax.TrainStep(small.loss, optax.sgd(rate), small.batches())
        return jnp.sum(gritax.solve(step, step.init(params), 48).params["w"])

    for argnums in (0, (0, 1)):
        with pytest.raises(ValueError, match="phi closes over values that are being traced"):
            jax.grad(final, argnums)(0.05, small.params())


def test_maps_that_cannot_be(tmp_path):
    final = lambda u, **options: gritax.solve(Two(jnp.array(0.7), jnp.array(0.1)), u, 64, **options).state
    with pytest.raises(ValueError, match="over no members"):
        jax.vmap(final)(jnp.zeros(0))
    with pytest.raises(ValueError, match="checkpoint and resume are not for a solve under vmap"):
        jax.vmap(partial(final, checkpoint=tmp_path))(jnp.ones(2))


@pytest.mark.long
@pytest.mark.slow
def test_a_second_moment_of_zero_is_named():
    x = jnp.linspace(-1.0, 1.0, 8)
    step = gritax.TrainStep(lambda w, batch: jnp.mean((w[0] * x - batch) ** 2), optax.adam(1e-2), lambda i: 2 * x)
    with pytest.raises(gritax.ConvergenceError, match=r"the adjoint is not finite: .* second moment is zero.* eps_root"):
        jax.grad(lambda w: jnp.sum(gritax.solve(step, step.init(w), 16).params ** 2))(jnp.zeros(2))
