"""Processes of a run, watched until all have ended: if one fails the others are ended."""

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console


_LOOK_EVERY = 0.02
_NOT_CAUGHT = {
    *("SIGKILL", "SIGSTOP"),  # which cannot be
    *("SIGCHLD", "SIGCONT", "SIGINFO", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"),  # which end no process
    *("SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"),  # after which nothing can be computed
}
_TO_END_BY_THEMSELVES = 2.0  # seconds in which the others may find the same error and say so
_TO_TERMINATE = 5.0  # seconds from SIGTERM to SIGKILL


def _again() -> str:
    command = shlex.join(["gritax", *sys.argv[1:]])
    return f"The same command goes on from the last checkpoint, if it keeps any: {command}"


class Member:
    """A process and the last lines that it wrote to stderr, unless that is shown."""

    def __init__(self, popen: subprocess.Popen):
        self.popen = popen
        self.last_lines: deque[str] = deque(maxlen=20)
        self._reader = None
        if popen.stderr is not None:
            self._reader = threading.Thread(target=self._read, args=(popen.stderr,), daemon=True)
            self._reader.start()

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                self.last_lines.append(line.decode(errors="replace").rstrip())

    @property
    def status(self) -> int | None:
        """None until the process has ended; negative if a signal ended it. Its id stays its own, for `signal`."""
        if self.popen.returncode is not None:
            return self.popen.returncode
        ended = os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended and (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)

    def signal(self, number: int) -> None:
        """Sends the signal to the process and to all that it has started."""
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS permits nothing to a group that has ended
                os.killpg(self.popen.pid, number)

    def stopped_by(self) -> int | None:
        """The signal that has stopped the process, so that it does nothing but exist."""
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            return stopped and stopped.si_status
        return None

    def said(self) -> list[str]:
        if self._reader is not None:
            self._reader.join(timeout=1)
        return list(self.last_lines)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Those that came, of all that would end this process; what is ignored, as SIGHUP is under nohup, remains so."""
    came: list[int] = []
    ends = (signal.SIG_DFL, signal.default_int_handler)
    asked = [n for n in signal.Signals if n.name not in _NOT_CAUGHT and signal.getsignal(n) in ends]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in asked}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came else handler)  # once is enough: the way out is not to be interrupted


def end_all(members: list[Member]) -> None:
    """Ends what has not ended, by SIGTERM, and by SIGKILL where that does not help."""
    for member in members:
        member.signal(signal.SIGKILL if member.stopped_by() else signal.SIGTERM)
    _wait(members, lambda: False, _TO_TERMINATE)
    for member in members:
        member.signal(signal.SIGKILL)  # also what a process that has ended left behind
        member.popen.wait()


def supervise(members: list[Member], signals: list[int], timeout: int) -> int:
    """Waits until all processes have ended, ends those that are left if one fails or a signal comes, and returns the status."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    _wait(members, lambda: signals or _failed(members))
    began = time.monotonic()
    if signals:
        end_all(members)
        what = f"stopped by {_named(signals[0])}; the processes were ended after {_since(began)}"
        errors.print(f"gritax: {what}. {_again()}", style="red", markup=False, soft_wrap=True)
        return 128 + signals[0]
    if not (failed := _failed(members)):
        return 0
    stopped = {i: -number for i, member in enumerate(members) if (number := member.stopped_by())}
    if not stopped:
        _wait(members, lambda: signals or _killed(members), _TO_END_BY_THEMSELVES)
    causes = stopped or _killed(members) or failed | _failed(members)
    left = any(member.status is None for member in members)
    end_all(members)
    first = next(iter(causes.values()))
    if len(causes) == len(members) and first > 1 and set(causes.values()) == {first}:
        return first  # it is the command that has failed, and process 0 has said why; 1 would be an uncaught error
    ways = [f"process {i} of {len(members)} {_way(status, i in stopped, timeout)}" for i, status in causes.items()]
    others = f"; the others were ended after {_since(began)}" if left else ""
    errors.print(f"gritax: {', '.join(ways)}{others}. {_again()}", style="red", markup=False, soft_wrap=True)
    for i in causes:
        if said := members[i].said():
            errors.print("\n".join([f"The last that process {i} wrote to stderr:", *(f"  {line}" for line in said)]))
    return 128 - first if first < 0 else first


def _way(status: int, stopped: bool, timeout: int) -> str:
    """How a process failed, by its status or, negative, by the signal."""
    if status > 0:
        return f"ended with status {status}"
    if stopped:
        return f"was stopped by {_named(-status)}, and the others did not hear from it for {timeout} s"
    by_jax = f", as JAX does where another process is not heard from for {timeout} s"
    return f"was killed by {_named(-status)}{by_jax if status == -signal.SIGABRT else ''}"


def _wait(members: list[Member], enough: Callable[[], object], at_most: float = math.inf) -> None:
    """Waits until all processes have ended, or it is enough, or `at_most` seconds have passed."""
    end = time.monotonic() + at_most
    while time.monotonic() < end and not enough() and any(member.status is None for member in members):
        time.sleep(_LOOK_EVERY)


def _failed(members: list[Member]) -> dict[int, int]:
    return {i: member.status for i, member in enumerate(members) if member.status}


def _killed(members: list[Member]) -> dict[int, int]:
    """Those that a signal killed: others see a connection close, and may have ended for it before. JAX aborts for others."""
    return {i: status for i, status in _failed(members).items() if status < 0 and status != -signal.SIGABRT}


def _named(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}  # without most real-time signals
    return f"signal {number}" + (f" ({names[number]})" if number in names else "")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
