"""Training on several processes."""

import json

import numpy as np
import pytest


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
class Interrupting(gritax.Progress):
    def iteration(self, iteration):
        if iteration.number == 2:
            raise KeyboardInterrupt


def solve(**options):
    return gritax.solve(step, problem.state, 1009, gritax.Multigrid(4), max_iterations=3, throw=False, mesh=mesh, **options)


solution = solve()
try:
    solve(resume=sys.argv[1], progress=Interrupting())
except KeyboardInterrupt:
    resumed = solve(resume=sys.argv[1])
trained = train(1501, window=700, mesh=mesh)
if first:
    assert np.all(np.isfinite(solution.losses))  # asked by one process alone
    assert values(resumed.params) == values(solution.params) and resumed.depth == solution.depth
    kinds = [each.kind for each in trained.windows]
    with open(sys.argv[2], "w") as file:
        json.dump([jax.device_count(), values(solution.params), kinds, values(trained.params)], file)
"""
)
_IN_FLIGHT = (
    _TRAIN
    + """
class Interrupting(gritax.Progress):
    def front(self, taken, num_steps, in_flight, sweeps, seconds):
        raise KeyboardInterrupt


solve = lambda **options: gritax.solve(step, problem.state, 6000, gritax.Newton(window=64), mesh=mesh, **options)
whole = solve()
try:
    solve(resume=sys.argv[1], progress=Interrupting())
except KeyboardInterrupt:
    resumed = solve(resume=sys.argv[1])
trained = gritax.train(
    step.loss, step.optimizer, step.batch, problem.state.params, 6000, method=gritax.Newton(window=64), mesh=mesh
)
if first:
    assert values(resumed.params) == values(whole.params) == values(trained.params) and resumed.depth == whole.depth
    with open(sys.argv[2], "w") as file:
        json.dump([jax.device_count(), whole.depth, values(whole.params)], file)
"""
)


@pytest.mark.long
@pytest.mark.slow
def test_weights_on_any_number_of_processes(launch, tmp_path):
    """Those of coarse steps with many stages to rounding, the others to the last bit; solves go on from iterates of others."""
    found = []
    for options in (("--processes", "1"), ("--processes", "2", "--devices", "2")):
        result = tmp_path / f"{len(found)}.json"  # not printed: the collectives of the processes print between lines
        script = _WEIGHTS.replace("sys.argv[1]", repr(str(tmp_path / "iterates"))).replace("sys.argv[2]", repr(str(result)))
        launcher = launch(script, *options)
        _, errors = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, errors
        found.append(json.loads(result.read_text()))
    assert [devices for devices, *_ in found] == [1, 4]
    (_, *alone), (_, *together) = found
    assert together[0] == alone[0]
    assert together[1] == alone[1] and "parallel" in together[1]
    np.testing.assert_allclose(together[2], alone[2], rtol=1e-11)


@pytest.mark.slow
def test_what_is_in_flight_is_shared_by_processes(launch, tmp_path):
    found = []
    for options in (("--processes", "1", "--devices", "2"), ("--processes", "2"), ("--processes", "1")):
        result = tmp_path / f"{len(found)}.json"
        run = tmp_path / f"run {len(found)}"
        script = _IN_FLIGHT.replace("sys.argv[1]", repr(str(run))).replace("sys.argv[2]", repr(str(result)))
        launcher = launch(script, *options)
        _, errors = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, errors
        found.append(json.loads(result.read_text()))
    two_devices, two_processes, one = found
    assert [devices for devices, *_ in found] == [2, 2, 1]
    assert two_devices == two_processes
    assert one[1] == two_processes[1]
    np.testing.assert_allclose(one[2], two_processes[2], rtol=1e-11)


@pytest.mark.slow
def test_processes_must_see_the_same_checkpoints(launch, tmp_path):
    directory = f"{str(tmp_path)!r} + ('/first' if first else '/other')"
    launcher = launch(f"{_TRAIN}\nif first:\n    train(500, resume={directory})\ntrain(500, resume={directory}, mesh=mesh)\n")
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert "the processes found checkpoints of other steps (500, 0)" in errors


@pytest.mark.slow
def test_a_mesh_has_all_processes_or_this_one(launch):
    script = """
make = lambda devices: jax.make_mesh((len(devices),), ("time",), devices=devices)
alone, wrong = make(jax.local_devices()), make(jax.devices()[:2])
print(train(300, mesh=alone).depth > 0, flush=True)
gritax.solve(step, problem.state, 100, mesh=wrong)
"""
    launcher = launch(_TRAIN + script, "--processes", "3")
    output, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1 and "True" in output
    assert "mesh has devices of process 0, 1 only, and there are 3 processes: take all" in errors
