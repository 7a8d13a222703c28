"""What the command tells people who do not know it: help, completion, one line for an error."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

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
def test_an_error_is_one_line(error, status, told, monkeypatch, capsys):
    def fails(self, console):
        raise error

    monkeypatch.setattr(_COMMANDS["solve"], "run", fails)
    with pytest.raises(SystemExit) as ended:
        main(["solve", "xor", "--resume", "kept"])
    assert ended.value.code == status
    assert capsys.readouterr().err.strip() == told


def test_who_reads_may_have_seen_enough():
    with subprocess.Popen(
        [sys.executable, "-m", "gritax", "solve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


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
