"""Whatever ends `gritax launch`, nothing that it has started is left."""

import os
import signal
import subprocess
import time

import pytest
from processes import members

from gritax.cli._guard import guarded
from gritax.cli._supervision import _named, caught_signals


pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux")

_WAITING = (
    "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\nprint('child', child.pid, flush=True)\nchild.wait()\n"
)


def _until_gone(*processes):
    """Returns once all have ended; some init processes leave them as zombies."""
    given_up = time.monotonic() + 60
    for process in processes:
        while _state(process) not in (None, "Z"):
            assert time.monotonic() < given_up, f"process {process} is left"
            time.sleep(0.01)


def _state(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


@pytest.fixture
def own_handlers():
    before = {number: signal.getsignal(number) for number in signal.Signals}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


_ENDS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM", "ABRT", "VTALRM", "PROF", "XCPU", "IO", "PWR")


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("name", _ENDS)
def test_every_signal_that_would_end_it_is_caught(name):
    number = signal.Signals[f"SIG{name}"]
    signal.signal(number, signal.default_int_handler if name == "INT" else signal.SIG_DFL)
    with caught_signals() as came:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # ignored on the way out
    assert came == [number, number]


@pytest.mark.usefixtures("own_handlers")
def test_other_signals_are_as_they_were():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    before = {number: signal.getsignal(number) for number in signal.Signals}
    with caught_signals() as came:
        for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGWINCH, signal.SIGCONT):
            os.kill(os.getpid(), number)
        assert {number for number in before if signal.getsignal(number) != before[number]} <= {
            number for number in before if before[number] in (signal.SIG_DFL, signal.default_int_handler)
        }
    assert came == []
    assert {number: signal.getsignal(number) for number in signal.Signals} == before


@pytest.mark.slow(1)
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL, signal.SIGSEGV])
def test_nothing_is_left_behind(launch, number):
    launcher = launch(_WAITING)
    child = int(next(launcher.stdout).split()[1])
    processes = members(launcher)
    assert len(processes) == 2
    launcher.send_signal(number)
    errors = launcher.communicate()[1]
    _until_gone(child, *processes)
    if number == signal.SIGQUIT:
        assert launcher.returncode == 128 + number
        assert errors.startswith("gritax: stopped by signal 3 (SIGQUIT); the processes were ended")


def test_a_launcher_that_ends_by_itself_lets_its_guard_go():
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        with guarded() as tell:
            tell(process.pid)
        assert process.poll() is None
        process.kill()


def test_signals_without_a_name():
    assert _named(9) == "signal 9 (SIGKILL)" and _named(40) == "signal 40"
