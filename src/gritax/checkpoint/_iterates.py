"""The iterates of a solve on disk: each process writes what its devices have of them."""

import hashlib
import importlib
import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._adaptation import Event, Refined, Shown
from .._evolution import Evolution
from .._guess import own
from .._hierarchy import Level
from .._keeping import Iterate
from .._layout import AXIS, Layout, local, replicated
from .._optional import needs
from .._points import Points, states_at
from .._sharing import count, require_agreement
from ._arrays import from_arrays, to_arrays
from ._directory import Directory
from ._facts import Unusable, require_kinds
from ._lock import Lock
from ._same_run import require_same, require_same_step, taken


logger = logging.getLogger("gritax")

_FORMAT = 2
_KEPT = 2
_KINDS = {
    "place": int,
    "asked": dict,
    "first": dict,
    "next": dict,
    "events": list,
    "layout": dict,
    "sum": int,
    "number": int,
    "shown_before": int,
    "norms": list,
    "relaxed": list,
    "exact_steps": list,
    "seconds": list,
    "front": int,
    "depth_by_lanes": list,
    "depth_by_level": list,
    "work": int,
}


class Iterates:
    """The iterates of one solve in a directory, by orbax, the last two of them. `asked` is what makes it that solve.

    C-points are kept as the devices have them. As many devices read their own; others read all of them, to share them anew.
    `step` is the first one, (evolution, floating leaves, clocks). With `with`, which lets no other solve write there.

    Raises `ValueError` for a directory that cannot be used, and for iterates in it that are of another solve, or of one that
    is not to be resumed.
    """

    def __init__(self, path: Path, resume: bool, mesh: Mesh | None, asked: dict[str, Any], step: tuple):
        self._ocp, self._mesh, self._asked, self._step = _orbax(), mesh, asked, step
        self.path, self._resume, self.latest, self._next = path, resume, None, 0
        self._first, self._held = taken(*step), ExitStack()
        devices = [] if mesh is None else mesh.devices.flat
        self._processes = {device.process_index for device in devices} or {jax.process_index()}

    def __enter__(self) -> "Iterates":
        if files := Directory(self.path).files():
            raise ValueError(
                f"checkpoint: {self.path} has checkpoints of gritax.train or gritax.Newton ({files[0].name}), not the "
                "iterates of a multigrid solve: name another directory."
            )
        with ExitStack() as held:
            if jax.process_index() == min(self._processes):
                held.enter_context(Lock(self.path))
            self._manager = self._opened()
            places = sorted(self._manager.all_steps(), reverse=True)
            self._next = places[0] + 1 if places else 0
            if places and not self._resume:
                raise ValueError(
                    f"checkpoint: {self.path} has iterates already: go on with resume=True, or name another directory."
                )
            self.latest = next(filter(None, map(self._read, places)), None)
            if places and self.latest is None:
                raise ValueError(
                    f"resume: no iterate in {self.path} is whole. Start again in another directory, or put a whole one there."
                )
            require_agreement(self._mesh, self.latest.facts["number"] if self.latest else 0)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def _opened(self) -> Any:
        ocp, processes = self._ocp, self._processes
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

    def save(
        self,
        level: Level,
        evolution: Evolution,
        c: Points,
        final: PyTree[Array],
        events: list[Event],
        facts: dict[str, Any],
    ) -> None:
        args, shown = self._ocp.args, [each.states for each in events if isinstance(each, Shown)]
        told = [each.reason if isinstance(each, Refined) else [each.iteration, each.starts.tolist()] for each in events]
        points, shown = jax.tree.leaves((c, final)), to_arrays(shown)
        facts |= {"place": self._next, "asked": self._asked, "first": self._first, "events": told}
        facts["next"] = taken(*self._next_step(level, evolution, c, facts["front"]))
        facts |= {"layout": _places(level.layout), "sum": int(_sum([*points, *shown]))}
        items = {"facts": args.JsonSave({"format": _FORMAT, "facts": facts, "digest": _digest(facts)})}
        items["points"] = args.StandardSave(_named(points))
        if shown:
            items["shown"] = args.StandardSave(_named(shown))
        self._manager.save(self._next, args=args.Composite(**items), force=True)
        self._next += 1

    def _next_step(self, level: Level, evolution: Evolution, c: Points, front: int) -> tuple[Evolution, Any, Any, int]:
        """(evolution, floating leaves, clocks, number) of the step after those that are exact, or of the last that begins at a
        C-point: those before it are not computed again.
        """
        point = min(front, (level.size - 1) // level.factor)
        evolution, floating = local((evolution, states_at(level, c, np.int32(point))), self._mesh)
        return evolution, evolution.natural(floating), evolution.clock(jnp.int32(point * level.factor)), point * level.factor

    def _read(self, place: int) -> Iterate | None:
        """The iterate there, or None if it cannot be used. Raises `ValueError` if it is of another solve."""
        try:
            found = self._restored(place, facts=self._ocp.args.JsonRestore())
            if (form := found.get("format", 1)) != _FORMAT:
                raise Unusable(f"of format {form}, written by another version of gritax, while this one reads {_FORMAT}")
            facts = found["facts"]
            _require_whole(found["digest"] == _digest(facts))
            require_kinds(facts, _KINDS)
            require_kinds(facts["asked"], dict.fromkeys(self._asked, object))
            if facts["place"] != place:
                raise Unusable(f"renamed, for it says that it is {facts['place']}")
        except Exception as error:  # whatever orbax makes of a file that was cut short
            return self._unusable(place, error)
        require_same(f"the solve in {self.path}", facts["asked"], self._asked)
        require_same_step(f"the solve in {self.path}", 0, facts["first"], *self._step)
        try:
            like = (self._c(facts["layout"]), jax.tree.map(np.asarray, self._step[1]))
            points = self._arrays(place, "points", jax.tree.leaves(like))
            c, final = jax.tree.unflatten(jax.tree.structure(like), points)
            like = [self._at_points(len(each[1])) for each in facts["events"] if isinstance(each, list)]
            shown = self._arrays(place, "shown", to_arrays(like)) if like else []
            _require_whole(facts["sum"] == int(_sum([*points, *shown])))
            shown = iter(from_arrays(like, shown))
            events = [
                Refined(each) if isinstance(each, str) else Shown(each[0], np.array(each[1], np.int32), next(shown))
                for each in facts["events"]
            ]
        except Exception as error:
            return self._unusable(place, error)
        return Iterate(facts, events, c, final)

    def _unusable(self, place: int, error: Exception) -> None:
        kind, why = (error, "") if isinstance(error, Unusable) else ("damaged", f" ({error})")
        logger.warning("%s is %s; the iterate before it is used%s", self.path / str(place), kind, why)

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

        evolution, floating, _ = self._step
        return jax.tree.map(like, jax.eval_shape(evolution.stored, floating))

    def _at_points(self, count: int) -> PyTree[Array]:
        """What states that phi was shown look like."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), self._step[1:])

    def points(self, iterate: Iterate, level: Level, evolution: Evolution) -> tuple[Points, PyTree[Array]]:
        """(C-points of `level`, the final state) of an iterate, on the devices that are to have them now.

        Raises `ValueError` if they are of another evolution, or at other points.
        """
        c, final = self._at(level, iterate.facts["layout"], iterate.c), jax.tree.map(jnp.asarray, iterate.final)
        step = self._next_step(level, evolution, c, iterate.facts["front"])
        require_same_step(f"the solve in {self.path}", step[-1], iterate.facts["next"], *step)
        return c, replicated(final, self._mesh)

    def _at(self, level: Level, before: dict[str, int], c: Points) -> Points:
        now = _places(level.layout)
        if before == now:
            return jax.tree.map(jnp.asarray, c)
        if before["count"] != now["count"] or before.get("devices") == now.get("devices"):
            raise ValueError(
                f"resume: the solve in {self.path} has {before['count']:,} C-points, phi asks for {now['count']:,} now, or for "
                "others on each device. Give it the same phi, or start again in another directory."
            )
        return own(level, replicated(jax.tree.map(lambda x: jnp.asarray(_in_order(x, before)), c), self._mesh))


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, facts], sort_keys=True).encode()).hexdigest()


@jax.jit
def _sum(arrays: list[Array]) -> Array:
    """Of all bytes, each times an odd number of its place, modulo 2^32: another one if any byte is. The same on all devices."""
    total, place = jnp.uint32(0), 0
    for x in arrays:
        parts = jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x
        octets = (parts if parts.dtype == bool else jax.lax.bitcast_convert_type(parts, jnp.uint8)).astype(jnp.uint32)
        places = jax.lax.iota(jnp.uint32, octets.size) + jnp.uint32(place % 2**31)
        total, place = total + jnp.sum(octets.ravel() * (2 * places + 1), dtype=jnp.uint32), place + octets.size
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
