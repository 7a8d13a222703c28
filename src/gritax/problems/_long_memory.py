"""Long memory: the first symbol of a sequence, asked for at its end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._arguments import require_whole
from ..coarse import Choice
from ..training import CompositeLoss, TrainStep
from ._problem import Problem
from ._recurrence import GILRLSTM


class _Reader(eqx.Module):
    """Logits from the state at the last time."""

    layer: GILRLSTM
    weights: Array

    def __call__(self, x: Array) -> Array:
        return self.layer(x)[-1] @ self.weights


def long_memory(
    length: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 1,
    *,
    symbols: int = 4,
    size: int = 8,
    batch_size: int = 16,
    coarse: Choice = None,
    dtype=None,
) -> Problem:
    r"""Mean cross-entropy of what a `GILRLSTM` says at the end of a sequence of its first symbol.

    The first of `length` symbols is one of `symbols` at random, marked as the first; the others are as random, and mean
    nothing. Every step draws `batch_size` sequences of its own, from its index. The layer computes all times of a sequence at
    once, by scans of depth $\log_2$ `length`, and a solve all steps. Its metric: the share of 256 test sequences told right.

    **Arguments**

    - `length`: of a sequence, at least 1.
    - `optimizer`: `None` for `optax.adam(3e-3)`.
    - `seed`: of the initial weights and of all sequences.
    - `symbols`, `size`: how many symbols there are, and units of the layer, which remembers for `length` times at first.
    - `batch_size`, `coarse`, `dtype`: as for the other problems.

    After the synthetic task of Martin and Cundy 2018, arXiv 1709.04057.

    >>> import gritax
    >>> problem = gritax.problems.long_memory(100)
    >>> x, y = problem.step.batch(0)
    >>> x.shape, y.shape
    ((16, 100, 5), (16,))
    """
    require_whole("length", length, 1)
    require_whole("symbols", symbols, 2)
    require_whole("size", size, 1)
    require_whole("batch_size", batch_size, 1)
    dtype = jnp.zeros(0, dtype).dtype
    layer_key, weights_key, data_key, test_key = jax.random.split(jax.random.key(seed), 4)

    def sequences(key, count):
        drawn = jax.random.randint(key, (count, length), 0, symbols)
        first = jnp.zeros((count, length, 1), dtype).at[:, 0].set(1)
        return jnp.concatenate([jax.nn.one_hot(drawn, symbols, dtype=dtype), first], axis=2), drawn[:, 0]

    def batch(step):
        return sequences(jax.random.fold_in(data_key, step), batch_size)

    layer = GILRLSTM(symbols + 1, size, layer_key, memory=max(length, 2), dtype=dtype)
    weights = jax.random.normal(weights_key, (size, symbols), dtype) / size**0.5
    params = _Reader(layer, weights)

    def logits(params, batch):
        return jax.vmap(params)(batch[0])

    def cross_entropy(logits, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

    step = TrainStep(CompositeLoss(logits, cross_entropy), optax.adam(3e-3) if optimizer is None else optimizer, batch, coarse)
    test = sequences(test_key, 256)
    return Problem.trained(
        "long memory",
        step,
        params,
        test,
        metrics=lambda params: {"test accuracy": float(jnp.mean(jnp.argmax(logits(params, test), axis=1) == test[1]))},
    )
