"""One solve on several devices: the same numbers as on one, every point in its place, and what is refused."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from jax.sharding import Mesh

import gritax
from gritax._sharing import shared, unshared


_COUNTS = (1, 2, 3, 4, 8)


_METHODS = {
    "V": gritax.Multigrid(4),
    "F, 2 sweeps": gritax.Multigrid(3, cycle="F", relaxation=2),
    "weighted, from the way up": gritax.Multigrid((2, 5, 3), c_relaxation_weight=0.8, skip_first_down=True),
    "7 lanes": gritax.Multigrid(4, lanes=7),
    "parareal": gritax.Multigrid((16,), relaxation=0),
    "one level": gritax.Multigrid(max_levels=1),
}


@pytest.mark.first(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps", "guess"),
    [
        *(("V", 1009, guess) for guess in ("graded", "nested", "zeros", "constant", "own")),
        *((method, steps, "graded") for method, steps in (("V", 1024), ("V", 11), ("7 lanes", 613))),
    ],
)
def test_guesses(method, steps, guess):
    guess = (lambda step: jnp.full(3, 0.5) * jnp.cos(0.01 * step.astype(float))) if guess == "own" else guess
    solve = partial(gritax.solve, small.decay, jnp.ones(3), steps, _METHODS[method], initial_guess=guess, tolerance=1e-10)
    alone, together = solve(), solve(mesh=small.mesh(8))
    assert alone.converged
    np.testing.assert_array_equal(together.state, alone.state)
    np.testing.assert_array_equal(together.residuals, alone.residuals)
    assert (together.depth, together.work) == (alone.depth, alone.work)


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 8))])
def test_methods(method, count):
    solve = partial(gritax.solve, small.decay, jnp.ones(3), 419, _METHODS[method], tolerance=1e-10, save_every=7)
    alone, together = solve(), solve(mesh=small.mesh(count))
    assert alone.converged
    np.testing.assert_array_equal(together.states, alone.states)
    np.testing.assert_array_equal(together.relative_residuals, alone.relative_residuals)
    np.testing.assert_array_equal(together.relaxed_residuals, alone.relaxed_residuals)
    assert together.hierarchy == alone.hierarchy


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps", "count"), [("V", 150, 8), ("F, 2 sweeps", 103, 6), ("weighted, from the way up", 103, 6)]
)
def test_fewer_intervals_than_devices(method, steps, count):
    """Groups of devices then have the same intervals, and the numbers are those of one device as ever."""
    method = replace(_METHODS[method], min_coarse=2)
    assert 1 < _shared(method.hierarchy(steps), count)[-2].layout.group < count
    solve = partial(gritax.solve, small.decay, jnp.ones(3), steps, method, tolerance=1e-10, save_every=5)
    alone, together = solve(), solve(mesh=small.mesh(count))
    assert alone.converged
    np.testing.assert_array_equal(together.states, alone.states)
    np.testing.assert_array_equal(together.relative_residuals, alone.relative_residuals)
    np.testing.assert_array_equal(together.relaxed_residuals, alone.relaxed_residuals)


def _shared(hierarchy, count):
    return shared(hierarchy, jax.sharding.AbstractMesh((count,), ("time",)), small.decay)


def _xor(dtype):
    return gritax.problems.xor(dtype=dtype), 1009, gritax.Multigrid(4)


def _adder(dtype):
    return gritax.problems.adder(0.025, dtype=dtype), 211, gritax.Multigrid(4)


def _digits(dtype):
    problem = gritax.problems.digits(optax.adam(1e-3), coarse=gritax.FrozenGradient(8), dtype=dtype)
    return problem, 263, gritax.Multigrid((8, 4))


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("make", "dtype", "count"),
    [
        (_xor, "float64", 8),
        (_adder, "float64", 3),
        pytest.param(_digits, "float64", 4, marks=pytest.mark.long),
        *(
            pytest.param(make, dtype, count, marks=pytest.mark.long)
            for make, dtype, count in itertools.product((_xor, _adder, _digits), ("float64", "float32"), _COUNTS)
        ),
    ],
)
def test_training(make, dtype, count):
    """Where XLA's matrix products round otherwise in a batch of another size, to ten times what a rounding in phi does."""
    problem, steps, method = make(dtype)
    solve = partial(gritax.solve, problem.step, problem.state, steps, method, throw=False, max_iterations=4)
    alone, together = solve(), solve(mesh=small.mesh(count))
    assert alone.depth == together.depth
    off = small.distance(together.params, alone.params)
    exact = (make, dtype) in ((_xor, "float64"), (_adder, "float64"))
    assert off <= (0 if exact else 10 * small.rounding(problem.step, problem.state, steps))
    if off == 0:
        # A norm at one point is a sum too, which jaxlib 0.12 rounds otherwise in a batch of another size (docs/devices.md).
        np.testing.assert_array_max_ulp(np.array(together.residuals), np.array(alone.residuals), 0 if make is _xor else 4)


@pytest.mark.long
def test_train_in_windows_and_go_on_with_other_devices(tmp_path):
    problem = (small.loss, optax.sgd(0.02), small.batches())
    train = partial(gritax.train, *problem, small.params(), 1500, goal="depth", window=512)
    alone, together = train(), train(mesh=small.mesh(4))
    with pytest.raises(KeyboardInterrupt):
        train(mesh=small.mesh(4), checkpoint=tmp_path, progress=small.Interrupting(2))
    resumed = train(mesh=small.mesh(3), resume=tmp_path)
    step = gritax.TrainStep(*problem)
    state = step.init(small.params())
    rounding = small.rounding(step, state, 1500)
    for trained in (together, resumed):
        assert [window.kind for window in trained.windows] == [window.kind for window in alone.windows]
        assert "parallel" in {window.kind for window in trained.windows}
        assert small.distance(trained.params, alone.params) <= 10 * rounding
        assert small.relative_error(step, state, 1500, trained) <= 1e-6


@pytest.mark.slow
def test_losses_and_a_step_that_jumps():
    def loss(params, batch):
        return jnp.mean((small.network(params, batch[0], jax.nn.relu) - batch[1]) ** 2)

    step = gritax.TrainStep(loss, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(8))
    with pytest.warns(UserWarning, match="discontinuous gradient"):
        solution = gritax.solve(
            step, step.init(small.params()), 512, gritax.Multigrid((8,)), max_iterations=12, throw=False, mesh=small.mesh(4)
        )
    losses = np.asarray(solution.losses)
    assert losses.shape == (512,) and np.all(np.isfinite(losses))


@pytest.mark.slow
def test_within_the_mesh_all_works_as_without():
    """What chooses coarse steps, keeps states and looks for losses is computed beside the shared intervals."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("time", "data"))
    problem = (small.loss, optax.sgd(0.02), small.batches())
    step = gritax.TrainStep(*problem, "auto")
    state = step.init(small.params())
    alone = gritax.solve(step, state, 301, save_every=100)
    with jax.set_mesh(mesh):
        together = gritax.solve(step, state, 301, save_every=100, mesh=mesh)
        trained = gritax.train(*problem, small.params(), 301, goal="depth", mesh=mesh)
        np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-9)
    np.testing.assert_allclose(together.states.params["w"], alone.states.params["w"], rtol=1e-9)
    assert small.relative_error(step, state, 301, trained) <= 1e-6


@pytest.mark.slow
def test_an_array_without_numbers():
    def phi(u, start, stride):
        return {"u": small.decay(u["u"], start, stride), "none": u["none"]}

    for mesh in (None, small.mesh(3)):
        solution = gritax.solve(phi, {"u": jnp.ones(3), "none": jnp.zeros((0, 2))}, 211, gritax.Multigrid(4), mesh=mesh)
        assert solution.converged and solution.state["none"].shape == (0, 2)


@pytest.mark.parametrize("steps", [5, 11, 100, 1009, 65_537])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64, 1000])
def test_every_point_has_its_place(steps, count):
    """A device's points of a level are the C-points of its intervals of the finer one."""
    hierarchy = gritax.Multigrid((2, 5, 3, 4, 4)).hierarchy(steps)
    placed = _shared(hierarchy, count)
    levels = placed.levels
    assert levels[-1].layout.block == 0
    for finer, level in itertools.pairwise(levels):
        fine, coarse = finer.layout, level.layout
        assert level.points == fine
        if fine.is_shared:
            assert count // fine.group * fine.block >= finer.num_intervals + (finer.tail > 0)
        if coarse.is_shared:
            assert coarse.group % fine.group == 0
            assert coarse.group // fine.group * fine.block == level.factor * coarse.block
    assert levels[0].layout.is_shared or len(levels) == 1
    assert unshared(placed) == hierarchy


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (4, "mesh must be a jax.sharding.Mesh"),
        (Mesh(np.array(jax.devices()[:2]), ("data",)), "mesh has the axes .'data',., and none of them is 'time'"),
        (Mesh(np.array([]), ("time",)), "mesh has no devices"),
    ],
)
def test_bad_mesh(mesh, message):
    with pytest.raises(ValueError, match=message):
        gritax.solve(small.decay, jnp.ones(3), 100, mesh=mesh)
    with pytest.raises(ValueError, match=message):
        gritax.plan(small.loss, optax.sgd(0.02), small.batches(), small.params(), 100, mesh=mesh)
    with pytest.raises(ValueError, match=message):
        gritax.train(small.loss, optax.sgd(0.02), small.batches(), small.params(), 100, mesh=mesh)


def test_another_mesh_is_set():
    with (
        jax.set_mesh(jax.make_mesh((4,), ("time",))),
        pytest.raises(ValueError, match=r"but this call is within jax\.set_mesh"),
    ):
        gritax.solve(small.decay, jnp.ones(3), 100, mesh=small.mesh(4))
