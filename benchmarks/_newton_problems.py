"""The problems on which the sliding window is measured, and what each is asked for."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gritax
from gritax.problems import Problem, adder, diabetes, digits, poisson, sine, xor
from gritax.training import TrainState


class Task(NamedTuple):
    """A training step and the state that it begins with."""

    step: gritax.TrainStep
    state: TrainState


class Setting(NamedTuple):
    """`make(seed=, dtype=)` gives the problem; `sweeps` and `window` are those of `gritax.Newton`."""

    make: Callable[..., Problem | Task]
    steps: int
    sweeps: float = 5.0
    window: int | None = None


def _on_digits(network, params, optimizer, seed, dtype):
    """The training of another network on digits: `network(params, images)` gives logits."""
    given = digits(optimizer, seed, widths=(), dtype=dtype)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(params, batch):
        images, labels = batch
        return jnp.mean(cross_entropy(network(params, images.reshape(-1, 8, 8)), labels))

    step = gritax.TrainStep(loss, optimizer, given.step.batch)
    return Task(step, step.init(params))


def _normal(seed, dtype, shapes):
    """Normal weights over the root of what enters a unit, and biases, which are all zero."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {}
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
        entering = jnp.sqrt(jnp.asarray(np.prod(shape[:-1]), dtype))
        params[name] = jax.random.normal(key, shape, dtype) / entering if len(shape) > 1 else jnp.zeros(shape, dtype)
    return params


def convolutional(optimizer, seed=1, dtype=None):
    """Two convolutions of 3 x 3, each with a mean over 2 x 2 behind it, and a dense layer: 27,370 weights."""
    shapes = {"first": (3, 3, 1, 32), "a": (32,), "second": (3, 3, 32, 64), "b": (64,), "last": (256, 32), "c": (32,)}
    shapes |= {"out": (32, 10), "d": (10,)}

    def convolved(x, kernel, bias):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.gelu(x + bias)
        return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))

    def network(p, x):
        x = convolved(convolved(x[..., None], p["first"], p["a"]), p["second"], p["b"])
        return jax.nn.gelu(x.reshape(len(x), -1) @ p["last"] + p["c"]) @ p["out"] + p["d"]

    return _on_digits(network, _normal(seed, dtype, shapes), optimizer, seed, dtype)


def attention(optimizer, seed=1, dtype=None):
    """A transformer of one layer, on the rows of an image as 8 tokens: 200,458 weights."""
    wide = 128
    shapes = {"in": (8, wide), "place": (8, wide), "qkv": (wide, 3 * wide), "mixed": (wide, wide)}
    shapes |= {"up": (wide, 4 * wide), "a": (4 * wide,), "down": (4 * wide, wide), "out": (wide, 10), "b": (10,)}

    def normalised(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def network(p, x):
        x = x @ p["in"] + p["place"]
        q, k, v = jnp.split((normalised(x) @ p["qkv"]).reshape(len(x), 8, 4, -1), 3, axis=-1)
        scores = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(wide // 4), axis=-1)
        x = x + jnp.einsum("bhij,bjhd->bihd", scores, v).reshape(x.shape) @ p["mixed"]
        x = x + jax.nn.gelu(normalised(x) @ p["up"] + p["a"]) @ p["down"]
        return normalised(x).mean(1) @ p["out"] + p["b"]

    return _on_digits(network, _normal(seed, dtype, shapes), optimizer, seed, dtype)


_ADAM, _HEAVY_BALL = optax.adam(1e-3), optax.sgd(0.02, momentum=0.9)
_DIGITS = {"sgd": partial(digits, optax.sgd(0.1)), "adam": partial(digits, _ADAM), "heavy ball": partial(digits, _HEAVY_BALL)}
PROBLEMS = {
    **{f"digits, {name}": Setting(make, 8192) for name, make in _DIGITS.items()},
    **{f"digits, {name}, work 4.2": Setting(make, 8192, 4.0) for name, make in _DIGITS.items()},
    "digits, sgd, 65,536": Setting(_DIGITS["sgd"], 65_536, 6.0),
    "digits, adam, 65,536": Setting(_DIGITS["adam"], 65_536, 6.0),
    "digits, relu": Setting(partial(digits, optax.sgd(0.1), activation="relu"), 8192),
    "adder": Setting(adder, 12_800, 7.0),
    "sine, adam": Setting(partial(sine, optax.adam(3e-4)), 4096, 6.0),
    "diabetes, adam": Setting(partial(diabetes, optax.adam(2e-3)), 8192, 6.0),
    "diabetes, heavy ball": Setting(partial(diabetes, optax.sgd(0.002, momentum=0.9)), 8192),
    "logistic regression": Setting(partial(digits, optax.sgd(0.1), widths=()), 8192),
    "poisson": Setting(poisson, 1024),
    "inner loop of MAML": Setting(partial(sine, optax.sgd(0.01), widths=(40, 40), num_points=10), 1024),
    "convolutional, adam": Setting(partial(convolutional, _ADAM), 256),
    "convolutional, heavy ball": Setting(partial(convolutional, _HEAVY_BALL), 256),
    "attention, adam": Setting(partial(attention, _ADAM), 128),
    "attention, sgd": Setting(partial(attention, optax.sgd(0.1)), 128),
    "xor": Setting(xor, 65_536),
    "xor, one example a step": Setting(partial(xor, serialized=True), 65_536),
    "xor, 10^6": Setting(xor, 1_000_000, 5.0, 4096),
}
