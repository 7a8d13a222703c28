"""The command as a user types it, in a process of its own."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gritax
from gritax.cli import main
from gritax.cli._train import Train


def _gritax(*arguments):
    return subprocess.run([sys.executable, "-m", "gritax", *arguments], capture_output=True, text=True, timeout=300)


def test_solve_xor(tmp_path):
    file = tmp_path / "run.json"
    file.write_text("old")
    done = _gritax("solve", "xor", "--steps", "200", "--coarsening", "4", "--cycle", "V", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for expected in ("level", "stride", "iteration", "residual", "factor", "elapsed", "distance from serial", "accuracy"):
        assert expected in done.stdout
    for expected in ("potential speedup", "depth", "work", "serial", "on this machine"):
        assert expected in done.stdout
    figures = json.loads(file.read_text())
    assert figures["converged"] and figures["level_sizes"] == [200, 50, 12]
    assert len(figures["residuals"]) == figures["iterations"] + 1
    assert figures["relative_distance"] < 1e-5
    assert figures["settings"]["steps"] == 200
    assert len(figures["history"]) == len(figures["profile"]["residuals"]) == figures["iterations"] + 1


@pytest.mark.slow
def test_every_option_reaches_the_solve(tmp_path):
    file = tmp_path / "run.json"
    done = _gritax(
        *("solve", "xor", "--steps", "130", "--alpha", "0.5", "--seed", "2", "--coarsening", "4", "2", "--levels", "3"),
        *("--cycle", "V", "--relaxation", "0", "1", "--coarse", "naive", "--tolerance", "1e-3", "--dtype", "float32"),
        *("--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["level_sizes"] == [130, 32, 16]
    assert figures["residuals"][-1] <= 1e-3 < figures["residuals"][-2]
    assert "float32" in done.stdout
    assert figures["command"].startswith("gritax solve xor --steps 130") and figures["versions"]["jax"]


@pytest.mark.long
def test_tangent_steps_choose_their_own_cycle(tmp_path):
    counts = {}
    for options in ((), ("--coarsening", "8", "--cycle", "V")):
        file = tmp_path / "run.json"
        done = _gritax("solve", "xor", "--steps", "1600", "--coarse", "tangent", *options, "--json", str(file))
        assert done.returncode == 0, done.stderr
        run = json.loads(file.read_text())
        assert run["coarse_steps"].startswith("Tangent") and run["relative_distance"] < 1e-5
        counts[options] = run["level_sizes"]
    problem = gritax.problems.xor(coarse=gritax.Tangent())
    assert counts[()] == list(gritax.solve(problem.step, problem.state, 1600).level_sizes) != counts[options]
    assert counts[options][1] == 200


@pytest.mark.slow
def test_not_converging_has_a_status_of_its_own_and_can_go_on(tmp_path):
    solve = ("solve", "xor", "--coarsening", "16", "--cycle", "V", "--resume", str(tmp_path / "run"), "--steps")
    done = _gritax(*solve, "200", "--max-iterations", "1")
    assert done.returncode == 3
    assert "not converged" in done.stdout and "no rate yet" in " ".join(done.stdout.split())
    done = _gritax(*solve, "200")
    assert done.returncode == 0, done.stderr
    done = _gritax(*solve, "300")
    assert done.returncode == 2 and "has num_steps 200, not 300" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("solve", "xor", "--steps", "0"), "--steps must be a whole number"),
        (("solve", "xor", "--coarsening", "1"), "coarsening must be"),
        (("solve", "xor", "--alpha", "-1"), "must be positive"),
        (("solve", "xor", "--tolerance", "-1"), "tolerance must be"),
        (("solve", "xor", "--cycle", "W"), "cycle"),
        (("solve", "sudoku"), "sudoku"),
        (("solve", "xor", "--json", "no/such/folder/run.json"), "no/such/folder"),
        (("solve", "xor", "--max-iterations", "-1"), "--max-iterations must be a whole number"),
        (("tables", "1-seven"), "tables must be numbers and ranges"),
        (("tables", "3-1"), "names none"),
        (("tables", "2", "--max-steps", "50"), "--max-steps must be"),
        (("tables", "17"), "tables 1 to 16"),
        (("train", "digits", "--batch"), "--batch is for the adder"),
        (("train", "adder", "--activation", "tanh"), "--activation is for digits"),
        (("train", "digits", "--reduction", "mean"), "--reduction is for the adder"),
        (("train", "digits", "--seed", str(2**70)), "--seed must be a whole number from 0 to 4,294,967,295"),
        (("train", "digits", "--rate", "-1"), "--rate must be positive"),
        (("train", "digits", "--refresh", "0"), "refresh must be"),
        (("train", "digits", "--steps", "0"), "--steps must be"),
        (("plan", "digits", "--window", "0"), "--window must be"),
        (("plan", "digits", "--json", "no/such/folder/plan.json"), "no/such/folder"),
        (("report", "no/such/run.json"), "no/such/run.json: No such file or directory. Name a file that"),
        (("report", __file__), "not JSON"),
        (("report", __file__, "--output", "no/such/folder/page.html"), "--output no/such/folder/page.html"),
        ((), "solve"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_tables(tmp_path):
    file = tmp_path / "tables.json"
    done = _gritax("tables", "2,4", "--max-steps", "100", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "Table 2" in done.stdout and "Table 4" in done.stdout and "published" in done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [(row["table"], row["num_steps"], row["published"]) for row in rows] == [(2, 100, 6), (4, 100, 5)]


@pytest.mark.slow
def test_train(tmp_path):
    file = tmp_path / "run.json"
    done = _gritax(
        *("train", "diabetes", "--steps", "192", "--refresh", "8", "--coarsening", "8", "--relaxation", "1"),
        *("--optimizer", "nesterov", "--rate", "0.002", "--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    assert "test error" in done.stdout and "FrozenGradient(refresh=8)" in done.stdout
    figures = json.loads(file.read_text())
    assert figures["relative_distance"] < 1e-5
    assert 0 < figures["metrics"]["test error"] < 2
    assert figures["coarse_steps"] == "FrozenGradient(refresh=8)"


@pytest.mark.slow
def test_plan(tmp_path):
    file = tmp_path / "plan.json"
    done = _gritax("plan", "diabetes", "--steps", "2048", "--window", "1024", "--coarse", "FrozenGradient", "--json", str(file))
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert written["sentence"] in done.stdout and "serial" in done.stdout and "FrozenGradient" in written["coarse_steps"]
    assert (written["window"], written["levels"][0], written["pilot"]["num_steps"]) == (1024, 1024, 512)
    assert written["serial_seconds"] > 0 and set(written["seconds_on"]) == {"64", "1024"}
    assert written["pays"] == (written["seconds"] < written["serial_seconds"]) and written["settings"]["steps"] == 2048


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", ["adder", "digits", "diabetes"])
def test_train_uses_the_optimizer_of_the_problem(name):
    def first_update(step, params):
        ones = jax.tree.map(jnp.ones_like, params)
        with jax.numpy_dtype_promotion("standard"):
            return step.optimizer.update(ones, step.optimizer.init(params), params)[0]

    usual = getattr(gritax.problems, name)()
    of_command = Train(name).with_coarse(gritax.FrozenGradient()).step
    wanted, found = (first_update(step, usual.state.params) for step in (usual.step, of_command))
    for x, y in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(x, y)
