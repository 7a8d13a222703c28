"""Learned initial weights and learning rates, through 1,000 steps of training on each task.

    python examples/meta_learning.py [--steps 1000] [--updates 20] [--tasks 4]

A task is a sine wave of some amplitude and phase, seen at ten points (Finn, Abbeel and Levine 2017, arXiv 1703.03400). The
inner loop trains a 1-24-24-1 network on them by gradient descent; the outer one moves its initial weights, and a learning rate
for each of its weights (Li et al. 2017, arXiv 1707.09835), against the loss at other points after all inner steps.
"""

import argparse
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import gritax


POINTS = 10


class Points(eqx.Module):
    """The points of a task, all at every step."""

    x: jax.Array
    y: jax.Array

    def __call__(self, step):
        return self.x, self.y


def network(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((network(params, x) - y) ** 2)


def initial(key, widths=(1, 24, 24, 1)):
    shapes = list(itertools.pairwise(widths))
    keys = jax.random.split(key, len(shapes))
    return [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]


def _update(gradients, rates, params=None):
    return jax.tree.map(lambda rate, gradient: -rate * gradient, rates, gradients), rates


# Gradient descent with a rate for each weight, which is kept in its state, where a derivative reaches it.
OPTIMIZER = optax.GradientTransformation(lambda params: jax.tree.map(jnp.ones_like, params), _update)


def task(key):
    """(points to train on, points to be judged by)."""
    amplitude_key, phase_key, *keys = jax.random.split(key, 4)
    amplitude, phase = jax.random.uniform(amplitude_key, minval=0.5, maxval=2.0), jax.random.uniform(phase_key, maxval=jnp.pi)
    x = [jax.random.uniform(key, (POINTS, 1), minval=-3.0, maxval=3.0) for key in keys]
    return [(x, amplitude * jnp.sin(x + phase)) for x in x]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps on each task (default: 1000)")
    parser.add_argument("--updates", type=int, default=20, help="of the initial weights and rates (default: 20)")
    parser.add_argument("--tasks", type=int, default=4, help="for each update (default: 4)")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    def after_training(learned, key, run=gritax.solve):
        """The loss of a task at its other points."""
        params, log_rates = learned
        seen, others = task(key)
        step = gritax.TrainStep(loss, OPTIMIZER, Points(*seen))
        state = eqx.tree_at(lambda state: state.opt_state, step.init(params), jax.tree.map(jnp.exp, log_rates))
        return loss(run(step, state, arguments.steps).params, others)

    def on_tasks(learned, keys):
        return jnp.mean(jax.vmap(after_training, (None, 0))(learned, keys))

    params = initial(jax.random.key(0))
    learned = (params, jax.tree.map(lambda x: jnp.full(x.shape, jnp.log(0.02)), params))
    descent = optax.adam(0.02)
    memory = descent.init(learned)
    unseen = jax.random.split(jax.random.key(1), 8)
    before = on_tasks(learned, unseen)
    for update in range(arguments.updates):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(2), update), arguments.tasks)
        value, gradient = jax.value_and_grad(on_tasks)(learned, keys)
        change, memory = descent.update(gradient, memory)
        learned = optax.apply_updates(learned, change)
        print(f"update {update}: loss of {arguments.tasks} tasks after {arguments.steps:,} steps each {value:.4f}")
    print(f"8 tasks not seen: {before:.4f} before, {on_tasks(learned, unseen):.4f} after {arguments.updates} updates")


if __name__ == "__main__":
    main()
