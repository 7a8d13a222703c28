"""What runs along the window in the order of its steps: sums, maxima, linear recurrences.

On a CPU row after row, which is one pass and little to compile; elsewhere in log2(n) passes, each of them all rows at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


_BLOCK = 32


def recurrence(transfer: Array, gain: Array, values: Array, forcing: Array) -> Array:
    """$y_{i+1} = (T_i + h A_i e_0^T) y_i + f_i e_0$ from $y_0 = 0$, for each h of `values` [r]: member 0 of each y [n, r].

    `transfer` [n, k, k] and `gain` [n, k] are T and A, `forcing` [n, r] is f.
    """
    size = gain.shape[-1]
    first = jnp.eye(size, dtype=forcing.dtype)[0]

    def in_order(transfer, gain, values, forcing):
        def step(y, given):
            t, a, f = given
            y = y @ t.T + (values * y[:, 0])[:, None] * a[None] + f[:, None] * first[None]
            return y, y[:, 0]

        return jax.lax.scan(step, jnp.zeros((len(values), size), forcing.dtype), (transfer, gain, forcing))[1]

    def at_once(transfer, gain, values, forcing):
        matrices = transfer[:, None] + values[None, :, None, None] * jnp.einsum("ni,j->nij", gain, first)[:, None]

        def after(earlier, later):
            (m, b), (n, c) = earlier, later
            return n @ m, (n @ b[..., None])[..., 0] + c

        return _passes(after, (matrices, forcing[..., None] * first[None, None]))[1][..., 0]

    return jax.lax.platform_dependent(transfer, gain, values, forcing, cpu=in_order, default=at_once)


def cumulated(rows: Array, kept: Array | None = None) -> Array:
    """The sums of all rows [n, P] up to each: elsewhere products with triangles of ones, in blocks, then of whole blocks.

    `kept` [P] of a sum is left by each step.
    """

    def in_order(rows):
        def step(total, row):
            total = row + (total if kept is None else kept * total)
            return total, total

        return jax.lax.scan(step, jnp.zeros_like(rows[0]), rows)[1]

    def at_once(rows):
        if kept is not None:
            after = lambda earlier, later: (later[0] * earlier[0], later[0] * earlier[1] + later[1])
            return _passes(after, (jnp.broadcast_to(kept, rows.shape), rows))[1]
        count, size = rows.shape
        length = _BLOCK if count % _BLOCK == 0 else count
        blocks = rows.reshape(count // length, length, size)
        within = jnp.einsum("ij,bjp->bip", jnp.tri(length, dtype=rows.dtype), blocks, precision="highest")
        earlier = jnp.matmul(jnp.tri(len(blocks), k=-1, dtype=rows.dtype), within[:, -1], precision="highest")
        return (within + earlier[:, None]).reshape(count, size)

    return jax.lax.platform_dependent(rows, cpu=in_order, default=at_once)


def largest_so_far(values: Array) -> Array:
    """The largest of all values [n] up to each."""

    def in_order(values):
        def step(largest, value):
            largest = jnp.maximum(largest, value)
            return largest, largest

        return jax.lax.scan(step, values[0], values)[1]

    return jax.lax.platform_dependent(values, cpu=in_order, default=lambda x: _passes(jnp.maximum, x))


def shifted(rows: Array, by: Array) -> Array:
    """The rows from number `by` on, the last one repeated behind them, as a slice: cheaper than rows taken by number."""
    padded = jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], rows.shape)])
    return jax.lax.dynamic_slice_in_dim(padded, by, len(rows))


def _passes(combine: Callable[[PyTree, PyTree], PyTree], rows: PyTree[Array]) -> PyTree[Array]:
    """`combine` of all rows up to each (Hillis and Steele 1986, Data parallel algorithms): (earlier, later) -> both.

    As `jax.lax.associative_scan`, whose program has an operation for each of 2 log2(n) levels, and takes as much longer to
    compile.
    """
    count = len(jax.tree.leaves(rows)[0])
    index = jnp.arange(count, dtype=jnp.int32)

    def level(j, rows):
        by = jnp.int32(1) << j
        both = combine(jax.tree.map(lambda x: jnp.roll(x, by, axis=0), rows), rows)
        here = lambda x: (index < by).reshape(-1, *[1] * (x.ndim - 1))
        return jax.tree.map(lambda old, new: jnp.where(here(old), old, new), rows, both)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32((count - 1).bit_length()), level, rows)
