"""Iterates on disk: a solve that is taken up again, on these devices or on others, ends as if it had never been interrupted."""

import os
import sys
from functools import partial

import interrupted_solves as runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from jax.sharding import Mesh

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _mesh(count):
    return Mesh(np.array(jax.devices()[:count]), ("time",)) if count else None


def _from_the_way_up():
    return runs.decay, {"u": jnp.ones(3), "nothing": jnp.zeros(0)}, 1003, gritax.Multigrid((4, 3), skip_first_down=True)


def _xor():
    problem = gritax.problems.xor()
    return problem.step, problem.state, 2009, None


def _random(dtype="float32"):
    """Drawn in each step, from a key that is a clock: and phi chooses coarse steps for the states that it is shown."""

    def loss(params, batch, key):
        return small.loss(params, batch) + 0.01 * jnp.sum(jax.random.normal(key, (8,), dtype) * params["b"])

    batches = small.batches(dtype=dtype)
    step = gritax.TrainStep(loss, optax.adam(1e-3), batches, gritax.Stabilized(), key=jax.random.key(5))
    return step, step.init(small.params(dtype=dtype)), 1001, None


def _started_again():
    """Flat at the start, a hundred times as stiff where training goes."""
    loss = lambda w, batch: jnp.sum(0.5 * w**2 * (0.01 + jax.nn.sigmoid(20 * (0.5 - w))))
    step = gritax.TrainStep(loss, optax.sgd(0.2), lambda step: None)
    return step, step.init(jnp.array([1.0])), 600, None


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("problem", "before", "after", "at"),
    [
        (runs.plain, 0, 0, 2),
        (runs.plain, 4, 4, 3),
        (runs.plain, 4, 3, 1),
        (runs.plain, 8, 0, 2),
        (_from_the_way_up, 0, 8, 1),
        (_xor, 3, 8, 2),
        pytest.param(_random, 0, 0, 1, marks=pytest.mark.long),
        pytest.param(_random, 2, 2, 2, marks=pytest.mark.long),
        (_started_again, 0, 0, 2),
    ],
)
def test_as_if_never_interrupted(problem, before, after, at, tmp_path):
    *arguments, method = problem()
    solve = partial(gritax.solve, *arguments, method)
    whole = solve(mesh=_mesh(before))
    assert whole.iterations > at and bool(whole.restarts) == (problem is _started_again)
    runs.interrupted(solve, tmp_path, _mesh(before), at)
    runs.require_same(solve(mesh=_mesh(after), resume=tmp_path), whole)


def test_interrupted_again_and_again(tmp_path):
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)
    for at in (1, 2, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            solve(checkpoint=tmp_path, resume=True, progress=small.Interrupting(0, at))
        assert len([each for each in tmp_path.iterdir() if each.is_dir()]) == min(at, 2)
    runs.require_same(solve(resume=tmp_path), solve())


def test_goes_on_to_another_tolerance_and_with_more_iterations(tmp_path):
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)
    first = solve(checkpoint=tmp_path, max_iterations=3, throw=False)
    assert not first.converged and first.iterations == 3
    second = solve(resume=tmp_path, max_iterations=4, tolerance=0)
    runs.require_same(second, solve(max_iterations=4, tolerance=0))
    runs.require_same(solve(resume=tmp_path, tolerance=1e-12), solve(tolerance=1e-12))


def test_of_another_solve(tmp_path):
    phi, state, steps, method = runs.plain()
    runs.interrupted(partial(gritax.solve, phi, state, steps, method), tmp_path, None, 2)
    other = lambda u, start, stride: runs.decay(u, start, 2 * stride)
    moved = state | {"u": 2 * state["u"]}
    for arguments, message in (
        ((phi, state, 1000, method), "has num_steps 1003, not 1000"),
        ((phi, state, steps, gritax.Multigrid(8)), "has method .*coarsening=4.*, not .*coarsening=8"),
        ((phi, moved, steps, method), "began with another state"),
        ((other, state, steps, method), "has a first update of length"),
    ):
        with pytest.raises(ValueError, match=f"resume: .*{message}"):
            gritax.solve(*arguments, resume=tmp_path)
    with pytest.raises(ValueError, match="has iterates already: go on with resume=True"):
        gritax.solve(phi, state, steps, method, checkpoint=tmp_path)


@pytest.mark.slow
def test_levels_that_phi_proposes_now(tmp_path):
    class Proposing:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, u, start, stride):
            return u / (1 + 0.01 * stride)

        def method(self, num_steps):
            return gritax.Multigrid(self.factor)

    runs.interrupted(partial(gritax.solve, Proposing(4), 1.0, 1000), tmp_path, None, 2)
    with pytest.raises(ValueError, match=r"has 251 C-points, phi asks for 126 now"):
        gritax.solve(Proposing(8), 1.0, 1000, resume=tmp_path)


def test_without_orbax_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="needs orbax-checkpoint, which is not installed: pip install orbax-checkpoint"):
        gritax.solve(lambda u, start, stride: u / 2, 1.0, 10, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, "resume=True needs the directory"),
        ({"resume": 1}, "resume must be True, False or a directory"),
        ({"checkpoint": 3}, "checkpoint must name a directory"),
        ({"checkpoint": "a", "resume": "b"}, "name one directory"),
        ({"checkpoint": __file__}, "is a file; name a directory"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        gritax.solve(lambda u, start, stride: u / 2, 1.0, 10, **options)


def test_a_step_that_is_another_after_those_that_are_exact_is_another_solve(tmp_path):
    phi, state, steps, method = runs.plain()
    runs.interrupted(partial(gritax.solve, phi, state, steps, method), tmp_path, None, 3)
    later = lambda u, start, stride: phi(jax.tree.map(lambda x: x * jnp.where(start < 4, 1.0, 1 + 1e-9), u), start, stride)
    with pytest.raises(ValueError, match=r"was to go on after step 32 with an update of length .*: its loss, optimizer"):
        gritax.solve(later, state, steps, method, resume=tmp_path)


def test_a_solve_is_the_only_writer_until_it_ends(tmp_path):
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)

    class Second(gritax.Progress):
        def iteration(self, iteration):
            if iteration.number == 2:
                with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing into {tmp_path}"):
                    solve(resume=tmp_path)
                raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            solve(checkpoint=tmp_path, resume=resume, progress=Second())
        assert not (tmp_path / ".lock").exists()
