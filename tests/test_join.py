"""Which process of a run this one is: what it is told, what job managers say, and what cannot be."""

import os
import re
import socket
import subprocess
import sys

import pytest

from gritax.placement import _processes, is_first, join


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
