"""The frozen-gradient coarse step against a loop written by hand, its memory, and the refresh that it chooses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.coarse._curvature import largest_kappas


_OPTIMIZERS = {
    "sgd": optax.sgd(0.02),
    "decay and nesterov": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.004, momentum=0.8, nesterov=True)),
    "scheduled momentum": optax.sgd(optax.linear_schedule(0.02, 0.0, 16), momentum=0.5),
    "adam": optax.adam(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.02, momentum=0.5)),
    "two rates": optax.multi_transform(
        {"fast": optax.sgd(0.02), "slow": optax.sgd(0.01)},
        lambda tree: {name: "slow" if name == "b" else "fast" for name in tree},
    ),
}


def _by_hand(step, state, start, stride, refresh):
    """One gradient after the other at frozen parameters, each through the optimizer."""
    params, opt_state = state.params, state.opt_state
    for k in range(start, start + stride):
        if (k - start) % refresh == 0:
            frozen = params
        gradient = jax.grad(step.loss)(frozen, step.batch(k))
        updates, opt_state = step.optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state


@pytest.mark.first(6)
@pytest.mark.slow(1)
@pytest.mark.parametrize(("stride", "refresh", "chunk"), [(7, 3, 2), (8, math.inf, 3), (6, 6, 16)])
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_a_coarse_step_is_the_optimizer_on_gradients_at_frozen_parameters(name, stride, refresh, chunk):
    with jax.numpy_dtype_promotion("standard"):
        coarse = gritax.FrozenGradient(refresh, chunk)
        step = gritax.TrainStep(small.loss, _OPTIMIZERS[name], small.batches(), coarse)
        # From a state with moments in it.
        state = gritax.solve_serial(step, step.init(small.params()), 5)
        found = jax.jit(lambda state, start: step(state, start, stride))(state, jnp.int32(5))
        params, opt_state = _by_hand(step, state, 5, stride, refresh)
    floating = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    for x, y in zip(floating((found.params, found.opt_state)), floating((params, opt_state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-14)


def test_depth_and_work():
    coarse = gritax.FrozenGradient(refresh=16)
    assert [coarse.depth(stride) for stride in (2, 16, 17, 64)] == [1, 1, 2, 4]
    assert coarse.work(64) == 64
    assert gritax.FrozenGradient(math.inf).depth(4096) == 1


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_memory_is_bounded_by_the_chunk(name):
    """Not by the stride times the number of parameters: less than one copy of them more at eight times the stride."""
    params = {"w": jnp.ones((200, 200))}
    loss = lambda params, x: jnp.sum(jnp.tanh(params["w"] @ x))

    def peak(stride):
        step = gritax.TrainStep(
            loss,
            _OPTIMIZERS[name],
            lambda step: jnp.cos(jnp.arange(200.0) * jnp.asarray(step, float)),
            gritax.FrozenGradient(math.inf, chunk=4),
        )
        run = jax.jit(lambda state: step(state, jnp.int32(0), stride))
        return run.lower(step.init(params)).compile().memory_analysis().temp_size_in_bytes

    with jax.numpy_dtype_promotion("standard"):
        assert peak(64) < peak(8) + 200 * 200 * 8


@pytest.mark.slow
def test_kappa_is_rate_times_curvature():
    """A quadratic with known curvatures; a heavy ball goes 1 / (1 - beta) times as far, Adam by the root of its moment."""
    curvatures = jnp.array([3.0, 1.0, 0.1])
    loss = lambda w, batch: 0.5 * jnp.sum(curvatures * w**2)

    def kappa(optimizer, params):
        step = gritax.TrainStep(loss, optimizer, lambda step: None)
        states = jax.tree.map(lambda x: jnp.asarray(x)[None], step.init(params))
        found, depth, work = largest_kappas(step, states, np.zeros(1, np.int32), 16, 16)
        assert depth == 14 and work == 14 * 16
        return found

    w = jnp.ones(3)
    assert kappa(optax.sgd(0.01), w) == pytest.approx(0.03, rel=1e-3)
    assert kappa(optax.sgd(0.01, momentum=0.9), w) == pytest.approx(0.3, rel=1e-3)
    assert kappa(optax.sgd(0.01, momentum=0.9, nesterov=True), w) == pytest.approx(0.3, rel=1e-3)

    assert kappa(optax.chain(optax.clip(100.0), optax.sgd(0.01)), w) == pytest.approx(0.03, rel=1e-3)


@pytest.mark.slow
def test_the_refresh_follows_the_curvature():
    """The largest power of two with kappa at most 1.5."""

    def refresh(rate):
        loss = lambda w, batch: 0.5 * jnp.sum(jnp.array([2.0, 0.5]) * w**2)
        step = gritax.TrainStep(loss, optax.sgd(rate), lambda step: None)
        return gritax.solve(step, step.init(jnp.ones(2)), 800).coarse_steps

    assert refresh(0.01) == "FrozenGradient(refresh=64), chosen from the curvature"
    assert refresh(0.1) == "FrozenGradient(refresh=4), chosen from the curvature"


@pytest.mark.long
@pytest.mark.slow
def test_momentum_sets_the_first_factor():
    step = gritax.TrainStep(small.loss, optax.sgd(1e-4, momentum=0.9), small.batches())
    solution = gritax.solve(step, step.init(small.params()), 512)
    assert solution.hierarchy[0].factor == 32
    assert small.relative_error(step, step.init(small.params()), 512, solution) <= 1e-6


@pytest.mark.slow
def test_curvature_that_rises_on_the_way_starts_the_solve_again():
    """Flat at the start, a hundred times as stiff where training goes."""
    loss = lambda w, batch: jnp.sum(0.5 * w**2 * (0.01 + jax.nn.sigmoid(20 * (0.5 - w))))
    step = gritax.TrainStep(loss, optax.sgd(0.2), lambda step: None)
    state = step.init(jnp.array([1.0]))
    solution = gritax.solve(step, state, 600)
    assert len(solution.restarts) >= 1 and "curvature" in solution.restarts[0]
    assert small.relative_error(step, state, 600, solution) <= 1e-6
    assert "started again" in str(solution)


@pytest.mark.slow
def test_a_refresh_of_the_callers_is_kept_and_its_divergence_is_an_error():
    loss = lambda w, batch: 0.5 * jnp.sum(2 * w**2)
    step = gritax.TrainStep(loss, optax.sgd(0.4), lambda step: None, gritax.FrozenGradient(refresh=64))
    with pytest.raises(gritax.ConvergenceError, match="diverged"):
        gritax.solve(step, step.init(jnp.ones(2)), 4096, gritax.Multigrid((8, 8), relaxation=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gritax.FrozenGradient(0), "refresh must be"),
        (lambda: gritax.FrozenGradient(2.5), "refresh must be"),
        (lambda: gritax.FrozenGradient(chunk=0), "chunk must be"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.long
@pytest.mark.slow
def test_a_guess_that_overflows_is_made_again_with_a_quarter():
    """Warm-up: at its start the curvature is small, and the refresh it asks for is far too long later."""
    loss = lambda w, x: jnp.sum(5 * (w - x) ** 2 + w**4)
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.002, 2000, 4000)
    with jax.numpy_dtype_promotion("standard"):
        batch = lambda step: 0.3 * jnp.sin(1.7 * jnp.asarray(step, float)) * jnp.ones(3)
        step = gritax.TrainStep(loss, optax.sgd(rate), batch)
        state = step.init(jnp.ones(3))
        solution = gritax.solve(step, state, 4000)
        assert solution.restarts and solution.depth < 1000
        assert small.relative_error(step, state, 4000, solution) <= 1e-6
