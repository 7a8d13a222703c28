"""The three-layer XOR problem of Schroder (2017), Appendix A."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._arguments import require_seed
from ..coarse import Choice
from ..training import CompositeLoss, TrainStep
from ._problem import Problem


def xor(alpha: float = 1.0, seed: int = 1, *, serialized: bool = False, coarse: Choice = None, dtype=None) -> Problem:
    r"""Gradient descent on $\frac12 \sum (y - \sigma(\sigma(x W_0) W_1))^2$: 3-4-1 nodes, no biases, 16 weights.

    **Arguments**

    - `alpha`: the learning rate, more than 0.
    - `seed`: of the initial weights, uniform in [-1, 1) as in the paper's appendix, where it is 1.
    - `serialized`: step `i` trains on example `i mod 4` only; otherwise on all four.
    - `coarse`: the coarse propagator; `None` for TrainStep's own.
    - `dtype`: of weights and data; `None` for JAX's default.

    >>> import gritax
    >>> problem = gritax.problems.xor()
    >>> problem.state.params["w0"].shape, problem.state.params["w1"].shape
    ((3, 4), (4, 1))
    """
    if not alpha > 0:
        raise ValueError(f"alpha, the learning rate, must be positive, not {alpha!r}.")
    require_seed("seed", seed)
    random = np.random.RandomState(seed)
    params = {"w0": 2 * random.random_sample((3, 4)) - 1, "w1": 2 * random.random_sample((4, 1)) - 1}
    dtype = jnp.zeros(0, dtype).dtype
    params = {name: jnp.asarray(weights, dtype) for name, weights in params.items()}
    inputs = jnp.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype)
    targets = jnp.array([[0], [1], [1], [0]], dtype)

    def batch(step):
        if not serialized:
            return inputs, targets
        example = step % 4
        return inputs[example][None], targets[example][None]

    step = TrainStep(
        CompositeLoss(lambda params, batch: _network(params, batch[0]), _half_squares), optax.sgd(alpha), batch, coarse
    )
    return Problem.trained(
        "xor",
        step,
        params,
        (inputs, targets),
        metrics=lambda params: {"accuracy": float(jnp.mean((_network(params, inputs) > 0.5) == (targets > 0.5)))},
    )


def _network(params, x):
    return jax.nn.sigmoid(jax.nn.sigmoid(x @ params["w0"]) @ params["w1"])


def _half_squares(outputs, batch):
    return 0.5 * jnp.sum((batch[1] - outputs) ** 2)
