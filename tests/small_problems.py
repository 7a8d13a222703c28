"""A regression small enough to train many times, the distance that tests measure in, and what interrupts them."""

import jax
import jax.numpy as jnp
import numpy as np

import gritax


def data(seed=0, dtype="float64"):
    x = jax.random.normal(jax.random.key(seed), (40, 3), dtype)
    return x, jnp.sin(x).sum(axis=1, keepdims=True)


def params(seed=0, dtype="float64"):
    return params_of(jax.random.key(100 + seed), dtype)


def params_of(key, dtype="float64"):
    w, v = jax.random.split(key)
    return {
        "w": jax.random.normal(w, (3, 8), dtype) / 2,
        "b": jnp.zeros(8, dtype),
        "v": jax.random.normal(v, (8, 1), dtype) / 3,
    }


def network(params, x, activation=jnp.tanh):
    return activation(x @ params["w"] + params["b"][None]) @ params["v"]


def loss(params, batch):
    x, y = batch
    return jnp.mean((network(params, x) - y) ** 2)


def batches(seed=0, dtype="float64", batch_size=8):
    return gritax.data.Epochs(data(seed, dtype), batch_size, jax.random.key(seed + 7))


def distance(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.sum((np.asarray(x, "float64") - np.asarray(y, "float64")) ** 2) for x, y in leaves)))


def relative_error(step, state, num_steps, solution):
    """Distance of the solution's parameters from those of the serial twin, in units of the distance they travel."""
    serial = gritax.solve_serial(step, state, num_steps)
    return distance(solution.params, serial.params) / distance(serial.params, state.params)


class Interrupting(gritax.Progress):
    """Stops a run as its nth window begins, or at an iteration of that window."""

    def __init__(self, nth, iteration=None):
        self.nth, self.number, self.seen = nth, iteration, 0

    def window(self, first, num_steps, kind, reason):
        self.seen += 1
        if self.seen == self.nth and self.number is None:
            raise KeyboardInterrupt

    def iteration(self, iteration):
        if self.seen == self.nth and iteration.number == self.number:
            raise KeyboardInterrupt
