"""The contract of a method: whoever keeps it is taken by solve and train as the library's own are."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_problems import batches, distance, loss, params

import gritax
from gritax._hierarchy import Hierarchy, Level
from gritax._method import Method
from gritax._serial import advance
from gritax._solution import Solution


class OneByOne(Method):
    """Serial training, as a method."""

    takes = frozenset({"profile"})
    trains = True

    def __init__(self, converged=True):
        self.converged, self.seen = converged, []

    def solved(self, task, options):
        self.seen.append(options)
        state = task.evolution.merge(*advance(task.evolution, task.floating, task.clock, np.int32(task.num_steps)))
        nothing = np.zeros(1)
        return Solution(
            state=state,
            params=state.params if hasattr(state, "params") else state,
            num_steps=task.num_steps,
            converged=self.converged,
            reason="one by one",
            iterations=1,
            residuals=nothing,
            relaxed_residuals=np.full(1, math.nan),
            relative_residuals=nothing,
            hierarchy=Hierarchy((Level(0, task.num_steps, 1, task.num_steps),)),
            work=task.num_steps,
            exact_steps=task.num_steps,
            _depth_by_lanes={1: task.num_steps},
        ), None


def _decay(u, start, stride):
    return u / (1 + 0.01 * stride)


def test_solve_gives_a_method_what_it_was_asked_for_and_hands_on_what_it_finds():
    method = OneByOne()
    solution = gritax.solve(_decay, jnp.ones(2), 30, method, tolerance=1e-3, profile=True)
    np.testing.assert_array_equal(solution.state, gritax.solve_serial(_decay, jnp.ones(2), 30))
    assert (method.seen[0].tolerance, method.seen[0].profile, method.seen[0].save_every) == (1e-3, True, None)
    with pytest.raises(gritax.ConvergenceError, match="one by one"):
        gritax.solve(_decay, jnp.ones(2), 30, OneByOne(converged=False))
    assert not gritax.solve(_decay, jnp.ones(2), 30, OneByOne(converged=False), throw=False).converged


def test_what_a_method_does_not_take_is_refused_before_phi_is_called(tmp_path):
    def phi(u, start, stride):
        raise AssertionError("phi was called")

    for options in ({"initial_guess": "zeros"}, {"save_every": 3}, {"checkpoint": tmp_path}):
        with pytest.raises(ValueError, match=rf"{next(iter(options))} is not for gritax\.OneByOne yet: leave it out, or use"):
            gritax.solve(phi, 1.0, 30, OneByOne(), **options)


def test_train_takes_a_method_of_whole_runs_and_goes_on_one_step_after_the_other_where_it_fails(mixed_dtypes):
    def train(method, **options):
        return gritax.train(loss, optax.sgd(0.05), batches(), params(), 100, method=method, **options)

    step = gritax.TrainStep(loss, optax.sgd(0.05), batches())
    serial = gritax.solve_serial(step, step.init(params()), 100)
    assert distance(train(OneByOne()).params, serial.params) == 0
    failed = train(OneByOne(converged=False))
    assert failed.converged and failed.restarts == ("one by one",) and failed.depth == 200
    with pytest.raises(ValueError, match=r"checkpoint is not for method=gritax\.OneByOne\(\.\.\.\) yet"):
        train(OneByOne(), checkpoint="run")
    with pytest.raises(ValueError, match=r"method must be a gritax\.Newton, or None"):
        train(gritax.Multigrid())
