"""A multilayer perceptron as a plain list of weights and biases, and the data sets of scikit-learn to train it on."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._optional import needs


def perceptron(widths: tuple[int, ...], key: Array, dtype, biases: Array | None = None) -> PyTree[Array]:
    """LeCun-normal weights; biases of zero, or normal ones by a key of their own."""
    normal, count = jax.nn.initializers.lecun_normal(), len(widths) - 1
    weights = [normal(k, shape, dtype) for k, shape in zip(jax.random.split(key, count), pairwise(widths), strict=True)]
    if biases is None:
        return [{"w": w, "b": jnp.zeros(w.shape[1], dtype)} for w in weights]
    keys = jax.random.split(biases, count)
    return [{"w": w, "b": jax.random.normal(k, (w.shape[1],), dtype)} for w, k in zip(weights, keys, strict=True)]


def outputs(params: PyTree[Array], x: Array, activation: Callable) -> Array:
    """[example, input] to [example, output]."""
    for layer in params[:-1]:
        x = activation(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def half_mean_square(outputs: Array, batch: tuple[Array, Array]) -> Array:
    """Half the mean squared distance from the targets, the second part of a batch."""
    return 0.5 * jnp.mean((outputs - batch[1]) ** 2)


def activation_named(name: str) -> Callable:
    """One of `jax.nn`'s or `jnp.tanh`. Raises `ValueError` for a name that is neither."""
    known = {"gelu": jax.nn.gelu, "tanh": jnp.tanh, "silu": jax.nn.silu, "softplus": jax.nn.softplus, "relu": jax.nn.relu}
    if name not in known:
        raise ValueError(f"activation must be one of {', '.join(known)}, not {name!r}.")
    return known[name]


def scikit_learn(load: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a data set that ships with scikit-learn. Raises `ImportError` without it."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise needs(f"the data set {load.removeprefix('load_')}", "scikit-learn") from error
    loader: Any = getattr(datasets, load)
    return loader(return_X_y=True)


def split(x: np.ndarray, y: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(training, test) examples: every fifth of a fixed shuffle is for the test. Inputs are standardised by the training ones.

    A column that is constant there stays 0.
    """
    order = np.random.RandomState(0).permutation(len(x))
    test, train = order[::5], np.delete(order, np.s_[::5])
    mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
    x = np.where(scale > 0, (x - mean) / np.where(scale > 0, scale, 1), 0)
    return (x[train], y[train]), (x[test], y[test])
