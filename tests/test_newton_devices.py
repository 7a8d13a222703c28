"""The sliding window on several devices: the counts of one device, and its weights to rounding."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.newton import _flight, _solve


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_DTYPES = "float64", "float32"


def _small(dtype):
    step = gritax.TrainStep(small.loss, optax.adam(2e-3), small.batches(dtype=dtype))
    return step, step.init(small.params(dtype=dtype)), 300


def _digits(dtype):
    problem = gritax.problems.digits(optax.sgd(0.02, momentum=0.9), dtype=dtype)
    return problem.step, problem.state, 200


def require_same(solution, other):
    np.testing.assert_array_equal(solution.losses, other.losses)
    np.testing.assert_array_equal(solution.residuals, other.residuals)
    assert small.distance(solution.params, other.params) == 0
    assert (solution.depth, solution.work) == (other.depth, other.work)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dtype", "count"),
    [
        (_small, "float64", 4),
        pytest.param(_digits, "float32", 3, marks=pytest.mark.long),
        *(pytest.param(_small, dtype, count, marks=pytest.mark.long) for dtype in _DTYPES for count in (3, 8)),
        *(pytest.param(_digits, dtype, 8, marks=pytest.mark.long) for dtype in _DTYPES),
    ],
)
def test_weights_on_any_number_of_devices(make, dtype, count):
    problem = make(dtype)
    solve = partial(gritax.solve, *problem, gritax.Newton())
    alone, two, together = solve(), solve(mesh=small.mesh(2)), solve(mesh=small.mesh(count))
    assert alone.converged
    require_same(together, two)
    assert together.depth == alone.depth
    assert abs(together.work - alone.work) <= 0.01 * alone.work
    assert small.distance(together.params, alone.params) <= 10 * small.rounding(*problem)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(together.params))


@pytest.mark.long
@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tmp_path):
    class Interrupting(gritax.Progress):
        def front(self, taken, num_steps, live, sweeps, seconds):
            if sweeps >= 32:
                raise KeyboardInterrupt

    solve = partial(gritax.solve, *_small("float64")[:2], 1200, gritax.Newton(), save_every=200)
    whole = solve(mesh=small.mesh(2))
    with pytest.raises(KeyboardInterrupt):
        solve(mesh=small.mesh(4), checkpoint=tmp_path, progress=Interrupting())
    resumed = solve(mesh=small.mesh(3), resume=tmp_path)
    require_same(resumed, whole)
    assert small.distance(resumed.states, whole.states) == 0


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 1024])
def test_weights_with_blocks_of_any_size(rows, monkeypatch):
    monkeypatch.setattr(_solve, "block_of", lambda size: rows)
    step = gritax.TrainStep(small.loss, optax.adam(1e-3), small.batches())
    state = step.init(small.params())
    solution = gritax.solve(step, state, 300, gritax.Newton())
    assert solution.converged
    assert small.relative_error(step, state, 300, solution) < 1e-6


def test_on_a_gpu_blocks_are_as_large_as_memory_allows(monkeypatch):
    assert [_flight.block_of(size) for size in (16, 3000, 2**15)] == [256, 32, 8]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [_flight.block_of(size) for size in (16, 3000, 2**15, 2**20)] == [1024, 1024, 128, 32]
