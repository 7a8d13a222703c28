"""Checkpoints of a training run: written whole or not at all, and verified when they are read."""

import hashlib
import io
import json
import logging
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._cycle import Cost
from ._hierarchy import Hierarchy, Level
from ._pace import Pace, facts as pace_facts, from_facts as pace_from
from ._run import Run
from ._sensitivity import Sensitivity
from ._sharing import is_of_several_processes
from ._solution import WindowReport


logger = logging.getLogger("gritax")

_MAGIC = b"gritax checkpoint 2\n"
_SUFFIX = ".gritax"
_UNFINISHED = ".unfinished"
_KEPT = 2
# A first step that differs by more is another's, not the same one rounded otherwise.
_SAME = 1e-3


@dataclass(frozen=True)
class Checkpoint:
    """The first `done` steps of a run: what is known of it as JSON, and its arrays."""

    done: int
    facts: dict[str, Any]
    arrays: list[np.ndarray]


class Directory:
    """The checkpoints of one run, of which the last two are kept: `steps-<done>.gritax`.

    A file is the SHA-256 of what follows it, and then that: an `.npz` of arrays and of the facts as JSON. It is written under
    another name, synced and renamed, so that a process that is killed leaves the last one whole; one that was cut short
    or changed is found out, and the one before it is used.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"checkpoint: {self.path} is a file; name a directory.")
        above = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ValueError(f"checkpoint: nothing can be written to {self.path}, since {above} is no directory to write to.")

    def files(self) -> list[Path]:
        """The newest first."""
        return sorted(self.path.glob(f"steps-*{_SUFFIX}"), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        facts = np.frombuffer(json.dumps(checkpoint.facts).encode(), np.uint8)
        # Types that are not NumPy's own, such as bfloat16, as bytes.
        arrays: dict[str, Any] = {
            f"array{i}": x.view(f"V{x.itemsize}") for i, x in enumerate(map(np.asarray, checkpoint.arrays))
        }
        dtypes = np.array([str(x.dtype) for x in map(np.asarray, checkpoint.arrays)], "U")
        np.savez(buffer, facts=facts, dtypes=dtypes, **arrays)
        content = buffer.getvalue()
        self.path.mkdir(parents=True, exist_ok=True)
        name = self.path / f"steps-{checkpoint.done:012d}{_SUFFIX}"
        unfinished = name.with_suffix(_UNFINISHED)
        with unfinished.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(name)
        _sync(self.path)
        # Files of more steps are of before the run began again.
        files = self.files()
        at = files.index(name)
        for old in [*files[:at], *files[at + _KEPT :], *self.path.glob(f"steps-*{_UNFINISHED}")]:
            old.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if there is no file. Raises `ValueError` if none of the files is whole."""
        files = self.files()
        for file in files:
            found = _read(file)
            if found is not None:
                return found
            logger.warning("%s is damaged; the checkpoint before it is used", file)
        if files:
            raise ValueError(
                f"resume: no checkpoint in {self.path} is whole ({len(files)} damaged). Start again without resume."
            )
        return None


def _read(file: Path) -> Checkpoint | None:
    content = file.read_bytes()
    digest, payload = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(payload).digest() != digest:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as found:
        facts = json.loads(found["facts"].tobytes())
        arrays = [found[f"array{i}"].view(jnp.dtype(name)) for i, name in enumerate(found["dtypes"].tolist())]
    return Checkpoint(int(file.stem.partition("-")[2]), facts, arrays)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Keeper:
    """Keeps a run in a directory, and takes it up again.

    Raises `ValueError` where there are checkpoints of an earlier run that is not to be resumed.
    """

    def __init__(self, directory: Directory, resume: bool):
        self.directory, self._resume = directory, resume
        if not resume and directory.files():
            raise ValueError(
                f"checkpoint: {directory.path} has checkpoints already ({directory.files()[0].name}): go on with resume=True, "
                "or name another directory."
            )

    def save(self, run: Run, pace: Pace) -> None:
        if is_of_several_processes(run.mesh) and jax.process_index() > 0:  # the first has written the same
            return
        found = run.sensitivity
        facts = {
            "asked": run.asked,
            "origin": digest(run.origin),
            "pace": pace_facts(pace),
            "depth_by_lanes": list(run.cost.by_lanes.items()),
            "work": run.cost.work,
            "windows": [asdict(window) for window in run.windows],
            "restarts": run.restarts,
            "coarse_steps": run.coarse_steps,
            "levels": [asdict(level) for level in run.hierarchy.levels] if run.hierarchy else [],
            "travelled": run.travelled,
            "is_finite": run.is_finite,
            "lanes": run.lanes,
            "sensitivity": [found.growth, found.error, found.rounding],
        }
        state, direction = to_arrays(run.state), to_arrays(() if found.direction is None else found.direction)
        self.directory.save(Checkpoint(run.done, facts | {"arrays": len(state)}, [*state, *direction]))

    def resumed(self, run: Run) -> Pace | None:
        """Takes `run` to where the newest checkpoint has it, and says how it goes on; None if there is no checkpoint.

        Raises `ValueError` if the checkpoint is of another run.
        """
        found = self.directory.latest() if self._resume else None
        if found is None:
            return None
        facts, count = found.facts, found.facts["arrays"]
        state = from_arrays(run.state, found.arrays[:count])
        begun, cure = f"resume: the run in {self.directory.path}", "Give it the same, or start again in another directory."
        if facts["origin"] != digest(run.origin):
            raise ValueError(f"{begun} began with other params than these. {cure}")
        for name, given in run.asked.items():
            if not _same(facts["asked"][name], given):
                before, now = (f"{each:.6g}" if isinstance(each, float) else each for each in (facts["asked"][name], given))
                raise ValueError(f"{begun} has {name} {before}, not {now}. {cure}")
        floating = eqx.filter(run.state, eqx.is_inexact_array)
        direction = from_arrays(floating, found.arrays[count:]) if found.arrays[count:] else None
        run.state, run.done = state, found.done
        run.cost = Cost(Counter(dict(facts["depth_by_lanes"])), facts["work"])
        run.windows = [_report(window) for window in facts["windows"]]
        run.restarts, run.coarse_steps = facts["restarts"], facts["coarse_steps"]
        run.hierarchy = Hierarchy(tuple(Level(**level) for level in facts["levels"])) if facts["levels"] else None
        run.travelled, run.is_finite, run.lanes = facts["travelled"], facts["is_finite"], facts["lanes"]
        run.sensitivity = Sensitivity(direction, *facts["sensitivity"])
        logger.info("resumed after step %d of %d", run.done, run.num_steps)
        return pace_from(facts["pace"])


def _same(before: Any, now: Any) -> bool:
    numbers = isinstance(before, float) and isinstance(now, float)
    return math.isclose(before, now, rel_tol=_SAME) if numbers else before == now


def _report(facts: dict[str, Any]) -> WindowReport:
    histories = {name: tuple(facts[name]) for name in ("residuals", "relative_residuals")}
    return WindowReport(**{**facts, **histories})


def to_arrays(tree: PyTree) -> list[np.ndarray]:
    """The arrays of a pytree, random keys as their data."""
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in _arrays(tree)]


def from_arrays(like: PyTree, arrays: list[np.ndarray]) -> PyTree:
    """`like` with these arrays in place of its own. Raises `ValueError` where they are of other shapes or dtypes."""
    given = to_arrays(like)
    described = [[(x.shape, str(x.dtype)) for x in each] for each in (given, arrays)]
    if described[0] != described[1]:
        raise ValueError(
            f"resume: the checkpoint holds a state of other shapes or dtypes ({described[1]}) than params and optimizer make "
            f"here ({described[0]}). Use those it was made with, or start again in another directory."
        )
    fresh = iter(arrays)

    def take(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        new = jnp.asarray(next(fresh))
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else new

    return jax.tree.map(take, like)


def digest(tree: PyTree) -> str:
    """Of the values of all arrays."""
    found = hashlib.sha256()
    for array in to_arrays(tree):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
