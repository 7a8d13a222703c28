"""The iterates of a solve on disk: each process writes what its devices have of them."""

import hashlib
import importlib
import json
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._adaptation import Event, Refined, Shown
from .._guess import own
from .._hierarchy import Level
from .._keeping import Iterate
from .._layout import AXIS, Layout, replicated
from .._optional import needs
from .._points import Points
from .._sharing import count, require_agreement
from ._arrays import from_arrays, to_arrays
from ._directory import directory
from ._same_run import require_same


logger = logging.getLogger("gritax")

_KEPT = 2


class Iterates:
    """The iterates of one solve in a directory, by orbax, the last two of them. `asked` is what makes it that solve.

    C-points are kept as the devices have them. As many devices read their own; others read all of them, to share them anew.
    `state` is the initial one, (floating leaves, clocks).

    Raises `ValueError` for a directory that cannot be used, and for iterates in it that are of another solve, or of one that
    is not to be resumed.
    """

    def __init__(
        self, path: str | os.PathLike, resume: bool, mesh: Mesh | None, asked: dict[str, Any], state: tuple, stored: PyTree
    ):
        self._ocp, self._mesh, self._asked, self._state, self._stored = _orbax(), mesh, asked, state, stored
        self.path = directory(path).absolute()
        self._manager = self._opened()
        places = sorted(self._manager.all_steps(), reverse=True)
        self._next = places[0] + 1 if places else 0
        if places and not resume:
            raise ValueError(
                f"checkpoint: {self.path} has iterates already: go on with resume=True, or name another directory."
            )
        self.latest = next(filter(None, map(self._read, places)), None)
        if places and self.latest is None:
            raise ValueError(f"resume: no iterate in {self.path} is whole. Start again in another directory, or delete them.")
        require_agreement(mesh, self.latest.facts["number"] if self.latest else 0)

    def _opened(self) -> Any:
        ocp, mesh = self._ocp, self._mesh
        processes = {jax.process_index()} if mesh is None else {device.process_index for device in mesh.devices.flat}
        alone = len(processes) < jax.process_count()
        taking_part = ocp.options.MultiprocessingOptions(
            primary_host=min(processes),
            active_processes=processes if alone else None,
            barrier_sync_key_prefix=f"gritax{min(processes)}" if alone else None,
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=False, enable_async_checkpointing=False, multiprocessing_options=taking_part
        )
        return ocp.CheckpointManager(self.path, options=options)

    def save(self, level: Level, c: Points, final: PyTree[Array], events: list[Event], facts: dict[str, Any]) -> None:
        args, shown = self._ocp.args, [each.states for each in events if isinstance(each, Shown)]
        told = [each.reason if isinstance(each, Refined) else [each.iteration, each.starts.tolist()] for each in events]
        points, shown = jax.tree.leaves((c, final)), to_arrays(shown)
        facts |= {"asked": self._asked, "events": told, "layout": _places(level.layout), "sum": int(_sum([*points, *shown]))}
        items = {"facts": args.JsonSave({"facts": facts, "digest": _digest(facts)})}
        items["points"] = args.StandardSave(_named(points))
        if shown:
            items["shown"] = args.StandardSave(_named(shown))
        self._manager.save(self._next, args=args.Composite(**items), force=True)
        self._next += 1

    def _read(self, place: int) -> Iterate | None:
        """The iterate there, or None if it is damaged. Raises `ValueError` if it is of another solve."""
        try:
            found = self._restored(place, facts=self._ocp.args.JsonRestore())
            facts = found["facts"]
            _require_whole(found["digest"] == _digest(facts))
        except Exception as error:  # whatever orbax makes of a file that was cut short
            return self._damaged(place, error)
        require_same(f"the solve in {self.path}", facts["asked"], self._asked)
        try:
            like = (self._c(facts["layout"]), jax.tree.map(np.asarray, self._state[0]))
            points = self._arrays(place, "points", jax.tree.leaves(like))
            c, final = jax.tree.unflatten(jax.tree.structure(like), points)
            like = [self._at_points(len(each[1])) for each in facts["events"] if isinstance(each, list)]
            shown = self._arrays(place, "shown", to_arrays(like)) if like else []
            _require_whole(facts["sum"] == int(_sum([*points, *shown])))
            shown = iter(from_arrays(like, shown))
        except Exception as error:
            return self._damaged(place, error)
        events = [
            Refined(each) if isinstance(each, str) else Shown(each[0], np.array(each[1], np.int32), next(shown))
            for each in facts["events"]
        ]
        return Iterate(facts, events, c, final)

    def _damaged(self, place: int, error: Exception) -> None:
        logger.warning("%s is damaged; the iterate before it is used (%s)", self.path / str(place), error)

    def _restored(self, place: int, **item: Any) -> Any:
        (name,) = item
        return self._manager.restore(place, args=self._ocp.args.Composite(**item))[name]

    def _arrays(self, place: int, item: str, like: list[Any]) -> list[Any]:
        found = self._restored(place, **{item: self._ocp.args.StandardRestore(_named(like))})
        return [found.get(str(index), x) for index, x in enumerate(like)]

    def _c(self, places: dict[str, int]) -> PyTree:
        """What the C-points in these places look like: on the devices of the mesh, if they are as many, else here."""
        mesh = self._mesh if places.get("devices") == count(self._mesh) else None
        sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(AXIS))

        def like(x):
            shape = (places["total"], *x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding) if sharding and x.size else np.empty(shape, x.dtype)

        return jax.tree.map(like, self._stored)

    def _at_points(self, count: int) -> PyTree[Array]:
        """What states that phi was shown look like."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), self._state)

    def points(self, iterate: Iterate, level: Level) -> tuple[Points, PyTree[Array]]:
        """(C-points of `level`, the final state) of an iterate, on the devices that are to have them now."""
        before, now = iterate.facts["layout"], _places(level.layout)
        final = replicated(jax.tree.map(jnp.asarray, iterate.final), self._mesh)
        if before == now:
            return jax.tree.map(jnp.asarray, iterate.c), final
        if before["count"] != now["count"] or before.get("devices") == now.get("devices"):
            raise ValueError(
                f"resume: the solve in {self.path} has {before['count']:,} C-points, phi asks for {now['count']:,} now, or for "
                "others on each device. Give it the same phi, or start again in another directory."
            )
        c = jax.tree.map(lambda x: jnp.asarray(_in_order(x, before)), iterate.c)
        return own(level, replicated(c, self._mesh)), final


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sum(arrays: list[Array]) -> Array:
    """Of all bytes, each times an odd number of its place, modulo 2^32: another one if any byte is. The same on all devices."""
    total = jnp.uint32(0)
    for x in arrays:
        parts = jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x
        octets = (parts if parts.dtype == bool else jax.lax.bitcast_convert_type(parts, jnp.uint8)).astype(jnp.uint32)
        total += jnp.sum(octets.ravel() * (2 * jax.lax.iota(jnp.uint32, octets.size) + 1), dtype=jnp.uint32)
    return total


def _require_whole(whole: bool) -> None:
    if not whole:
        raise OSError("it is not what was written")


def _named(arrays: list[Any]) -> dict[str, Any]:
    """Without those that are empty, which cannot be kept and need not be."""
    return {str(index): x for index, x in enumerate(arrays) if x.size}


def _places(layout: Layout) -> dict[str, int]:
    """Where which C-point stands in the array of all devices."""
    if not layout.is_shared:
        return {"count": layout.count, "total": layout.count}
    parts = {"devices": layout.devices, "block": layout.block, "group": layout.group}
    return {"count": layout.count, "total": layout.total} | parts


def _in_order(x: np.ndarray, places: dict[str, int]) -> np.ndarray:
    """All C-points, each once."""
    if "devices" not in places:
        return x
    parts = x.reshape(places["devices"], places["block"] + 1, *x.shape[1:])[:: places["group"]]
    own = parts[:, :-1].reshape(len(parts) * places["block"], *x.shape[1:])
    return np.concatenate([own, parts[-1, -1:]])[: places["count"]]


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise needs("checkpoint of gritax.solve", "orbax-checkpoint") from error
