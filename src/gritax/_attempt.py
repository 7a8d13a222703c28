"""One attempt at a solve: iterates from one initial guess with one set of levels, each measured and reported once."""

import logging
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from ._adaptation import Adaptation
from ._continuity import jumps, rounds
from ._convergence import DEFAULT_TOLERANCE, Monitor, Verdict
from ._cycle import Cycle
from ._diagnosis import diagnose
from ._evolution import Evolution
from ._hierarchy import Hierarchy, Multigrid
from ._keeping import Iterate, Keep
from ._layout import local, replicated
from ._norms import Norms, measure
from ._points import Points, arrived
from ._profile import Recording
from ._solution import Iteration, Solution
from ._warning import warn


logger = logging.getLogger("gritax")

_DISCONTINUOUS = (
    "the training step jumps as the state changes, so no coarse step follows it closely: a discontinuous gradient (ReLU, |x|, "
    "max-pooling), the sign of a gradient, or Adam's quotient of two moments that are nearly zero. Use GELU, SiLU, tanh or "
    "softplus for ReLU, a smooth pooling, an optimizer without signs, a larger eps in Adam; or take the approximate weights of "
    "a few iterations, with throw=False and max_iterations=3, say"
)


class Progress:
    """Told of a solve as it runs; does nothing. Subclass it to show something."""

    def begin(self, hierarchy: Hierarchy) -> None:
        """The levels are known, nothing has been computed."""

    def iteration(self, iteration: Iteration) -> None:
        """An iterate has been measured; the first is the initial guess."""

    def restart(self, reason: str) -> None:
        """The iterates so far are given up for finer coarse steps; `begin` follows."""

    def window(self, first: int, num_steps: int, kind: str, reason: str) -> None:
        """Of `gritax.train`: the next steps are taken, `"parallel"` or `"serial"`; `begin` follows if it is the former."""

    def front(self, taken: int, num_steps: int, in_flight: int, sweeps: int, seconds: float) -> None:
        """Of `gritax.Newton`: so many of the steps are final, and so many in flight, after some more sweeps."""

    def end(self, solution: Solution) -> None:
        """The solve is over, converged or not."""


@dataclass(frozen=True)
class Bounds:
    """What the solve of a window is held to.

    - `depth`: evaluations in sequence that it may take; beyond them, and where it is not to end before as many steps taken one
      after the other, it is given up.
    - `step_seconds`: the same in time, for steps that take so long one after the other.
    - `aim`: of relative residuals, without a tolerance of the caller's.
    - `origin`: the state from which distances are measured, if it is not the first of the window.
    """

    depth: float = math.inf
    step_seconds: float = math.inf
    aim: float = DEFAULT_TOLERANCE
    origin: PyTree[Array] | None = None


class Attempt:
    """The iterates of one attempt, with the cost of all attempts so far."""

    def __init__(
        self,
        evolution: Evolution,
        hierarchy: Hierarchy,
        method: Multigrid,
        adaptation: Adaptation,
        monitor: Monitor,
        progress: Progress,
        bounds: Bounds,
        began: float,
        keep: Keep | None = None,
        profile: Recording | None = None,
    ):
        self.cycle = Cycle(evolution, hierarchy, method, adaptation.cost)
        self.adaptation, self.monitor, self.progress, self.bounds, self.began = adaptation, monitor, progress, bounds, began
        self.reports: list[Iteration] = []
        self.norms: list[Norms] = []
        self.keep, self.shown_before, self.profile = keep, len(adaptation.events), profile
        self.relaxed = math.nan
        self.discontinuous: bool | None = None

    def run(
        self, u0: PyTree[Array], clock: PyTree[Array], c: Points, final: PyTree[Array]
    ) -> tuple[Points, Points, PyTree[Array], Verdict]:
        """(C-points, arrivals, final state, why it ended).

        From the initial state, the C-points of the initial guess or of an iterate taken up, and the final state before.
        """
        cycle, skip = self.cycle, self.cycle.method.skip_first_down and len(self.cycle.hierarchy) > 1
        origin = u0 if self.bounds.origin is None else replicated(self.bounds.origin, cycle.mesh)
        finest = cycle.hierarchy[0]
        spent = last = cycle.cost.depth
        while True:
            # One sweep gives the residual of this iterate, its final state, and the first arrivals of the next iteration.
            before = final
            c, e, final = cycle.relax_finest(c, arrived(finest, c), 1)
            if self.profile is not None:
                self.profile.take(len(self.reports), finest, c, e)
            norms = Norms(*np.asarray(measure(finest, cycle.evolution, c, e, final, before, origin)).tolist())
            spent, last = cycle.cost.depth, spent
            ended = self._report(norms, cycle.exact_steps, time.perf_counter() - self.began)
            verdict = ended or self._examined(c) or self._given_up(spent, spent - last)
            if verdict is not None:
                if self.profile is not None and not verdict.restart:
                    self.profile.time(cycle, c)
                # The residual is that of `c`: with their own values for arrivals, C-points stay.
                return c, e, final, self._explained(verdict, u0, clock, final)
            if skip and len(self.reports) == 1:
                c = cycle.ascend(cycle.evolution.stored(u0), cycle.method.cycle)
            else:
                c, self.relaxed = cycle.iterate(c, e)
            if len(self.reports) == 1:
                self.adaptation.to_iterate(cycle, c, 1)
            if self.keep is not None:
                self.keep.save(finest, cycle.evolution, c, final, self.adaptation.events, self._facts())

    def _facts(self) -> dict[str, Any]:
        """What is known of the iterate that has been computed, and not measured yet."""
        return {
            "number": len(self.reports),
            "shown_before": self.shown_before,
            "norms": [asdict(each) for each in self.norms],
            "relaxed": [*(each.relaxed_residual for each in self.reports), float(self.relaxed)],
            "exact_steps": [each.exact_steps for each in self.reports],
            "seconds": [each.seconds for each in self.reports],
            "front": self.cycle.front,
            "depth_by_lanes": list(self.cycle.cost.by_lanes.items()),
            "depth_by_level": list(self.cycle.cost.by_level.items()),
            "work": self.cycle.cost.work,
        }

    def take_up(self, iterate: Iterate) -> None:
        """Goes on from there, as if it had not been interrupted."""
        facts = iterate.facts
        for event in iterate.events[facts["shown_before"] :]:
            self.adaptation.show(self.cycle, event)
        *relaxed, last = facts["relaxed"]
        for self.relaxed, norms, *others in zip(relaxed, facts["norms"], facts["exact_steps"], facts["seconds"], strict=True):
            self._report(Norms(**norms), *others)
        self.relaxed = last
        self.began -= facts["seconds"][-1]
        self.cycle.front = facts["front"]
        self.cycle.cost.by_lanes = Counter(dict(facts["depth_by_lanes"]))
        self.cycle.cost.by_level = Counter(dict(facts["depth_by_level"]))
        self.cycle.cost.work = facts["work"]

    def _report(self, norms: Norms, exact_steps: int, seconds: float) -> Verdict | None:
        number = len(self.reports)
        before = self.reports[-1].residual if number else math.nan
        iteration = Iteration(
            number=number,
            residual=norms.residual,
            relaxed_residual=float(self.relaxed),
            relative_residual=norms.relative,
            factor=norms.residual / before if before else math.nan,
            exact_steps=exact_steps,
            seconds=seconds,
        )
        self.norms.append(norms)
        self.reports.append(iteration)
        self.progress.iteration(iteration)
        logger.info("iteration %d: residual %.3e, relative %.3e", number, norms.residual, norms.relative)
        # Not before the first correction: the norm of an initial guess says nothing of the states to come.
        if number == 1 and (warning := self.monitor.unreachable(norms)):
            warn(warning)
        return self.monitor.verdict(number, norms, exact=exact_steps == self.cycle.hierarchy[0].size)

    def _examined(self, c: Points) -> Verdict | None:
        """Once convergence is slow: because the step jumps, which is told, or because coarse steps are too long."""
        if not self.monitor.slow:
            return None
        if self.discontinuous is None:
            self.discontinuous = jumps(self.cycle, c)
            if self.discontinuous and self.bounds.depth == math.inf:
                warn(f"Slow convergence: {_DISCONTINUOUS}.")
        if self.discontinuous or not self.monitor.can_refine:
            return None
        return Verdict(False, "the residual hardly fell", restart=True)

    def _given_up(self, spent: int, an_iteration: int) -> Verdict | None:
        """If steps are bounded: once taking them one after the other is the shorter way from here."""
        if self.bounds.depth == math.inf:
            return None
        steps, step_seconds = self.cycle.hierarchy[0].size, self.bounds.step_seconds
        left = steps - self.cycle.exact_steps
        budgets: list[tuple[str, float, float, float, float]] = [
            (f"{spent:,} evaluations in sequence", spent, an_iteration, self.bounds.depth, left)
        ]
        if len(seconds := [each.seconds for each in self.reports[2:]]) > 1:  # the first iterations compile
            taken, last = seconds[-1] - seconds[0], seconds[-1] - seconds[-2]
            budgets.append((f"{seconds[-1]:.2g} s", taken, last, steps * step_seconds, left * step_seconds))
        for told, taken, last, allowed, otherwise in budgets:
            if taken + last > allowed or self.monitor.more_iterations * last >= otherwise:
                return Verdict(False, f"given up after {told}: to take the steps one by one is no slower")
        return None

    def _explained(self, verdict: Verdict, u0: PyTree[Array], clock: PyTree[Array], final: PyTree[Array]) -> Verdict:
        if not verdict.converged and self.bounds.depth == math.inf and (cause := rounds(u0, final)):
            return verdict.because(cause)
        if not verdict.undiagnosed or verdict.restart:
            return verdict
        if self.discontinuous:
            return verdict.because(_DISCONTINUOUS[0].upper() + _DISCONTINUOUS[1:])
        if self.bounds.depth < math.inf:  # the steps are then taken otherwise, and need no cure
            return verdict
        try:
            evolution, u0 = local((self.cycle.evolution, u0), self.cycle.mesh)
            return verdict.because(diagnose(evolution, self.cycle.hierarchy, u0, clock))
        except Exception as error:  # whatever phi does on perturbed states, the verdict and the solution must get through
            logger.debug("no diagnosis", exc_info=error)
            return verdict.because("Its cause could not be found")
