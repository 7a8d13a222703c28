"""The simulator counts what a cycle does, whoever does it."""

from functools import partial

import jax.numpy as jnp
import pytest

import gritax
from gritax.placement import Exchange, Simulation


def _phi(u, start, stride):
    return u / (1 + 0.01 * stride)


@pytest.fixture
def simulation():
    return partial(Simulation, _phi, jnp.ones(2), 256)


@pytest.mark.first(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [gritax.Multigrid(4, max_levels=2), gritax.Multigrid((2, 4), cycle="F"), gritax.Multigrid(3, lanes=5)]
)
@pytest.mark.parametrize("devices", [1, 4])
def test_tasks_are_those_of_an_iteration(simulation, method, devices):
    """The evaluations of its tasks are those that the first iteration adds to the depth of a solve."""
    simulated = simulation(method)
    solve = partial(gritax.solve, _phi, jnp.ones(2), 256, method, tolerance=0, initial_guess="zeros")
    wanted = solve(max_iterations=1).depth - solve(max_iterations=0).depth
    found = 0
    for task in simulated.tasks(devices):
        sweeps, steps, first = (*task.counts, 0, 0, 0)[:3]
        level = task.level
        count = {
            "relax_finest": sweeps * level.factor,
            "relax_coarse": sweeps * steps - first,
            "restrict": 1,
            "march": level.size - sweeps,
        }
        found += count.get(task.kernel.name, 0)
    assert found == wanted
    assert simulated.seconds(devices) > 0


@pytest.mark.slow
def test_messages_cost_what_an_exchange_says(simulation):
    """On four devices with two levels: two sweeps, residual, norms, exactness front; norms, right-hand side, states to all."""
    method = gritax.Multigrid(4, max_levels=2)
    free, dear = simulation(method), simulation(method, Exchange(latency=1000.0))
    assert dear.seconds(1) < 1000
    to_all = 2 * 1000.0
    wanted = 5 * 1000.0 + (2 + 1 + 4 + 3) * to_all
    assert dear.seconds(4) - free.seconds(4) == pytest.approx(wanted, abs=100)


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        ((4,), 1, "method must be a gritax.Multigrid"),
        ((gritax.Multigrid(4), 3), 1, "exchange must be a gritax.placement.Exchange"),
        ((gritax.Multigrid(4),), 0, "devices must be a whole number of at least 1"),
    ],
)
def test_bad_arguments(simulation, arguments, devices, message):
    with pytest.raises(ValueError, match=message):
        simulation(*arguments).seconds(devices)


def test_bad_exchange():
    with pytest.raises(ValueError, match="latency must be a number of seconds, at least 0"):
        Exchange(-1.0)
