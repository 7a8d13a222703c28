"""Checkpoints of a training run, from window to window."""

import logging
from collections import Counter
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import equinox as eqx
from jax.sharding import Mesh

from .._cycle import Cost
from .._hierarchy import Hierarchy, Level
from .._pace import Pace, facts as pace_facts, from_facts as pace_from
from .._run import Run
from .._sensitivity import Sensitivity
from .._sharing import writes
from .._solution import WindowReport
from ._arrays import from_arrays, to_arrays
from ._directory import OWN, Checkpoint, Directory
from ._facts import Unusable, built, require_kinds
from ._same_run import require_same, require_same_method, require_same_step, taken


logger = logging.getLogger("gritax")

_KINDS = {
    "asked": dict,
    "first": dict,
    "next": dict,
    "pace": dict,
    "depth_by_lanes": list,
    "work": int,
    "windows": list,
    "restarts": list,
    "coarse_steps": str,
    "levels": list,
    "travelled": float | int,
    "size": float | int,
    "is_finite": bool,
    "lanes": int | None,
    "sensitivity": dict,
    "arrays": int,
}


@dataclass(frozen=True)
class _Kept:
    """What a checkpoint says: the run as it was then, how it was to go on, and what it is known by."""

    run: Run
    pace: Pace
    facts: dict[str, Any]


class Keeper:
    """Keeps a run in a directory, and takes it up again; with `with`, which lets nobody else write there.

    Of the processes of a mesh the first one writes, and the others read.
    """

    def __init__(self, directory: Directory, resume: bool, mesh: Mesh | None = None):
        self.directory, self.resumes = directory, resume
        self._writes = writes(mesh)
        self._first: dict[str, Any] = {}
        self._held = ExitStack()

    def __enter__(self) -> "Keeper":
        """Raises `ValueError` where somebody else writes, or where an earlier run was kept that is not to be resumed."""
        with ExitStack() as held:
            if self._writes:
                held.enter_context(self.directory.lock)
            self.directory.require(self.resumes)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def save(self, run: Run, pace: Pace) -> None:
        following = taken(*run.next_step()) if run.left and run.is_finite else {}
        if not self._writes:  # the first has written the same
            return
        found = run.sensitivity
        facts = {
            "asked": run.asked,
            "first": self._first,
            "next": following,
            "pace": pace_facts(pace),
            "depth_by_lanes": list(run.cost.by_lanes.items()),
            "work": run.cost.work,
            "windows": [asdict(window) for window in run.windows],
            "restarts": run.restarts,
            "coarse_steps": run.coarse_steps,
            "levels": [asdict(level) for level in run.hierarchy.levels] if run.hierarchy else [],
            "travelled": run.travelled,
            "size": run.size,
            "is_finite": run.is_finite,
            "lanes": run.lanes,
            "sensitivity": {"growth": found.growth, "error": found.error, "rounding": found.rounding},
        }
        state, direction = to_arrays(run.state), to_arrays(() if found.direction is None else found.direction)
        self.directory.save(Checkpoint(run.done, facts | {"arrays": len(state)}, [*state, *direction]))

    def resumed(self, run: Run) -> Pace | None:
        """Takes `run`, which has not begun, to where the newest checkpoint has it, and says how it goes on.

        None without one, and for one that the method of the run takes up by itself.

        Raises `ValueError` if the checkpoint is of another run.
        """
        what = f"the run in {self.directory.path}"
        found = self.directory.latest(lambda checkpoint: _kept(what, checkpoint, run)) if self.resumes else None
        if found is None:
            self._first = taken(*run.next_step())
            return None
        facts = found.facts
        require_same_step(what, 0, facts["first"], *run.next_step())
        self._first = facts["first"]
        vars(run).update(vars(found.run))
        if facts["next"]:
            require_same_step(what, run.done, facts["next"], *run.next_step())
        logger.info("resumed after step %d of %d", run.done, run.num_steps)
        return found.pace


def _kept(what: str, checkpoint: Checkpoint, run: Run) -> _Kept | None:
    """None for what a method keeps by itself.

    Raises `Unusable` for what `Keeper.save` has not written, and `ValueError` for what it has of another run.
    """
    facts, then = checkpoint.facts, copy(run)
    require_kinds(facts, {"asked": dict})
    require_same_method(what, facts["asked"], run.asked)
    if OWN in facts:
        return None
    require_kinds(facts, _KINDS)
    require_kinds(facts["asked"], dict.fromkeys(run.asked, object))
    for step in (facts["first"], *filter(None, [facts["next"]])):
        require_kinds(step, {"loss": float | int | None, "lengths": list})
    state, direction = checkpoint.arrays[: facts["arrays"]], checkpoint.arrays[facts["arrays"] :]
    then.state = from_arrays(run.state, state)
    require_same(what, facts["asked"], run.asked)
    if not 0 <= checkpoint.done <= run.num_steps:
        raise Unusable(f"one of {checkpoint.done:,} steps, of which there are {run.num_steps:,}")
    try:
        pace = pace_from(facts["pace"])
        built(type(pace), vars(pace))
        require_kinds(facts["sensitivity"], dict.fromkeys(("growth", "error", "rounding"), float | int))
        if direction:
            direction = from_arrays(eqx.filter(run.state, eqx.is_inexact_array), direction)
        then.sensitivity = Sensitivity(direction or None, **facts["sensitivity"])
        then.cost = Cost(Counter(dict(facts["depth_by_lanes"])), facts["work"])
        then.windows = [built(WindowReport, each) for each in facts["windows"]]
        then.hierarchy = Hierarchy(tuple(built(Level, each) for each in facts["levels"])) if facts["levels"] else None
    except Unusable:
        raise
    except Exception as error:  # whatever is wrong with what somebody else has written
        raise Unusable(f"not what gritax.train keeps, {type(error).__name__}: {error}") from error
    then.done, then.restarts, then.coarse_steps = checkpoint.done, facts["restarts"], facts["coarse_steps"]
    then.travelled, then.size = facts["travelled"], facts["size"]
    then.is_finite, then.lanes = facts["is_finite"], facts["lanes"]
    return _Kept(then, pace, facts)
