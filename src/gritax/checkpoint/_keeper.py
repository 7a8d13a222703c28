"""Checkpoints of a training run, from window to window."""

import logging
from collections import Counter
from dataclasses import asdict
from typing import Any

import equinox as eqx
import jax

from .._cycle import Cost
from .._hierarchy import Hierarchy, Level
from .._pace import Pace, facts as pace_facts, from_facts as pace_from
from .._run import Run
from .._sensitivity import Sensitivity
from .._sharing import is_of_several_processes
from .._solution import WindowReport
from ._arrays import from_arrays, to_arrays
from ._directory import Checkpoint, Directory
from ._same_run import beginning, require_same, require_same_step


logger = logging.getLogger("gritax")


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
        following = beginning(*run.next_step()) if run.left and run.is_finite else {}
        if is_of_several_processes(run.mesh) and jax.process_index() > 0:  # the first has written the same
            return
        found = run.sensitivity
        facts = {
            "asked": run.asked,
            "pace": pace_facts(pace),
            "depth_by_lanes": list(run.cost.by_lanes.items()),
            "work": run.cost.work,
            "windows": [asdict(window) for window in run.windows],
            "restarts": run.restarts,
            "coarse_steps": run.coarse_steps,
            "levels": [asdict(level) for level in run.hierarchy.levels] if run.hierarchy else [],
            "travelled": [run.travelled, run.size],
            "is_finite": run.is_finite,
            "lanes": run.lanes,
            "sensitivity": [found.growth, found.error, found.rounding],
            "next": following,
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
        require_same(f"the run in {self.directory.path}", facts["asked"], run.asked)
        floating = eqx.filter(run.state, eqx.is_inexact_array)
        direction = from_arrays(floating, found.arrays[count:]) if found.arrays[count:] else None
        run.state, run.done = state, found.done
        if facts["next"]:
            now = beginning(*run.next_step())
            require_same_step(f"the run in {self.directory.path}", run.done, facts["next"], now, facts["asked"])
        run.cost = Cost(Counter(dict(facts["depth_by_lanes"])), facts["work"])
        run.windows = [_report(window) for window in facts["windows"]]
        run.restarts, run.coarse_steps = facts["restarts"], facts["coarse_steps"]
        run.hierarchy = Hierarchy(tuple(Level(**level) for level in facts["levels"])) if facts["levels"] else None
        (run.travelled, run.size), run.is_finite, run.lanes = facts["travelled"], facts["is_finite"], facts["lanes"]
        run.sensitivity = Sensitivity(direction, *facts["sensitivity"])
        logger.info("resumed after step %d of %d", run.done, run.num_steps)
        return pace_from(facts["pace"])


def _report(facts: dict[str, Any]) -> WindowReport:
    histories = {name: tuple(facts[name]) for name in ("residuals", "relative_residuals")}
    return WindowReport(**{**facts, **histories})
