"""What phi may choose for itself: tables for the run, coarse steps for the states at hand, finer ones after a failure."""

import logging
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._cycle import Cost, Cycle
from ._evolution import Evolution, Phi, optional
from ._hierarchy import Multigrid
from ._layout import local, replicated
from ._points import Points, states_at


logger = logging.getLogger("gritax")

_POINTS = 8
_FIRST = 64


def prepared(phi: Phi, num_steps: int) -> Phi:
    """phi with what can be computed once for a run: `phi.prepared(num_steps)`, if it has that."""
    prepare = optional(phi, "prepared")
    return phi if prepare is None else prepare(num_steps)


def _proposed(phi: Phi, num_steps: int) -> Multigrid:
    propose = optional(phi, "method")
    return Multigrid() if propose is None else propose(num_steps)


def points_along(num_steps: int, spacing: int = 1) -> np.ndarray:
    """Up to eight steps along a run, multiples of `spacing`: close together at first, where most changes."""
    last = num_steps // spacing
    first = min(-(-_FIRST // spacing), last)
    return np.unique(np.geomspace(first, last, _POINTS).astype(np.int32)) * np.int32(spacing)


@dataclass(frozen=True)
class Shown:
    """phi was shown the `states` (floating leaves and clocks, stacked) of an iterate at the steps `starts`."""

    iteration: int
    starts: np.ndarray
    states: tuple[PyTree[Array], PyTree[Array]]


@dataclass(frozen=True)
class Refined:
    """The solve began again with finer coarse steps."""

    reason: str


Event = Shown | Refined


class Adaptation:
    """The evolution of a solve with coarse steps that suit it, and why they were changed.

    phi may define `adapted(states, starts, num_steps, iteration) -> (phi or None, depth, work)`, with coarse steps for these
    states (stacked) at the steps `starts` if they are to be others, and what it cost to choose them; `finer() -> phi or
    None`, with closer ones; and `describe() -> str`. The states are those of the iterate after `iteration` iterations: the
    initial guess for 0, the initial state alone for None. After the same `events` phi has chosen the same.
    """

    def __init__(self, evolution: Evolution, floating: PyTree, clock: PyTree, num_steps: int, may_restart: bool):
        self.evolution, self.num_steps, self.may_restart = evolution, num_steps, may_restart
        self._state = evolution.merge(floating, clock)
        self.cost = Cost()
        self.restarts: list[str] = []
        self.events: list[Event] = []
        one = jax.tree.map(lambda x: x[None], (floating, clock))
        self._take(self._adapted(evolution, one, np.zeros(1, np.int32), None))

    @property
    def method(self) -> Multigrid:
        """What phi proposes."""
        return _proposed(self.evolution.phi, self.num_steps)

    @property
    def coarse_steps(self) -> str:
        """What phi says of its coarse steps."""
        describe = optional(self.evolution.phi, "describe")
        return "" if describe is None else describe()

    @property
    def can_refine(self) -> bool:
        return self.may_restart and self._finer() is not None

    def to_iterate(self, cycle: Cycle, c: Points, iteration: int) -> bool:
        """Lets phi choose coarse steps along the guess `c`, or after the first iteration, for those to come.

        Whether along the guess they want other levels, hence another guess.
        """
        if optional(self.evolution.phi, "adapted") is None:
            return False
        return self.show(cycle, self._along(cycle, c, iteration))

    def show(self, cycle: Cycle, event: Event) -> bool:
        """`after(event)`, with which `cycle` goes on unless the solve begins again."""
        anew = self.after(event)
        if not anew:
            cycle.evolution = replicated(cycle.evolution.with_phi(self.evolution.phi), cycle.mesh)
        return anew

    def after(self, event: Event) -> bool:
        """Lets phi choose coarse steps; whether the solve begins again with them."""
        self.events.append(event)
        if isinstance(event, Refined):
            return self._take(self._finer(), event.reason)
        better = self._adapted(self.evolution, event.states, event.starts, event.iteration)
        anew = event.iteration == 0 and better is not None and _proposed(better, self.num_steps) != self.method
        self._take(better, "the guess asks for shorter coarse steps" if anew else "")
        return anew

    def _along(self, cycle: Cycle, c: Points, iteration: int) -> Shown:
        spacing = cycle.hierarchy[0].factor
        starts = points_along(self.num_steps, spacing)
        points = starts // spacing
        evolution, found = local((cycle.evolution, states_at(cycle.hierarchy[0], c, points)), cycle.mesh)
        clocks = jax.vmap(evolution.clock)(jnp.asarray(starts))
        return Shown(iteration, starts, (evolution.natural(found), clocks))

    def _adapted(self, evolution, states, starts, iteration) -> Phi | None:
        adapt = optional(evolution.phi, "adapted")
        if adapt is None:
            return None
        phi, depth, work = adapt(evolution.merge(*states), starts, self.num_steps, iteration)
        self.cost.spend(len(starts), depth, work)
        return phi

    def _finer(self) -> Phi | None:
        refine = optional(self.evolution.phi, "finer")
        return None if refine is None else refine()

    def _take(self, phi: Phi | None, reason: str = "") -> bool:
        """Whether there is another phi, with which the solve goes on."""
        if phi is None:
            return False
        self.evolution = Evolution(phi, self._state)
        if reason:
            self.restarts.append(f"{reason}: {self.coarse_steps}")
            logger.info("started again: %s", self.restarts[-1])
        return True
