"""Which levels the devices of a mesh share, and how many intervals each of them has."""

import itertools
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
    members = {device.process_index for device in mesh.devices.flat}
    if members != {jax.process_index()} and len(members) < jax.process_count():
        raise ValueError(
            f"mesh has devices of process {', '.join(map(str, sorted(members)))} only, and there are {jax.process_count()} "
            "processes: take all, as gritax.placement.mesh() does, or this process's own, jax.local_devices()."
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


def writes(mesh: Mesh | None) -> bool:
    """True if this process writes what all of them know: of several the first one."""
    return not is_of_several_processes(mesh) or jax.process_index() == 0


def wait_for_all(mesh: Mesh | None) -> None:
    """Waits until all processes of the mesh have come here."""
    if is_of_several_processes(mesh):
        process_allgather(np.int64(0))


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
    pass between levels without a message. Where there are fewer intervals than devices, groups of neighbours have them alike,
    larger ones on coarser levels, from a gathering of the right-hand side within a group. The coarsest shared level has equally
    many intervals for each group, to one; the fewer they are, the more uneven that makes the finer ones. Levels below it are
    solved by every device for itself. How many levels are shared, and by how many groups, is what takes a cycle the least time.
    """
    if mesh is None:
        return hierarchy
    levels, devices = hierarchy.levels, mesh.shape[AXIS]
    groups = [count for count in range(1, devices + 1) if devices % count == 0]
    choices = itertools.product(range(1, len(levels)), groups) if len(levels) > 1 else [(0, 1)]
    parts = (_parts(levels, devices, *choice) for choice in choices)
    best = min(parts, key=lambda parts: _cost(levels, devices, parts, phi))
    layouts = [Layout(level.num_intervals + 1, mesh, *part) for level, part in zip(levels, best, strict=True)]
    points = [Layout(hierarchy[0].size + 1, mesh), *layouts[:-1]]
    placed = [replace(level, c_layout=c, point_layout=p) for level, c, p in zip(levels, layouts, points, strict=True)]
    return Hierarchy(tuple(placed))


def unshared(hierarchy: Hierarchy) -> Hierarchy:
    """The levels alone."""
    return Hierarchy(tuple(replace(level, c_layout=None, point_layout=None) for level in hierarchy.levels))


def _parts(levels: tuple[Level, ...], devices: int, count: int, groups: int) -> list[tuple[int, int]]:
    """(intervals of a device, devices in a group) of each level, if so many levels are shared, the last by so many groups.

    The levels that are not shared have (0, all devices).
    """
    parts, needed = [(0, devices)] * len(levels), 0
    for level in levels[:count]:
        # F-points after the last C-point are one more lane, here or on a finer level.
        needed = max(-(-needed // level.factor), level.num_intervals + (level.tail > 0))
    places = -(-needed // groups) * groups
    for level in reversed(levels[:count]):
        groups = math.gcd(devices, places)
        parts[level.index] = places // groups, devices // groups
        places *= level.factor
    return parts


def _cost(levels: tuple[Level, ...], devices: int, parts: list[tuple[int, int]], phi: Phi) -> float:
    """Of a V-cycle, in evaluations of phi by a device, lane after lane."""
    total, before = 0.0, 1
    for level, (block, group) in zip(levels, parts, strict=True):
        work = evaluations(phi, "work", level.stride)
        lanes = block or math.ceil(level.size / level.factor)
        messages = (level.sweeps + 2) * (block > 0) + math.ceil(math.log2(group / before))
        total += (level.sweeps + 2) * work * level.factor * lanes + messages * _MESSAGE
        before = group
    return total
