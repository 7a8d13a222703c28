"""Iterates that were damaged, renamed or written by another version are found out, and the one before is used."""

import json
import logging
import shutil
from functools import partial

import interrupted_solves as runs
import jax.numpy as jnp
import pytest
import small_problems as small

import gritax
from gritax.checkpoint import _iterates


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


@pytest.fixture(autouse=True)
def _quiet():
    """orbax tells of each file that is damaged, beside gritax."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flipped(file, where):
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)


# orbax ends its event loop at the first file that it cannot read; others that it reads may then find none.
@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("item", ["facts", "points"])
@pytest.mark.parametrize("damage", [_cut, *(partial(_flipped, where=where) for where in (0.1, 0.3, 0.5, 0.7, 0.9))])
def test_a_damaged_iterate_is_found_out_and_the_one_before_is_used(item, damage, tmp_path, caplog):
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)
    runs.interrupted(solve, tmp_path, None, 3)
    newest = max(each for each in tmp_path.iterdir() if each.is_dir())
    for file in (newest / item).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            damage(file)
    runs.require_same(solve(resume=tmp_path), solve())
    assert f"{newest} is damaged; the iterate before it is used" in caplog.text


def test_no_iterate_is_whole(tmp_path):
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)
    runs.interrupted(solve, tmp_path, None, 2)
    for each in tmp_path.glob("*/facts/metadata"):
        _cut(each)
    with pytest.raises(ValueError, match=r"resume: no iterate in .* is whole"):
        solve(resume=tmp_path)


def _kept(tmp_path):
    """Two iterates of a solve that was interrupted, the newest first, and the solve."""
    *arguments, method = runs.plain()
    solve = partial(gritax.solve, *arguments, method)
    runs.interrupted(solve, tmp_path, None, 3)
    return sorted((each for each in tmp_path.iterdir() if each.is_dir()), key=lambda each: -int(each.name)), solve


def test_a_renamed_iterate_is_not_that_of_another_place(tmp_path, caplog):
    (newest, before), solve = _kept(tmp_path)
    moved = newest.rename(tmp_path / "7")
    with pytest.raises(KeyboardInterrupt):
        solve(resume=tmp_path, progress=small.Interrupting(0, 2))
    assert f"{moved} is renamed, for it says that it is {newest.name}; the iterate before it is used" in caplog.text
    before.rename(newest)
    for each in tmp_path.iterdir():
        if each.name not in (moved.name, newest.name):
            shutil.rmtree(each)
    with pytest.raises(ValueError, match=r"no iterate in .* is whole"):
        solve(resume=tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_pieces_of_two_iterates_are_none(tmp_path, caplog):
    (newest, before), solve = _kept(tmp_path)
    shutil.rmtree(newest / "points")
    shutil.copytree(before / "points", newest / "points")
    runs.require_same(solve(resume=tmp_path), solve())
    assert f"{newest} is damaged; the iterate before it is used" in caplog.text


def test_arrays_in_another_order_are_others():
    x, y = jnp.arange(4.0), jnp.ones(4)
    assert _iterates._sum([x, y]) != _iterates._sum([y, x])


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found.pop("format"), "of format 1, written by another version of gritax"),
        (lambda found: found["facts"].pop("front"), "without its 'front'"),
        (lambda found: found["facts"].update(front="far"), "one whose 'front' cannot be 'far'"),
    ],
)
def test_an_iterate_of_another_version_is_told(change, reason, tmp_path, caplog):
    (newest, _), solve = _kept(tmp_path)
    file = newest / "facts" / "metadata"
    found = json.loads(file.read_text())
    change(found)
    found["digest"] = _iterates._digest(found["facts"])
    file.write_text(json.dumps(found))
    runs.require_same(solve(resume=tmp_path), solve())
    assert f"{newest} is {reason}" in caplog.text
