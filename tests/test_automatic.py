"""The coarse propagator that is chosen: which, why, and that it ends with the serial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax._expected import expected_depth


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _step(coarse="auto", optimizer=None, composite=True, full_batch=False, dtype="float64"):
    x, y = small.data(dtype=dtype)
    batch = (lambda step: (x, y)) if full_batch else small.batches(dtype=dtype)
    loss = small.loss
    if composite:
        loss = gritax.CompositeLoss(
            lambda params, batch: small.network(params, batch[0]), lambda z, batch: jnp.mean((z - batch[1]) ** 2)
        )
    step = gritax.TrainStep(loss, optimizer or optax.sgd(0.05), batch, coarse)
    return step, step.init(small.params(dtype=dtype))


def _adapted(step, state, num_steps):
    return step.adapted(jax.tree.map(lambda x: x[None], state), np.zeros(1, int), num_steps, None)[0] or step


_CASES = {
    "Tangent": {"full_batch": True},
    "Stabilized": {"composite": False},
    "FrozenGradient": {"composite": False, "optimizer": optax.adam(1e-3)},
}


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "dtype"),
    [
        pytest.param("Tangent", "float32", marks=pytest.mark.long),
        ("Stabilized", "float64"),
        pytest.param("FrozenGradient", "float64", marks=pytest.mark.long),
        pytest.param("Tangent", "float64", marks=pytest.mark.slow),
        pytest.param("Stabilized", "float32", marks=pytest.mark.long),
        pytest.param("FrozenGradient", "float32", marks=pytest.mark.long),
    ],
)
def test_it_chooses_says_why_and_ends_with_the_serial_weights(wanted, dtype):
    step, state = _step(dtype=dtype, **_CASES[wanted])
    num_steps = 256 if wanted == "FrozenGradient" else 2048
    solution = gritax.solve(step, state, num_steps)
    chosen, reason = solution.coarse_steps.split("; ", 1)
    assert chosen.startswith(wanted)
    assert reason.startswith("expected depths: FrozenGradient ") and "Stabilized " in reason
    assert ("not Tangent" in reason) == (wanted != "Tangent")
    serial = gritax.solve_serial(step, state, num_steps)
    travelled = small.distance(serial.params, state.params)
    assert small.distance(solution.params, serial.params) < (1e-6 if dtype == "float64" else 1e-4) * travelled
    # What was expected of the propagator taken, and the measurements of the curvature.
    expected = int(reason.split(wanted + " ")[1].split(",")[0].split(";")[0].replace(",", ""))
    assert 0.3 * expected < solution.depth < 2 * expected + 100


@pytest.mark.slow
def test_why_not_tangent():
    def reason(**options):
        step, state = _step(**options)
        return _adapted(step, state, 1024).describe()

    assert "not Tangent, since loss must be a gritax.CompositeLoss" in reason(composite=False)
    assert "not Tangent, since it would follow the optimizer step by step" in reason(optimizer=optax.adam(1e-3))
    assert "not Tangent, since kappa is" in reason(full_batch=True, optimizer=optax.sgd(0.8))
    assert "not Tangent" not in reason(full_batch=True)


@pytest.mark.long
@pytest.mark.slow
def test_words_make_no_other_program(compilations):
    step, state = _step(full_batch=True)
    first = gritax.solve(step, state, 1024)
    moved = state._replace(params=jax.tree.map(lambda x: 1.1 * x, state.params))
    compilations.clear()
    second = gritax.solve(step, moved, 1024)
    assert second.converged and not compilations
    assert first.coarse_steps != second.coarse_steps and "Tangent" in first.coarse_steps


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize(("coarse", "num_steps"), [(gritax.FrozenGradient(16), 300), (gritax.Tangent(), 1030)], ids=str)
def test_the_depth_it_expects_is_that_of_a_solve(coarse, num_steps):
    step, state = _step(coarse, full_batch=True)
    solution = gritax.solve(step, state, num_steps, tolerance=0, max_iterations=3)
    phi = _adapted(step, state, num_steps)
    assert expected_depth(phi.method(num_steps).hierarchy(num_steps), phi.depth, 3) == solution.depth


@pytest.mark.slow
def test_it_can_be_checked_before_a_solve():
    step, state = _step()
    assert gritax.check(step, state, 64).ok


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match='coarse must be "auto" or a coarse propagator'):
        _step("best")
