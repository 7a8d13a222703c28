"""`gritax launch`."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import tyro
from rich.console import Console

from ..placement._processes import LOOPBACK, TIMEOUT, environment, require_count
from ._guard import guarded
from ._supervision import Member, caught_signals, end_all, supervise


@dataclass
class Launch:
    """Start a command in several processes of this machine that are one run.

    Write the command after --. A script calls gritax.placement.join() before it asks JAX for devices. What process 0 prints is
    shown. If a process fails, the others are ended.

    Example: gritax launch --processes 2 -- gritax train digits

    Exit status: that of the first process that fails, 128 and its number if a signal ended it; 0 if none does; 2 bad arguments.
    """

    command: tyro.conf.Positional[tuple[str, ...]]
    """What to start."""
    processes: int = 2
    """How many processes."""
    devices: int = 1
    """CPU devices of each."""
    pin: bool = False
    """Give each process cores of its own, in turns where there are fewer cores."""
    timeout: int = TIMEOUT
    """Seconds after which a process that is not heard from ends the others."""

    def run(self, console: Console) -> int:
        for name in ("processes", "devices", "timeout"):
            require_count(f"--{name}", getattr(self, name), 1)
        cores = _cores(self.processes) if self.pin else [None] * self.processes
        command = _found(self.command)
        coordinator = f"{LOOPBACK}:{_free_port()}"
        members: list[Member] = []
        with caught_signals() as signals, guarded() as tell:
            try:
                for process, own in enumerate(cores):
                    told = self._environment() | environment(coordinator, self.processes, process, LOOPBACK, self.timeout)
                    members.append(_started(command, told, process, own, tell))
                return supervise(members, signals, self.timeout)
            finally:
                end_all(members)

    def _environment(self) -> dict[str, str]:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={self.devices}"
        # What a process has printed before it is ended is not lost.
        return {"PYTHONUNBUFFERED": "1", **os.environ, "XLA_FLAGS": flags.strip()}


def _found(command: tuple[str, ...]) -> list[str]:
    if not command:
        raise ValueError("There is no command to start: write it after --, as in gritax launch -- gritax train digits.")
    if command[0] == "gritax":  # this one, whatever PATH says
        return [sys.executable, "-m", "gritax", *command[1:]]
    if shutil.which(command[0]) is None:
        raise ValueError(f"There is no command {command[0]!r} to start: give its path, or python and a script.")
    return list(command)


def _cores(processes: int) -> list[set[int] | None]:
    """The cores of each process; XLA starts as many threads to compute with as its process may use cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--pin needs Linux: this system does not bind processes to cores.")
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::processes] or [cores[i % len(cores)]]) for i in range(processes)]


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]


def _started(
    command: list[str], told: dict[str, str], process: int, cores: set[int] | None, tell: Callable[[int], None]
) -> Member:
    """Starts `command` in a session of its own: Ctrl-C reaches the launcher alone, and what it starts is ended with it."""
    output, errors = (None, None) if process == 0 else (subprocess.DEVNULL, subprocess.PIPE)
    everywhere = os.sched_getaffinity(0) if cores else None
    try:
        if cores:
            os.sched_setaffinity(0, cores)  # the process inherits it
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors, "start_new_session": True}
        # The process tells the guard itself, before it runs anything: the launcher may be killed at any moment.
        options["preexec_fn"] = lambda: tell(os.getpid())
        return Member(subprocess.Popen(command, env=told, **options))
    finally:
        if everywhere:
            os.sched_setaffinity(0, everywhere)
