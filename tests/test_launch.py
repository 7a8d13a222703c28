"""Several processes of one run, as a user starts them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gritax.cli._report import write_json
from gritax.placement import _processes, is_first, join


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


@pytest.fixture
def launch(tmp_path):
    """Starts `gritax launch` with a script, and ends what a failed test leaves."""
    started = []

    def start(script, *options):
        path = tmp_path / "script.py"
        path.write_text(script)
        command = [sys.executable, "-m", "gritax", "launch", *options, "--", sys.executable, str(path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield start
    for launcher in started:
        members = _members(launcher)
        launcher.kill()
        launcher.wait()
        for process in members:
            os.kill(process, signal.SIGKILL)


def _members(launcher):
    """The processes that it has started and that are there still, in order."""
    try:
        with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as children:
            return [int(each) for each in children.read().split()]
    except FileNotFoundError:
        return []


def _running(launcher):
    """Its processes, once the first has printed that all have added."""
    for line in launcher.stdout:
        if line.startswith("total"):
            return _members(launcher)
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


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs Linux")
def test_the_coordinator_listens_on_loopback_only(launch):
    said = "import os\nprint('total', os.environ['GRITAX_COORDINATOR'], flush=True)\ntime.sleep(1000)\n"
    launcher = launch(_SUM + said)
    line = next(line for line in launcher.stdout if line.startswith("total"))
    port = f"{int(line.rpartition(':')[2]):04X}"
    addresses = {address for address, at in _listening(_members(launcher)) if at == port}
    assert addresses and addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    launcher.send_signal(signal.SIGINT)
    assert _ending(launcher)[0] == 128 + signal.SIGINT


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run(launch, victim):
    launcher = launch(_SUM + _FOREVER)
    processes = _running(launcher)
    assert len(processes) == 2
    os.kill(processes[victim], signal.SIGKILL)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGKILL and soon
    assert f"process {victim} of 2 was killed by signal 9 (SIGKILL); the others were ended after" in errors
    assert "same command" in errors
    assert _gone(processes)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_run(launch, victim):
    launcher = launch(_SUM + _FOREVER, "--timeout", "5")
    processes = _running(launcher)
    os.kill(processes[victim], signal.SIGSTOP)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGSTOP and soon
    assert f"process {victim} of 2 was stopped by signal 19 (SIGSTOP), and the others did not hear from it for 5 s" in errors
    assert _gone(processes)


def test_an_error_in_one_process_ends_the_run(launch):
    launcher = launch(_SUM + "if not gritax.placement.is_first():\n    raise ValueError('of the second')\n" + _FOREVER)
    processes = _running(launcher)
    status, errors, soon = _ending(launcher)
    assert status == 1 and soon
    assert "process 1 of 2 ended with status 1" in errors
    assert "  ValueError: of the second" in errors
    assert _gone(processes)


def test_sigterm_ends_a_process_that_has_joined(launch):
    launcher = launch(_SUM + _PRINT + "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(1000)\n")
    processes = _running(launcher)
    status, errors, soon = _ending(launcher)
    assert status == 128 + signal.SIGTERM and soon, errors
    assert _gone(processes)


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


def test_a_process_that_ignores_sigterm_is_killed(launch):
    launcher = launch(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('total', flush=True)\ntime.sleep(1000)\n"
    )
    processes = _running(launcher)
    launcher.send_signal(signal.SIGINT)
    status, _, soon = _ending(launcher)
    assert status == 128 + signal.SIGINT and soon and _gone(processes)


@pytest.mark.parametrize(
    ("ends", "status"), [("", 0), ("sys.exit(7)", 7), ("sys.exit(5 if first else 0)", 5), ("sys.exit(0 if first else 6)", 6)]
)
def test_exit_status(launch, ends, status):
    launcher = launch(f"import os, sys\nfirst = os.environ['GRITAX_PROCESS'] == '0'\n{ends}\n", "--processes", "3")
    ended, errors, _ = _ending(launcher)
    assert ended == status
    assert ("ended with status" in errors) == (status in (5, 6))


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


def _place(monkeypatch, environment, *arguments):
    for name in list(os.environ):
        if name.startswith(("GRITAX_", "OMPI_", "SLURM_", "PMIX_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return _processes._place(*(arguments or (None, None, None)))


_MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
_SRUN = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "arguments", "found"),
    [
        ({}, (), None),
        ({"GRITAX_COORDINATOR": "a:1", "GRITAX_PROCESSES": "2", "GRITAX_PROCESS": "1"}, (), ("a:1", 2, 1, None)),
        ({"GRITAX_COORDINATOR": "a:1", "GRITAX_PROCESSES": "2", "GRITAX_PROCESS": "1"}, ("b:2", 3, 0), ("b:2", 3, 0, None)),
        ({**_SRUN, "GRITAX_COORDINATOR": "a:1"}, (), ("a:1", 4, 2, 0)),
        (_SRUN, ("a:1", None, None), ("a:1", 4, 2, 0)),
        (_SRUN, ("a:1", 2, 1), ("a:1", 2, 1, None)),
        ({**_SRUN, **_MPIRUN}, ("a:1", None, None), ("a:1", 4, 3, 3)),
        (
            {"SLURM_JOB_ID": "123", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            (),
            None,
        ),  # of a batch script
    ],
)
def test_where_a_process_finds_its_place(monkeypatch, environment, arguments, found):
    assert _place(monkeypatch, environment, *arguments) == found


@pytest.mark.parametrize(
    "environment",
    [{**_MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "77"}, {**_SRUN, "SLURM_STEP_NUM_NODES": "1"}],
)
def test_on_one_machine_a_job_manager_is_enough(monkeypatch, environment):
    found = _place(monkeypatch, environment)
    assert found.processes == 4 and found.coordinator.startswith("127.0.0.1:")
    assert 61440 <= int(found.coordinator.rpartition(":")[2]) < 65536


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, ("a:1", None, None), "processes, process is not given"),
        ({}, (None, 2, 0), "coordinator is not given"),
        ({}, ("a:1", 2, 2), "process must be below processes"),
        ({}, ("a:1", 2, -1), "process must be a whole number"),
        ({}, ("a", 2, 0), "coordinator must be host:port"),
        ({}, ("a:b", 2, 0), "coordinator must be host:port"),
        ({"GRITAX_PROCESSES": "2", "GRITAX_PROCESS": "1"}, (), "GRITAX_COORDINATOR is not given"),
        ({"GRITAX_PROCESSES": "two"}, (), "GRITAX_PROCESSES in the environment"),
        (
            {**_MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            (),
            "mpirun has started 4 processes on several machines: give coordinator",
        ),
        ({**_SRUN, "SLURM_STEP_NUM_NODES": "2"}, (), "srun has started 4 processes on several machines: give coordinator"),
    ],
)
def test_a_place_that_cannot_be(monkeypatch, environment, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _place(monkeypatch, environment, *arguments)


def test_a_single_process_has_nothing_to_join(monkeypatch):
    assert _place(monkeypatch, {}) is None
    join()
    join("127.0.0.1:1", 1, 0)
    assert is_first()


def test_a_coordinator_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"process 0 cannot listen at 127.0.0.1, port {port}"):
            join(f"127.0.0.1:{port}", 2, 0)
    with pytest.raises(ConnectionError, match=f"coordinator 127.0.0.1:{port} was not reached in 1 s"):
        join(f"127.0.0.1:{port}", 2, 1, timeout=1)


def test_joining_after_jax_has_its_devices_is_told():
    script = "import jax, gritax\njax.devices()\ngritax.placement.join('127.0.0.1:{}', 2, 0)"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", script.format(port)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "gritax.placement.join must come before anything that asks JAX for its devices" in done.stderr


_TRAIN = """
import json, sys
import gritax

gritax.placement.join()

import jax, numpy as np

jax.config.update("jax_enable_x64", True)
problem = gritax.problems.xor()
step, mesh, first = problem.step, gritax.placement.mesh(), gritax.placement.is_first()


def train(steps, **options):
    return gritax.train(step.loss, step.optimizer, step.batch, problem.state.params, steps, goal="depth", **options)


def values(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).tolist()
"""
_WEIGHTS = (
    _TRAIN
    + """
solution = gritax.solve(step, problem.state, 1009, gritax.Multigrid(4), max_iterations=3, throw=False, mesh=mesh)
trained = train(1501, window=700, mesh=mesh)
if first:
    kinds = [each.kind for each in trained.windows]
    print(json.dumps([jax.device_count(), values(solution.params), kinds, values(trained.params)]), flush=True)
"""
)


def test_weights_on_any_number_of_processes(launch):
    """Those of coarse steps with many stages to rounding, the others to the last bit."""
    found = []
    for options in (("--processes", "1"), ("--processes", "2"), ("--processes", "2", "--devices", "2")):
        output, errors = launch(_WEIGHTS, *options).communicate(timeout=300)
        lines = [json.loads(line) for line in output.splitlines() if not line.startswith("[Gloo]")]
        assert len(lines) == 1, errors
        found += lines
    assert [devices for devices, *_ in found] == [1, 2, 4]
    for _, solved, kinds, trained in found[1:]:
        assert solved == found[0][1]
        assert kinds == found[0][2] and "parallel" in kinds
        np.testing.assert_allclose(trained, found[0][3], rtol=1e-11)


def test_processes_must_see_the_same_checkpoints(launch, tmp_path):
    directory = f"{str(tmp_path)!r} + ('/first' if first else '/other')"
    launcher = launch(f"{_TRAIN}\nif first:\n    train(500, resume={directory})\ntrain(500, resume={directory}, mesh=mesh)\n")
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert "the processes found checkpoints of other steps (500, 0)" in errors
