"""Evolutions whose derivatives are compared, and their serial twins."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gritax


class Decay(eqx.Module):
    """Nonlinear, stiff and slow, with a right-hand side of the step's own."""

    rate: jax.Array
    forcing: jax.Array

    def __call__(self, u, start, stride):
        x = jnp.cos(0.01 * jnp.asarray(start, u.dtype))
        return (u + stride * self.forcing * x) / (1 + stride * self.rate * jnp.array([1.0, 10.0, 0.1]) * (1 + 0.1 * u**2))


def serial(step, state, num_steps):
    """The final state by a loop that JAX differentiates."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def advance(w, i):
        return eqx.filter(step(eqx.combine(w, rest), i, 1), eqx.is_array), None

    found = jax.lax.scan(advance, arrays, jnp.arange(num_steps, dtype=jnp.int32))[0]
    return eqx.combine(found, rest)


def parallel(step, state, num_steps, **options):
    return gritax.solve(step, state, num_steps, **options).state


def assert_near(found, wanted, tolerance=1e-6):
    found, wanted = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, wanted))
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)
    assert np.linalg.norm(wanted) > 0


U, RATE, FORCING = jnp.array([1.0, 2.0, 3.0]), jnp.array(0.004), jnp.array([0.001, 0.002, 0.003])


def end(run, rate, forcing, u, num_steps=1003, **options):
    return run(Decay(rate, forcing), u, num_steps, **options)


def sum_of_squares(run, *arguments, **options):
    return jnp.sum(end(run, *arguments, **options) ** 2)


class Two(eqx.Module):
    a: jax.Array
    b: jax.Array

    def __call__(self, u, start, stride):
        return (u + stride * 0.01 * self.b) / (1 + 0.01 * stride * self.a)
