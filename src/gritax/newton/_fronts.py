"""A run of sweeps on disk: all that is in flight from a front on, so that it goes on as if it had never been interrupted."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from .._evolution import Evolution
from .._method import Task
from .._sharing import wait_for_all, writes
from ..checkpoint import (
    OWN,
    Checkpoint,
    Directory,
    Unusable,
    from_arrays,
    require_kinds,
    require_same,
    require_same_method,
    require_same_step,
    taken,
    to_arrays,
)
from ._chain import chain_of
from ._flight import Flight
from ._saving import Saved


logger = logging.getLogger("gritax")

# A checkpoint is written after so many seconds, and as many times those that the last one took to write.
_SECONDS, _SHARE = 2.0, 10


class Reached(NamedTuple):
    """How far a run has got: what is in flight, the states `saved` that are asked for, and the seconds that it took.

    `history` has a row for each sweep so far; the last rows may be in the flight only: see `recorded`.
    """

    flight: Flight
    saved: Saved | None
    history: np.ndarray
    seconds: float

    @property
    def taken(self) -> int:
        return int(self.flight.front.taken)

    @property
    def finite(self) -> bool:
        return bool(self.flight.finite)

    @classmethod
    def nothing(cls, flight: Flight, saved: Saved | None) -> "Reached":
        return cls(flight, saved, np.asarray(flight.tally.history[:0]), 0.0)

    def recorded(self) -> "Reached":
        """With a row for each sweep of the flight, which itself has those of one call."""
        rows, sweeps = np.asarray(self.flight.tally.history), int(self.flight.tally.sweeps)
        new = rows[np.arange(len(self.history), sweeps) % len(rows)]
        return self._replace(history=np.concatenate([self.history, new]))


class Fronts:
    """Keeps a run in a directory, and takes it up again; with `with`, which lets nobody else write there.

    `asked` is what makes it that run, beside its first step and the one that it goes on with. Of the processes of a mesh the
    first one writes, and the others read.
    """

    def __init__(self, directory: Directory, resume: bool, asked: dict[str, Any], task: Task, mesh: Mesh | None = None):
        self._mesh = mesh
        self._writes = writes(mesh)
        self._directory, self._resume, self._asked, self._task = directory, resume, asked, task
        self._what, self._first, self._held = f"the run in {directory.path}", dict[str, Any](), ExitStack()
        self._due = time.perf_counter() + _SECONDS

    def __enter__(self) -> "Fronts":
        """Raises `ValueError` where somebody else writes, or where an earlier run was kept that is not to be resumed."""
        with ExitStack() as held:
            if self._writes:
                held.enter_context(self._directory.lock)
            self._directory.require(self._resume)
            self._held = held.pop_all()
        # What the first one has written in an earlier call is there before another reads.
        wait_for_all(self._mesh)
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def latest(self, begun: Callable[[int], Reached]) -> Reached | None:
        """Where the newest checkpoint has the run; None without one. `begun(capacity)` is one with so many places.

        Raises `ValueError` if the checkpoint is of another run.
        """
        found = self._directory.latest(lambda checkpoint: self._kept(checkpoint, begun)) if self._resume else None
        if found is None:
            self._first = taken(*self._step)
            return None
        reached, facts = found
        require_same_step(self._what, 0, facts["first"], *self._step)
        self._first = facts["first"]
        if facts["next"]:
            require_same_step(self._what, reached.taken, facts["next"], *self._next(reached))
        logger.info("resumed after step %d of %d", reached.taken, self._task.num_steps)
        return reached

    def save(self, reached: Reached, at_once: bool = True) -> None:
        """Keeps it, if it is time for that or to be done `at_once`."""
        began = time.perf_counter()
        if not self._writes or (not at_once and began < self._due):
            return
        reached = reached.recorded()
        goes_on = reached.finite and reached.taken < self._task.num_steps
        facts = {
            "asked": self._asked,
            "first": self._first,
            "next": taken(*self._next(reached)) if goes_on else {},
            OWN: {"capacity": len(reached.flight.rows.x), "seconds": reached.seconds},
        }
        self._directory.save(Checkpoint(reached.taken, facts, [reached.history, *to_arrays(reached[:2])]))
        now = time.perf_counter()
        self._due = now + max(_SECONDS, _SHARE * (now - began))

    def interrupted(self, reached: Reached) -> None:
        """Keeps what is there; what was given away to a program that was not started is not, and the last one stands."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(reached[:2])):
            self.save(reached)
            logger.warning(
                "interrupted after step %d of %d; %s has what was reached: go on with resume=True",
                reached.taken,
                self._task.num_steps,
                self._directory.path,
            )

    @property
    def _step(self) -> tuple[Evolution, PyTree[Array], PyTree[Array]]:
        return self._task.evolution, self._task.floating, self._task.clock

    def _next(self, reached: Reached) -> tuple[Evolution, PyTree[Array], PyTree[Array], int]:
        """(evolution, floating leaves, clocks, number) of the step at the front."""
        evolution, flight = self._task.evolution, reached.flight
        return evolution, *evolution.split(chain_of(*self._step).state(flight.rows.x[0], flight.front.memory)), reached.taken

    def _kept(self, checkpoint: Checkpoint, begun: Callable[[int], Reached]) -> tuple[Reached, dict[str, Any]]:
        """Raises `Unusable` for what `save` has not written, and `ValueError` for what it has of another run."""
        facts = checkpoint.facts
        require_kinds(facts, {"asked": dict})
        require_same_method(self._what, facts["asked"], self._asked)
        if OWN not in facts:
            raise ValueError(
                f"resume: {self._what} takes one step after the other by now, as gritax.train does: give it to that, or start "
                "again in another directory."
            )
        require_same(self._what, facts["asked"], self._asked)
        require_kinds(facts, {"first": dict, "next": dict, OWN: dict})
        for step in (facts["first"], *filter(None, [facts["next"]])):
            require_kinds(step, {"loss": float | int | None, "lengths": list})
        require_kinds(facts[OWN], {"capacity": int, "seconds": float | int})
        try:
            history, *arrays = checkpoint.arrays
            flight, saved = from_arrays(begun(facts[OWN]["capacity"])[:2], arrays)
            reached = Reached(flight, saved, history, facts[OWN]["seconds"])
        except ValueError as error:
            raise Unusable("of steps in flight as another version of gritax has them") from error
        if (reached.taken, int(reached.flight.tally.sweeps)) != (checkpoint.done, len(history)):
            raise Unusable(f"one of {checkpoint.done:,} steps and {len(history):,} sweeps, with others in flight")
        return reached, facts
