"""The multigrid solve of a window: all steps of a run, or some of a longer one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._adaptation import Adaptation, Refined
from ._attempt import Attempt, Bounds, Progress
from ._clocks import tabulate
from ._compilation import compile_ahead
from ._convergence import Monitor, Verdict, least_precise
from ._cycle import Cost
from ._evolution import Evolution, optional
from ._expected import expected_depth
from ._guess import InitialGuess, first_guess
from ._hierarchy import Hierarchy, Multigrid
from ._keeping import Keep
from ._layout import local, replicated
from ._norms import converged_until
from ._points import Points, collected, states_at
from ._profile import Recording
from ._sharing import shared
from ._solution import Iteration


_ITERATIONS = 8  # of a phi that does not say how many it usually takes
# C-points that a window may have, each with the copies that a solve holds.
_MEMORY, _COPIES, _INTERVAL = 2**31, 20, 4


def most_steps(floating: PyTree[Array]) -> int:
    """Of a window of such states, for its C-points to fit into 2 GiB."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(floating))
    return max(_MEMORY // (_COPIES * size), 1) * _INTERVAL


@dataclass
class Window:
    """What is known of a window's steps once its solve has ended, and how it got there.

    `c`, `e` are C-points and arrivals, shared between the devices of `mesh`; everything else is here. `final_error` is an
    estimate of that of the final parameters, as a relative residual.
    """

    evolution: Evolution
    hierarchy: Hierarchy
    adaptation: Adaptation
    verdict: Verdict
    reports: list[Iteration]
    c: Points
    e: Points
    final: PyTree[Array]
    last_clock: PyTree[Array]
    exact_steps: int
    final_error: float
    method: Multigrid
    mesh: Mesh | None = None

    @property
    def cost(self) -> Cost:
        return self.adaptation.cost

    @property
    def state(self) -> PyTree:
        """After the last step."""
        return self.evolution.merge(self.final, self.last_clock)

    def prefix(self, origin: PyTree[Array], aim: float) -> tuple[int, PyTree, float]:
        """(steps from the first on whose mismatches add up to no more than `aim`, the state after them, what they add up to).

        In units of the distance from `origin`.
        """
        finest, (evolution, origin) = self.hierarchy[0], replicated((self.evolution, origin), self.mesh)
        count, error = map(np.asarray, converged_until(finest, evolution, self.c, self.e, origin, np.float32(aim)))
        count = max(int(count), self.exact_steps // finest.factor)
        floating = self.evolution.natural(local(states_at(finest, self.c, np.int32(count)), self.mesh))
        steps = count * finest.factor
        return steps, self.evolution.merge(floating, self.evolution.clock(jnp.int32(steps))), float(error)

    def collected(self) -> Points:
        """All C-points, here."""
        return self.collecting()()

    def collecting(self) -> Callable[[], Points]:
        """What collects them, without the rest of the window."""
        finest, c, mesh = self.hierarchy[0], self.c, self.mesh
        return lambda: local(collected(finest, c), mesh)


@dataclass(frozen=True)
class Declined:
    """A window that was not solved: it would have taken more evaluations in sequence than it may."""

    adaptation: Adaptation
    expected: int


def solve_window(
    evolution: Evolution,
    floating: PyTree[Array],
    clock: PyTree[Array],
    num_steps: int,
    method: Multigrid | None,
    *,
    tolerance: float | None,
    max_iterations: int,
    initial_guess: InitialGuess,
    progress: Progress,
    bounds: Bounds,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    began: float | None = None,
    keep: Keep | None = None,
    profile: Recording | None = None,
) -> Window | Declined:
    """Attempts at the steps of `evolution` from this state, until one ends that is not to be started again.

    `lanes` stands for that of the method. Only what an iteration computes is on the devices of `mesh`. `keep` gets the
    iterates; the newest of an earlier call is where this one begins. `profile` gets the residuals of each along the run.
    """
    began = time.perf_counter() if began is None else began
    adaptation = Adaptation(evolution, floating, clock, num_steps, may_restart=tolerance != 0)
    kept = None if keep is None else keep.latest
    for event in kept.events[: kept.facts["shown_before"]] if kept else ():
        adaptation.after(event)
    while True:
        chosen = adaptation.method if method is None else method
        chosen = chosen if lanes is None else replace(chosen, lanes=lanes)
        hierarchy = shared(chosen.hierarchy(num_steps), mesh, adaptation.evolution.phi)
        if (expected := adaptation.cost.depth + _expected(adaptation.evolution, hierarchy)) > bounds.depth:
            return Declined(adaptation, expected)
        progress.begin(hierarchy)
        evolution, last_clock = tabulate(adaptation.evolution, floating, clock, hierarchy[0])
        attempt = Attempt(
            replicated(evolution, mesh),
            hierarchy,
            chosen,
            adaptation,
            Monitor(
                tolerance,
                max_iterations,
                least_precise(evolution.solved_for(floating, clock)),
                adaptation.can_refine,
                bounds.aim,
            ),
            progress,
            bounds,
            began,
            keep,
            profile,
        )
        u0 = replicated(floating, mesh)
        compile_ahead(attempt.cycle, u0)
        if keep and kept:
            attempt.take_up(kept)
            (c, before), kept = keep.points(kept, hierarchy[0], attempt.cycle.evolution), None
        else:
            c, before = first_guess(attempt.cycle, u0, initial_guess), u0
            if initial_guess == "graded" and adaptation.to_iterate(attempt.cycle, c, 0):
                progress.restart(adaptation.restarts[-1])
                continue
        c, e, final, verdict = attempt.run(u0, clock, c, before)
        if verdict.restart:
            adaptation.after(Refined(verdict.sentence))
            progress.restart(adaptation.restarts[-1])
            continue
        cycle = attempt.cycle
        return Window(
            local(cycle.evolution, mesh),
            hierarchy,
            adaptation,
            verdict,
            attempt.reports,
            c,
            e,
            local(final, mesh),
            last_clock,
            cycle.exact_steps,
            attempt.monitor.final_error,
            chosen,
            mesh,
        )


def _expected(evolution: Evolution, hierarchy: Hierarchy) -> int:
    depth, usual = optional(evolution.phi, "depth"), optional(evolution.phi, "usual_iterations")
    return expected_depth(hierarchy, depth or (lambda stride: 1), usual() if usual else _ITERATIONS)
