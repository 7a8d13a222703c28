"""Checkpoints: whole or found out, and a run that is taken up again ends as if it had never been interrupted."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.checkpoint import Checkpoint, Directory, Keeper, from_arrays, to_arrays


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_MAGIC, _DIGEST = 20, 32  # bytes before the digest, and of it


class Interrupting(gritax.Progress):
    """Stops a run as its nth window begins, or at an iteration of that window."""

    def __init__(self, nth, iteration=None):
        self.nth, self.number, self.seen = nth, iteration, 0

    def window(self, first, num_steps, kind, reason):
        self.seen += 1
        if self.seen == self.nth and self.number is None:
            raise KeyboardInterrupt

    def iteration(self, iteration):
        if self.seen == self.nth and iteration.number == self.number:
            raise KeyboardInterrupt


@cache
def _training(optimizer="sgd", dtype="float64"):
    """`gritax.train` without a number of steps and a goal; made once, so that it is compiled once."""
    rule = {"sgd": optax.sgd(0.01), "adam": optax.adam(1e-3)}[optimizer]
    return partial(gritax.train, small.loss, rule, small.batches(dtype=dtype), small.params(dtype=dtype))


def _in_windows(optimizer, dtype):
    coarse = gritax.FrozenGradient()
    return partial(_training(optimizer, dtype), num_steps=1600, goal="depth", coarse=coarse, window=512)


def _one_by_one():
    return partial(_training(), num_steps=8000, goal="time")


def _interrupted(train, directory, *stops):
    """The solution of a run that one process after the other takes up and is interrupted in."""
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint=directory, resume=True, progress=stop)
    return train(checkpoint=directory, resume=True)


def _bits(tree):
    return [(array.dtype, array.tobytes()) for array in to_arrays(tree)]


def _assert_same(found, wanted):
    assert _bits(found.state) == _bits(wanted.state) and _bits(found.params) == _bits(wanted.params)
    for name in ("converged", "depth", "work", "iterations", "amplification", "coarse_steps", "level_sizes"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.depth_on(8) == wanted.depth_on(8)


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("sgd", "float64"),
        ("adam", "float32"),
        pytest.param("sgd", "float32", marks=pytest.mark.slow),
        pytest.param("adam", "float64", marks=pytest.mark.slow),
    ],
)
def test_windows_interrupted_at_their_beginnings_and_midway_end_as_if_they_had_not_been(optimizer, dtype, tmp_path):
    train = _in_windows(optimizer, dtype)
    whole = train()
    assert [each.kind for each in whole.windows] == ["parallel"] * 3 + ["serial"]
    stops = (Interrupting(1), Interrupting(1, 2), Interrupting(2), Interrupting(2, 1), Interrupting(1, 0), Interrupting(2))
    found = _interrupted(train, tmp_path, *stops)
    _assert_same(found, whole)
    assert found.windows == whole.windows
    assert found.residuals.tolist() == whole.residuals.tolist()
    seen = Interrupting(0)
    _assert_same(train(resume=tmp_path, progress=seen), whole)
    assert seen.seen == 0


def test_steps_one_after_the_other_interrupted_end_as_if_they_had_not_been(tmp_path):
    whole = _one_by_one()()
    assert all(each.kind == "serial" for each in whole.windows) and len(whole.windows) > 4
    found = _interrupted(_one_by_one(), tmp_path, Interrupting(1), Interrupting(2), Interrupting(5), Interrupting(2))
    _assert_same(found, whole)
    assert sum(each.num_steps for each in found.windows) == found.num_steps


def test_what_was_measured_is_kept(tmp_path):
    """Of a run so short that nothing is left to train afterwards, too."""
    short = partial(_training(), num_steps=1000, goal="time")
    whole, seen = short(checkpoint=tmp_path), Interrupting(0)
    _assert_same(short(resume=tmp_path, progress=seen), whole)
    assert seen.seen == 0


def test_training_that_turns_not_finite_does_so_again(tmp_path):
    loss, batch = lambda w, x: 0.5 * jnp.sum((w - x) ** 2), lambda step: jnp.ones(2)
    train = partial(gritax.train, loss, optax.sgd(10.0), batch, jnp.zeros(2), 5000, goal="depth", throw=False)
    whole = train(coarse=gritax.RescaledRate(), checkpoint=tmp_path)
    found = train(coarse=gritax.RescaledRate(), resume=tmp_path)
    assert whole.reason.startswith("diverged") and not found.converged
    assert found.reason == whole.reason and found.depth == whole.depth


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


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path):
    directory = _saved(tmp_path, 9, 10, 200)
    assert [file.name for file in directory.files()] == ["steps-000000000200.gritax", "steps-000000000010.gritax"]
    assert len([*directory.path.iterdir()]) == 2
    _assert_is(directory.latest(), 200)


def test_a_run_that_started_again_is_taken_up_from_there(tmp_path):
    _assert_is(_saved(tmp_path, 100, 200, 0).latest(), 0)
    _assert_is(_saved(tmp_path, 50).latest(), 50)


def _assert_the_one_before_is_used(directory, caplog):
    _assert_is(directory.latest(), 10)
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "gritax")]
    assert "steps-000000000020.gritax is damaged; the checkpoint before it is used" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 10, _MAGIC, _MAGIC + 7, _MAGIC + _DIGEST, 0.5, -1])
def test_a_checkpoint_cut_short_is_found_out_and_the_one_before_is_used(length, tmp_path, caplog):
    directory = _saved(tmp_path, 10, 20)
    newest = directory.files()[0]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2 if length == 0.5 else length])
    _assert_the_one_before_is_used(directory, caplog)


@pytest.mark.parametrize("position", [0, _MAGIC - 1, _MAGIC, _MAGIC + _DIGEST - 1, _MAGIC + _DIGEST, 500, -1])
def test_a_changed_byte_is_found_out_and_the_one_before_is_used(position, tmp_path, caplog):
    directory = _saved(tmp_path, 10, 20)
    content = bytearray(directory.files()[0].read_bytes())
    content[position] ^= 1
    directory.files()[0].write_bytes(content)
    _assert_the_one_before_is_used(directory, caplog)


def test_no_whole_checkpoint_is_an_error_and_no_new_beginning(tmp_path):
    directory = _saved(tmp_path, 10, 20)
    for file in directory.files():
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints is whole \(2 damaged\)"):
        directory.latest()
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        _one_by_one()(resume=directory.path)


def test_unfinished_files_of_a_killed_process_do_no_harm(tmp_path):
    directory = Directory(tmp_path / "checkpoints")
    directory.path.mkdir()
    (directory.path / "steps-000000000030.4711.unfinished").write_bytes(b"gritax che")
    Keeper(directory, resume=False)
    assert directory.latest() is None
    _assert_is(_saved(tmp_path, 10, 20).latest(), 20)


def test_random_keys_and_every_dtype_survive(tmp_path):
    keys = {"one": jax.random.key(3), "three": jax.random.split(jax.random.key(4, impl="rbg"), 3), "old": jax.random.PRNGKey(5)}
    dtypes = ("bfloat16", "float16", "float32", "float64", "int8", "int32", "uint32", "bool")
    tree = {"keys": keys, "values": [jnp.ones((2, 1), dtype) for dtype in dtypes], "name": "gelu", "scalar": jnp.float32(0.1)}
    directory = Directory(tmp_path)
    directory.save(Checkpoint(1, {}, to_arrays(tree)))
    like = jax.tree.map(lambda x: x[::-1] if isinstance(x, jax.Array) and x.ndim else x, tree)
    found = from_arrays(like, directory.latest().arrays)
    assert jax.tree.structure(found) == jax.tree.structure(tree) and found["name"] == "gelu"
    assert jax.tree.map(jnp.result_type, found["keys"]) == jax.tree.map(jnp.result_type, keys)
    assert _bits(found) == _bits(tree)
    assert jax.random.uniform(found["keys"]["one"]) == jax.random.uniform(keys["one"])


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_is_begun_where_there_is_none_to_resume(exists, tmp_path):
    """And a path for `resume` stands for `checkpoint=path, resume=True`."""
    path = tmp_path / "new" / "directory"
    path.mkdir(parents=True) if exists else None
    _assert_same(_one_by_one()(resume=str(path)), _one_by_one()(checkpoint=path, resume=True))
    assert Directory(path).latest().done == 8000


def test_a_run_is_not_resumed_as_another(tmp_path):
    train = _one_by_one()
    train(checkpoint=tmp_path / "run")
    narrow = jax.tree.map(lambda x: x[..., :4, :] if x.shape == (8, 1) else x[..., :4], small.params())
    loss, sgd, batches, params = train.args
    call = partial(gritax.train, num_steps=8000, resume=tmp_path / "run")
    for change, message in (
        (lambda: call(loss, sgd, batches, small.params(1)), "began with other params than these"),
        (lambda: call(loss, sgd, batches, params, num_steps=8001), "has num_steps 8000, not 8001"),
        (lambda: call(loss, sgd, batches, params, tolerance=0.1), "has tolerance None, not 0.1"),
        (lambda: call(loss, sgd, batches, narrow), r"other shapes or dtypes.*\(3, 8\).*\(3, 4\)"),
        (lambda: call(loss, optax.adam(0.01), batches, params), "other shapes or dtypes"),
        (lambda: call(loss, sgd, batches, params, resume=False, checkpoint=tmp_path / "run"), r"go on with resume=True"),
    ):
        with pytest.raises(ValueError, match=message):
            change()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resume": True}, "resume=True needs the directory"),
        ({"resume": "a", "checkpoint": "b"}, "checkpoint is 'b', but resume is 'a': name one directory"),
        ({"resume": 3}, "resume must be True, False or a directory, not 3"),
        ({"checkpoint": __file__}, "test_checkpoint.py is a file; name a directory"),
    ],
)
def test_arguments_that_name_no_directory(arguments, message):
    with pytest.raises(ValueError, match=message):
        _one_by_one()(**arguments)
