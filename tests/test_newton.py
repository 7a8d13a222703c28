"""The sliding window ends with the weights of serial training, whatever its model of the curvature is worth."""

import io
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from small_problems import batches, distance, loss, params, relative_error

import gritax
from gritax.cli import main
from gritax.newton import _sweep
from gritax.newton._curvature import Curvature


OPTIMIZERS = {
    "adam": optax.adam(2e-3),
    "heavy ball": optax.sgd(0.02, momentum=0.9),
    "sgd": optax.sgd(0.1),
    "nesterov": optax.sgd(0.02, momentum=0.9, nesterov=True),
    "adamw, cosine": optax.adamw(optax.cosine_decay_schedule(2e-3, 400), weight_decay=1e-2),
    "warmup": optax.sgd(optax.warmup_cosine_decay_schedule(0, 0.1, 50, 400)),
    "rmsprop": optax.rmsprop(1e-3, decay=0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    "averaged": optax.chain(optax.sgd(0.1), optax.ema(0.9)),
    "masked": optax.multi_transform({"a": optax.sgd(0.1), "b": optax.sgd(0.02, momentum=0.9)}, {"w": "a", "b": "b", "v": "b"}),
    "lion": optax.lion(1e-3),
}


# One of each kind; the others are variations of these.
_EACH = ("adam", "heavy ball", "sgd", "warmup", "rmsprop", "clipped")


def solved(optimizer, num_steps=300, method=None, dtype="float64", **options):
    step = gritax.TrainStep(loss, optimizer, batches(dtype=dtype))
    state = step.init(params(dtype=dtype))
    solution = gritax.solve(step, state, num_steps, method or gritax.Newton(), **options)
    return solution, relative_error(step, state, num_steps, solution)


@pytest.mark.first(3)
@pytest.mark.slow(1)
@pytest.mark.parametrize("name", [name if name in _EACH else pytest.param(name, marks=pytest.mark.long) for name in OPTIMIZERS])
def test_the_weights_are_those_of_serial_training(name, mixed_dtypes):
    solution, error = solved(OPTIMIZERS[name])
    assert solution.converged
    assert error < 2e-6
    if name not in ("lion", "rmsprop"):  # a sign that no linear model follows; second moments of ten steps that turn with them
        assert solution.depth < 200
        assert solution.work < 12 * 300


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_in_float32_too(name, mixed_dtypes):
    solution, error = solved(OPTIMIZERS[name], dtype="float32")
    assert solution.converged
    assert error < 1e-5


@pytest.mark.long
@pytest.mark.slow
def test_the_optimizers_state_and_the_losses_are_those_of_serial_training_too(mixed_dtypes):
    step = gritax.TrainStep(loss, OPTIMIZERS["adam"], batches())
    solution = gritax.solve(step, step.init(params()), 200, gritax.Newton())
    after = jax.jit(lambda state, i: (step(state, i, 1), step.loss_at(state, i)))
    state, losses = step.init(params()), []
    for i in range(200):
        state, value = after(state, jnp.int32(i))
        losses.append(float(value))
    np.testing.assert_allclose(solution.losses, losses, rtol=1e-5)
    assert solution.losses.shape == (200,)
    assert jax.tree.structure(solution.state) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(solution.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.slow
def test_a_model_that_is_garbage_costs_evaluations_and_no_digits(monkeypatch):
    def garbage(model, changes, *_):
        v = jnp.sin(jnp.arange(model.directions.size, dtype=changes.dtype)).reshape(model.directions.shape)
        return Curvature(jnp.linalg.qr(v)[0], jnp.full(len(model.values), 3.0, changes.dtype))

    monkeypatch.setattr(_sweep, "secant_update", garbage)
    solution, error = solved(optax.sgd(0.05), 60, gritax.Newton(rank=4, sweeps=4.5))
    assert error < 2e-6
    assert solution.depth <= 60


@pytest.mark.long
@pytest.mark.slow
def test_without_a_model_it_is_picard_iteration():
    solution, error = solved(optax.sgd(0.05), 200, gritax.Newton(rank=0))
    assert error < 2e-6
    model, _ = solved(optax.sgd(0.05), 200)
    assert model.depth < solution.depth < 200


@pytest.mark.slow
def test_the_counts_of_a_chain_that_picard_solves_at_once():
    """u <- u + c: the second sweep finds that the first was right; two tangents of the first's one final step are more."""
    solution = gritax.solve(lambda u, start, stride: u + 0.5 * stride, jnp.zeros(2), 16, gritax.Newton())
    np.testing.assert_allclose(solution.state, 8.0)
    assert (solution.depth, solution.work, solution.iterations) == (2, 16 + 15 + 2, 2)
    one = gritax.solve(lambda u, start, stride: u + 0.5 * stride, jnp.zeros(2), 1, gritax.Newton())
    assert (one.depth, one.work) == (1, 1)


@pytest.mark.slow
def test_any_evolution_near_the_identity():
    def decay(state, start, stride):
        u, count = state
        return u - 0.01 * jnp.array([1.0, 3.0]) * jnp.sin(u) + 0.001 * count.astype(u.dtype), count + 1

    state = jnp.ones(2), jnp.int32(3)
    solution = gritax.solve(decay, state, 700, gritax.Newton(rank=2))
    serial = gritax.solve_serial(decay, state, 700)
    np.testing.assert_allclose(solution.state[0], serial[0], atol=2e-6 * float(jnp.linalg.norm(serial[0] - 1)))
    assert solution.state[1] == serial[1]
    assert solution.depth < 200


@pytest.mark.slow
def test_no_more_steps_are_in_flight_than_asked_for():
    seen = []

    class Watching(gritax.Progress):
        def front(self, taken, num_steps, in_flight, sweeps, seconds):
            seen.append((taken, in_flight))

    solution, error = solved(optax.sgd(0.05), 400, gritax.Newton(window=20), progress=Watching())
    assert error < 2e-6
    assert max(in_flight for _, in_flight in seen) <= 20
    assert solution.work <= (20 + 5) * solution.depth  # with a tangent's point for each four steps
    assert [taken for taken, _ in seen] == sorted(taken for taken, _ in seen)
    assert seen[-1][0] == 400


@pytest.mark.slow
def test_progress_says_how_far_the_front_is():
    out = io.StringIO()
    solved(optax.sgd(0.05), 100, progress=gritax.progress.Lines(Console(file=out, width=200)))
    assert "100 of 100 steps (100 percent)" in out.getvalue()


@pytest.mark.slow
def test_training_that_amplifies_is_not_said_to_have_converged():
    lorenz = lambda x, y, z: jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
    solution = gritax.solve(
        lambda u, start, stride: u + 0.002 * lorenz(*u), jnp.array([1.0, 1.0, 20.0]), 3000, gritax.Newton(), throw=False
    )
    assert not solution.converged
    assert "amplifies" in solution.reason
    assert solution.amplification > 100


@pytest.mark.first(2)
@pytest.mark.slow(1)
@pytest.mark.parametrize(("curvature", "num_steps"), [(21.0, 170), (-1.0, 105)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_amplification_in_one_direction_of_four_is_not_overlooked(curvature, num_steps, dtype):
    """The corrections hardly see that direction among the stiff ones of noisy minibatches."""
    turned = jnp.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype) / 2
    noise = jax.random.normal(jax.random.key(1), (1000, 3), dtype)

    def loss(w, i):
        z = turned @ w
        stiff = jnp.sum(jnp.array([3.0, 2.0, 1.0], dtype) * (z[:3] - 1 - 0.5 * noise[i]) ** 2)
        return 0.5 * stiff + 0.5 * curvature * z[3] ** 2

    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda i: i)
    state = step.init(jnp.zeros(4, dtype))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        solution = gritax.solve(step, state, num_steps, gritax.Newton(), throw=False)
    error = relative_error(step, state, num_steps, solution)
    assert error < 2e-5 or told or not solution.converged
    assert solution.amplification > 1e3


@pytest.mark.slow
def test_without_verification_it_says_that_it_is_an_estimate():
    solution, error = solved(optax.sgd(0.05), 100, gritax.Newton(verify=False))
    assert error < 2e-6
    assert "not compared with serial steps" in solution.reason


@pytest.mark.slow
def test_a_tolerance_below_rounding_is_not_said_to_be_met():
    x = jax.random.normal(jax.random.key(0), (64, 4), "float32")
    y = x @ jnp.array([1.0, -2, 3, 0.5], "float32")
    step = gritax.TrainStep(lambda w, i: jnp.mean((x @ w - y) ** 2), optax.sgd(1e-2), lambda i: i)
    state = step.init(jnp.full(4, 100.0, "float32"))
    solution = gritax.solve(step, state, 200, gritax.Newton(), tolerance=1e-9, throw=False)
    apart = distance(solution.params, gritax.solve_serial(step, state, 200).params)
    assert solution.converged == (apart <= 1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the evolution amplifies")
def test_an_optimizer_without_any_state():
    step = gritax.TrainStep(lambda w, i: 0.5 * jnp.sum((w - i.astype(w.dtype)) ** 2), optax.sign_sgd(1 / 64), lambda i: i)
    state = step.init(jnp.zeros(2))
    np.testing.assert_allclose(
        gritax.solve(step, state, 20, gritax.Newton()).params, gritax.solve_serial(step, state, 20).params
    )


def test_training_that_is_not_finite_names_the_step():
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 4), optax.sgd(0.5), lambda step: jnp.ones(2))
    with pytest.raises(gritax.ConvergenceError, match=r"not finite at step \d+"):
        gritax.solve(step, step.init(jnp.full(2, 3.0)), 100, gritax.Newton())


@pytest.mark.slow
def test_what_was_given_is_still_there_afterwards():
    step = gritax.TrainStep(loss, optax.sgd(0.05, momentum=0.9), batches())
    state = step.init(params())
    first = gritax.solve(step, state, 60, gritax.Newton())
    again = gritax.solve(step, state, 60, gritax.Newton())
    assert distance(first.params, again.params) == 0


def test_bad_input_is_named():
    step = gritax.TrainStep(loss, optax.sgd(0.05), batches())
    state = step.init(params())
    for given, match in (
        ({"rank": -1}, "rank"),
        ({"sweeps": 0.5}, "sweeps"),
        ({"window": 8}, "window"),
        ({"rank": 1.5}, "rank"),
    ):
        with pytest.raises(ValueError, match=match):
            gritax.Newton(**given)
    for options, match in (
        ({"initial_guess": "zeros"}, "initial_guess is not for gritax.Newton"),
        ({"profile": True}, "profile is not for gritax.Newton yet: leave it out, or use a gritax.Multigrid"),
        ({"profile": True}, "profile is not for"),
        ({"tolerance": 0}, "tolerance must be above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            gritax.solve(step, state, 60, gritax.Newton(), **options)
    with pytest.raises(ValueError, match=r"more than 2 GiB; [0-9,]+ fit"):
        gritax.solve(step, state, 60, gritax.Newton(window=10**9))
    with pytest.raises(ValueError, match="no derivatives yet"):
        jax.grad(lambda w: jnp.sum(gritax.solve(step, state._replace(params=w), 60, gritax.Newton()).params["w"]))(params())
    for leaf in (jnp.ones(2, jnp.bfloat16), jnp.ones(2, "complex64"), (jnp.ones(1, "float16"), jnp.ones(1))):
        with pytest.raises(ValueError, match=r"leaves of float32 and float64, and some are (bfloat16|complex64|float16)"):
            gritax.solve(lambda u, start, stride: jax.tree.map(lambda x: x * 0.5, u), leaf, 60, gritax.Newton())


def test_train_takes_it_as_a_method():
    trained = gritax.train(loss, optax.sgd(0.05), batches(), params(), 300, method=gritax.Newton())
    step = gritax.TrainStep(loss, optax.sgd(0.05), batches())
    assert trained.converged
    assert relative_error(step, step.init(params()), 300, trained) < 2e-6
    assert trained.depth < 150
    for options, match in (({"goal": "depth"}, "goal is not for"), ({"method": 3}, "method must be a gritax.Newton")):
        with pytest.raises(ValueError, match=match):
            gritax.train(loss, optax.sgd(0.05), batches(), params(), 300, **{"method": gritax.Newton()} | options)


@pytest.mark.slow
def test_training_that_amplifies_is_taken_one_step_after_the_other():
    """A saddle: w and v leave it at a rate that grows with the distance, and so do errors."""
    saddle = lambda w, x: -0.5 * jnp.sum(w**2) + 0.001 * jnp.sum(w**4)
    first = jnp.array([1e-9, 2e-9])
    trained = gritax.train(saddle, optax.sgd(0.05), lambda step: jnp.zeros(1), first, 500, method=gritax.Newton())
    step = gritax.TrainStep(saddle, optax.sgd(0.05), lambda step: jnp.zeros(1))
    assert trained.converged
    assert relative_error(step, step.init(first), 500, trained) < 2e-6


@pytest.mark.slow
def test_the_command_takes_it_too(tmp_path):
    run, kept = tmp_path / "run.json", tmp_path / "kept"
    train = ["train", "diabetes", "--steps", "128", "--method", "newton", "--resume", str(kept), "--rank"]
    for rank, status in (("8", 0), ("4", 2)):
        with pytest.raises(SystemExit) as ended:
            main([*train, rank, "--json", str(run)])
        assert ended.value.code == status
    assert [each.name for each in kept.iterdir()] == ["steps-000000000128.gritax"]
    figures = json.loads(run.read_text())
    assert figures["relative_distance"] < 2e-6
    assert figures["depth"] < 128
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--output", str(tmp_path / "run.html")])
    assert ended.value.code == 0
    for options in (["--rank", "3"], ["--method", "newton", "--refresh", "4"], ["--method", "newton", "--sweeps", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["train", "diabetes", *options])
        assert ended.value.code == 2
