"""Checkpoints: whole or found out, and a run that is taken up again ends as if it had never been interrupted."""

import logging
import os
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from small_problems import Interrupting

import gritax
from gritax.checkpoint import Checkpoint, Directory, Keeper, from_arrays, to_arrays


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_MAGIC, _DIGEST = 20, 32  # bytes
_FAST, _SLOW = [("sgd", "float64"), ("adam", "float32")], [("sgd", "float32"), ("adam", "float64")]


@cache  # the same functions, so that they are compiled once
def _training(optimizer="sgd", dtype="float64"):
    rule = {"sgd": optax.sgd(0.01), "adam": optax.adam(1e-3)}[optimizer]
    return partial(gritax.train, small.loss, rule, small.batches(dtype=dtype), small.params(dtype=dtype), num_steps=8000)


def _interrupted(train, directory, *stops):
    """The solution of a run that one call after the other takes up and is interrupted in."""
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint=directory, resume=True, progress=stop)
    return train(checkpoint=directory, resume=True)


def _assert_ended(train, directory, whole):
    _assert_same(train(resume=directory, progress=(progress := Interrupting(0))), whole)
    assert progress.seen == 0


def _bits(tree):
    return [(array.dtype, array.shape, array.tobytes()) for array in to_arrays(tree)]


def _assert_same(found, wanted):
    assert _bits(found.state) == _bits(wanted.state) and _bits(found.params) == _bits(wanted.params)
    for name in ("converged", "depth", "work", "iterations", "amplification", "coarse_steps", "level_sizes"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.depth_on(8) == wanted.depth_on(8)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "dtype"), [*_FAST, *(pytest.param(*each, marks=pytest.mark.long) for each in _SLOW)])
def test_windows_interrupted_at_their_beginnings_and_midway_end_as_if_they_had_not_been(optimizer, dtype, tmp_path):
    how = {"num_steps": 1600, "goal": "depth", "coarse": gritax.FrozenGradient(), "window": 512}
    train = partial(_training(optimizer, dtype), **how)
    whole = train()
    assert [each.kind for each in whole.windows] == ["parallel"] * 3 + ["serial"]
    stops = (
        Interrupting(1),
        Interrupting(1, 2),
        Interrupting(2),
        Interrupting(2, 1),
        Interrupting(1, 0),
        Interrupting(2),
    )
    _assert_same(found := _interrupted(train, tmp_path, *stops), whole)
    assert found.windows == whole.windows and found.residuals.tolist() == whole.residuals.tolist()
    _assert_ended(train, tmp_path, whole)


@pytest.mark.slow
def test_steps_one_after_the_other_interrupted_end_as_if_they_had_not_been(tmp_path):
    whole = _training()()
    assert {each.kind for each in whole.windows} == {"serial"} and len(whole.windows) > 4
    found = _interrupted(_training(), tmp_path, Interrupting(1), Interrupting(2), Interrupting(5), Interrupting(2))
    _assert_same(found, whole)
    assert sum(each.num_steps for each in found.windows) == found.num_steps


def test_a_short_run_that_has_ended_is_kept(tmp_path):
    short = partial(_training(), num_steps=1000)
    _assert_ended(short, tmp_path, short(checkpoint=tmp_path))


def test_training_that_turned_not_finite_is_not_gone_on_with(tmp_path):
    loss, batch = lambda w, x: 0.5 * jnp.sum((w - x) ** 2), lambda step: jnp.ones(2)
    train = partial(gritax.train, loss, optax.sgd(2.2), batch, jnp.zeros(2), 8000, throw=False)
    whole = train(checkpoint=tmp_path)
    assert whole.reason.startswith("diverged") and 2000 < Directory(tmp_path).latest().done < 8000
    assert (train(resume=tmp_path).reason, train(resume=tmp_path).depth) == (whole.reason, whole.depth)


def test_numbers_of_numpy_can_be_kept(tmp_path):
    numbers = {"num_steps": np.int64(200), "window": np.int32(72), "tolerance": np.float32(1e-3)}
    train = partial(_training(), **numbers, goal="depth", coarse=gritax.RescaledRate())
    _assert_same(_interrupted(train, tmp_path, Interrupting(3)), train())


def _saved(path, *steps):
    directory = Directory(path / "checkpoints")
    for done in steps:
        directory.save(Checkpoint(done, {"done": done}, [np.full(5, done), np.float32(done)]))
    return directory


def _assert_is(found, done):
    assert found.done == found.facts["done"] == done
    assert [(x.dtype, x.tolist()) for x in found.arrays] == [("int64", [done] * 5), ("float32", done)]


def test_the_last_two_are_kept_and_the_newest_is_used_also_where_a_run_started_again(tmp_path):
    directory = _saved(tmp_path, 9, 10, 200)
    assert sorted(file.name for file in directory.path.iterdir()) == [f"steps-{n:012d}.gritax" for n in (10, 200)]
    os.utime(directory.files()[0], (0, 0))  # copies have other times
    _assert_is(directory.latest(), 200)
    _assert_is(_saved(tmp_path, 0).latest(), 0)
    _assert_is(_saved(tmp_path, 50).latest(), 50)


def _flipped(content, position):
    return bytes(byte ^ (i == position % len(content)) for i, byte in enumerate(content))


@pytest.mark.parametrize(
    ("damage", "where"),
    [(lambda x, length: x[:length], length) for length in (0, 1, 10, _MAGIC, _MAGIC + 7, _MAGIC + _DIGEST, 150, -1)]
    + [(_flipped, place) for place in (0, _MAGIC - 1, _MAGIC, _MAGIC + _DIGEST - 1, _MAGIC + _DIGEST, 500, -1)],
)
def test_a_damaged_checkpoint_is_found_out_and_the_one_before_is_used(damage, where, tmp_path, caplog):
    directory = _saved(tmp_path, 10, 20)
    newest, before = directory.files()
    newest.write_bytes(damage(newest.read_bytes(), where))
    _assert_is(directory.latest(), 10)
    message = f"{newest} is damaged; the checkpoint before it is used"
    assert caplog.record_tuples == [("gritax", logging.WARNING, message)]
    before.write_bytes(damage(before.read_bytes(), where))
    with pytest.raises(ValueError, match=r"resume: no checkpoint in .*checkpoints is whole \(2 damaged\)"):
        directory.latest()


def test_unfinished_files_of_a_killed_process_do_no_harm(tmp_path):
    directory = _saved(tmp_path)
    (directory.path / "steps-000000000030.unfinished").write_bytes(b"gritax che")
    Keeper(directory, resume=False)
    assert directory.latest() is None
    _assert_is(_saved(tmp_path, 10, 20).latest(), 20)
    assert len(list(directory.path.iterdir())) == 2


def test_random_keys_and_every_dtype_survive(tmp_path):
    keys = {"one": jax.random.key(3), "three": jax.random.split(jax.random.key(4, impl="rbg"), 3), "old": jax.random.PRNGKey(5)}
    dtypes = ("bfloat16", "float16", "float32", "float64", "int8", "int32", "uint32", "bool")
    tree = {"keys": keys, "values": [jnp.ones((2, 1), dtype) for dtype in dtypes], "name": "gelu", "scalar": jnp.float32(0.1)}
    Directory(tmp_path).save(Checkpoint(1, {}, to_arrays(tree)))
    others = {"one": jax.random.key(0), "three": keys["three"][::-1], "old": jax.random.PRNGKey(0)}
    like = tree | {"keys": others, "values": [jnp.zeros_like(x) for x in tree["values"]]}
    found = from_arrays(like, Directory(tmp_path).latest().arrays)
    assert jax.tree.structure(found) == jax.tree.structure(tree) and found["name"] == "gelu"
    assert _bits(found) == _bits(tree) != _bits(like)
    assert jax.random.uniform(found["keys"]["three"][1]) == jax.random.uniform(keys["three"][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "other"),
    [
        (lambda: optax.sgd(0.01, momentum=0.9), lambda: optax.sgd(0.01, momentum=0.5)),
        (
            lambda: optax.sgd(optax.linear_schedule(0.0, 0.01, 8000)),
            lambda: optax.sgd(lambda count: jnp.where(count == 0, 0.0, 0.05)),
        ),
    ],
)
def test_another_next_step_is_another_run(optimizer, other, tmp_path):
    train = partial(gritax.train, small.loss, batch=small.batches(), params=small.params(), num_steps=8000, goal="time")
    with pytest.raises(KeyboardInterrupt):
        train(optimizer=optimizer(), checkpoint=tmp_path, progress=small.Interrupting(6))
    assert Directory(tmp_path).latest().done < 8000
    with pytest.raises(ValueError, match=r"was to go on after step \d.* an update of length .*: its loss, optimizer, schedule"):
        train(optimizer=other(), resume=tmp_path)
    assert train(optimizer=optimizer(), resume=tmp_path).converged


def test_a_run_is_not_resumed_as_another_nor_from_nowhere(tmp_path):
    """It is begun in a directory that is empty or absent."""
    run, sgd, params = tmp_path / "run", _training().args[1], small.params()
    narrow = {"w": params["w"][:, :4], "b": params["b"][:4], "v": params["v"][:4]}
    (tmp_path / "empty").mkdir()
    whole = _training()(checkpoint=run)
    for directory in (tmp_path / "empty", tmp_path / "absent" / "too"):
        _assert_same(_training()(resume=str(directory)), whole)
        assert Directory(directory).latest().done == 8000

    def call(optimizer=sgd, params=params, batch=None, **arguments):
        batch = batch or small.batches()
        gritax.train(small.loss, optimizer, batch, params, **{"num_steps": 8000, "resume": run, **arguments})

    for arguments, message in (
        ({"params": small.params(1)}, "began with another state than this"),
        ({"num_steps": 8001}, "has num_steps 8000, not 8001"),
        ({"tolerance": 0.1}, "has tolerance None, not 0.1"),
        ({"params": narrow}, r"other shapes or dtypes.*\(3, 8\).*\(3, 4\)"),
        ({"params": small.params(dtype="float32")}, "other shapes or dtypes.*float64.*float32"),
        ({"optimizer": optax.adam(0.01)}, "other shapes or dtypes"),
        ({"optimizer": optax.sgd(0.011)}, "a first update of length 0.* not 0"),
        ({"batch": small.batches(1)}, "a loss at step 0 of"),
        ({"goal": "depth"}, "has goal time, not depth"),
        ({"window": 100}, "has window None, not 100"),
        ({"coarse": gritax.FrozenGradient(8)}, r"has coarse auto, not FrozenGradient\(refresh=8"),
        ({"resume": False, "checkpoint": run}, "has checkpoints already .*8000.* go on with resume=True"),
        ({"resume": True}, "resume=True needs the directory"),
        ({"checkpoint": "elsewhere"}, "but resume is .*: name one directory"),
        ({"resume": 3}, "resume must be True, False or a directory, not 3"),
        ({"resume": __file__}, "test_checkpoint.py is a file; name a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**arguments)
