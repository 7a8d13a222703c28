"""A long training run, from window to window: solved in parallel, or taken one step after the other."""

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._attempt import Bounds, Progress
from ._cycle import Cost
from ._evolution import Evolution
from ._hierarchy import Hierarchy
from ._kernel import kernel, make_room, most_seconds
from ._norms import norm
from ._sensitivity import Sensitivity
from ._serial import advance
from ._sharing import unshared
from ._solution import Solution, WindowReport
from ._window import Declined, Window, solve_window
from .coarse import CoarseStep
from .training import TrainState, TrainStep


logger = logging.getLogger("gritax")

# Shares of the tolerance are smaller than they might be, by what training usually amplifies the errors of a window.
_SHARE = 0.25
_LEAST_AIM, _ROUNDINGS = 32, 100  # what lower precision may aim at and end with, in units of the rounding of parameters
_ITERATIONS = 50
_WORTH = 0.25
_FIRST, _ENOUGH = 64, 0.1  # steps and seconds of timing
TABLE = 2**16  # steps whose order of examples is tabulated at a time
# Evaluations in sequence that a run may take, windows that were given up included, in units of its steps.
MOST_DEPTH = 1.5


@dataclass
class Run:
    """`num_steps` steps of `step` from `state`, of which the first `done` are taken; `aim` is the error asked for at the end.

    Window for window, `serially` or `in_parallel`, with so many `lanes`, on the devices of `mesh`. `travelled` is the distance
    of the trained parameters from `origin`, once a window has been solved in parallel, and `size` the norm of those that have
    moved; `asked` what a run that is taken up again must have been asked for as well; `tabulated` the step with the order of
    the first examples written down, where that was done.
    """

    step: TrainStep
    state: TrainState
    num_steps: int
    tolerance: float | None
    aim: float
    progress: Progress
    asked: dict[str, Any] = field(default_factory=dict)
    tabulated: TrainStep | None = None
    lanes: int | None = None
    mesh: Mesh | None = None
    done: int = 0
    cost: Cost = field(default_factory=Cost)
    windows: list[WindowReport] = field(default_factory=list)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    hierarchy: Hierarchy | None = None
    coarse_steps: str = ""
    restarts: list[str] = field(default_factory=list)
    travelled: float = 0.0
    size: float = 0.0
    is_finite: bool = True

    def __post_init__(self):
        self.origin = self.state
        self.eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(self._trained(self.state)))
        self.aim = max(self.aim, _LEAST_AIM * self.eps)
        self._from, self._until = 0, min(self.num_steps, TABLE)
        self._tabulated = self.tabulated or self.step.prepared(self._until)

    def take(self, coarse: CoarseStep) -> None:
        """Goes on with this coarse propagator."""
        self.step, self._tabulated = self.step.with_coarse(coarse), self._tabulated.with_coarse(coarse)

    def begin_again(self, reason: str) -> None:
        """From the first step; what it took stays counted."""
        self.state, self.done, self.sensitivity = self.origin, 0, Sensitivity()
        self.windows.clear()
        self.restarts.append(reason)

    def give_up(self, solution: Solution) -> None:
        """What a solve has taken that did not converge stays counted; its steps are still to be taken."""
        self.restarts.append(solution.reason)
        self._spend(Cost(Counter(dict(solution._depth_by_lanes)), solution.work))

    @property
    def left(self) -> int:
        return self.num_steps - self.done

    @property
    def least_error(self) -> float:
        """Of what may be asked for: the aim, or what the precision reaches."""
        return max(self.aim, _ROUNDINGS * self.eps)

    @property
    def error(self) -> float:
        """What errors of windows have become, in units of the distance travelled."""
        return self.sensitivity.error / max(self.travelled, 1e-300)

    @property
    def rounding(self) -> float:
        """The same of rounding."""
        return self.sensitivity.rounding / max(self.travelled, 1e-300)

    @property
    def is_accurate(self) -> bool:
        """Whether errors are as small as asked for; with a tolerance, as what such residuals may add up to unamplified."""
        residuals = 0.0 if self.tolerance is None else self.tolerance * math.sqrt(self.num_steps)
        return self.error <= self.least_error or self.sensitivity.error <= residuals

    @property
    def is_reproducible(self) -> bool:
        """Whether rounding is amplified to no more than is asked for; weights that do not move are known as they are."""
        if self.tolerance is not None:
            return self.sensitivity.rounding <= self.tolerance
        unmoved = self.travelled <= _ROUNDINGS * self.eps * self.size >= self.sensitivity.rounding
        return unmoved or self.rounding <= self.least_error

    def last_chance(self, longest: int) -> bool:
        """Whether it is now or never that training can begin again: at its end, or before a window of up to `longest` steps
        and a stretch after it that could leave too little to spend. Until then what has been amplified may yet shrink.
        """
        spare = MOST_DEPTH * self.num_steps - self.cost.depth - self.num_steps
        return spare >= 0 and (not self.left or spare < 2 * min(longest, self.left))

    @property
    def exact(self) -> bool:
        """Whether the state is that of serial training by construction."""
        return all(window.kind == "serial" or not window.num_steps for window in self.windows)

    def _evolution(self, num_steps: int, state: TrainState) -> Evolution:
        """Of the next `num_steps` steps."""
        if not self._from <= self.done <= self.done + num_steps <= self._until:
            table = max(min(TABLE, self.num_steps), num_steps)
            self._tabulated, self._from = self.step.after(self.done).prepared(table), self.done
            self._until = self.done + table
        return Evolution(self._tabulated.after(self.done - self._from), state)

    def next_step(self) -> tuple[Evolution, PyTree, PyTree]:
        """(evolution, floating leaves, clocks) of the next step."""
        evolution = self._evolution(1, self.state)
        return evolution, *evolution.split(self.state)

    def serially(self, num_steps: int, reason: str) -> None:
        """The next steps, one after the other."""
        self.progress.window(self.done, num_steps, "serial", reason)
        evolution, cost = self._evolution(num_steps, self.state), Cost()
        floating, clock = evolution.split(self.state)
        after, clock_after = advance(evolution, floating, clock, np.int32(num_steps))
        cost.spend(1, num_steps, num_steps)
        if not self.exact:
            self.sensitivity.take(self.sensitivity.serially(evolution, floating, clock, after, num_steps, cost), 0.0, 0.0)
        self._accept(
            evolution.merge(after, clock_after),
            WindowReport(self.done, num_steps, "serial", 0, cost.depth, cost.work, (), (), reason),
            cost,
        )

    def timed(self, most: int) -> tuple[float, float]:
        """(seconds of a training step, of its compilation), from at most `most` of the next steps, one after the other.

        In stretches of growing length, the first of which compiles, until one is long enough to tell.
        """
        steps, taken = min(_FIRST, most // 2), list[tuple[int, float]]()
        while steps and self.is_finite and (len(taken) < 2 or taken[-1][1] < _ENOUGH):
            began = time.perf_counter()
            self.serially(steps, "to measure how long they take")
            taken.append((steps, time.perf_counter() - began))
            steps = min(4 * steps, most - self.done)
        if len(taken) < 2:
            return 0.0, 0.0
        (first, with_compilation), (last, seconds) = taken[0], taken[-1]
        program = jax.tree.structure(self._evolution(1, self.state))
        return seconds / last, most_seconds(program, max(with_compilation - first * seconds / last, 0.0))

    def in_parallel(self, num_steps: int, depth: float, step_seconds: float) -> Window | Declined:
        """The next steps at once, in no more than `depth` evaluations in sequence, nor longer than at `step_seconds` each.

        Of a window that is given up, those steps from its beginning on that have converged are kept.
        """
        evolution = self._evolution(num_steps, self.state)
        floating, clock = evolution.split(self.state)
        origin = evolution.split(self.origin)[0]
        share = num_steps / self.num_steps
        aim = self.aim * (share if num_steps == self.num_steps else _SHARE * share)
        self.progress.window(self.done, num_steps, "parallel", "")
        window = solve_window(
            evolution,
            floating,
            clock,
            num_steps,
            None,
            tolerance=None if self.tolerance is None else self.tolerance * share**0.5,
            max_iterations=_ITERATIONS,
            initial_guess="graded",
            progress=self.progress,
            bounds=Bounds(depth, step_seconds, aim, origin),
            lanes=self.lanes,
            mesh=self.mesh,
        )
        cost = window.adaptation.cost
        if isinstance(window, Declined):
            self._spend(cost)
            logger.info("steps %d to %d: %d evaluations expected", self.done, self.done + num_steps, window.expected)
            return window
        make_room((jax.tree.structure(window.evolution), num_steps))
        self.hierarchy, self.coarse_steps = unshared(window.hierarchy), window.adaptation.coarse_steps
        kind, steps, state, error = "parallel", num_steps, window.state, window.final_error
        if not window.verdict.converged:
            kind = "given up"
            # With a tolerance of the caller's only what is exact by construction is sure to be within it.
            steps, state, error = window.prefix(origin, aim if self.tolerance is None else 0.0)
            if steps < _WORTH * num_steps:  # fewer steps are not worth that the state is no longer serial training's own
                steps, state = 0, self.state
        grown, reports = 1.0, window.reports
        if steps:
            after = evolution.split(state)[0]
            grown = self.sensitivity.coarsely(window.evolution, floating, after, window.hierarchy[-1], steps, cost)
        self._accept(
            state,
            WindowReport(
                self.done,
                steps,
                kind,
                reports[-1].number,
                cost.depth,
                cost.work,
                tuple(each.residual for each in reports),
                tuple(each.relative_residual for each in reports),
                window.verdict.sentence,
            ),
            cost,
        )
        if steps:
            self.sensitivity.take(grown, error * self.travelled, self.eps * self.size)
        return window

    def _accept(self, state: TrainState, report: WindowReport, cost: Cost) -> None:
        """Goes on from this state."""
        self.state, self.done = state, self.done + report.num_steps
        self._spend(cost)
        self.windows.append(report)
        params = self._trained(state)
        self.is_finite = bool(_all_finite(jax.tree.leaves(params)))
        if not self.exact:
            self.size, self.travelled = np.asarray(_lengths(params, self._trained(self.origin))).tolist()
        logger.info("steps %d to %d, %s: %s", report.first, self.done, report.kind, report.reason)

    def _trained(self, state: TrainState) -> PyTree[Array]:
        return eqx.filter(self.step.split(self.step.params(state))[0], eqx.is_inexact_array)

    def _spend(self, cost: Cost) -> None:
        self.cost.by_lanes.update(cost.by_lanes)
        self.cost.work += cost.work


@kernel
def _all_finite(leaves):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


@kernel
def _lengths(params, first):
    """(norm of the parameters that are not the first ones, distance from these)."""
    moved = jax.tree.map(lambda x, y: jnp.where(x != y, x, 0), params, first)
    return jnp.stack([norm(moved), norm(jax.tree.map(jnp.subtract, params, first))])
