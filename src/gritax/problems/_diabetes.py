"""A small tabular regression: scikit-learn's diabetes data."""

import jax
import jax.numpy as jnp
import optax

from ..coarse import Choice
from ..data import Epochs
from ..training import CompositeLoss, TrainStep
from ._perceptron import activation_named, half_mean_square, outputs, perceptron, scikit_learn, split
from ._problem import Problem


def diabetes(
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 1,
    *,
    activation: str = "tanh",
    batch_size: int = 32,
    coarse: Choice = None,
    dtype=None,
) -> Problem:
    r"""Half the mean squared error of a 10-16-1 network on 442 patients, a fifth of them kept for the test.

    193 weights: LeCun-normal, biases zero. Inputs and target are standardised. Its metric is the root mean squared test error,
    in standard deviations of the target: 1 is no better than the mean.

    **Arguments**

    - `optimizer`: `None` for gradient descent at .002 with a momentum of .9.
    - `seed`, `activation`, `batch_size`, `coarse`, `dtype`: as for `gritax.problems.digits`.

    Raises `ImportError` without scikit-learn.

    >>> import gritax
    >>> gritax.problems.diabetes().step.batch.steps_per_epoch
    11
    """
    dtype = jnp.zeros(0, dtype).dtype
    act = activation_named(activation)
    x, y = scikit_learn("load_diabetes")
    (x, y), (test_x, test_y) = split(x, y[:, None])
    mean, scale = y.mean(), y.std()
    x, y, test_x, test_y = (jnp.asarray(a, dtype) for a in (x, (y - mean) / scale, test_x, (test_y - mean) / scale))
    weights_key, data_key = jax.random.split(jax.random.key(seed))
    params = perceptron((10, 16, 1), weights_key, dtype)

    loss = CompositeLoss(lambda params, batch: outputs(params, batch[0], act), half_mean_square)
    optimizer = optax.sgd(0.002, momentum=0.9) if optimizer is None else optimizer
    step = TrainStep(loss, optimizer, Epochs((x, y), batch_size, data_key), coarse)
    return Problem.trained(
        "diabetes",
        step,
        params,
        (x, y),
        metrics=lambda params: {"test error": float(jnp.sqrt(2 * loss(params, (test_x, test_y))))},
    )
