"""One solve on several devices: the same numbers, the messages that are meant to be, and a share of the memory each."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from jax.sharding import Mesh, PartitionSpec

import gritax
from gritax._compilation import kernels_of
from gritax._cycle import Cycle
from gritax._evolution import Evolution
from gritax._layout import replicated
from gritax._sharing import shared, unshared


_COUNTS = (1, 2, 3, 4, 8)


def _mesh(count):
    return Mesh(np.array(jax.devices()[:count]), ("time",))


def _decay(u, start, stride):
    """A stiff and a slow part, and a right-hand side that depends on the step.

    Sums and quotients of variables round in one way only: a product and a sum, or a sine, may do so otherwise in a batch of
    another size.
    """
    x = jnp.asarray(start, u.dtype)
    return (u + stride / (100 + x)) / (1 + stride / (jnp.array([100.0, 3.0, 50.0]) + x / 8))


_METHODS = {
    "V": gritax.Multigrid(4),
    "F, 2 sweeps": gritax.Multigrid(3, cycle="F", relaxation=2),
    "weighted, from the way up": gritax.Multigrid((2, 5, 3), c_relaxation_weight=0.8, skip_first_down=True),
    "7 lanes": gritax.Multigrid(4, lanes=7),
    "parareal": gritax.Multigrid((16,), relaxation=0),
    "one level": gritax.Multigrid(max_levels=1),
}


@pytest.mark.parametrize(
    ("method", "steps", "guess"),
    [
        *(("V", 1009, guess) for guess in ("graded", "nested", "zeros", "constant", "own")),
        *((method, steps, "graded") for method, steps in (("V", 1024), ("V", 11), ("7 lanes", 613))),
    ],
)
def test_guesses(method, steps, guess):
    guess = (lambda step: jnp.full(3, 0.5) * jnp.cos(0.01 * step.astype(float))) if guess == "own" else guess
    solve = partial(gritax.solve, _decay, jnp.ones(3), steps, _METHODS[method], initial_guess=guess, tolerance=1e-10)
    alone, together = solve(), solve(mesh=_mesh(8))
    assert alone.converged
    np.testing.assert_array_equal(together.state, alone.state)
    np.testing.assert_array_equal(together.residuals, alone.residuals)
    assert (together.depth, together.work) == (alone.depth, alone.work)


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 8))])
def test_methods(method, count):
    solve = partial(gritax.solve, _decay, jnp.ones(3), 419, _METHODS[method], tolerance=1e-10, save_every=7)
    alone, together = solve(), solve(mesh=_mesh(count))
    assert alone.converged
    np.testing.assert_array_equal(together.states, alone.states)
    np.testing.assert_array_equal(together.relative_residuals, alone.relative_residuals)
    np.testing.assert_array_equal(together.relaxed_residuals, alone.relaxed_residuals)
    assert together.hierarchy == alone.hierarchy


@pytest.mark.parametrize(
    ("method", "steps", "count"), [("V", 150, 8), ("F, 2 sweeps", 103, 6), ("weighted, from the way up", 103, 6)]
)
def test_fewer_intervals_than_devices(method, steps, count):
    """Groups of devices then have the same intervals, and the numbers are those of one device as ever."""
    method = replace(_METHODS[method], min_coarse=2)
    assert 1 < _shared(method.hierarchy(steps), count)[-2].layout.group < count
    solve = partial(gritax.solve, _decay, jnp.ones(3), steps, method, tolerance=1e-10, save_every=5)
    alone, together = solve(), solve(mesh=_mesh(count))
    assert alone.converged
    np.testing.assert_array_equal(together.states, alone.states)
    np.testing.assert_array_equal(together.relative_residuals, alone.relative_residuals)
    np.testing.assert_array_equal(together.relaxed_residuals, alone.relaxed_residuals)


def _shared(hierarchy, count):
    return shared(hierarchy, jax.sharding.AbstractMesh((count,), ("time",)), _decay)


def _xor(dtype):
    return gritax.problems.xor(dtype=dtype), 1009, gritax.Multigrid(4)


def _adder(dtype):
    return gritax.problems.adder(0.025, dtype=dtype), 211, gritax.Multigrid(4)


def _digits(dtype):
    problem = gritax.problems.digits(optax.adam(1e-3), coarse=gritax.FrozenGradient(8), dtype=dtype)
    return problem, 263, gritax.Multigrid((8, 4))


def _nudged(step, state, start, stride):
    """A training step with one more rounding."""
    after = step(state, start, stride)
    return after._replace(params=jax.tree.map(lambda x: x * (1 + float(jnp.finfo(x.dtype).eps)), after.params))


def _rounding(step, state, steps):
    """How far one more rounding in every step takes the parameters."""
    ends = [gritax.solve_serial(phi, state, steps).params for phi in (step, partial(_nudged, step))]
    return small.distance(*ends)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("make", "dtype", "count"),
    [
        (_xor, "float64", 8),
        (_adder, "float64", 3),
        (_digits, "float64", 4),
        *(
            pytest.param(make, dtype, count, marks=pytest.mark.slow)
            for make, dtype, count in itertools.product((_xor, _adder, _digits), ("float64", "float32"), _COUNTS)
        ),
    ],
)
def test_training(make, dtype, count):
    """Where XLA's matrix products round otherwise in a batch of another size, to ten times what a rounding in phi does."""
    problem, steps, method = make(dtype)
    solve = partial(gritax.solve, problem.step, problem.state, steps, method, throw=False, max_iterations=4)
    alone, together = solve(), solve(mesh=_mesh(count))
    assert alone.depth == together.depth
    off = small.distance(together.params, alone.params)
    exact = (make, dtype) in ((_xor, "float64"), (_adder, "float64"))
    assert off <= (0 if exact else 10 * _rounding(problem.step, problem.state, steps))
    if off == 0:
        # A norm at one point is a sum too, which jaxlib 0.12 rounds otherwise in a batch of another size (docs/devices.md).
        np.testing.assert_array_max_ulp(np.array(together.residuals), np.array(alone.residuals), 0 if make is _xor else 4)


def test_train_in_windows_and_go_on_with_other_devices(tmp_path):
    problem = (small.loss, optax.sgd(0.02), small.batches())
    train = partial(gritax.train, *problem, small.params(), 1500, goal="depth", window=512)
    alone, together = train(), train(mesh=_mesh(4))
    with pytest.raises(KeyboardInterrupt):
        train(mesh=_mesh(4), checkpoint=tmp_path, progress=small.Interrupting(2))
    resumed = train(mesh=_mesh(3), resume=tmp_path)
    step = gritax.TrainStep(*problem)
    state = step.init(small.params())
    rounding = _rounding(step, state, 1500)
    for trained in (together, resumed):
        assert [window.kind for window in trained.windows] == [window.kind for window in alone.windows]
        assert "parallel" in {window.kind for window in trained.windows}
        assert small.distance(trained.params, alone.params) <= 10 * rounding
        assert small.relative_error(step, state, 1500, trained) <= 1e-6


def test_losses_and_a_step_that_jumps():
    def loss(params, batch):
        return jnp.mean((small.network(params, batch[0], jax.nn.relu) - batch[1]) ** 2)

    step = gritax.TrainStep(loss, optax.sgd(0.02), small.batches(), gritax.FrozenGradient(8))
    with pytest.warns(UserWarning, match="discontinuous gradient"):
        solution = gritax.solve(
            step, step.init(small.params()), 512, gritax.Multigrid((8,)), max_iterations=12, throw=False, mesh=_mesh(4)
        )
    losses = np.asarray(solution.losses)
    assert losses.shape == (512,) and np.all(np.isfinite(losses))


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


def test_an_array_without_numbers():
    def phi(u, start, stride):
        return {"u": _decay(u["u"], start, stride), "none": u["none"]}

    for mesh in (None, _mesh(3)):
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


def _compiled(mesh, steps=4096, phi=_decay, state=None, only=None, method=_METHODS["V"]):
    u0 = replicated(jnp.ones(3) if state is None else state, mesh)
    cycle = Cycle(replicated(Evolution(phi, u0), mesh), shared(method.hierarchy(steps), mesh, phi), method)
    found = {}
    u0 = cycle.evolution.split(u0)[0]
    for kernel, arguments in kernels_of(cycle, u0):
        if only in (None, kernel.__name__):
            found[kernel.__name__, arguments[0].index] = kernel.lower(*arguments).compile()
    return cycle.hierarchy, found


def _messages(program):
    return dict(Counter(re.findall(r" (all-to-all|all-gather|all-reduce|collective-permute)(?:-start)?\(", program.as_text())))


@pytest.mark.parametrize(("count", "steps", "groups"), [(4, 2700, [1, 1, 1, 4, 4, 4]), (8, 150, [1, 1, 2, 8])])
def test_messages_of_an_iteration(count, steps, groups):
    """One state to the neighbour a sweep; gathered are a number for each C-point, and right-hand sides within larger groups."""
    hierarchy, programs = _compiled(_mesh(count), steps, method=gritax.Multigrid(4, min_coarse=2))
    assert [level.layout.group for level in hierarchy] == groups
    to_all = "all-gather"
    expected = {
        "relax_finest": {"collective-permute": 1, "all-reduce": 1},  # the last is the final state
        "relax_coarse": {"collective-permute": 1},
        "keep_exact": {"collective-permute": 1},
        "residual_norm": {"collective-permute": 1, to_all: 1},
        "measure": {"collective-permute": 1, to_all: 2},  # four, where parameters are not all of the state
    }
    for (name, index), program in programs.items():
        counts = _messages(program)
        level = hierarchy[index]
        if name == "restrict":
            assert counts == ({to_all: 3} if level.points.is_shared and level.layout.group > level.points.group else {})
        elif not level.layout.is_shared:
            assert counts == {}
        elif name in ("arrival", "interval_points"):
            assert counts == {"all-reduce": 1}
        else:
            assert counts == expected.get(name, {}), name


def test_minibatches_on_an_axis_of_their_own():
    """Devices of a row share the examples of a minibatch, those of a column the intervals."""
    mesh, batch = Mesh(np.array(jax.devices()).reshape(4, 2), ("time", "data")), small.batches()

    def halves(step):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec("data")), batch(step))

    step, spread = (gritax.TrainStep(small.loss, optax.sgd(0.02), batch, gritax.FrozenGradient(8)) for batch in (batch, halves))
    state = step.init(small.params())
    alone = gritax.solve(step, state, 301, gritax.Multigrid(4))
    with jax.set_mesh(mesh):
        together = gritax.solve(spread, state, 301, gritax.Multigrid(4), mesh=mesh)
        messages = _messages(_compiled(mesh, 301, spread, state, "relax_finest")[1]["relax_finest", 0])
    assert small.distance(together.params, alone.params) <= 10 * _rounding(step, state, 301)
    assert messages["collective-permute"] == 3 and "all-to-all" not in messages  # one for each array of the state
    assert (
        messages["all-reduce"]
        > _messages(_compiled(mesh, 301, step, state, "relax_finest")[1]["relax_finest", 0])["all-reduce"]
    )


def test_a_share_of_the_memory():
    def held(count):
        memory = _compiled(_mesh(count), 65_536, only="relax_finest")[1]["relax_finest", 0].memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    alone = held(1)
    for count in (2, 4, 8):
        assert held(count) <= 1.05 * alone / count


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
        gritax.solve(_decay, jnp.ones(3), 100, mesh=mesh)
    with pytest.raises(ValueError, match=message):
        gritax.plan(small.loss, optax.sgd(0.02), small.batches(), small.params(), 100, mesh=mesh)
    with pytest.raises(ValueError, match=message):
        gritax.train(small.loss, optax.sgd(0.02), small.batches(), small.params(), 100, mesh=mesh)


def test_another_mesh_is_set():
    with (
        jax.set_mesh(jax.make_mesh((4,), ("time",))),
        pytest.raises(ValueError, match=r"but this call is within jax\.set_mesh"),
    ):
        gritax.solve(_decay, jnp.ones(3), 100, mesh=_mesh(4))
