"""Solves that are interrupted while their iterates are kept, and what must then be the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_problems as small

import gritax


def decay(u, start, stride):
    x = jnp.asarray(start, float) / 8
    return {"u": u["u"] / (1 + stride / (jnp.array([100.0, 3.0, 50.0]) + x)), "nothing": u["nothing"]}


def plain():
    return decay, {"u": jnp.ones(3), "nothing": jnp.zeros((2, 0))}, 1003, gritax.Multigrid(4)


def interrupted(solve, directory, mesh, at):
    with pytest.raises(KeyboardInterrupt):
        solve(mesh=mesh, checkpoint=directory, progress=small.Interrupting(0, at))


def require_same(found, whole):
    for each, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(whole.state), strict=True):
        if jnp.issubdtype(each.dtype, jax.dtypes.prng_key):
            each, other = jax.random.key_data(each), jax.random.key_data(other)
        np.testing.assert_array_equal(each, other)
    np.testing.assert_array_equal(found.residuals, whole.residuals)
    np.testing.assert_array_equal(found.relaxed_residuals, whole.relaxed_residuals)
    for name in ("level_sizes", "depth", "work", "exact_steps", "coarse_steps", "restarts", "converged", "reason"):
        assert getattr(found, name) == getattr(whole, name)
