"""The stiffest directions: found as eigenvectors find them, taken exactly, and worth their stages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.coarse._known_run import KnownRun
from gritax.coarse._stages import chebyshev, exact
from gritax.coarse._stiffest import Stiffest, stiffest_directions


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


@pytest.mark.slow(2)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_modes_taken_exactly_decay_as_the_exponential_does(count, dtype):
    x = jnp.asarray(np.geomspace(1e-3, 50, 30), dtype)
    d = exact(x, jnp.int32(count))
    end, _ = chebyshev(lambda y: (-d * x * y, ()), jnp.ones_like(x), jnp.int32(count))
    np.testing.assert_allclose(end, np.exp(-np.asarray(x)), atol=1e-3)
    faster = np.asarray(x) > 0.05
    np.testing.assert_allclose(end[faster], np.exp(-np.asarray(x))[faster], atol=1e-12 if dtype == "float64" else 1e-5)


def _quadratic(optimizer, dtype, directions):
    """Curvatures of 1, .8, .6 and many below .05, in directions that are none of the axes."""
    random = np.random.default_rng(0)
    curvatures = np.concatenate([[1.0, 0.8, 0.6], 0.05 / np.arange(1, 18)])
    turned = np.linalg.qr(random.standard_normal((20, 20)))[0]
    matrix = jnp.asarray(turned @ np.diag(curvatures) @ turned.T, dtype)
    rest = jnp.asarray(random.standard_normal(20), dtype)
    loss = lambda params, _: 0.5 * (params["w"] - rest) @ matrix @ (params["w"] - rest)
    step = gritax.TrainStep(loss, optimizer, lambda step: (), gritax.Stabilized(directions=directions))
    return step, step.init({"w": jnp.ones(20, dtype)}), turned


def _stacked(state):
    return jax.tree.map(lambda x: jnp.stack([x, x]), state)


@pytest.mark.slow(1)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_they_are_the_leading_eigenvectors(dtype):
    step, state, turned = _quadratic(optax.sgd(0.1), dtype, 3)
    known = Stiffest.nowhere(state.params, 3)
    assert not known.anywhere and known.count == 3
    found, largest, rest, *_ = stiffest_directions(step, _stacked(state), np.array([0, 8]), 4, 16, known)
    tight = 1e-6 if dtype == "float64" else 2e-3
    np.testing.assert_allclose(np.sort(found.kappas[0]), [0.06, 0.08, 0.1], rtol=10 * tight)
    np.testing.assert_allclose(np.linalg.norm(turned[:, :3].T @ found.basis[0]) ** 2, 3, rtol=tight)
    np.testing.assert_allclose(largest, 0.1, rtol=10 * tight)
    np.testing.assert_allclose(rest, 0.005, rtol=0.05)
    assert found.anywhere and not found.forgotten().anywhere


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.sgd(0.1), id="sgd"),
        pytest.param(optax.sgd(0.02, momentum=0.8), id="momentum", marks=pytest.mark.long),
    ],
)
def test_a_quadratic_loses_its_stages(optimizer):
    depths = []
    for directions in (0, 3):
        step, state, _ = _quadratic(optimizer, "float64", directions)
        solution = gritax.solve(step, state, 2048)
        serial = gritax.solve_serial(step, state, 2048)
        assert small.distance(solution.params, serial.params) < 1e-6 * small.distance(serial.params, state.params)
        assert ("beside 3 directions" in solution.coarse_steps) == (directions == 3)
        # What is measured along the run, and what comes before it, is a sixth of these.
        depths.append(solution.depth / solution.iterations)
    assert depths[1] < 0.9 * depths[0]


def test_an_optimizer_that_scales_each_parameter_has_modes_as_well():
    """Not symmetric: of rates times curvatures, as Adam's."""
    rates = optax.multi_transform({"a": optax.sgd(0.1), "b": optax.sgd(0.01)}, {"a": "a", "b": "b"})
    coupled = lambda params, _: 0.5 * jnp.sum(params["a"] ** 2 * 0.9) + 0.45 * jnp.sum((params["a"] + params["b"]) ** 2)
    step = gritax.TrainStep(coupled, rates, lambda step: (), gritax.Stabilized())
    state = step.init({"a": jnp.ones(1), "b": jnp.ones(1)})
    known = Stiffest.nowhere({"a": jnp.ones(2), "b": jnp.ones(2)}, 32)
    found, *_ = stiffest_directions(step, _stacked(state), np.array([0, 8]), 4, 16, _only(known, 2))
    matrix = np.diag([0.1, 0.01]) @ np.array([[1.8, 0.9], [0.9, 0.9]])
    np.testing.assert_allclose(np.sort(found.kappas[0]), np.sort(np.linalg.eigvals(matrix).real), rtol=1e-5)
    here = np.asarray(found.basis[0] @ found.modes[0])
    np.testing.assert_allclose(matrix @ here, here * np.asarray(found.kappas)[:1], atol=1e-6)
    np.testing.assert_allclose(found.modes[0] @ found.inverse[0], np.eye(2), atol=1e-9)


def _only(known, size):
    return Stiffest(known.steps, np.zeros((8, size, 2)), np.zeros((8, 2, 2)), np.zeros((8, 2, 2)), np.zeros((8, 2)))


def test_more_directions_than_the_loss_bends_in():
    loss = lambda params, _: 0.5 * (params["w"][0] - 1) ** 2 + 0.4 * params["w"][1] ** 2
    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda step: (), gritax.Stabilized())
    state = step.init({"w": jnp.full(20, 0.5)})
    found, largest, rest, *_ = stiffest_directions(
        step, _stacked(state), np.array([0, 8]), 4, 16, Stiffest.nowhere(state.params, 10)
    )
    np.testing.assert_allclose(largest, 0.1, rtol=1e-6)
    assert np.all(np.isfinite(found.basis)) and np.all(rest < 0.01)


def test_states_that_are_not_finite_tell_nothing():
    step, state, _ = _quadratic(optax.sgd(0.1), "float64", 3)
    known = Stiffest.nowhere(state.params, 3)
    lost = jax.tree.map(lambda x: x * jnp.nan, _stacked(state))
    found, largest, rest, *_ = stiffest_directions(step, lost, np.array([0, 8]), 4, 16, known)
    assert found is known and np.all(np.isnan(largest)) and np.all(np.isnan(rest))


def test_directions_do_not_do_where_the_curvature_grows():
    """From .01 at step 512 back to .1 at the start: a coarse step over both is made for the largest."""
    known = KnownRun.of(None).along(np.array([0, 64, 512, 1024]), np.array([0.1, 0.1, 0.01, 0.01]), np.full(4, 0.001))
    starts = np.array([64, 512, 0])
    kappa, growth = known.within(starts, 64)
    np.testing.assert_allclose(kappa, 0.001, rtol=1e-6)
    np.testing.assert_allclose(growth, 1, rtol=1e-6)
    kappa, growth = known.within(starts, 1024)
    np.testing.assert_allclose(kappa, [0.1, 0.001, 0.1], rtol=1e-6)
    np.testing.assert_allclose(growth, [10, 1, 10], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda s: known.within(s, 1024)[0])(jnp.asarray(starts)), kappa, rtol=1e-6)


@pytest.mark.slow
def test_between_two_states_the_curvature_goes_from_one_to_the_other():
    """As a power of the step: .1 at 64 and .00625 at 1,024 (each counted from 1) are .025 at 256, and stay .00625 later."""
    basis = np.broadcast_to(np.eye(4)[:, :1], (2, 4, 1))
    known = Stiffest.nowhere(jnp.zeros(4), 1).along(np.array([63, 1023]), jnp.asarray(basis), np.array([[[0.1]], [[0.00625]]]))
    change, count, stride = jnp.arange(1.0, 5.0), jnp.int32(4), 64
    for middle, kappa in ((63, 0.1), (255, 0.025), (1023, 0.00625), (9999, 0.00625)):
        corrected = known.corrected(change, jnp.int32(middle - stride // 2), stride, count, jnp.ones(()))
        wanted = change.at[0].multiply(exact(jnp.asarray(stride * kappa), count))
        np.testing.assert_allclose(corrected, wanted, rtol=1e-6)


def test_as_many_as_half_of_the_parameters():
    assert Stiffest.nowhere(small.params(), 32).count == 20 and Stiffest.nowhere({"w": jnp.ones(1)}, 32).count == 0


def test_unusable_directions():
    for given in (-1, 2.5, True):
        with pytest.raises(ValueError, match="directions"):
            gritax.Stabilized(directions=given)
