"""Which levels the devices of a mesh share, and how many intervals each of them has."""

import math
from dataclasses import replace

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AbstractMesh, AxisType, Mesh

from ._evolution import Phi, evaluations
from ._hierarchy import Hierarchy, Level
from ._layout import AXIS, Layout


# What a message between neighbours takes, in evaluations of phi: for small networks a device would rather compute.
_MESSAGE = 2.0


def as_mesh(mesh: Mesh | None) -> Mesh | None:
    """The mesh with axes that phi may use as it likes. Raises `ValueError` for one that has no axis `time`."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(f'mesh must be a jax.sharding.Mesh, such as jax.make_mesh((4,), ("{AXIS}",)), not {mesh!r}.')
    if mesh.size == 0:
        raise ValueError("mesh has no devices.")
    if AXIS not in mesh.shape:
        raise ValueError(
            f"mesh has the axes {tuple(mesh.axis_names)}, and none of them is {AXIS!r}, along which devices share intervals: "
            f'make it by jax.make_mesh((jax.device_count(),), ("{AXIS}",)).'
        )
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    context = jax.sharding.get_abstract_mesh()
    if not context.empty and context != mesh.abstract_mesh:
        raise ValueError(
            f"mesh is {mesh.abstract_mesh}, but this call is within jax.set_mesh of {context}: set the same one, with axes of "
            f"the type Auto, jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)})."
        )
    return mesh


def count(mesh: Mesh | None) -> int:
    """How many devices share the intervals."""
    return mesh.shape[AXIS] if mesh else 1


def is_of_several_processes(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.is_multi_process


def require_agreement(mesh: Mesh | None, done: int) -> None:
    """Waits until all processes of the mesh have come here, and raises `ValueError` if they have not done as many steps."""
    if not is_of_several_processes(mesh):
        return
    found = process_allgather(np.int64(done)).tolist()
    if len(set(found)) > 1:
        raise ValueError(
            f"resume: the processes found checkpoints of other steps ({', '.join(map(str, found))}): name a directory that all "
            "of them can read."
        )


def shared(hierarchy: Hierarchy, mesh: Mesh | AbstractMesh | None, phi: Phi) -> Hierarchy:
    """The levels with the layout of their points on this mesh.

    A device has neighbouring intervals, on every level those that lie within its own ones of the coarser level: so values
    pass between levels without a message. The coarsest shared level has equally many for each device, to one; the fewer they
    are, the more uneven that makes the finer ones. Levels below it are solved by every device for itself, from one gathering
    of their right-hand side. How many levels are shared is what takes a cycle the least time.
    """
    if mesh is None:
        return hierarchy
    levels = hierarchy.levels
    counts = range(1, len(levels)) if len(levels) > 1 else [0]
    best = min((_blocks(levels, mesh.shape[AXIS], count) for count in counts), key=lambda blocks: _cost(levels, blocks, phi))
    layouts = [Layout(level.num_intervals + 1, mesh, block) for level, block in zip(levels, best, strict=True)]
    points = [Layout(hierarchy[0].size + 1, mesh), *layouts[:-1]]
    placed = [replace(level, c_layout=c, point_layout=p) for level, c, p in zip(levels, layouts, points, strict=True)]
    return Hierarchy(tuple(placed))


def unshared(hierarchy: Hierarchy) -> Hierarchy:
    """The levels alone."""
    return Hierarchy(tuple(replace(level, c_layout=None, point_layout=None) for level in hierarchy.levels))


def _blocks(levels: tuple[Level, ...], devices: int, count: int) -> list[int]:
    """How many intervals of each level a device has, if so many levels are shared; 0 for the others."""
    blocks, needed = [0] * len(levels), 0
    for level in levels[:count]:
        # F-points after the last C-point are one more lane, here or on a finer level.
        needed = max(-(-needed // level.factor), level.num_intervals + (level.tail > 0))
    block = -(-needed // devices)
    for level in reversed(levels[:count]):
        blocks[level.index] = block
        block *= level.factor
    return blocks


def _cost(levels: tuple[Level, ...], blocks: list[int], phi: Phi) -> float:
    """Of a V-cycle, in evaluations of phi by a device, lane after lane."""
    total = 0.0
    for level, block in zip(levels, blocks, strict=True):
        sweeps = level.sweeps + 2
        work = evaluations(phi, "work", level.stride)
        total += sweeps * (work * level.factor * (block or math.ceil(level.size / level.factor)) + _MESSAGE * (block > 0))
    return total
