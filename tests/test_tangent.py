"""The tangent coarse step: exact on networks that are linear in their parameters, close to training on others."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax
from gritax.coarse import _lapack
from gritax.coarse._linearised import largest_stable, power


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


_LINEAR = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.02, momentum=0.8),
    "nesterov": optax.sgd(0.02, momentum=0.8, nesterov=True),
    "scheduled": optax.sgd(lambda count: 0.05 / (1 + 0.03 * count)),
    "decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05)),
    "two rates": optax.multi_transform({"x": optax.sgd(0.05), "y": optax.sgd(0.02)}, {"a": "x", "b": "y"}),
}
_CRITERIA = {
    "least squares": lambda z, batch: 0.5 * jnp.mean(jnp.sum((z - batch[1]) ** 2, axis=1)),
    "weighted, one output linear": lambda z, batch: jnp.mean(
        batch[1][:, 1] ** 2 * (z[:, 0] - batch[1][:, 0]) ** 2 + z[:, 1] / 9
    ),
    "coupled outputs": lambda z, batch: 0.5 * jnp.mean((z.sum(axis=1) - batch[1][:, 0]) ** 2),
    "cross-entropy": lambda z, batch: jnp.mean(optax.softmax_cross_entropy(z, jax.nn.softmax(batch[1]))),
}


def _mean_square():
    outputs = lambda params, batch: small.network(params, batch[0])
    return gritax.CompositeLoss(outputs, lambda z, batch: jnp.mean((z - batch[1]) ** 2))


def _linear_model(dtype="float64"):
    x, y = (jax.random.normal(jax.random.key(seed), (12, size), dtype) for seed, size in ((0, 3), (1, 2)))
    params = {"a": jax.random.normal(jax.random.key(2), (3, 2), dtype), "b": jnp.zeros(2, dtype)}
    return (lambda params, batch: batch[0] @ params["a"] + params["b"][None]), params, (x, y)


def _training(criterion, optimizer, minibatches, memory=2**30, dtype="float64"):
    outputs, params, data = _linear_model(dtype)
    batch = gritax.data.Epochs(data, 4, jax.random.key(3)) if minibatches else lambda step: data
    loss = gritax.CompositeLoss(outputs, criterion)
    step = gritax.TrainStep(loss, optimizer, batch, gritax.Tangent(memory=memory))
    return step, step.init(params)


_SLOW = pytest.mark.slow
_CASES = [
    ("sgd", "least squares", True),
    ("momentum", "least squares", False),
    ("momentum", "least squares", True),
    ("two rates", "cross-entropy", False),
    ("scheduled", "weighted, one output linear", True),
    *(pytest.param(name, "least squares", full, marks=_SLOW) for name in _LINEAR for full in (False, True)),
    *(pytest.param("momentum", criterion, full, marks=_SLOW) for criterion in _CRITERIA for full in (False, True)),
]


@pytest.mark.first(8)
@pytest.mark.slow(1)
@pytest.mark.parametrize(("name", "criterion", "minibatches"), _CASES)
def test_of_a_linear_network_it_is_the_training_steps(name, criterion, minibatches):
    """Parameters and optimizer state, from states with a velocity, several lanes at once."""
    step, state = _training(_CRITERIA[criterion], _LINEAR[name], minibatches)
    state = gritax.solve_serial(step, state, 5)
    starts = 5 + jnp.arange(3, dtype=jnp.int32)

    def serial(state, start):
        return jax.lax.fori_loop(start, start + 17, lambda k, state: step(state, k, 1), state)

    found = jax.jit(jax.vmap(lambda state, start: step(state, start, 17), (None, 0)))(state, starts)
    wanted = jax.jit(jax.vmap(serial, (None, 0)))(state, starts)
    assert small.distance(found, wanted) <= (1e-6 if name == "scheduled" else 1e-11)  # Optax's schedules are of float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "minibatches"),
    [("least squares", True), ("cross-entropy", False), pytest.param("least squares", False, marks=_SLOW)],
)
def test_without_room_for_the_jacobian_it_is_the_same(criterion, minibatches):
    """By passes through the network, which count; and with fewer lanes at a time."""
    rows = 24 if not minibatches else 8 * 16
    memory = 4 * 8 * rows**2
    steps = [_training(_CRITERIA[criterion], _LINEAR["momentum"], minibatches, bytes)[0] for bytes in (2**30, memory)]
    state = steps[0].init(_linear_model()[1])
    starts = jnp.arange(3, dtype=jnp.int32)
    run = lambda step: jax.jit(jax.vmap(lambda state, start: step(state, start, 16), (None, 0)))(state, starts)
    first, second = map(run, steps)
    assert small.distance(first, second) <= 1e-12
    chosen = [
        step.adapted(jax.tree.map(lambda x: jnp.asarray(x)[None], state), np.zeros(1, int), 16, None)[0] for step in steps
    ]
    assert [step.depth(16) for step in chosen] == [1, 2]


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [False, True])
def test_a_linear_network_takes_one_iteration(minibatches):
    step, state = _training(_CRITERIA["least squares"], _LINEAR["momentum"], minibatches)
    solution = gritax.solve(step, state, 300, gritax.Multigrid(coarsening=5))
    assert solution.iterations <= 1
    assert small.relative_error(step, state, 300, solution) <= 1e-10


def test_half_squares_in_closed_form():
    r"""$w + J^T Q (1 - (1 - \alpha L)^M) / L Q^T r$, at L = 0 too."""
    x, y = jax.random.normal(jax.random.key(0), (6, 4)), jax.random.normal(jax.random.key(1), (6,))
    loss = gritax.CompositeLoss(lambda w, batch: batch[0] @ w, lambda z, batch: 0.5 * jnp.sum((z - batch[1]) ** 2))
    step = gritax.TrainStep(loss, optax.sgd(0.01), lambda step: (x, y), gritax.Tangent())
    w = jnp.ones(4)
    found = step(step.init(w), jnp.int32(0), 1000).params
    sizes, q = np.linalg.eigh(x @ x.T)
    sizes = np.where(sizes < 1e-9, 0, sizes)
    bracket = np.array([(1 - (1 - 0.01 * size) ** 1000) / size if size else 10.0 for size in sizes])
    np.testing.assert_allclose(found, w + x.T @ (q @ (bracket * (q.T @ (y - x @ w)))), rtol=1e-9)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.01),
        pytest.param(optax.sgd(0.002, momentum=0.8), marks=pytest.mark.long),
        pytest.param(optax.adamw(1e-3), marks=pytest.mark.long),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_second_order_in_the_stride(optimizer):
    """Twice the stride, four times the error and not more: it lacks what bends the network, whose effect is of second order.

    On minibatches it is closer to training than frozen gradients are.
    """
    frozen = gritax.FrozenGradient(refresh=64)

    def errors(batch, coarse):
        step = gritax.TrainStep(_mean_square(), optimizer, batch, coarse)
        serial = jax.jit(lambda state, stride: jax.lax.fori_loop(40, 40 + stride, lambda k, state: step(state, k, 1), state))
        state = gritax.solve_serial(step, step.init(small.params()), 40)
        strides = (8, 16, 32) if isinstance(coarse, gritax.Tangent) else (32,)
        found = [jax.jit(lambda s, m=stride: step(s, jnp.int32(40), m).params)(state) for stride in strides]
        return [small.distance(x, serial(state, stride).params) for x, stride in zip(found, strides, strict=True)]

    full = errors(lambda step: small.data(), gritax.Tangent())
    assert 3 <= full[1] / full[0] <= 9 and 3 <= full[2] / full[1] <= 9
    batches = small.batches(batch_size=4)
    assert errors(batches, gritax.Tangent())[-1] < errors(batches, frozen)[-1]


@pytest.mark.first(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "dtype", "seed"),
    [
        (optax.sgd(0.1), "float32", 0),
        (optax.adam(2e-3), "float64", 1),
        pytest.param(optax.sgd(0.1), "float64", 0, marks=_SLOW),
        pytest.param(optax.sgd(0.1), "float64", 1, marks=_SLOW),
        pytest.param(optax.adam(2e-3), "float32", 1, marks=_SLOW),
    ],
)
def test_converges_to_the_serial_weights(optimizer, dtype, seed):
    data = small.data(seed, dtype)
    step = gritax.TrainStep(_mean_square(), optimizer, lambda step: data, gritax.Tangent())
    state = step.init(small.params(seed, dtype))
    solution = gritax.solve(step, state, 240)
    assert dtype == "float32" or solution.iterations <= 8
    assert small.relative_error(step, state, 240, solution) <= (2e-6 if dtype == "float64" else 1e-4)


@pytest.mark.first(1)
@pytest.mark.slow
@pytest.mark.parametrize("serialized", [False, pytest.param(True, marks=_SLOW)])
def test_xor_in_ten_iterations(serialized):
    problem = gritax.problems.xor(serialized=serialized, coarse=gritax.Tangent())
    solution = gritax.solve(problem.step, problem.state, 1600, tolerance=1e-9 * 40)
    assert solution.iterations <= 10
    assert small.relative_error(problem.step, problem.state, 1600, solution) <= 1e-8


def test_modes_stiffer_than_training_bears_end_at_rest():
    assert largest_stable(np.ones((1, 1)), np.array([-0.5])) == pytest.approx(4, rel=0.01)
    heavy_ball = np.array([[1.0, -0.1 * 0.9], [0.0, 0.9]])
    assert largest_stable(heavy_ball, np.array([-0.1, 1.0])) == pytest.approx(38, rel=0.01)
    step = gritax.TrainStep(
        gritax.CompositeLoss(lambda w, batch: w, lambda z, batch: 0.5 * jnp.sum(jnp.array([1.0, 5.0]) * z**2)),
        optax.sgd(0.5),
        lambda step: None,
        gritax.Tangent(),
    )
    np.testing.assert_allclose(step(step.init(jnp.ones(2)), jnp.int32(0), 256).params, 0, atol=1e-4)


def test_powers():
    matrix = jax.random.normal(jax.random.key(0), (5, 3, 3)) / 2
    for exponent in (1, 2, 13, 64):
        wanted = np.linalg.matrix_power(np.eye(3) + np.asarray(matrix), exponent) - np.eye(3)
        np.testing.assert_allclose(power(matrix, exponent), wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": small.loss}, "loss must be a gritax.CompositeLoss"),
        ({"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))}, "optimizer is neither linear"),
        ({"coarse": gritax.Tangent(memory=1000)}, "memory: the function space .* gritax.FrozenGradient"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_runs(change, message):
    given = {"loss": _mean_square(), "optimizer": optax.sgd(0.1), "batch": small.batches(), "coarse": gritax.Tangent()} | change
    step = gritax.TrainStep(**given)
    with pytest.raises(ValueError, match=message):
        gritax.solve(step, step.init(small.params()), 100)


@pytest.mark.parametrize("argument", ["memory", "chunk"])
def test_counts_are_whole(argument):
    for value in (0, 2.5, None):
        with pytest.raises(ValueError, match=argument):
            gritax.Tangent(**{argument: value})


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of jaxlib on a CPU")
def test_under_vmap_lapack_gets_one_matrix_at_a_time():
    """Two batches of matrices at a time hang on two cores: `coarse/_lapack.py`."""
    step, state = _training(_CRITERIA["least squares"], _LINEAR["sgd"], True)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    both = jax.vmap(lambda state, start: gritax.Tangent()(step, state, start, 8))
    found = [line for line in jax.jit(both).lower(states, jnp.array([0, 8])).as_text().splitlines() if "@lapack" in line]
    assert found
    for line in found:
        assert all(shape.count("x") <= 2 for shape in re.findall(r"tensor<((?:\d+x)+)f64>", line)), line


def test_lapack_under_vmap():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 3, 5, 5)), draw.normal(size=(2, 3, 5))
    twice = lambda function: jax.jit(jax.vmap(jax.vmap(function)))
    sizes, vectors = twice(_lapack.eigh)(a @ np.swapaxes(a, -1, -2))
    np.testing.assert_allclose(sizes, np.linalg.eigvalsh(a @ np.swapaxes(a, -1, -2)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.swapaxes(vectors, -1, -2) @ vectors, np.broadcast_to(np.eye(5), a.shape), atol=1e-12)
    np.testing.assert_allclose(twice(_lapack.orthogonal_basis)(a), np.linalg.qr(a)[0], rtol=1e-9, atol=1e-12)
    unit = np.tril(a, -1) + np.eye(5)
    np.testing.assert_allclose(twice(_lapack.solve_unit_lower)(unit, b), np.linalg.solve(unit, b[..., None])[..., 0], rtol=1e-9)


@pytest.mark.long
@pytest.mark.slow
def test_coarse_steps_together_take_no_more_than_the_memory():
    """As XLA counts it: 256 examples, so that one row of the Jacobian passes 256 times what is in it."""
    problem = gritax.problems.sine(coarse=gritax.Tangent(memory=2**28))
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (40, *jnp.shape(x))), problem.state)
    step = problem.step.adapted(jax.tree.map(lambda x: x[:1], states), np.zeros(1, np.int32), 160, None)[0]
    together = jax.jit(jax.vmap(lambda state, start: step(state, start, 4)))
    analysis = together.lower(states, 4 * jnp.arange(40)).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 1.2 * 2**28
