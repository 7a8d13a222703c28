"""Data by step: the minibatch of any training step, at random access."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._arguments import require_key, require_whole
from ._state import leaf_name


_EPOCHS_AT_ONCE = 64


class Epochs(eqx.Module):
    r"""The shuffled minibatch of any step: `batch(step)` of `gritax.TrainStep`, for data that fit in memory.

    Every epoch visits the examples in an order of its own, `jax.random.permutation` under `key` folded with the epoch. A pure
    function of the step: under jit and vmap, on any number of devices, in any order.

    **Arguments**

    - `arrays`: a pytree of arrays whose leading axis counts the examples.
    - `batch_size`: examples a step, at least 1 and at most as many as there are.
    - `key`: a JAX random key; `None` to keep the order of the examples in every epoch.
    - `remainder`: what becomes of the last examples of an epoch when they are too few for a batch. `"drop"` leaves them out of
      that epoch; `"fill"` completes the batch with the first ones of the next.

    Raises `ValueError`, naming the argument, for arrays of different lengths, fewer examples than `batch_size`, and other
    arguments that cannot be used.

    >>> import gritax, jax, jax.numpy as jnp
    >>> batch = gritax.data.Epochs(jnp.arange(10), 4, jax.random.key(0), remainder="fill")
    >>> sorted(int(x) for step in range(5) for x in batch(step)) == sorted([*range(10)] * 2)
    True
    >>> batch.steps(epochs=2)
    5
    """

    arrays: PyTree[Array]
    batch_size: int
    key: Array | None
    remainder: Literal["drop", "fill"]
    _order: Array | None
    _origin: tuple[Array, Array] | None

    def __init__(self, arrays: PyTree, batch_size: int, key: Array | None, *, remainder: Literal["drop", "fill"] = "drop"):
        require_whole("batch_size", batch_size, 1)
        if remainder not in ("drop", "fill"):
            raise ValueError(f'remainder must be "drop" or "fill", not {remainder!r}.')
        require_key(key, ", or None")
        try:
            self.arrays = jax.tree.map(jnp.asarray, arrays)
        except TypeError as error:
            raise ValueError(f"arrays holds something that is no array: {str(error).splitlines()[0]}") from error
        lengths = {}
        for path, leaf in tree_leaves_with_path(self.arrays):
            if leaf.ndim == 0:
                raise ValueError(f"arrays: {leaf_name(path)} is a scalar; the leading axis of every array counts the examples.")
            lengths[leaf_name(path)] = len(leaf)
        if not lengths:
            raise ValueError("arrays holds no array.")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays must have as many examples each, but they have {lengths}.")
        if self.num_examples < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but there are only {self.num_examples} examples: lower it, or repeat examples."
            )
        if remainder == "fill" and self.num_examples * batch_size >= 2**31:
            raise ValueError(
                f'remainder="fill" counts in int32, too short for {self.num_examples} examples in batches of {batch_size}: use '
                'remainder="drop".'
            )
        self.batch_size, self.key, self.remainder = int(batch_size), key, remainder
        self._order = self._origin = None

    @property
    def num_examples(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_examples // self.batch_size

    @property
    def _used(self) -> int:
        """Examples that an epoch uses."""
        return self.steps_per_epoch * self.batch_size if self.remainder == "drop" else self.num_examples

    def steps(self, epochs: int) -> int:
        """Training steps in so many epochs, rounded down to whole batches."""
        require_whole("epochs", epochs, 1)
        return epochs * self._used // self.batch_size

    def indices(self, step: Array) -> Array:
        """Which examples the batch of `step` has."""
        step = jnp.asarray(step, jnp.int32)
        if self._order is not None and self._origin is not None:
            first, position = self._origin
            return jax.lax.dynamic_slice_in_dim(self._order, position + (step - first) * self.batch_size, self.batch_size)
        if self.remainder == "drop":
            epoch, position = step // self.steps_per_epoch, step % self.steps_per_epoch * self.batch_size
            return jax.lax.dynamic_slice_in_dim(self._permutation(epoch), position, self.batch_size)
        # step * batch_size may exceed int32: by whole cycles of num_examples steps, which make batch_size epochs.
        cycle, within = step // self.num_examples, step % self.num_examples * self.batch_size
        epoch, position = cycle * self.batch_size + within // self.num_examples, within % self.num_examples
        two = jnp.concatenate([self._permutation(epoch), self._permutation(epoch + 1)])
        return jax.lax.dynamic_slice_in_dim(two, position, self.batch_size)

    def __call__(self, step: Array) -> PyTree[Array]:
        indices = self.indices(step)
        return jax.tree.map(lambda x: x[indices], self.arrays)

    def tabulated(self, num_steps: int, first: int = 0) -> "Epochs":
        """The same batches for `num_steps` steps from `first` on, from one table of indices: a sort less at every step.

        `gritax.solve`, `gritax.solve_serial` and `gritax.train` call it; a loop of one's own should, too.
        Tables for as many steps have the same shapes, wherever they begin.
        """
        require_whole("num_steps", num_steps, 1)
        require_whole("first", first, 0)
        if first + num_steps >= 2**31:
            raise ValueError(f"first + num_steps is {first + num_steps}, but steps are counted in int32, below 2^31.")
        if self.key is None or self._covers(num_steps, first) or num_steps * self.batch_size >= 2**31:
            return self
        epoch, position = divmod(first * self.batch_size, self._used)
        order = _order(self, jnp.int32(epoch), -(-num_steps * self.batch_size // self._used) + 1)
        origin = jnp.int32(first), jnp.int32(position)
        return eqx.tree_at(lambda epochs: (epochs._order, epochs._origin), self, (order, origin), is_leaf=lambda x: x is None)

    def _covers(self, num_steps: int, first: int) -> bool:
        if self._order is None or self._origin is None:
            return False
        begun, position = map(int, self._origin)
        return begun <= first and position + (first + num_steps - begun) * self.batch_size <= len(self._order)

    def _permutation(self, epoch):
        number = self.num_examples
        if (key := self.key) is None:
            return jnp.arange(number, dtype=jnp.int32)

        def order(key, epoch):
            return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(number, dtype=jnp.int32))

        # Keys of other kinds draw other numbers for many epochs at once than for one. The key is an argument of what is
        # batched, which may not close over traced values.
        return (order if _is_threefry(key) else jax.custom_batching.sequential_vmap(order))(key, epoch)


def _is_threefry(key: Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


@eqx.filter_jit
def _order(batch: Epochs, first: Array, num_epochs: int) -> Array:
    epochs = first + jnp.arange(num_epochs, dtype=jnp.int32)
    return jax.lax.map(batch._permutation, epochs, batch_size=_EPOCHS_AT_ONCE)[:, : batch._used].ravel()
