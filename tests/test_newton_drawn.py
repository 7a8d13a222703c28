"""Solves of drawn problems by the sliding window: the weights are those of serial training, or the solution says that not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax


pytestmark = pytest.mark.usefixtures("mixed_dtypes")

_OPTIMIZERS = {
    "sgd": lambda rate: optax.sgd(rate),
    "heavy ball": lambda rate: optax.sgd(rate / 10, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate / 10, momentum=0.9, nesterov=True),
    "adam": lambda rate: optax.adam(rate / 50),
    "amsgrad": lambda rate: optax.amsgrad(rate / 50),
    "nadam": lambda rate: optax.nadam(rate / 50),
    "scheduled": lambda rate: optax.adamw(optax.cosine_decay_schedule(rate / 50, 300), weight_decay=1e-2),
    "clipped": lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate)),
    "averaged": lambda rate: optax.chain(optax.sgd(rate), optax.ema(0.9)),
}
_ACTIVATIONS = (jnp.tanh, jax.nn.gelu, jax.nn.silu, jax.nn.relu)


def drawn(index):
    """(names, step, state, method, steps): a function of the index alone."""
    random = np.random.default_rng([35, index])
    pick = lambda values: values[random.integers(len(values))]
    name, act, dtype = pick(list(_OPTIMIZERS)), pick(_ACTIVATIONS), pick(("float64", "float32"))
    inputs, width, batch = int(random.integers(1, 7)), int(random.integers(1, 24)), int(pick((1, 4, 16, 48)))
    steps, rate = int(2 ** random.uniform(3, 9)), float(np.exp(random.uniform(np.log(0.003), np.log(0.3))))
    window = pick((None, None, int(random.integers(16, 200))))
    method = gritax.Newton(int(pick((0, 1, 4, 16, 32, 64))), float(random.uniform(1.5, 8)), window)
    keys = jax.random.split(jax.random.key(index), 5)
    params = {
        "w": jax.random.normal(keys[0], (inputs, width), dtype) / 2,
        "b": jax.random.normal(keys[1], (width,), dtype) / 4,
        "v": jax.random.normal(keys[2], (width, 1), dtype) / np.sqrt(width).astype(dtype),
    }
    x = jax.random.normal(keys[3], (48, inputs), dtype)
    y = jnp.sin(2 * x.sum(axis=1, keepdims=True))
    loss = lambda p, batch: jnp.mean((act(batch[0] @ p["w"] + p["b"][None]) @ p["v"] - batch[1]) ** 2)
    data = (lambda step: (x, y)) if batch == 48 else gritax.data.Epochs((x, y), batch, keys[4])
    step = gritax.TrainStep(loss, _OPTIMIZERS[name](rate), data)
    names = f"{name}, {act.__name__}, {dtype}, {inputs}-{width}-1, batch {batch}, rate {rate:.3g}, {steps} steps, {method}"
    return names, step, step.init(params), method, steps


_FEW = 3, 11, 29


@pytest.mark.first(0)
@pytest.mark.slow
@pytest.mark.parametrize(
    "index", [*_FEW, *(pytest.param(index, marks=pytest.mark.long) for index in range(40) if index not in _FEW)]
)
def test_right_or_said_not_to_be(index):
    names, step, state, method, steps = drawn(index)
    solution = gritax.solve(step, state, steps, method, throw=False)
    error = small.relative_error(step, state, steps, solution)
    allowed = 1e-6 if "float64" in names else 32 * float(jnp.finfo("float32").eps)
    rounding = 10 * small.rounding(step, state, steps)
    travelled = small.distance(gritax.solve_serial(step, state, steps).params, state.params)
    assert error <= max(allowed, rounding / travelled) or not solution.converged, (names, error, solution.reason)
    assert solution.depth <= steps + 1, names
