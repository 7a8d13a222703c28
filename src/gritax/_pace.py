"""How a run goes on: how long its windows are, and which steps are taken one after the other."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from ._run import MOST_DEPTH, TABLE, Run
from ._window import Declined


_GAIN = 0.9
_SHORTEST, _SHORTEST_WINDOW = 64, 128
_LEAST = math.ceil(_SHORTEST / _GAIN)  # of which enough may be spent
_FEW, _MANY = 6, 10
_SECONDS, _MOST_GROWTH = 2.0, 8


class Pace(Protocol):
    """Takes the next steps of a run, and says how it is to go on. Its fields are what a checkpoint keeps of it."""

    longest: int

    def advance(self, run: Run) -> "Pace": ...


@dataclass
class OneByOne:
    """All steps one after the other, in stretches of about two seconds, between which the state can be kept."""

    reason: str
    longest: int
    stretch: int = _SHORTEST

    def advance(self, run: Run) -> Pace:
        began = time.perf_counter()
        run.serially(min(self.stretch, run.left), self.reason)
        growth = min(_SECONDS / (time.perf_counter() - began), _MOST_GROWTH)
        self.stretch = min(max(int(growth * self.stretch), 1), self.longest)
        return self


@dataclass
class InWindows:
    """Windows of at most `longest` steps that are to take fewer evaluations in sequence than they have steps.

    A window that does not converge is followed by one a quarter as long, and one of which no gain is expected by steps one
    after the other, twice as many every time. What this takes is bounded: 1.5 evaluations for every step of the run. With
    `step_seconds` windows must also take less time than their steps; two that do not are the last. `coarse` names the
    propagator that a plan has chosen for `"auto"`.
    """

    longest: int
    window: int = 0
    stretch: int = _SHORTEST
    step_seconds: float = math.inf
    coarse: str = ""
    slower: int = 0

    def advance(self, run: Run) -> Pace:
        spare = MOST_DEPTH * run.num_steps - run.cost.depth - run.left
        began, steps = time.perf_counter(), min(self.window or self.longest, run.left)
        allowed = min(_GAIN * steps, spare)
        if allowed < _SHORTEST:
            reason = "too few steps are left for windows, or too little to spare for one that fails"
            if _GAIN * self.longest < _SHORTEST <= _GAIN * run.left:
                reason = f"windows of {self.longest} steps are too short to gain anything: give at least {_LEAST}"
            return OneByOne(reason, TABLE)
        found = run.in_parallel(steps, allowed, self.step_seconds)
        if isinstance(found, Declined):
            self._stretch(run, f"at the curvature here {steps:,} steps at once would take {found.expected:,} in sequence")
            return self
        if found.verdict.converged:
            iterations = found.reports[-1].number
            self.stretch = _SHORTEST
            self.window = 2 * steps if iterations <= _FEW else steps
            if iterations > _MANY:
                self.window = max(steps // 2, _SHORTEST_WINDOW)
        else:
            self.window = max(steps // 4, _SHORTEST_WINDOW)
            if run.left and run.windows[-1].num_steps < _SHORTEST:
                self._stretch(run, "the window from here did not converge")
        self.window = min(self.window, self.longest)
        self.slower = self.slower + 1 if time.perf_counter() - began > steps * self.step_seconds else 0
        return OneByOne("windows took longer than their steps", TABLE) if self.slower == 2 else self

    def _stretch(self, run: Run, reason: str) -> None:
        run.serially(min(self.stretch, run.left), reason)
        self.stretch = min(2 * self.stretch, self.longest)


_KINDS = {kind.__name__: kind for kind in (OneByOne, InWindows)}


def facts(pace: Pace) -> dict[str, Any]:
    """What a checkpoint keeps."""
    return {"kind": type(pace).__name__, **vars(pace)}


def from_facts(facts: dict[str, Any]) -> Pace:
    return _KINDS[facts["kind"]](**{name: value for name, value in facts.items() if name != "kind"})
