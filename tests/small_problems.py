"""A regression small enough to train many times, a stiff decay, distances to measure in, and what interrupts a run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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


def mesh(count):
    return Mesh(np.array(jax.devices()[:count]), ("time",))


def decay(u, start, stride):
    """A stiff and a slow part, and a right-hand side that depends on the step.

    Sums and quotients of variables round in one way only: a product and a sum, or a sine, may do so otherwise in a batch of
    another size.
    """
    x = jnp.asarray(start, u.dtype)
    return (u + stride / (100 + x)) / (1 + stride / (jnp.array([100.0, 3.0, 50.0]) + x / 8))


def _nudged(step, state, start, stride):
    """A training step with one more rounding."""
    after = step(state, start, stride)
    return after._replace(params=jax.tree.map(lambda x: x * (1 + float(jnp.finfo(x.dtype).eps)), after.params))


def rounding(step, state, steps):
    """How far one more rounding in every step takes the parameters."""
    ends = [gritax.solve_serial(phi, state, steps).params for phi in (step, partial(_nudged, step))]
    return distance(*ends)
