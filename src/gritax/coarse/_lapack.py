"""Decompositions and triangular solves that on a CPU take one matrix at a time under vmap.

There jaxlib divides the matrices of a batch among the threads that run the program, and the thread that has divided them
waits for the others. Two batches at a time on two cores leave none: the program hangs (jaxlib 0.10.2). A batch of one is not
divided.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array


def eigh(matrix: Array) -> tuple[Array, Array]:
    """(eigenvalues, eigenvectors) of a symmetric matrix."""
    return _one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))(matrix)


def orthogonal_basis(columns: Array) -> Array:
    return _one_at_a_time(lambda columns: jnp.linalg.qr(columns)[0])(columns)


def solve_unit_lower(matrix: Array, right: Array) -> Array:
    """The solution for a lower triangular matrix with ones on its diagonal."""
    solve = lambda matrix, right: jax.scipy.linalg.solve_triangular(matrix, right, lower=True, unit_diagonal=True)
    return _one_at_a_time(solve)(matrix, right)


def _one_at_a_time(function: Callable) -> Callable:
    return sequential_vmap(function) if jax.default_backend() == "cpu" else function
