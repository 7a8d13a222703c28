"""Several processes of one run, as a user starts them."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import members

from gritax.cli._report import write_json
from gritax.placement import _processes, is_first


_SUM = """
import sys, time
import gritax

gritax.placement.join()

import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P()))
ones = jax.make_array_from_callback((jax.device_count(),), NamedSharding(mesh, P("all")), lambda _: jnp.ones(1))
total = float(add(ones)[0])
"""
_PRINT = "print('total', total, gritax.placement.is_first(), jax.local_device_count(), flush=True)\n"
_FOREVER = _PRINT + "while True:\n    jax.block_until_ready(add(ones))\n"


def _running(launcher):
    """Its processes, once the first has printed that all have added."""
    for line in launcher.stdout:
        if line.startswith("total"):
            return members(launcher)
    pytest.fail(f"nothing was added: {launcher.stderr.read()}")


def _gone(processes):
    """Whether they have ended; some init processes leave them as zombies."""
    for process in processes:
        try:
            with open(f"/proc/{process}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] != "Z":
                    return False
        except FileNotFoundError:
            pass
    return True


def _ending(launcher):
    """Its status, what it said at the end, and whether that came within a minute."""
    began = time.monotonic()
    _, errors = launcher.communicate(timeout=120)
    return launcher.returncode, errors, time.monotonic() - began < 60


def _listening(processes):
    """The addresses at which the processes listen, as hexadecimal numbers, each with its port."""
    sockets = set()
    for process in processes:
        for descriptor in os.scandir(f"/proc/{process}/fd"):
            sockets.add(os.readlink(descriptor.path))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            rows = [line.split() for line in lines][1:]
        found |= {tuple(row[1].split(":")) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
    return found


def test_processes_add_and_the_first_one_prints(launch):
    launcher = launch(_SUM + _PRINT + "print('of all', file=sys.stderr)", "--devices", "2", "--pin")
    output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    assert re.findall("total.*", output) == ["total 4.0 True 2"]
    assert errors == "of all\n"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs Linux")
def test_the_coordinator_listens_on_loopback_only(launch):
    said = "import os\nprint('total', os.environ['GRITAX_COORDINATOR'], flush=True)\ntime.sleep(1000)\n"
    launcher = launch(_SUM + said)
    line = next(line for line in launcher.stdout if line.startswith("total"))
    port = f"{int(line.rpartition(':')[2]):04X}"
    addresses = {address for address, at in _listening(members(launcher)) if at == port}
    assert addresses and addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    launcher.send_signal(signal.SIGINT)
    assert _ending(launcher)[0] == 128 + signal.SIGINT


@pytest.mark.slow(1)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run(launch, victim):
    launcher = launch(_SUM + _FOREVER)
    processes = _running(launcher)
    assert len(processes) == 2
    os.kill(processes[victim], signal.SIGKILL)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGKILL and soon
    assert f"process {victim} of 2 was killed by signal 9 (SIGKILL)" in errors  # the other may end by itself before it is ended
    assert "goes on from the last checkpoint, if it keeps any: gritax launch -- " in errors
    assert _gone(processes)


@pytest.mark.slow
def test_the_others_are_ended_where_they_do_not_notice(launch):
    launcher = launch(_SUM + _PRINT + "time.sleep(1000)\n")
    os.kill(_running(launcher)[1], signal.SIGKILL)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGKILL and soon
    assert "process 1 of 2 was killed by signal 9 (SIGKILL); the others were ended after" in errors


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_stopped_process_ends_the_run(launch, victim):
    launcher = launch(_SUM + _FOREVER, "--timeout", "5")
    processes = _running(launcher)
    os.kill(processes[victim], signal.SIGSTOP)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGSTOP and soon
    assert f"process {victim} of 2 was stopped by signal 19 (SIGSTOP), and the others did not hear from it for 5 s" in errors
    assert _gone(processes)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_run(launch):
    launcher = launch(_SUM + "if not gritax.placement.is_first():\n    raise ValueError('of the second')\n" + _FOREVER)
    processes = _running(launcher)
    status, errors, soon = _ending(launcher)
    assert status == 1 and soon
    assert "process 1 of 2 ended with status 1" in errors
    assert "  ValueError: of the second" in errors
    assert _gone(processes)


@pytest.mark.slow
def test_sigterm_ends_a_process_that_has_joined(launch):
    # Not the second, which may come to it before the first has printed.
    ending = (
        "if gritax.placement.is_first():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(1000)\n"
    )
    launcher = launch(_SUM + _PRINT + ending)
    processes = _running(launcher)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGTERM and soon, errors
    assert _gone(processes)


@pytest.mark.slow
def test_what_processes_have_started_is_ended_with_them(launch):
    launcher = launch(
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\nprint('total', child.pid, flush=True)\nchild.wait()\n"
    )
    child = int(next(launcher.stdout).split()[1])
    launcher.send_signal(signal.SIGTERM)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGTERM and soon
    assert "stopped by signal 15 (SIGTERM); the processes were ended after" in errors
    assert _gone([child])


@pytest.mark.slow
def test_a_process_that_ignores_sigterm_is_killed(launch):
    launcher = launch(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('total', flush=True)\ntime.sleep(1000)\n"
    )
    processes = _running(launcher)
    launcher.send_signal(signal.SIGINT)
    status, _, soon = _ending(launcher)
    assert status == 128 + signal.SIGINT and soon and _gone(processes)


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("ends", "status"), [("", 0), ("sys.exit(7)", 7), ("sys.exit(5 if first else 0)", 5), ("sys.exit(0 if first else 6)", 6)]
)
def test_exit_status(launch, ends, status):
    launcher = launch(f"import os, sys\nfirst = os.environ['GRITAX_PROCESS'] == '0'\n{ends}\n", "--processes", "3")
    ended, errors, _ = _ending(launcher)
    assert ended == status
    assert ("ended with status" in errors) == (status in (5, 6))


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "There is no command to start"),
        (("--processes", "0", "--", "true"), "--processes must be a whole number of at least 1"),
        (("--devices", "0", "--", "true"), "--devices must be"),
        (("--timeout", "0", "--", "true"), "--timeout must be"),
        (("--", "no-such-command"), "There is no command 'no-such-command'"),
        (("--", "gritax", "train", "digits", "--steps", "0"), "--steps must be a whole number"),
    ],
)
def test_bad_arguments(arguments, message):
    done = subprocess.run([sys.executable, "-m", "gritax", "launch", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_a_command_of_gritax_prints_and_writes_once(tmp_path):
    file = tmp_path / "run.json"
    solve = ("gritax", "solve", "xor", "--steps", "64", "--coarsening", "4", "--json", str(file))
    command = [sys.executable, "-m", "gritax", "launch", "--", *solve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("XOR, 64 steps") == 1
    assert file.exists()


def test_other_processes_write_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(_processes, "_joined_as", 1)
    assert not is_first()
    write_json(tmp_path / "run.json", {})
    assert not list(tmp_path.iterdir())
