"""Who holds which points of a level, and what neighbours tell each other: one device, or those along an axis of a mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


AXIS = "time"


@dataclass(frozen=True)
class Layout:
    """`count` values in a row, of which each device of a mesh holds `block`, the last ones padded; if that is 0, all of them.

    The methods are called within a kernel, on what this device holds: arrays whose leading axis counts those values.
    """

    count: int
    mesh: Mesh | AbstractMesh | None = None
    block: int = 0

    @property
    def is_shared(self) -> bool:
        return self.block > 0

    @property
    def devices(self) -> int:
        return self.mesh.shape[AXIS] if self.mesh else 1

    @property
    def here(self) -> int:
        """How many values a device holds."""
        return self.block if self.is_shared else self.count

    @property
    def total(self) -> int:
        """How many all devices hold, with those that pad."""
        return self.block * self.devices if self.is_shared else self.count

    def padded(self, count: int) -> int:
        """The length of an array that has so many values to tell of."""
        return self.total if self.is_shared else count

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(AXIS) if self.is_shared else PartitionSpec()

    def first(self) -> Array | int:
        """The index of the first value here."""
        return jax.lax.axis_index(AXIS).astype(jnp.int32) * self.block if self.is_shared else 0

    def index(self) -> Array:
        """The indices of the values here."""
        return self.first() + jnp.arange(self.here, dtype=jnp.int32)

    def arrivals(self, c: PyTree[Array], e: PyTree[Array]) -> PyTree[Array]:
        """What intervals arrive at, at the points where they end; the first point has its own value of `c`.

        The last value of each device goes to the next one.
        """
        if not self.is_shared:
            return jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[: self.count - 1]]), c, e)
        begins = jax.lax.axis_index(AXIS) == 0

        def shifted(x, y):
            before = jnp.where(begins, x[:1], self._from_neighbour(y[-1:], 1))
            return jnp.concatenate([before, y[:-1]])

        return jax.tree.map(shifted, c, e)

    def ends(self, c: PyTree[Array]) -> PyTree[Array]:
        """The points where intervals end. The first value of each device goes to the one before."""
        if not self.is_shared:
            return jax.tree.map(lambda x: x[1:], c)
        return jax.tree.map(lambda x: jnp.concatenate([x[1:], self._from_neighbour(x[:1], -1)]), c)

    def collected(self, x: PyTree[Array]) -> PyTree[Array]:
        """All values, on every device."""
        if not self.is_shared:
            return x
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True)[: self.count], x)

    def own(self, x: PyTree[Array]) -> PyTree[Array]:
        """Of all values those that this device is to hold."""
        if not self.is_shared:
            return x
        at = jnp.minimum(self.index(), self.count - 1)
        return jax.tree.map(lambda x: x[at], x)

    def at(self, x: PyTree[Array], index: Array | int) -> PyTree[Array]:
        """The values at these indices, on every device."""
        if not self.is_shared:
            return jax.tree.map(lambda x: x[index], x)
        place = index - self.first()
        return self.from_owner(jax.tree.map(lambda x: x[jnp.clip(place, 0, self.block - 1)], x), index)

    def from_owner(self, x: PyTree[Array], index: Array | int) -> PyTree[Array]:
        """What the device that holds the value at `index` has in `x`, on every device."""
        if not self.is_shared:
            return x
        place = index - self.first()
        mine = (place >= 0) & (place < self.block)

        def shared(x):
            return jax.lax.psum(jnp.where(jax.lax.expand_dims(mine, range(jnp.ndim(mine), x.ndim)), x, 0), AXIS)

        return jax.tree.map(shared, x)

    def _from_neighbour(self, x: Array, steps: int) -> Array:
        devices = range(self.devices)
        return jax.lax.ppermute(x, AXIS, [(each, each + steps) for each in devices if each + steps in devices])


def replicated(tree: PyTree, mesh: Mesh | AbstractMesh | None) -> PyTree:
    """The same values on every device of the mesh. What NumPy has stays there: costs are counted from it."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, everywhere) if isinstance(x, jax.Array) else x, tree)


def local(tree: PyTree, mesh: Mesh | AbstractMesh | None) -> PyTree:
    """What every device has the same of, as the values of one device of this process."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
