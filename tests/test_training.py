"""TrainStep and RescaledRate against training loops and formulas written by hand."""

import gc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gritax


_INPUTS = np.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
_TARGETS = np.array([[0.0], [1], [1], [0]])


def _by_hand(params, alpha, rows):
    """The update of Appendix A, in NumPy."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    x, y = _INPUTS[rows], _TARGETS[rows]
    l1 = sigmoid(x @ params["w0"])
    l2 = sigmoid(l1 @ params["w1"])
    d2 = (y - l2) * l2 * (1 - l2)
    d1 = (d2 @ params["w1"].T) * l1 * (1 - l1)
    return {"w0": params["w0"] + alpha * x.T @ d1, "w1": params["w1"] + alpha * l1.T @ d2}


def _numpy(params):
    return {name: np.asarray(weights) for name, weights in params.items()}


def test_a_hundred_steps_of_the_paper():
    problem = gritax.problems.xor()
    after = problem.step.params(gritax.solve_serial(problem.step, problem.state, 100))
    np.testing.assert_allclose(
        after["w0"],
        [
            [-0.34910421592034785, 0.3280739280762487, -2.1196170643060386, -0.5831857965938818],
            [-0.7842281473062912, -1.2676292778675045, -2.153461811083388, -0.36945231447021626],
            [-0.3234431832660637, -0.24376676481878315, -0.10641690970736872, 0.43738163417619896],
        ],
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        after["w1"].ravel(), [-0.5720040033121042, 0.903738946740043, -2.212260994651611, 0.5526992143543507], rtol=1e-12
    )


@pytest.mark.parametrize("serialized", [False, True])
def test_a_step_is_that_of_the_appendix(serialized):
    problem = gritax.problems.xor(alpha=0.7, seed=3, serialized=serialized)
    found = problem.step(problem.state, jnp.int32(6), 1).params
    wanted = _by_hand(_numpy(problem.state.params), 0.7, [2] if serialized else [0, 1, 2, 3])
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-13)


@pytest.mark.parametrize(
    ("coarse", "factor", "rows"),
    [
        (gritax.RescaledRate(), 8, [(16 // 8) % 4]),
        (gritax.RescaledRate(power=0.0), 1, [2]),
        (gritax.RescaledRate(power=np.log2(1.25)), 1.25**3, [2]),
        (gritax.RescaledRate(max_factor=5.0), 5, [2]),
        (gritax.RescaledRate(data="injected"), 8, [0]),
    ],
)
def test_a_coarse_step_is_one_step_with_another_rate_and_example(coarse, factor, rows):
    problem = gritax.problems.xor(alpha=0.3, serialized=True, coarse=coarse)
    found = problem.step(problem.state, jnp.int32(16), 8).params
    wanted = _by_hand(_numpy(problem.state.params), 0.3 * factor, rows)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12)


def test_averaged_data_is_the_mean_of_the_batches_replaced():
    loss = lambda w, batch: jnp.sum(w * batch)
    step = gritax.TrainStep(
        loss, optax.sgd(0.1), lambda step: jnp.asarray(step, float) * jnp.ones(2), gritax.RescaledRate(data="averaged")
    )
    found = step(step.init(jnp.zeros(2)), jnp.int32(4), 4).params
    np.testing.assert_allclose(found, -0.1 * 4 * np.mean([4, 5, 6, 7]) * np.ones(2), rtol=1e-13)


@pytest.mark.first(5)
@pytest.mark.slow(1)
@pytest.mark.parametrize("data", ["level", "injected", "averaged"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_serialized_training_in_parallel_equals_serial_training(data, seed, dtype):
    coarse = gritax.RescaledRate(max_factor=8.0, data=data)
    problem = gritax.problems.xor(0.5, seed, serialized=True, coarse=coarse, dtype=dtype)
    solution = gritax.solve(problem.step, problem.state, 130, gritax.Multigrid(2, cycle="F"))
    serial = gritax.solve_serial(problem.step, problem.state, 130)
    travelled = np.linalg.norm(serial.params["w0"] - problem.state.params["w0"])
    assert solution.params["w0"].dtype == dtype
    assert np.linalg.norm(solution.params["w0"] - serial.params["w0"]) <= (5e-6 if dtype == "float64" else 1e-4) * travelled


@pytest.mark.slow
def test_two_applications_of_phi_as_a_coarse_step():
    """The "double Phi" of the paper's Solver 3: two steps of half the stride, at twice the cost."""
    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0))

    class DoublePhi:
        params = staticmethod(problem.step.params)

        def __call__(self, state, start, stride):
            if stride == 1:
                return problem.step(state, start, 1)
            half = problem.step(state, start, stride // 2)
            return problem.step(half, start + stride // 2, stride // 2)

        def depth(self, stride):
            return 1 if stride == 1 else 2

        work = depth

    method = gritax.Multigrid(2, cycle="F", max_levels=2)
    once = gritax.solve(problem.step, problem.state, 200, method, tolerance=1e-9)
    twice = gritax.solve(DoublePhi(), problem.state, 200, method, tolerance=1e-9)
    # On level 1 two applications are the two training steps that they replace: exact.
    assert twice.iterations <= 1 < once.iterations
    assert twice.potential_speedup < 1
    np.testing.assert_allclose(twice.params["w1"], once.params["w1"], rtol=1e-7)


def test_equals_a_hand_written_optax_loop():
    data = jax.random.normal(jax.random.key(0), (40, 8, 3))
    targets = jnp.sum(jnp.sin(data), axis=-1)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05))

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)

    def batch(step):
        return data[step % 40], targets[step % 40]

    params = {"w": jax.random.normal(jax.random.key(1), (3, 5)) / 2, "v": jax.random.normal(jax.random.key(2), (5,)) / 2}

    def loop(carry, step):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch(step)), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (wanted, _), _ = jax.lax.scan(loop, (params, optimizer.init(params)), jnp.arange(90))
    step = gritax.TrainStep(loss, optimizer, batch)
    assert jax.tree.all(jax.tree.map(jnp.allclose, gritax.solve_serial(step, step.init(params), 90).params, wanted))
    solution = gritax.solve(step, step.init(params), 90, gritax.Multigrid(2, max_levels=2), tolerance=1e-10)
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-8), solution.params, wanted))


@pytest.mark.slow
def test_other_data_compile_nothing(compilations):
    loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)

    class Fixed(eqx.Module):
        value: jax.Array

        def __call__(self, step):
            return self.value

    optimizer = optax.sgd(0.01)

    def final(value):
        step = gritax.TrainStep(loss, optimizer, Fixed(jnp.full(2, value)))
        return gritax.solve(step, step.init(jnp.zeros(2)), 100).params

    first = np.asarray(final(1.0))
    before = len(compilations)
    np.testing.assert_allclose(final(3.0), 3 * first, rtol=1e-5)
    assert len(compilations) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gritax.RescaledRate(power=-1.0), "power must be"),
        (lambda: gritax.RescaledRate(max_factor=0.5), "max_factor must be at least 1"),
        (lambda: gritax.RescaledRate(data="median"), 'data must be "level", "injected" or "averaged"'),
        (lambda: gritax.problems.xor(alpha=0.0), "alpha, the learning rate, must be positive"),
        (
            lambda: gritax.TrainStep(lambda w, x: w * x, optax.sgd(0.1), lambda step: 1.0).init(jnp.ones(3)),
            r"scalar, not float64\[3\]",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, optax.sgd(0.1), lambda step: 1.0), "loss must be a function"),
        ((jnp.sum, 0.1, lambda step: 1.0), "optimizer must be an Optax transformation"),
        ((jnp.sum, optax.sgd(0.1), (1.0, 2.0)), r"batch must be a function batch\(step\), not a tuple"),
        ((jnp.sum, optax.sgd(0.1), lambda step: 1.0, "rescaled"), "coarse must be .auto. or a coarse propagator"),
        ((jnp.sum, optax.sgd(0.1), lambda step: 1.0, gritax.RescaledRate), "coarse must be .auto. or a coarse propagator"),
    ],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        gritax.TrainStep(*arguments)


def _quadratic(batch=lambda step: jnp.ones(3), loss=lambda w, x: jnp.sum((w - x) ** 2)):
    return gritax.TrainStep(loss, optax.sgd(0.001), batch)


def test_a_loss_with_auxiliary_values():
    with pytest.raises(ValueError, match="not a tuple; if it returns new statistics, pass has_aux=True"):
        _quadratic(loss=lambda w, x: (jnp.sum(w), {})).init(jnp.ones(3))


@pytest.mark.parametrize("batch", [lambda step: [1.0, 2.0][step % 2], lambda step: np.ones(5)[step : step + 2]])
def test_a_batch_that_needs_the_value_of_the_step(batch):
    with pytest.raises(ValueError, match=r"batch\(step\) needs the value of `step`"):
        _quadratic(batch).init(jnp.ones(3))


def test_parameters_in_place_of_a_state():
    with pytest.raises(ValueError, match=r"state must come from TrainStep\.init\(params\)"):
        gritax.solve(_quadratic(), jnp.ones(3), 40)


@pytest.mark.slow
def test_an_optimizer_with_moments_runs():
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 2), optax.sgd(0.001, momentum=0.5), lambda step: jnp.ones(3))
    solution = gritax.solve(step, step.init(jnp.zeros(3)), 100)
    np.testing.assert_allclose(solution.params, gritax.solve_serial(step, step.init(jnp.zeros(3)), 100).params, rtol=1e-5)


def test_averaging_labels_is_refused():
    step = gritax.TrainStep(
        lambda w, label: jnp.sum(w) * label.astype(float),
        optax.sgd(0.1),
        lambda step: jnp.asarray(step % 3),
        gritax.RescaledRate(data="averaged"),
    )
    with pytest.raises(ValueError, match='data="averaged"'):
        gritax.solve(step, step.init(jnp.ones(3)), 40)


@pytest.mark.slow
def test_a_solution_keeps_one_copy_of_the_states_for_its_losses():
    step = gritax.TrainStep(lambda w, b: jnp.sum((w - b) ** 2), optax.sgd(0.01), lambda step: jnp.ones(7))
    solution = gritax.solve(step, step.init(jnp.zeros(7)), 84, gritax.Multigrid(4))
    gc.collect()
    assert len([x for x in jax.live_arrays() if x.shape[1:] == (7,) and x.shape[0] >= 21]) == 1
    assert solution.losses.shape == (84,)
