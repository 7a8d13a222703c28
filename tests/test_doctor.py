"""What the doctor shows, where all is well and where pieces are missing or broken."""

import importlib.metadata
import json
import os
import subprocess
import sys

import jax
import pytest

from gritax.placement._processes import launched


def _doctor(*arguments, **environ):
    command = [sys.executable, "-m", "gritax", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environ)


@pytest.mark.slow
def test_all_is_well(tmp_path):
    (tmp_path / "entry").write_bytes(bytes(3 * 2**20))
    done = _doctor("--json", JAX_COMPILATION_CACHE_DIR=str(tmp_path), JAX_ENABLE_X64="1", OMP_NUM_THREADS="3")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for package in ("gritax", "jax", "jaxlib", "optax", "equinox", "numpy"):
        assert found["versions"][package] == importlib.metadata.version(package)
    assert set(found["optional"]) == {"orbax-checkpoint", "scikit-learn", "matplotlib", "flax", "torch"}
    assert found["jax"]["devices"] == {"cpu": 8} and found["jax"]["float64"] is True
    assert str(tmp_path) in found["jax"]["compilation cache"] and "MiB" in found["jax"]["compilation cache"]
    assert found["machine"]["OMP_NUM_THREADS"] == "3" and found["machine"]["cores of this process"] >= 1
    assert found["process"] == "one alone" and found["solve"].startswith("works")


@pytest.mark.slow
def test_as_text():
    done = _doctor()
    assert done.returncode == 0
    for expected in (jax.__version__, "8 cpu", "one alone", "works: 2 iterations"):
        assert expected in done.stdout


def test_what_is_broken_does_not_hide_the_rest(tmp_path):
    done = _doctor(JAX_PLATFORMS="nope", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "later"), GRITAX_PROCESSES="two")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Unable to initialize backend 'nope'" in done.stdout
    assert "later, which JAX will make" in done.stdout
    assert "GRITAX_PROCESSES in the environment must be a whole number, not 'two'" in done.stdout
    assert importlib.metadata.version("optax") in done.stdout


def test_without_the_optional_packages(monkeypatch, capsys):
    from gritax.cli import main

    def version(name):
        if name in ("numpy", "gritax"):
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "not installed (for checkpoint=: pip install orbax-checkpoint)" in shown
    assert "jaxlib                 not known" in shown


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "one alone"),
        (
            {"GRITAX_COORDINATOR": "127.0.0.1:1234", "GRITAX_PROCESSES": "2", "GRITAX_PROCESS": "1"},
            "1 of 2, by gritax launch or GRITAX_*, with the coordinator 127.0.0.1:1234",
        ),
        (
            {
                f"OMPI_COMM_WORLD_{name}": value
                for name, value in zip(("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"), "3112", strict=True)
            },
            "not to be told: mpirun has started 3 processes on several machines",
        ),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "here",
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "2",
                "SLURM_NNODES": "1",
            },
            "2 of 4, by srun, with the coordinator 127.0.0.1:",
        ),
    ],
)
def test_who_started_this_process(monkeypatch, environ, words):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert launched().startswith(words)
