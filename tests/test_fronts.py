"""Checkpoints of gritax.Newton: a run goes on from them, and ends as if it had never been interrupted, bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.checkpoint import Directory, to_arrays
from gritax.newton import _fronts, _solve


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_STEPS = 600


@pytest.fixture
def _often(monkeypatch):
    """A call of few sweeps, after each of which all is kept."""
    monkeypatch.setattr(_solve, "_CALL", 4)
    monkeypatch.setattr(_fronts, "_SECONDS", 0.0)
    monkeypatch.setattr(_fronts, "_SHARE", 0)


class _Interrupting(gritax.Progress):
    """Stops a run as its nth call ends."""

    def __init__(self, nth):
        self.left, self.fronts = nth, []

    def front(self, taken, num_steps, in_flight, sweeps, seconds):
        self.fronts.append(taken)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _problem(optimizer=None, dtype="float64"):
    step = gritax.TrainStep(small.loss, optimizer or optax.adam(2e-3), small.batches(dtype=dtype))
    return step, step.init(small.params(dtype=dtype))


def _solver(optimizer=None, dtype="float64", method=None, num_steps=_STEPS, **options):
    step, state = _problem(optimizer, dtype)
    return partial(gritax.solve, step, state, num_steps, method or gritax.Newton(), **options)


def _trainer(optimizer=None, **options):
    given = {"num_steps": _STEPS, "method": gritax.Newton()} | options
    return partial(gritax.train, small.loss, optimizer or optax.adam(2e-3), small.batches(), small.params(), **given)


def _bits(tree):
    return [(array.dtype, array.shape, array.tobytes()) for array in to_arrays(tree)]


def _assert_same(found, wanted):
    assert _bits(found.state) == _bits(wanted.state)
    for name in ("converged", "reason", "depth", "work", "iterations", "amplification", "restarts"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.residuals.tolist() == wanted.residuals.tolist()
    assert (found.losses is None) == (wanted.losses is None)
    if wanted.losses is not None:
        np.testing.assert_array_equal(found.losses, wanted.losses)


def _interrupted(call, directory, *calls):
    """The solution of a run that is taken up and interrupted again and again; the steps it went on from."""
    for nth in calls:
        with pytest.raises(KeyboardInterrupt):
            call(checkpoint=directory, resume=True, progress=_Interrupting(nth))
    return call(checkpoint=directory, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(optax.adam(2e-3), "float64"), pytest.param(optax.sgd(0.02, momentum=0.9), "float32", marks=pytest.mark.long)],
)
def test_a_solve_that_is_interrupted_ends_as_if_it_had_not_been(optimizer, dtype, tmp_path, monkeypatch):
    """While the window has been enlarged, too, which is why calls are short."""
    monkeypatch.setattr(_solve, "_CALL", 4)
    monkeypatch.setattr(_solve, "_OF_SMALL", 32)
    solve = _solver(optimizer, dtype)
    whole = solve()
    assert whole.iterations > 24
    found = _interrupted(solve, tmp_path, 1, 2, 3, 1)
    _assert_same(found, whole)
    assert Directory(tmp_path).latest().done == _STEPS
    _assert_same(solve(resume=tmp_path, progress=(told := _Interrupting(1))), whole)
    assert told.fronts == []


@pytest.mark.usefixtures("_often")
def test_what_follows_the_step_is_kept_as_well(tmp_path):
    """A counter and a random key, with no training and no losses."""

    def decay(state, start, stride):
        u, count, key = state
        key = jax.random.fold_in(key, 3)
        noise = 1e-3 * jax.random.uniform(key, (2,))
        return u - 0.01 * jnp.array([1.0, 3.0]) * jnp.sin(u) + 1e-3 * count.astype(u.dtype) + noise, count + 1, key

    solve = partial(gritax.solve, decay, (jnp.ones(2), jnp.int32(3), jax.random.key(1)), 300, gritax.Newton(rank=2))
    _assert_same(_interrupted(solve, tmp_path, 2, 1), solve())


@pytest.mark.long
@pytest.mark.slow
def test_training_that_is_interrupted_ends_as_if_it_had_not_been(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_solve, "_CALL", 4)
    train = _trainer()
    whole = train()
    _assert_same(_interrupted(train, tmp_path, 1, 3), whole)
    assert f"of {_STEPS}; {tmp_path} has what was reached: go on with resume=True" in caplog.text
    _assert_same(train(resume=tmp_path), whole)
    _assert_same(_solver()(resume=tmp_path), whole)


@pytest.mark.slow
def test_training_whose_steps_are_taken_one_by_one_in_the_end_goes_on_with_them(tmp_path, monkeypatch):
    """Lorenz's equations as if they were a gradient: interrupted while they are solved, and twice in the steps that follow."""
    monkeypatch.setattr(_solve, "_CALL", 4)
    lorenz = lambda x, y, z: jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
    chaos = lambda w, x: -jnp.sum(jax.lax.stop_gradient(lorenz(*w)) * w)
    first, batch = jnp.array([1.0, 1.0, 20.0]), lambda step: jnp.zeros(1)
    train = partial(gritax.train, chaos, optax.sgd(0.002), batch, first, 3000, method=gritax.Newton())
    whole = train()
    assert whole.restarts and whole.windows
    stops = _Interrupting(3), small.Interrupting(1), small.Interrupting(2)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint=tmp_path, resume=True, progress=stop)
    found = train(resume=tmp_path)
    assert _bits(found.state) == _bits(whole.state) and found.restarts == whole.restarts
    assert (found.depth, found.work) == (whole.depth, whole.work)
    step = gritax.TrainStep(chaos, optax.sgd(0.002), batch)
    with pytest.raises(ValueError, match="takes one step after the other by now"):
        gritax.solve(step, step.init(first), 3000, gritax.Newton(), resume=tmp_path)


@pytest.mark.slow
def test_training_that_turned_not_finite_is_not_gone_on_with(tmp_path):
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 4), optax.sgd(0.5), lambda step: jnp.ones(2))
    solve = partial(gritax.solve, step, step.init(jnp.full(2, 3.0)), 100, gritax.Newton(), throw=False)
    whole = solve(checkpoint=tmp_path)
    assert whole.reason.startswith("diverged")
    assert solve(resume=tmp_path).reason == whole.reason == solve().reason


_KILLED = """
    import os, signal, sys
    import jax
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    import gritax, test_fronts
    from gritax.newton import _fronts, _solve
    _solve._CALL, _fronts._SECONDS, _fronts._SHARE = 4, 0.0, 0

    class Killing(gritax.Progress):
        calls = 0
        def front(self, *_):
            self.calls += 1
            if self.calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    test_fronts._solver()(checkpoint=sys.argv[1], progress=Killing())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_killed_leaves_what_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(_solve, "_CALL", 4)
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(gritax.__file__))])
    command = [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 0 < Directory(tmp_path / "run").latest().done < _STEPS
    _assert_same(_solver()(resume=tmp_path / "run"), _solver()())


@pytest.mark.slow
@pytest.mark.usefixtures("_often")
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(tmp_path, caplog):
    solve = _solver()
    whole = solve(checkpoint=tmp_path)
    newest, _ = Directory(tmp_path).files()
    newest.write_bytes(newest.read_bytes()[:-1])
    _assert_same(solve(resume=tmp_path), whole)
    assert f"{newest} is damaged; the checkpoint before it is used" in caplog.text
    for change in (lambda facts: facts["own"].pop("capacity"), lambda facts: facts["own"].update(capacity=64)):
        found = Directory(tmp_path).latest()
        change(found.facts)
        Directory(tmp_path).save(found)
        caplog.clear()
        _assert_same(solve(resume=tmp_path), whole)
        assert f"{newest} is " in caplog.text


@pytest.mark.slow
def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    step, state = _problem(optax.sgd(0.05))
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        gritax.solve(step, state, _STEPS, gritax.Newton(), checkpoint=run, progress=_Interrupting(1))

    def call(method=None, num_steps=_STEPS, seed=0, batch=None, optimizer=None, **options):
        step = gritax.TrainStep(small.loss, optimizer or optax.sgd(0.05), batch or small.batches())
        state = step.init(small.params(seed))
        gritax.solve(step, state, num_steps, method or gritax.Newton(), **{"resume": run} | options)

    for arguments, message in (
        ({"seed": 1}, "began with another state than this"),
        ({"optimizer": optax.adam(1e-3)}, "began with another state than this"),
        ({"optimizer": optax.sgd(0.051)}, "a first update of length 0.* not 0"),
        ({"batch": small.batches(1)}, "a loss at step 0 of"),
        ({"num_steps": _STEPS + 1}, f"has num_steps {_STEPS}, not {_STEPS + 1}"),
        ({"tolerance": 1e-3}, "has tolerance None, not 0.001"),
        ({"save_every": 5}, "has save_every None, not 5"),
        ({"method": gritax.Newton(rank=8)}, "has rank 32, not 8"),
        ({"method": gritax.Newton(sweeps=4)}, "has sweeps 5.0, not 4.0"),
        ({"method": gritax.Newton(window=64)}, "has window None, not 64"),
        (
            {"method": gritax.Multigrid()},
            r"has checkpoints of gritax\.train or gritax\.Newton \(steps-0",
        ),
        ({"resume": False, "checkpoint": run}, "has checkpoints already .* go on with resume=True"),
        ({"resume": "gs://bucket/run"}, "gs://bucket/run is elsewhere"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**arguments)
    with pytest.raises(ValueError, match=r"is by gritax\.Newton, not by multigrid in windows"):
        _trainer(optax.sgd(0.05), method=None)(resume=run)


@pytest.mark.long
@pytest.mark.slow
def test_another_next_step_is_another_run(tmp_path):
    schedule = lambda last: lambda count: jnp.where(count < 1, 0.02, last)
    with pytest.raises(KeyboardInterrupt):
        _solver(optax.sgd(schedule(0.02)), num_steps=2000)(checkpoint=tmp_path, progress=_Interrupting(1))
    assert 0 < Directory(tmp_path).latest().done < 2000
    with pytest.raises(ValueError, match=r"was to go on after step \d.* an update of length"):
        _solver(optax.sgd(schedule(0.03)), num_steps=2000)(resume=tmp_path)


@pytest.mark.slow
def test_a_directory_of_multigrid_is_refused(tmp_path):
    windows, iterates = tmp_path / "windows", tmp_path / "iterates"
    _trainer(method=None, num_steps=100)(checkpoint=windows)
    for call in (_solver(num_steps=100), _trainer(num_steps=100)):
        with pytest.raises(ValueError, match=r"is by multigrid in windows, not by gritax\.Newton"):
            call(resume=windows)
    (iterates / "3").mkdir(parents=True)
    for call in (_solver(num_steps=100), _trainer(num_steps=100), _trainer(num_steps=100, method=None)):
        with pytest.raises(ValueError, match=r"has iterates of a multigrid solve \(3\), not what gritax\.train"):
            call(resume=iterates)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_is_the_only_writer_until_it_ends(tmp_path):
    class Second(gritax.Progress):
        def front(self, *_):
            with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing into {tmp_path}"):
                _solver()(resume=tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _solver()(checkpoint=tmp_path, progress=Second())
    assert all(name.startswith("steps-") for name in os.listdir(tmp_path)) and os.listdir(tmp_path)


@pytest.mark.slow
def test_states_are_kept_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(_solve, "_CALL", 4)
    solve = _solver(optax.sgd(0.02, momentum=0.9), save_every=40)
    whole = solve()
    found = _interrupted(solve, tmp_path, 2, 3)
    _assert_same(found, whole)
    assert _bits(found.states) == _bits(whole.states)
