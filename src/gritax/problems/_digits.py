"""Handwritten digits: a small classifier on scikit-learn's 8 x 8 images."""

import jax
import jax.numpy as jnp
import optax

from ..coarse import Choice
from ..data import Epochs
from ..training import CompositeLoss, TrainStep
from ._perceptron import activation_named, outputs, perceptron, scikit_learn, split
from ._problem import Problem


def digits(
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 1,
    *,
    widths: tuple[int, ...] = (32,),
    activation: str = "gelu",
    batch_size: int = 32,
    coarse: Choice = None,
    dtype=None,
) -> Problem:
    r"""Mean cross-entropy of a 64-32-10 network on the 1,797 images, a fifth of them kept for the test.

    2,410 weights: LeCun-normal, biases zero. Pixels are standardised, constant ones left at 0; an order of its own for every
    epoch, the last batch dropped. Its metric is the share of test images that are classified right.

    **Arguments**

    - `optimizer`: `None` for `optax.adam(1e-3)`.
    - `seed`: of the initial weights and of the order of the examples.
    - `widths`: of the hidden layers; without any, `()`, this is logistic regression.
    - `activation`: `"gelu"`, `"tanh"`, `"silu"`, `"softplus"`, or `"relu"`, whose gradient jumps.
    - `batch_size`: examples a step.
    - `coarse`: the coarse propagator; `None` for TrainStep's own.
    - `dtype`: of weights and data; `None` for JAX's default.

    Raises `ImportError` without scikit-learn.

    >>> import gritax
    >>> problem = gritax.problems.digits()
    >>> [layer["w"].shape for layer in problem.state.params]
    [(64, 32), (32, 10)]
    """
    dtype = jnp.zeros(0, dtype).dtype
    act = activation_named(activation)
    (x, y), (test_x, test_y) = split(*scikit_learn("load_digits"))
    x, test_x = jnp.asarray(x, dtype), jnp.asarray(test_x, dtype)
    y, test_y = jnp.asarray(y, jnp.int32), jnp.asarray(test_y, jnp.int32)
    weights_key, data_key = jax.random.split(jax.random.key(seed))
    params = perceptron((64, *widths, 10), weights_key, dtype)

    def cross_entropy(logits, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

    loss = CompositeLoss(lambda params, batch: outputs(params, batch[0], act), cross_entropy)
    step = TrainStep(loss, optax.adam(1e-3) if optimizer is None else optimizer, Epochs((x, y), batch_size, data_key), coarse)
    return Problem.trained(
        "digits",
        step,
        params,
        (x, y),
        metrics=lambda params: {
            "test accuracy": float(jnp.mean(jnp.argmax(outputs(params, test_x, act), axis=1) == test_y)),
        },
    )
