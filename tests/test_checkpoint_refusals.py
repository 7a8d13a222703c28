"""Checkpoints that are not what their names say, of another version or of another run; and places that are none."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax._validation import validated
from gritax.checkpoint import Checkpoint, Directory, difference, kept_in, taken


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_MAGIC = b"gritax checkpoint 4\n"
_train = partial(
    gritax.train, small.loss, optax.sgd(0.01), small.batches(), small.params(), 2000, goal="depth", coarse=gritax.RescaledRate()
)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A directory with two checkpoints of a run that was interrupted."""
    path = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"), pytest.raises(KeyboardInterrupt):
        _train(window=100, checkpoint=path, progress=small.Interrupting(6))
    assert len(Directory(path).files()) == 2
    return path


@pytest.fixture
def run(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


class _Where(gritax.Progress):
    """Ends a run where it begins, and remembers that step."""

    def window(self, first, num_steps, kind, reason):
        self.first = first
        raise KeyboardInterrupt


def _goes_on_from(path):
    with pytest.raises(KeyboardInterrupt):
        _train(window=100, resume=path, progress=(where := _Where()))
    return where.first


def test_a_renamed_checkpoint_is_not_that_of_other_steps(run, caplog):
    newest, before = Directory(run).files()
    done = Directory(run).latest().done
    newest.rename(run / "steps-000000001990.gritax")
    assert _goes_on_from(run) < done
    assert f"steps-000000001990.gritax is renamed, for it says that it is {newest.name}; the checkpoint before" in caplog.text
    before.rename(newest)
    with pytest.raises(ValueError, match=rf"no checkpoint in .* is whole \(1 renamed, .* is steps-0*{done}.gritax; 1 renamed"):
        _train(window=100, resume=run)


def _framed(payload, magic=_MAGIC):
    return magic + hashlib.sha256(payload).digest() + payload


def _head(**facts):
    return json.dumps({"done": 9, "facts": {}, "arrays": [], **facts}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_framed(b"x", b"gritax checkpoint 3\n"), "of format 3, written by another version of gritax, while this one reads 4"),
        (_framed(b"x", b"gritax checkpoint 12\n"), "of format 12"),
        (b"another file\n", "damaged"),
        (_framed(b""), "not what gritax writes"),
        (_framed(b"hello"), "not what gritax writes"),
        (_framed(b"[" * 100_000), "not what gritax writes"),
        (_framed(pickle.dumps({"done": 9})), "not what gritax writes"),
        (_framed(b"{}\n"), "without its 'done'"),
        (_framed(_head(done="9")), "one whose 'done' cannot be '9'"),
        (_framed(_head(arrays=[["object", [1]]]) + bytes(8)), "not what gritax writes"),
        (_framed(_head(arrays=[["float32", [2]]]) + bytes(4)), "not what gritax writes"),
        (_framed(_head(arrays=[["float32", [10**15]]])), "not what gritax writes"),
        (_framed(_head(arrays=[["float32", [1]]]) + bytes(5)), "one that has more bytes than arrays"),
        (None, "a folder"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_checkpoint_before_it_is_used(content, reason, tmp_path, caplog):
    directory = Directory(tmp_path)
    directory.save(Checkpoint(5, {"whole": 1}, []))
    file = tmp_path / "steps-000000000009.gritax"
    file.mkdir() if content is None else file.write_bytes(content)
    assert directory.latest().done == 5
    assert f"{file} is {reason}" in caplog.text and "the checkpoint before it is used" in caplog.text
    directory.save(Checkpoint(6, {}, []))
    assert file.exists() == (not (content or b"").startswith(_MAGIC))  # what others have written is theirs


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("pace"),
        lambda facts: facts.pop("arrays"),
        lambda facts: facts["asked"].pop("window"),
        lambda facts: facts["first"].pop("lengths"),
        lambda facts: facts["pace"].update(kind="Sideways"),
        lambda facts: facts["pace"].update(longest="long"),
        lambda facts: facts["windows"][0].pop("depth"),
        lambda facts: facts["windows"][0].update(depth="deep"),
        lambda facts: facts["sensitivity"].update(growth=None),
        lambda facts: facts.update(work=None),
        lambda facts: facts.update(depth_by_lanes=[3]),
    ],
)
def test_a_record_that_is_not_one_of_a_run_is_told_and_the_one_before_it_is_used(change, run, caplog):
    directory = Directory(run)
    found = directory.latest()
    change(found.facts)
    directory.save(found)
    assert 0 < _goes_on_from(run) < found.done
    assert f"{directory.files()[0]} is " in caplog.text


def _begun(optimizer, dtype="float64", batch=None, loss=small.loss):
    step = gritax.TrainStep(loss, optimizer, batch or small.batches(dtype=dtype), key=None)
    return validated(step, step.init(small.params(dtype=dtype)), 100)


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize(("dtype", "more"), [("float32", 5e-4), ("float32", -1e-4), ("float64", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("rule", [optax.sgd, lambda rate: optax.adam(rate)])
def test_another_rate_is_another_run_to_the_precision_of_the_dtype(rule, dtype, more):
    before = taken(*_begun(rule(0.01), dtype))
    kind, figures = difference(before, *_begun(rule(0.01 * (1 + more)), dtype))
    assert kind == "update" and "length 0.0" in figures and ", not 0.0" in figures
    assert difference(before, *_begun(rule(0.01), dtype)) == ("", "")


def test_other_data_and_another_loss_are_another_run():
    before = taken(*_begun(optax.sgd(0.01)))
    x, y = small.data()
    nearly = gritax.data.Epochs((x, y * (1 + 1e-9)), 8, jax.random.key(7))
    assert difference(before, *_begun(optax.sgd(0.01), batch=nearly))[0] == "loss"
    shifted = lambda params, batch: small.loss(params, batch) + 1e-9
    assert difference(before, *_begun(optax.sgd(0.01), loss=shifted))[0] == "loss"
    assert difference(before, *_begun(optax.sgd(0.01, momentum=0.9)))[0] == "update"


@pytest.mark.slow(1)
@pytest.mark.parametrize(("dtype", "within"), [("float32",) * 2, ("float64",) * 2, ("float32", "bfloat16")])
def test_what_another_compiler_rounds_otherwise_is_the_same_run(dtype, within, caplog):
    """The same sums in another order: of the examples of a batch, and of a matrix product."""
    arrays = small.data(dtype=dtype)
    cast = partial(jax.tree.map, lambda x: x.astype(within))
    whole = lambda x: lambda step: x
    first = lambda params, batch: small.loss(*cast((params, batch))).astype(dtype)
    before = taken(*_begun(optax.adam(0.01), dtype, whole(arrays), first))
    turned = jax.tree.map(lambda x: x[::-1], arrays)

    def loss(params, batch):
        params, (x, y) = cast((params, batch))
        hidden = jnp.tanh(sum(x[:, i : i + 1] * params["w"][i][None] for i in (2, 1, 0)) + params["b"][None])
        return jnp.mean((hidden @ params["v"] - y) ** 2).astype(dtype)

    now = _begun(optax.adam(0.01), dtype, whole(turned), loss)
    assert taken(*now) != before and difference(before, *now) == ("", "")
    assert "the step is the same but for its last digits" in caplog.text
    assert difference(before, *_begun(optax.adam(0.011), dtype, whole(arrays), first))[0] == "update"


def test_figures_that_are_not_finite_are_the_same():
    begun = _begun(optax.sgd(0.01))
    found = taken(*begun)
    before = {**found, "lengths": [float("nan"), *found["lengths"][1:]]}
    assert difference(before, *begun)[0] == "update"
    loss = lambda params, batch: small.loss(params, batch) + 0 * jnp.sum(jnp.sqrt(jnp.abs(params["b"])))
    step = gritax.TrainStep(loss, optax.sgd(0.01), small.batches())
    parts = gritax._evolution.Evolution(step, state := step.init(small.params()))
    nan = (parts, *parts.split(state))
    assert np.isnan(taken(*nan)["lengths"]).any() and difference(taken(*nan), *nan) == ("", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/run", "gs://bucket/run is elsewhere"),
        (Path("s3://bucket/run"), "s3:/bucket/run is elsewhere"),
        ("file:///tmp/run", "is elsewhere"),
        ("host:/run", "is elsewhere"),
        ("simplecache::s3://bucket/run", "is elsewhere"),
        ("a\0b", "no folder can be called 'a.x00b': it has a null character"),
        ("\ud800", "no folder can be called .*: surrogates not allowed"),
        ("x" * 300, "nothing can be written to .*xxx: File name too long"),
        ("x/" * 3000, "nothing can be written to .*: File name too long"),
        ("~nobody-of-this-name/run", "cannot be found: Could not determine home"),
        (f"{__file__}/run", "nothing can be written to .*: Not a directory"),
        (__file__, "is a file; name a directory"),
        (b"run", "must name a directory"),
    ],
)
def test_places_where_nothing_can_be_kept(path, message):
    for checkpoint, resume in ((path, False), (path, True), (None, path)):
        if not isinstance(resume, bytes):
            with pytest.raises(ValueError, match=f"^checkpoint:? .*{message}"):
                kept_in(checkpoint, resume)
    with pytest.raises(ValueError, match=f"^checkpoint:? .*{message}"):
        gritax.solve(lambda u, start, stride: 1 / 0, 1.0, 10, checkpoint=path)


def test_a_home_is_found_and_names_of_one_directory_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert kept_in("~/run", False) == (tmp_path / "run", False)
    assert kept_in(Path("run/"), "~/run") == (tmp_path / "run", True)
    assert os.listdir(tmp_path) == ["run"]
    with pytest.raises(ValueError, match="must name a directory, not be 3"):
        kept_in(3, "run")


def test_a_run_is_the_only_writer_until_it_ends(tmp_path):
    class Second(gritax.Progress):
        def window(self, *_):
            with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing into {tmp_path}"):
                _train(resume=tmp_path)
            with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
                Directory(tmp_path).save(Checkpoint(3, {}, []))
            raise KeyboardInterrupt

    (tmp_path / ".lock").write_text("process 1 on a machine that has crashed")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _train(checkpoint=tmp_path, progress=Second())
        assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="has checkpoints already"):
        Directory(tmp_path).save(Checkpoint(3, {}, []))
        _train(checkpoint=tmp_path)
    assert os.listdir(tmp_path) == ["steps-000000000003.gritax"]


def test_the_other_is_told_by_its_number_and_what_it_leaves_when_killed_is_no_obstacle(tmp_path):
    script = (
        "import sys; from pathlib import Path; from gritax.checkpoint._lock import Lock\n"
        "with Lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    directory = Directory(tmp_path)
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {other.pid} on"):
            directory.save(Checkpoint(3, {}, []))
        other.kill()
    assert (tmp_path / ".lock").exists()
    directory.save(Checkpoint(3, {}, []))
    assert os.listdir(tmp_path) == ["steps-000000000003.gritax"]
