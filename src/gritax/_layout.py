"""Who holds which points of a level, and what neighbours tell each other: one device, or those along an axis of a mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


AXIS = "time"


@dataclass(frozen=True)
class Layout:
    """The `count` C-points of a level. Each device of a mesh has the intervals that begin at `block` of them; if 0, all.

    Every `group` neighbouring devices have the same intervals, where there are too few for all. A device holds the points of
    its intervals, ends included: the last one is also the first of the next group. The last groups have fewer intervals than
    places for them. The methods are called within a kernel, on what this device holds: arrays whose leading axis counts points,
    or *lanes*, one for each interval.
    """

    count: int
    mesh: Mesh | AbstractMesh | None = None
    block: int = 0
    group: int = 1

    @property
    def is_shared(self) -> bool:
        return self.block > 0

    @property
    def devices(self) -> int:
        return self.mesh.shape[AXIS] if self.mesh else 1

    @property
    def here(self) -> int:
        """How many points a device holds."""
        return self.block + 1 if self.is_shared else self.count

    @property
    def total(self) -> int:
        """How many all devices hold."""
        return self.here * self.devices if self.is_shared else self.count

    def lanes(self, count: int) -> int:
        """How many lanes all devices have, for so many intervals."""
        return self.block * self.devices if self.is_shared else count

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(AXIS) if self.is_shared else PartitionSpec()

    def first(self) -> Array | int:
        """The index of the first point here."""
        return jax.lax.axis_index(AXIS).astype(jnp.int32) // self.group * self.block if self.is_shared else 0

    def index(self) -> Array:
        """The indices of the points here."""
        return self.first() + jnp.arange(self.here, dtype=jnp.int32)

    def arrivals(self, c: PyTree[Array], e: PyTree[Array]) -> PyTree[Array]:
        """What intervals arrive at, at the points where they end; the first point of all has its own value of `c`.

        What the last interval of each group arrives at goes to the next one.
        """
        if not self.is_shared:
            return jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[: self.count - 1]]), c, e)
        begins = jax.lax.axis_index(AXIS) < self.group
        pairs = [(each, each + self.group) for each in range(self.devices - self.group)]

        def shifted(x, y):
            return jnp.concatenate([jnp.where(begins, x[:1], jax.lax.ppermute(y[-1:], AXIS, pairs)), y])

        return jax.tree.map(shifted, c, e)

    def collected(self, x: PyTree[Array]) -> PyTree[Array]:
        """The values at all points, on every device."""
        return jax.tree.map(lambda x: x[: self.count], self.gathered(x, self.devices))

    def gathered(self, x: PyTree[Array], group: int, lanes: bool = False) -> PyTree[Array]:
        """The values at the points, or in the lanes, of so many neighbouring devices, on each of them."""
        if not self.is_shared or group == self.group:
            return x
        # One of each group here is enough, and each of its devices asks another one of the others.
        alike = [
            list(range(begin + each, begin + group, self.group))
            for begin in range(0, self.devices, group)
            for each in range(self.group)
        ]

        def gather(x):
            parts = jax.lax.all_gather(x, AXIS, axis_index_groups=alike)
            own = parts[:, : self.block].reshape(len(parts) * self.block, *x.shape[1:])
            return own if lanes else jnp.concatenate([own, parts[-1, -1:]])

        return jax.tree.map(gather, x)

    def own(self, x: PyTree[Array], first: Array | int = 0) -> PyTree[Array]:
        """Of the values at all points from `first` on those that this device is to hold."""
        if not self.is_shared:
            return x
        at = jnp.minimum(self.index() - first, len(jax.tree.leaves(x)[0]) - 1)
        return jax.tree.map(lambda x: x[at], x)

    def at(self, x: PyTree[Array], index: Array | int) -> PyTree[Array]:
        """The values at these points, on every device, from those where their intervals end."""
        if not self.is_shared:
            return jax.tree.map(lambda x: x[index], x)
        place = index - self.first()
        mine = (place > 0) & (place <= self.block) | (place == 0) & (self.first() == 0)
        return self._from(jax.tree.map(lambda x: x[jnp.clip(place, 0, self.block)], x), mine)

    def from_lane(self, x: PyTree[Array], lane: Array | int) -> PyTree[Array]:
        """What a device that has this lane knows, on every device."""
        if not self.is_shared:
            return x
        place = lane - self.first()
        return self._from(x, (place >= 0) & (place < self.block))

    def _from(self, x: PyTree[Array], mine: Array | bool) -> PyTree[Array]:
        """What the first device of one group has, on all."""
        mine &= jax.lax.axis_index(AXIS) % self.group == 0

        def share(x):
            return jax.lax.psum(jnp.where(jax.lax.expand_dims(mine, range(jnp.ndim(mine), x.ndim)), x, 0), AXIS)

        return jax.tree.map(share, x)


def replicated(tree: PyTree, mesh: Mesh | AbstractMesh | None) -> PyTree:
    """The same values on every device of the mesh. What NumPy has stays there: costs are counted from it."""
    if not isinstance(mesh, Mesh):
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(x):
        if not isinstance(x, jax.Array) or x.sharding == everywhere:
            return x
        # From what this process has: `jax.device_put` would ask another for it.
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

    return jax.tree.map(put, tree)


def local(tree: PyTree, mesh: Mesh | AbstractMesh | None) -> PyTree:
    """What every device has the same of, as the values of one device of this process.

    Within `jax.set_mesh` it stays on all: JAX takes what else is computed there to be on the devices of that mesh.
    """
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
