"""The four-layer binary adder of Schroder (2017), section 4.2."""

from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._arguments import require_seed
from ..coarse import Choice
from ..training import CompositeLoss, TrainStep
from ._problem import Problem


_BITS = 12
_WIDTHS = (2 * _BITS, 128, 64, _BITS)


def adder(
    alpha: float = 0.025,
    seed: int = 1,
    *,
    serialized: bool = True,
    num_examples: int = 500,
    reduction: Literal["sum", "mean"] = "sum",
    coarse: Choice = None,
    optimizer: optax.GradientTransformation | None = None,
    dtype=None,
) -> Problem:
    r"""The sum, modulo $2^{12}$, of two 12-bit numbers: $\frac12 \sum (y - \sigma(\sigma(\sigma(x W_0) W_1) W_2))^2$.

    24-128-64-12 nodes, no biases, 12,032 weights; random pairs of numbers, bit by bit. Its metrics are the shares of bits
    that are right, on the examples trained on and on 500 others.

    **Arguments**

    - `alpha`: the learning rate of gradient descent, more than 0.
    - `seed`: of the pairs and of the initial weights, uniform in [-1, 1). That of the paper is not stated.
    - `serialized`: step `i` trains on example `i mod num_examples` only; otherwise on all of them.
    - `num_examples`: how many pairs, at least 1.
    - `reduction`: over the 12 outputs. With `"mean"` the loss, and with it the curvature, is a twelfth.
    - `coarse`: the coarse propagator; `None` for TrainStep's own.
    - `optimizer`: in place of gradient descent.
    - `dtype`: of weights and data; `None` for JAX's default.

    >>> import gritax
    >>> problem = gritax.problems.adder()
    >>> [weights.shape for weights in problem.state.params]
    [(24, 128), (128, 64), (64, 12)]
    """
    if not alpha > 0:
        raise ValueError(f"alpha, the learning rate, must be positive, not {alpha!r}.")
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, not {num_examples!r}.")
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", not {reduction!r}.')
    dtype = jnp.zeros(0, dtype).dtype
    require_seed("seed", seed)
    random = np.random.RandomState(seed)
    params = [jnp.asarray(2 * random.random_sample(shape) - 1, dtype) for shape in pairwise(_WIDTHS)]
    inputs, targets = _pairs(random, num_examples, dtype)
    test = _pairs(random, 500, dtype)

    def half_squares(outputs, batch):
        return 0.5 * jnp.sum((batch[1] - outputs) ** 2) / (_BITS if reduction == "mean" else 1)

    loss = CompositeLoss(lambda params, batch: _network(params, batch[0]), half_squares)

    def batch(step):
        if not serialized:
            return inputs, targets
        example = step % num_examples
        return inputs[example][None], targets[example][None]

    step = TrainStep(loss, optax.sgd(alpha) if optimizer is None else optimizer, batch, coarse)
    return Problem.trained(
        "adder",
        step,
        params,
        (inputs, targets),
        metrics=lambda params: {
            "accuracy": _share_of_bits(params, inputs, targets),
            "test accuracy": _share_of_bits(params, *test),
        },
    )


def _pairs(random, count, dtype):
    a, b = random.randint(0, 2**_BITS, (2, count))
    bits = lambda x: (x[:, None] >> np.arange(_BITS)) & 1
    return jnp.asarray(np.concatenate([bits(a), bits(b)], axis=1), dtype), jnp.asarray(bits(a + b), dtype)


def _network(params, x):
    for weights in params:
        x = jax.nn.sigmoid(x @ weights)
    return x


def _share_of_bits(params, inputs, targets):
    return float(jnp.mean((_network(params, inputs) > 0.5) == (targets > 0.5)))
