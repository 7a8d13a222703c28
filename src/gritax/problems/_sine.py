"""A regression of one variable: two sine waves, fitted by a small network on all points at once."""

import jax
import jax.numpy as jnp
import optax

from ..coarse import Choice
from ..training import CompositeLoss, TrainStep
from ._perceptron import activation_named, half_mean_square, outputs, perceptron
from ._problem import Problem


def sine(
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 1,
    *,
    widths: tuple[int, ...] = (64, 64),
    num_points: int = 256,
    activation: str = "tanh",
    coarse: Choice = None,
    dtype=None,
) -> Problem:
    r"""Half the mean squared error of a 1-64-64-1 network on $\sin 2 \pi x + \frac12 \sin 6 \pi x$ at points in [0, 1).

    4,353 weights: LeCun-normal; biases normal too, for any that stay zero make Adam amplify rounding. All points at every step.
    Its metric is the largest error at 1,000 points between.

    **Arguments**

    - `optimizer`: `None` for `optax.adam(3e-4)`.
    - `seed`: of the initial weights and of the points.
    - `widths`: of the hidden layers.
    - `num_points`: how many points, at least 1.
    - `activation`, `coarse`, `dtype`: as for `gritax.problems.digits`.

    >>> import gritax
    >>> problem = gritax.problems.sine()
    >>> sum(layer["w"].size + layer["b"].size for layer in problem.state.params)
    4353
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, not {num_points!r}.")
    dtype = jnp.zeros(0, dtype).dtype
    act = activation_named(activation)
    weights_key, biases_key, points_key = jax.random.split(jax.random.key(seed), 3)
    params = perceptron((1, *widths, 1), weights_key, dtype, biases_key)
    wave = lambda x: jnp.sin(2 * jnp.pi * x) + 0.5 * jnp.sin(6 * jnp.pi * x)
    x = jax.random.uniform(points_key, (num_points, 1), dtype)
    between = jnp.linspace(0, 1, 1000, dtype=dtype)[:, None]
    loss = CompositeLoss(lambda params, batch: outputs(params, batch[0], act), half_mean_square)
    step = TrainStep(loss, optax.adam(3e-4) if optimizer is None else optimizer, lambda step: (x, wave(x)), coarse)
    return Problem.trained(
        "sine",
        step,
        params,
        (x, wave(x)),
        metrics=lambda params: {"largest error": float(jnp.max(jnp.abs(outputs(params, between, act) - wave(between))))},
    )
