"""What the command tells people who do not know it: help, completion, one line for an error."""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import gritax
from gritax.cli import _COMMANDS, main


_SHELL = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_tyro_gritax
printf '%s\\n' "${COMPREPLY[@]}"
"""


def _printed(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def _words(text):
    """Without the frames and the line breaks of a terminal."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "gritax"
    command = [sys.executable, "-m", "gritax", "--tyro-print-completion", "bash"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.mark.slow(3)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("so",), {"solve"}),
        (("re",), {"report"}),
        (("",), set(_COMMANDS)),
        (("solve", "--cy"), {"--cycle"}),
        (("solve", "xor", "--cycle", ""), {"V", "F"}),
        (("train", "digits", "--optimizer", "ada"), {"adam", "adamw-cosine"}),
        (("report", "--out"), {"--output"}),
        (("doctor", "--js"), {"--json"}),
        (("launch", "--pro"), {"--processes"}),
    ],
)
def test_bash_completes_commands_options_and_choices(completion, words, expected):
    shell = ["bash", "--norc", "-c", _SHELL, "bash", str(completion), "gritax", *words]
    found = set(subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split())
    assert expected <= found and not {word for word in found if not word.startswith(words[-1])}


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_says_what_a_command_does_and_shows_an_example(name, capsys):
    words = _words(_printed([name, "--help"], capsys))
    told, _, options = words.partition(" -h, --help ")
    first = _words(_COMMANDS[name].__doc__.split("\n\n")[0])
    assert told.index(first) < told.index("Example: gritax ") < told.index("Exit status:")
    assert "--" in options or name == "doctor"


@pytest.mark.parametrize("name", _COMMANDS)
def test_examples_are_understood(name, monkeypatch):
    """Parsed, not run."""
    example = re.search(r"Example: (.*)", _COMMANDS[name].__doc__).group(1).split(" && ")
    ran = []
    for command in _COMMANDS.values():
        monkeypatch.setattr(command, "run", lambda self, console: ran.append(type(self).__name__) or 0)
    for each in example:
        with pytest.raises(SystemExit) as ended:
            main(each.split()[1:])
        assert ended.value.code == 0
    assert ran[-1].lower() == name


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("steps must be whole.\nMore."), 2, "gritax: steps must be whole."),
        (MemoryError(), 2, "gritax: MemoryError"),
        (FileNotFoundError(2, "No such file", "run"), 2, "gritax: [Errno 2] No such file: 'run'"),
        (KeyboardInterrupt(), 130, "gritax: interrupted; the same command goes on from what kept has"),
    ],
)
def test_an_error_is_one_line(error, status, told, monkeypatch, capsys, tmp_path):
    def fails(self, console):
        raise error

    (tmp_path / "kept" / "1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process, which goes on
    monkeypatch.setattr(_COMMANDS["solve"], "run", fails)
    with pytest.raises(SystemExit) as ended:
        main(["solve", "xor", "--resume", "kept"])
    assert ended.value.code == status
    assert capsys.readouterr().err.strip() == told


@pytest.mark.slow
def test_who_reads_may_have_seen_enough():
    with subprocess.Popen(
        [sys.executable, "-m", "gritax", "solve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pipes and signals")
@pytest.mark.parametrize("written", [pytest.param(True, marks=pytest.mark.long), False])
def test_whose_reader_has_gone_writes_its_files_all_the_same(tmp_path, written):
    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "gritax", "solve", "xor", "--steps", "60", *["--json", str(file)] * written]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert file.exists() == written


@pytest.mark.slow(1)
@pytest.mark.parametrize("arguments", [("doctor", "--json"), ("solve", "xor", "--steps", "60", "--json", "-")])
def test_json_on_standard_output_is_json_alone(arguments):
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", "gritax", *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["gritax"] == gritax.__version__
    assert ("iteration" in done.stderr) == (arguments[0] == "solve")


def test_its_version(capsys):
    assert _printed(["--version"], capsys) == f"gritax {importlib.metadata.version('gritax')}\n"


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("solve", "xor", "--steps", "60"), {"JAX_PLATFORMS": "wrong"}, "gritax: Unable to initialize backend 'wrong'"),
        (("solve", "xor", "--steps", "-1"), {}, "gritax: --steps must be a whole number of at least 1, not -1."),
        (("solve", "xor", "--levels", "0"), {}, "gritax: --levels must be a whole number of at least 1, not 0."),
        (("solve", "xor", "--json", "/proc/run.json"), {}, "gritax: --json /proc/run.json: no file can be written there"),
        (("solve", "xor", "--json", "run", "--resume", "run"), {}, "gritax: --json and --resume are both run"),
        (("tables", "1-300000000"), {}, "gritax: the paper has the tables 1 to 16, not 300000000."),
        (("tables", "²"), {}, "gritax: tables must be numbers and ranges"),
    ],
)
def test_what_cannot_be_done_is_said_before_long_work(arguments, environment, told, tmp_path):
    command = [sys.executable, "-m", "gritax", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_json_into_a_pipe():
    read, write = os.pipe()
    command = [sys.executable, "-m", "gritax", "solve", "xor", "--steps", "20", "--json", f"/dev/fd/{write}"]
    with subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        os.close(write)
        with os.fdopen(read) as written:
            assert json.load(written)["num_steps"] == 20
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_what_a_file_holds_is_left_until_there_is_better(tmp_path):
    file = tmp_path / "run.json"
    file.write_text("old")
    command = [sys.executable, "-m", "gritax", "solve", "xor", "--json", str(file), "--tolerance", "-1"]
    assert subprocess.run(command, capture_output=True).returncode == 2
    assert file.read_text() == "old"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("solve", "xor", "--steps", "20")])
def test_any_encoding_will_do(arguments):
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "gritax", *arguments], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_it_without_a_traceback():
    command = [sys.executable, "-m", "gritax", "solve", "xor", "--steps", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "compiling" in line:
                break
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip() == "gritax: interrupted"
