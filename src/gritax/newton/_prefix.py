"""What runs along the window in the order of its steps: sums, maxima, linear recurrences.

On a CPU in blocks, side by side and then one after the other, which is two passes and little to compile; elsewhere in log2(n)
passes, each of them all rows at once.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


_BLOCK = 32
# Longer rows keep a processor busy by themselves, and are not moved into blocks.
_SHORT = 512


def recurrence(transfer: Array, gain: Array, values: Array, forcing: Array) -> Array:
    """$y_{i+1} = (T_i + h A_i e_0^T) y_i + f_i e_0$ from $y_0 = 0$, for each h of `values` [r]: member 0 of each y [n, r].

    `transfer` [n, k, k] and `gain` [n, k] are T and A, `forcing` [n, r] is f.
    """
    first = jnp.eye(gain.shape[-1], dtype=forcing.dtype)[0]
    matrices = transfer[:, None] + values[None, :, None, None] * jnp.einsum("ni,j->nij", gain, first)[:, None]
    vectors = forcing[..., None] * first[None, None]

    def after(earlier, later):
        (m, b), (n, c) = earlier, later
        # Products of so small matrices are sums, which are fused, and no calls of a library.
        return jnp.sum(n[..., None] * m[..., None, :, :], axis=-2), jnp.sum(n * b[..., None, :], axis=-1) + c

    return _prefixes(after, (matrices, vectors))[1][..., 0]


def cumulated(rows: Array, kept: Array | None = None) -> Array:
    """The sums of all rows [n, P] up to each: elsewhere products with triangles of ones, in blocks, then of whole blocks.

    `kept` [P] of a sum is left by each step.
    """
    if kept is not None:
        after = lambda earlier, later: (later[0] * earlier[0], later[0] * earlier[1] + later[1])
        return _prefixes(after, (jnp.broadcast_to(kept, rows.shape), rows))[1]

    def at_once(rows):
        count, size = rows.shape
        length = _BLOCK if count % _BLOCK == 0 else count
        blocks = rows.reshape(count // length, length, size)
        within = jnp.einsum("ij,bjp->bip", jnp.tri(length, dtype=rows.dtype), blocks, precision="highest")
        earlier = jnp.matmul(jnp.tri(len(blocks), k=-1, dtype=rows.dtype), within[:, -1], precision="highest")
        return (within + earlier[:, None]).reshape(count, size)

    return jax.lax.platform_dependent(rows, cpu=partial(_in_blocks, jnp.add), default=at_once)


def largest_so_far(values: Array) -> Array:
    """The largest of all values [n] up to each."""
    return _prefixes(jnp.maximum, values)


def shifted(rows: Array, by: Array) -> Array:
    """The rows from number `by` on, the last one repeated behind them, as a slice: cheaper than rows taken by number."""
    padded = jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], rows.shape)])
    return jax.lax.dynamic_slice_in_dim(padded, by, len(rows))


def _prefixes(combine: Callable[[PyTree, PyTree], PyTree], rows: PyTree[Array]) -> PyTree[Array]:
    """`combine` of all rows up to each: (earlier, later) -> both, with as many leading axes as either has."""
    in_order, at_once = (partial(way, combine) for way in (_in_blocks, _passes))
    return jax.lax.platform_dependent(rows, cpu=in_order, default=at_once)


def _in_blocks(combine: Callable[[PyTree, PyTree], PyTree], rows: PyTree[Array]) -> PyTree[Array]:
    """Row after row of all blocks, then block after block, and both together."""
    leaves = jax.tree.leaves(rows)
    count, numbers = len(leaves[0]), sum(x[0].size for x in leaves)
    length = _BLOCK if count % _BLOCK == 0 and numbers <= _SHORT else count

    def in_order(rows):
        def step(earlier, row):
            both = combine(earlier, row)
            return both, both

        first = jax.tree.map(lambda x: x[0], rows)
        _, others = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], rows))
        return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, others)

    if length == count:
        return in_order(rows)
    within = in_order(jax.tree.map(lambda x: x.reshape(count // length, length, *x.shape[1:]).swapaxes(0, 1), rows))
    ends = in_order(jax.tree.map(lambda x: x[-1], within))
    both = combine(jax.tree.map(lambda x: x[None, :-1], ends), jax.tree.map(lambda x: x[:, 1:], within))
    all_of = lambda one, others: jnp.concatenate([one[:, :1], others], axis=1).swapaxes(0, 1).reshape(count, *one.shape[2:])
    return jax.tree.map(all_of, within, both)


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
