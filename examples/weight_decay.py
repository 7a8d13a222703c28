"""The weight decay that validates best, by its gradient through training, beside finite differences.

    python examples/weight_decay.py [--steps 1000] [--updates 12]

A 10-16-1 network is trained on scikit-learn's diabetes data with gradient descent and momentum; a fifth of the training
patients are held out, and the logarithms of the decays, one a layer, follow the derivative of their loss after training. One
solve and one adjoint give it for all layers; finite differences train twice for each.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import gritax


class Decayed(eqx.Module):
    """A loss with a weight decay for each layer."""

    log_decay: jax.Array
    loss: object = eqx.field(static=True)

    def __call__(self, params, batch):
        squares = jnp.stack([jnp.sum(layer["w"] ** 2) for layer in params])
        return self.loss(params, batch) + 0.5 * jnp.sum(jnp.exp(self.log_decay) * squares)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument("--updates", type=int, default=12, help="of the decay (default: 12)")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    problem = gritax.problems.diabetes()
    x, y = problem.step.batch.arrays
    kept = len(x) // 5
    batch = gritax.data.Epochs((x[kept:], y[kept:]), 32, jax.random.key(0))
    optimizer = optax.sgd(0.02, momentum=0.9)

    def validation(log_decay, run):
        step = gritax.TrainStep(Decayed(log_decay, problem.step.loss), optimizer, batch)
        params = run(step, step.init(problem.state.params), arguments.steps).params
        return problem.step.loss(params, (x[:kept], y[:kept]))

    log_decay = jnp.log(jnp.array([1e-3, 1e-3]))
    with_gradient = jax.value_and_grad(lambda log_decay: validation(log_decay, gritax.solve))
    loss, gradient = with_gradient(log_decay)
    width = 1e-4
    for layer, found in enumerate(gradient):
        moved = [validation(log_decay.at[layer].add(sign * width), gritax.solve_serial) for sign in (1, -1)]
        differences = (moved[0] - moved[1]) / (2 * width)
        print(f"layer {layer}: derivative {found:.8e}, by finite differences {differences:.8e}")

    descent = optax.adam(0.5)
    memory = descent.init(log_decay)
    for update in range(arguments.updates):
        print(f"update {update}: decay {', '.join(f'{x:.3g}' for x in jnp.exp(log_decay))}, validation loss {loss:.6f}")
        change, memory = descent.update(gradient, memory)
        log_decay = optax.apply_updates(log_decay, change)
        loss, gradient = with_gradient(log_decay)
    print(f"decay {', '.join(f'{x:.3g}' for x in jnp.exp(log_decay))}: validation loss {loss:.6f}")


if __name__ == "__main__":
    main()
