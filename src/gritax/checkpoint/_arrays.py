"""The arrays of a pytree, as NumPy has them."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def to_arrays(tree: PyTree) -> list[np.ndarray]:
    """The arrays of a pytree, random keys as their data."""
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in _arrays(tree)]


def from_arrays(like: PyTree, arrays: list[np.ndarray]) -> PyTree:
    """`like` with these arrays in place of its own. Raises `ValueError` where they are of other shapes or dtypes."""
    given = to_arrays(like)
    described = [[(x.shape, str(x.dtype)) for x in each] for each in (given, arrays)]
    if described[0] != described[1]:
        raise ValueError(
            f"resume: the checkpoint holds a state of other shapes or dtypes ({described[1]}) than params and optimizer make "
            f"here ({described[0]}). Use those it was made with, or start again in another directory."
        )
    fresh = iter(arrays)

    def take(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        new = jnp.asarray(next(fresh))
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else new

    return jax.tree.map(take, like)


def digest(tree: PyTree) -> str:
    """Of the values of all arrays."""
    found = hashlib.sha256()
    for array in to_arrays(tree):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
