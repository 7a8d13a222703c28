"""Where a command writes: what cannot be written is named in one line, and what a file holds is lost in no case."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import gritax
from gritax.cli import _COMMANDS, main
from gritax.cli._files import write


_FULL = Path("/dev/full")
_needs_full = pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")


def _status(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code


@pytest.fixture
def run(tmp_path):
    """A file as --json leaves it."""
    path = tmp_path / "run.json"
    solution = gritax.solve(lambda u, start, stride: u / (1 + stride * jnp.array([0.01, 0.3])), jnp.ones(2), 40)
    path.write_text(json.dumps(gritax.reporting.figures(solution)))
    return path


@_needs_full
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("solve", "--help"), ("report", "run.json")])
def test_a_full_standard_output_is_named(arguments, run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    with _FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert _status(*arguments) == 2
    assert capsys.readouterr().err == "gritax: standard output cannot be written: No space left on device.\n"


@_needs_full
def test_files_are_written_where_standard_output_is_full(tmp_path, monkeypatch, capsys):
    def run(self, console):
        console.print("once")
        console.print("twice")
        write(self.json, "all")
        return 0

    monkeypatch.setattr(_COMMANDS["solve"], "run", run)
    with _FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert _status("solve", "xor", "--json", tmp_path / "run.json") == 2
    assert (tmp_path / "run.json").read_text() == "all"
    assert capsys.readouterr().err == "gritax: standard output cannot be written: No space left on device.\n"


@_needs_full
@pytest.mark.parametrize("arguments", [("sudoku",), ("solve", "xor", "--steps", "0")])
def test_where_errors_cannot_be_written_there_is_a_status(arguments, monkeypatch):
    with _FULL.open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert _status(*arguments) == 2


@_needs_full
def test_a_full_device_in_place_of_a_file_is_named(run, capsys):
    assert _status("report", run, "--output", _FULL) == 2
    assert capsys.readouterr().err == "gritax: --output /dev/full cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    "arguments",
    [("solve", "xor", "--resume", ""), ("train", "digits", "--json", ""), ("report", ""), ("report", "x", "--output", "")],
)
def test_an_empty_name_is_none(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _status(*arguments) == 2
    assert "it is empty: give a name." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("solve", "xor", "--resume", "-"), "--resume -: iterates are kept in a directory"),
        (("train", "digits", "--relaxation", "-1"), "--relaxation is for a method of your own: give --coarsening"),
        (("solve", "xor", "--coarse", "tangent", "--relaxation", "2"), "--relaxation is for a method of your own"),
        (("solve", "xor", "--coarse", "tangent", "--alpha-max", "2"), "--alpha-max is for --coarse rescaled, not for tangent."),
        (("solve", "xor", "--coarse", "naive", "--alpha-max", "2"), "--alpha-max is for --coarse rescaled, not for naive."),
        (("solve", "xor", "--alpha", "inf", "--alpha-max", "inf"), "--alpha must be positive and at most --alpha-max"),
        (("launch", "--timeout", str(2**31), "--", "true"), "--timeout must be below 2^31"),
        (("tables", "9" * 5000), "tables must be numbers and ranges"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_line(arguments, told, capsys):
    assert _status(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gritax: {told}") and error.count("\n") == 1


@pytest.mark.slow
def test_a_page_by_pipes_alone(run):
    (run.parent / "-").touch()  # which is meant by no -
    command = [sys.executable, "-m", "gritax", "report", "-", "--output", "-"]
    done = subprocess.run(command, input=run.read_bytes(), capture_output=True, cwd=run.parent)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == gritax.reporting.page(json.loads(run.read_text()))


def test_a_run_whose_command_is_no_utf_8_has_a_page(run, tmp_path):
    page = tmp_path / "page.html"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"command": "gritax --json '\udcff.json' \ud800"}))
    assert _status("report", run, "--output", page) == 0
    assert "\\udcff.json" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_file_that_cannot_be_written_is_as_it_was(code, run, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    page.write_text("precious")

    def fails(self, data):
        self.touch()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", fails)
    assert _status("report", run, "--output", page) == 2
    assert page.read_text() == "precious" and sorted(tmp_path.iterdir()) == [page, run]
    assert capsys.readouterr().err == f"gritax: --output {page} cannot be written: {os.strerror(code)}.\n"


def test_a_file_keeps_its_mode_and_its_links(tmp_path):
    file, link = tmp_path / "run.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o640


def test_in_a_folder_that_takes_no_other_file_it_is_written_in_place(tmp_path, monkeypatch):
    file, written = tmp_path / "run.json", Path.write_bytes
    file.write_text("old")

    def refused(self, data):
        if self != file:
            raise PermissionError(errno.EACCES, "Permission denied")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", refused)
    write(file, "new")
    assert file.read_text() == "new"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_comes_too_late_for_what_has_ended():
    """As a second one does, which comes while Python ends."""
    script = (
        "import atexit, os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "from gritax.cli import main\nsys.argv[1:] = ['--version']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_main_in_another_program_leaves_ctrl_c_as_it_was(capsys):
    before = signal.getsignal(signal.SIGINT)
    assert _status("--version") == 0
    assert signal.getsignal(signal.SIGINT) == before
