"""A physics-informed network: the Poisson equation on the unit square."""

import jax
import jax.numpy as jnp
import optax

from ..coarse import Choice
from ..data import Epochs
from ..training import CompositeLoss, TrainStep
from ._perceptron import activation_named, half_mean_square, outputs, perceptron
from ._problem import Problem


def poisson(
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 1,
    *,
    widths: tuple[int, ...] = (32, 32),
    num_points: int = 256,
    batch_size: int | None = None,
    activation: str = "tanh",
    coarse: Choice = None,
    dtype=None,
) -> Problem:
    r"""Half the mean of $(\Delta u + f)^2$ at points of the unit square, $u = x (1 - x) y (1 - y) \, \mathrm{net}(x, y)$.

    So $u$ is 0 on the boundary; $f = 5 \pi^2 \sin \pi x \sin 2 \pi y$, and the solution $\sin \pi x \sin 2 \pi y$ (after
    Raissi, Perdikaris and Karniadakis 2019). 1,185 weights: LeCun-normal; biases normal too, for any that stay zero make
    Adam amplify rounding. Its metric is the distance from the solution on a grid of 32 x 32 points, relative to the
    solution.

    **Arguments**

    - `optimizer`: `None` for `optax.adam(1e-3)`.
    - `seed`: of the initial weights, of the points and of their order.
    - `widths`: of the hidden layers.
    - `num_points`: how many points, at least 1.
    - `batch_size`: points a step, in an order of its own for every epoch; `None` for all of them.
    - `activation`, `coarse`, `dtype`: as for `gritax.problems.digits`.

    >>> import gritax
    >>> problem = gritax.problems.poisson()
    >>> sum(layer["w"].size + layer["b"].size for layer in problem.state.params)
    1185
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, not {num_points!r}.")
    dtype = jnp.zeros(0, dtype).dtype
    act = activation_named(activation)
    weights_key, biases_key, points_key, data_key = jax.random.split(jax.random.key(seed), 4)
    params = perceptron((2, *widths, 1), weights_key, dtype, biases_key)

    def u(params, x):
        return jnp.prod(x * (1 - x), axis=1) * outputs(params, x, act)[:, 0]

    def laplacian(params, x):
        def second(axis):
            along = jnp.zeros_like(x).at[:, axis].set(1)
            slope = lambda x: jax.jvp(lambda x: u(params, x), (x,), (along,))[1]
            return jax.jvp(slope, (x,), (along,))[1]

        return second(0) + second(1)

    exact = lambda x: jnp.sin(jnp.pi * x[:, 0]) * jnp.sin(2 * jnp.pi * x[:, 1])
    x = jax.random.uniform(points_key, (num_points, 2), dtype)
    examples = (x, -5 * jnp.pi**2 * exact(x))
    batch = (lambda step: examples) if batch_size is None else Epochs(examples, batch_size, data_key)
    loss = CompositeLoss(lambda params, batch: laplacian(params, batch[0]), half_mean_square)
    step = TrainStep(loss, optax.adam(1e-3) if optimizer is None else optimizer, batch, coarse)
    middles = (jnp.arange(32, dtype=dtype) + 0.5) / 32
    grid = jnp.stack(jnp.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    error = lambda params: jnp.linalg.norm(u(params, grid) - exact(grid)) / jnp.linalg.norm(exact(grid))
    return Problem.trained("poisson", step, params, examples, metrics=lambda params: {"relative error": float(error(params))})
