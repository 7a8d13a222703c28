"""Training from window to window: the serial weights in every case, and what it may take."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax._attempt import Bounds
from gritax._pace import InWindows, OneByOne
from gritax._validation import validated
from gritax._window import solve_window


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

SGD, MOMENTUM, ADAM = optax.sgd(0.05), optax.sgd(0.002, momentum=0.8), optax.adam(1e-3)


_batches = small.batches()


def _train(num_steps, optimizer=SGD, *, seed=0, dtype="float64", goal="depth", loss=small.loss, batch=None, **options):
    params, batch = small.params(seed, dtype), batch or small.batches(seed, dtype)
    trained = gritax.train(loss, optimizer, batch, params, num_steps, goal=goal, **options)
    step = gritax.TrainStep(loss, optimizer, batch)
    serial = gritax.solve_serial(step, step.init(params), num_steps)
    error = small.distance(trained.params, serial.params) / small.distance(serial.params, params)
    return trained, serial, error


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("optimizer", "dtype", "seed"),
    [
        (SGD, "float64", 0),
        pytest.param(ADAM, "float64", 1, marks=pytest.mark.slow),
        pytest.param(MOMENTUM, "float64", 1, marks=pytest.mark.long),
        pytest.param(ADAM, "float32", 0, marks=pytest.mark.long),
        pytest.param(SGD, "float32", 1, marks=pytest.mark.long),
    ],
    ids=["sgd", "adam", "momentum", "adam, float32", "sgd, float32"],
)
def test_windows_end_with_the_serial_weights(optimizer, dtype, seed):
    trained, serial, error = _train(1500, optimizer, dtype=dtype, seed=seed, window=600)
    assert trained.converged
    assert error <= (1e-6 if dtype == "float64" else 2e-5)
    assert jax.tree.structure(trained.state) == jax.tree.structure(serial)
    assert [each.dtype for each in jax.tree.leaves(trained.state)] == [each.dtype for each in jax.tree.leaves(serial)]
    assert sum(window.num_steps for window in trained.windows) == 1500 and len(trained.windows) > 2
    assert any(window.kind == "parallel" for window in trained.windows)
    assert trained.depth < 1500
    assert trained.depth >= sum(window.depth for window in trained.windows)
    firsts = [window.first for window in trained.windows]
    assert firsts == list(np.cumsum([0, *(window.num_steps for window in trained.windows)])[:-1])
    assert trained.amplification is not None
    assert len(trained.residuals) == trained.iterations + 1 == max(len(window.residuals) for window in trained.windows)


def test_windows_that_are_too_short_are_told_of():
    trained = _train(200, window=71)[0]
    assert trained.reason == "serial: windows of 71 steps are too short to gain anything: give at least 72"


def test_one_step_after_the_other_is_serial_training_bit_for_bit():
    trained, serial, error = _train(700, ADAM, goal="time")
    assert error == 0
    assert all(window.kind == "serial" for window in trained.windows)
    assert trained.depth == trained.work == trained.exact_steps == 700
    assert trained.amplification is None
    assert "too short to measure" in trained.reason
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.all(x == y), trained.state, serial))


def test_keys_statistics_and_trainable_go_along():
    def loss(params, stats, batch, key):
        noise = 0.1 * jax.random.normal(key, batch[1].shape, batch[1].dtype)
        value = jnp.mean((small.network(params, batch[0]) - batch[1] - noise) ** 2)
        return value, 0.9 * stats + 0.1 * value

    key, stats, trainable = jax.random.key(3), jnp.zeros(()), {"w": True, "b": False, "v": True}
    options = {"key": key, "has_aux": True, "trainable": trainable}
    params, batch = small.params(), small.batches()
    trained = gritax.train(loss, SGD, batch, params, 500, goal="depth", window=250, stats=stats, **options)
    step = gritax.TrainStep(loss, SGD, batch, **options)
    serial = gritax.solve_serial(step, step.init(params, stats), 500)
    assert small.distance(trained.params, serial.params) <= 1e-6 * small.distance(serial.params, params)
    assert abs(float(trained.state.stats - serial.stats)) < 1e-6
    assert trained.params["b"] is params["b"] or bool(jnp.all(trained.params["b"] == params["b"]))


def test_divergence_is_that_of_serial_training():
    trained, serial, _ = _train(4000, optax.sgd(60.0), throw=False, loss=lambda w, b: jnp.sum(small.loss(w, b) ** 2))
    assert not np.all(np.isfinite(np.asarray(serial.params["w"])))
    assert not trained.converged
    assert trained.reason.startswith("diverged: training one step after the other is not finite between steps ")
    with pytest.raises(gritax.ConvergenceError, match="diverged") as caught:
        _train(4000, optax.sgd(60.0), loss=lambda w, b: jnp.sum(small.loss(w, b) ** 2))
    assert caught.value.solution.windows


def test_speeds_are_not_measured_beyond_the_end_of_training_that_diverges():
    trained = _train(40_000, optax.sgd(3.0), goal="time", throw=False, loss=lambda w, b: 1e3 * small.loss(w, b) ** 2)[0]
    assert not trained.converged and trained.reason.startswith("diverged")
    assert sum(window.num_steps for window in trained.windows) <= 64 + 256 + 1024


def test_a_window_that_fails_is_not_passed_on():
    """Coarse steps so long that they blow up: windows are given up, and their steps taken otherwise."""
    trained, _, error = _train(1200, optax.sgd(0.2), coarse=gritax.RescaledRate())
    assert trained.converged and error <= 1e-6
    assert any(window.kind == "given up" for window in trained.windows)
    assert any(window.kind == "serial" for window in trained.windows)
    assert trained.depth <= 1.5 * 1200


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_at_the_limit_of_stability_the_bound_holds(rate):
    """Full batches, at a share of the rate at which quadratics of this curvature become unstable."""
    x, y = small.data()
    trained, _, error = _train(600, optax.sgd(rate), batch=lambda step: (x, y))
    assert trained.converged and error <= 1e-6
    assert trained.depth <= 1.5 * 600


class _Ran:
    """A run of a hundred steps whose windows end as they are told to."""

    def __init__(self, *outcomes, num_steps=10_000):
        self.num_steps, self.left, self.cost = num_steps, num_steps, gritax._cycle.Cost()
        self.outcomes, self.taken, self.windows = list(outcomes), [], []

    def _take(self, kind, steps, depth):
        self.left -= steps
        self.cost.spend(1, depth, depth)
        self.taken.append((kind, steps))

    def serially(self, steps, reason):
        self._take("serial", steps, steps)

    def in_parallel(self, steps, allowed, step_seconds):
        outcome = self.outcomes.pop(0)
        if outcome == "declined":
            self._take("declined", 0, 14)
            return gritax._window.Declined(None, 2 * steps)
        converged, iterations, prefix, share = outcome
        self._take("parallel", steps if converged else prefix, min(int(share * steps), int(allowed)))
        self.windows.append(type("Report", (), {"num_steps": prefix})())
        verdict = gritax._convergence.Verdict(converged, "")
        return type("Window", (), {"verdict": verdict, "reports": [type("Each", (), {"number": iterations})()]})()


@pytest.mark.slow
def test_a_window_that_takes_longer_than_its_steps_is_given_up():
    def solve(step_seconds):
        evolution, floating, clock = validated(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
        return solve_window(
            evolution,
            floating,
            clock,
            1000,
            gritax.Multigrid(),
            tolerance=1e-12,
            max_iterations=20,
            initial_guess="graded",
            progress=gritax.Progress(),
            bounds=Bounds(depth=10**6, step_seconds=step_seconds),
        )

    found = solve(1e-9)
    assert not found.verdict.converged and re.match(r"given up after .* s: ", found.verdict.sentence)
    assert len(found.reports) < len(solve(10.0).reports)


def test_a_run_that_begins_again_sees_the_same_examples(monkeypatch):
    monkeypatch.setattr(gritax._run, "TABLE", 64)
    step = gritax.TrainStep(small.loss, SGD, small.batches())
    first = step.init(small.params())
    run = gritax._run.Run(step, first, 200, None, 1e-6, gritax.Progress())
    for reason in ("", "again"):
        run.serially(150, reason)
        run.serially(50, reason)
        found = run.state
        run.begin_again("")
    wanted = gritax.solve_serial(step, first, 200)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), found, wanted))


@pytest.mark.parametrize(
    ("done", "depth", "longest", "now"),
    [(200, 50, 100, False), (200, 350, 100, True), (1000, 50, 100, True), (1000, 501, 100, False), (200, 501, 100, False)],
    ids=["time enough", "before the next window", "at the end", "too late at the end", "too late"],
)
def test_training_begins_again_when_it_is_now_or_never(done, depth, longest, now):
    step = gritax.TrainStep(small.loss, SGD, small.batches())
    run = gritax._run.Run(step, step.init(small.params()), 1000, None, 1e-6, gritax.Progress(), done=done)
    run.cost.spend(1, depth, depth)
    assert run.last_chance(longest) == now


def test_windows_grow_and_shrink():
    pace, run = (
        InWindows(4000, window=1000),
        _Ran((True, 4, 0, 0.3), (True, 12, 0, 0.5), (False, 3, 0, 0.4), "declined", "declined"),
    )
    for _ in range(5):
        pace = pace.advance(run)
    assert run.taken == [
        ("parallel", 1000),
        ("parallel", 2000),
        ("parallel", 0),
        ("serial", 64),
        ("declined", 0),
        ("serial", 128),
        ("declined", 0),
        ("serial", 256),
    ]
    assert pace.window == 250  # a quarter of the thousand that failed


def test_what_may_be_spent_in_vain_is_bounded():
    pace, run = InWindows(1000), _Ran(*[(False, 5, 0, 0.9)] * 100, num_steps=1000)
    while run.left:
        pace = pace.advance(run)
    assert run.cost.depth <= 1.5 * 1000
    assert isinstance(pace, OneByOne)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 2**31}, "num_steps must be below 2\\^31"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1"),
        ({"goal": "fast"}, 'goal must be "time" or "depth"'),
        ({"plan": 3}, "plan must come from gritax.plan"),
        ({"plan": 3, "goal": "depth"}, "Leave one of them out"),
        ({"tolerance": 0}, "tolerance must be above 0 here"),
        ({"tolerance": -1.0}, "tolerance must be a number"),
        ({"window": 0}, "window must be a whole number"),
        ({"progress": 1}, "progress must be a gritax.Progress"),
        ({"resume": True}, "needs the directory"),
        ({"resume": 3}, "resume must be True, False or a directory"),
        ({"coarse": "best"}, 'coarse must be "auto"'),
        ({"throw": "no"}, "throw must be True or False"),
        ({"checkpoint": ""}, "checkpoint must name a directory"),
        ({"checkpoint": 3}, "checkpoint must name a directory"),
        ({"checkpoint": "/proc/gritax"}, "checkpoint: nothing can be written to /proc/gritax"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        gritax.train(small.loss, SGD, small.batches(), small.params(), **{"num_steps": 10, **options})


@pytest.mark.parametrize("call", [gritax.train, gritax.plan])
def test_within_a_traced_function_it_is_refused(call):
    run = lambda params: call(small.loss, SGD, small.batches(), params, 10).params
    with pytest.raises(ValueError, match="params holds values that are being traced"):
        jax.jit(run)(small.params())


@pytest.mark.parametrize("goal", ["time", "depth"])
def test_a_counter_that_depends_on_weights_is_trained_serially(goal):
    trained, _, error = _train(300, optax.apply_if_finite(SGD, 5), goal=goal)
    assert error == 0 and trained.converged and "notfinite_count" in trained.reason


def test_statistics_that_overflow_do_not_end_training():
    loss = lambda params, stats, batch: (small.loss(params, batch), 2 * stats)
    trained = gritax.train(loss, SGD, small.batches(), small.params(), 1500, has_aux=True, stats=jnp.ones(()))
    step = gritax.TrainStep(small.loss, SGD, small.batches())
    serial = gritax.solve_serial(step, step.init(small.params()), 1500)
    assert trained.converged and not np.isfinite(trained.state.stats)
    assert small.distance(trained.params, serial.params) == 0


@pytest.mark.slow(1)
@pytest.mark.parametrize("num_steps", [1, 7, 700])
def test_short_runs_are_not_measured_once_compiled_either(num_steps):
    for _ in range(2):
        trained = gritax.train(small.loss, SGD, _batches, small.params(), num_steps)
        assert "too short to measure" in trained.reason


@pytest.mark.slow
def test_models_with_functions_in_them():
    """Equinox modules hold activations beside their arrays."""
    model = eqx.nn.MLP(3, 1, 4, 1, jnp.tanh, key=jax.random.key(0), dtype=jnp.float64)
    loss = lambda model, batch: jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)
    for goal in ("time", "depth"):
        trained = gritax.train(loss, SGD, small.batches(), model, 200, goal=goal)
        assert trained.converged and trained.params.activation is model.activation
