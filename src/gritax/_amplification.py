"""The growth of a small change along an evolution: where rounding is amplified, a small residual says nothing of the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._continuity import rounds
from ._convergence import DEFAULT_TOLERANCE, Verdict, least_precise
from ._correction import keep_exact
from ._cycle import Cycle
from ._evolution import Evolution
from ._kernel import kernel
from ._layout import local, replicated
from ._norms import norm
from ._points import arrived, states_at
from ._serial import advance
from ._twins import change_first, lengths, small_change
from ._warning import warn
from ._window import Window


# A change that oscillates is small for a moment: its length at a point is the largest at so many points on either side.
_ENVELOPE = 4
ROUNDINGS_TOLD = 100.0  # what may be asked for in lower precision
_SMALL = 0.1  # of the distance travelled: a change beyond it seems to grow little


@dataclass(frozen=True)
class Amplification:
    """`growth` of a small change to the end of the run, and `rounding`, grown as much, in units of the distance travelled.

    `eps` is the rounding of the parameters. `stayed_small` says that the change did; otherwise `growth` is no bound.
    """

    growth: float
    rounding: float
    eps: float
    stayed_small: bool = True

    @property
    def least_error(self) -> float:
        """What may be asked for in this precision."""
        return max(DEFAULT_TOLERANCE, ROUNDINGS_TOLD * self.eps)


def judged(verdict: Verdict, found: Amplification, serially: Callable[[], "Serial"]) -> tuple[Verdict, Amplification]:
    """(the verdict of a solve, unless amplified rounding has spoilt what it says has converged; the amplification).

    Coarse corrections may grow where the evolution does not, and a change that has become large no longer grows. So where
    rounding seems to grow beyond what is asked for, or the figure is no bound, `serially` has to tell. Warns if it does.
    """
    if not verdict.converged or (found.stayed_small and found.rounding <= found.least_error):
        return verdict, found
    truth = serially()
    found = truth.amplification
    sentence = (
        f"the evolution amplifies a small change of its state {found.growth:.2g}-fold, and so rounding to {found.rounding:.1g} "
        "of the distance travelled"
    )
    cure = f"Lower the learning rate{', use float64' * (found.eps > 1e-12)} or take fewer steps"
    if truth.apart > found.least_error:
        return Verdict(
            False,
            f"not converged: {sentence} or more. The final state is {truth.apart:.2g} of that distance from the one that steps "
            f"taken one after the other end in here, and on another machine these would end elsewhere too. {cure}",
        ), found
    if found.rounding > found.least_error:
        warn(f"{sentence}: on another machine, serial steps would agree with the final state no better than that. {cure}.")
    return verdict, found


@dataclass(frozen=True)
class Serial:
    """How far, in units of the distance travelled, serial steps end from a state; and how they amplify a small change."""

    apart: float
    amplification: Amplification


def judged_window(window: Window) -> tuple[Verdict, Amplification | None]:
    """The same of a window of multigrid; no amplification if it has not converged."""
    if not window.verdict.converged:
        return window.verdict, None
    evolution, finest = window.evolution, window.hierarchy[0]

    def first():
        return evolution.natural(local(states_at(finest, window.c, np.int32(0)), window.mesh))

    def serially():
        return serial_twins(evolution, first(), evolution.clock(jnp.int32(0)), finest.size, window.final)

    found = amplification(window)
    is_narrow = any(jnp.finfo(leaf.dtype).bits < 32 for leaf in jax.tree.leaves(window.final))
    if is_narrow and rounds(first(), window.final):
        # A change far above rounding does not show how often rounding turns the last of few digits.
        found = replace(found, stayed_small=False)
    return judged(window.verdict, found, serially)


def serial_twins(
    evolution: Evolution, first: PyTree[Array], clock: PyTree[Array], num_steps: int, last: PyTree[Array]
) -> Serial:
    """Serial steps from `first`, and from a state that is changed a little, beside the state `last` of a solve."""
    changed = _changed(evolution, first, last)
    final, after = advance(evolution, first, clock, np.int32(num_steps))
    twin, _ = advance(evolution, changed, clock, np.int32(num_steps))
    params = lambda state, clock: evolution.solved_for(state, clock)
    apart = lambda x, y: float(norm(jax.tree.map(jnp.subtract, x, y)))
    end, begin = params(final, after), params(first, clock)
    grown, change, travelled = apart(params(twin, after), end), apart(params(changed, clock), begin), apart(end, begin)
    eps = float(jnp.finfo(least_precise(begin)).eps)
    growth, size = grown / change if change > 0 else 0.0, float(norm(begin)) or float(norm(end))
    share = lambda x: x / travelled if math.isfinite(x) and travelled > 0 else math.inf if x else 0.0
    return Serial(share(apart(params(last, after), end)), Amplification(growth, share(growth * eps * size), eps))


@kernel
def _changed(evolution: Evolution, first: PyTree[Array], last: PyTree[Array]) -> PyTree[Array]:
    stored = evolution.stored(first)
    return evolution.natural(jax.tree.map(jnp.add, stored, small_change(evolution, stored, evolution.stored(last))))


def amplification(window: Window) -> Amplification:
    """Measures it, by one more correction of the iterate and of a twin whose state after the first interval is changed.

    The correction carries the change along all levels, about the states that were solved for (Benettin and others 1980,
    Meccanica 15, 9). Rounding enters everywhere, so of all C-points the one from which the change grows most decides. These
    two corrections, without relaxation of the finest level, are not in the cost of the solve.
    """
    finest, evolution = window.hierarchy[0], replicated(window.evolution, window.mesh)
    cycle = Cycle(evolution, window.hierarchy, window.method)
    c, e = window.c, window.e
    if len(window.hierarchy) == 1:
        twin, arrivals, _ = cycle.relax_finest(first := change_first(finest, evolution, c, c), arrived(finest, first), 1)
        plain, twin = (keep_exact(finest, x, x, y, np.int32(1)) for x, y in ((c, e), (twin, arrivals)))
    else:
        changed = change_first(finest, evolution, c, e)
        plain, twin = (cycle.correct(finest, c, each, 1, window.method.cycle) for each in (e, changed))
    along, sizes, travelled = map(np.asarray, lengths(finest, evolution, plain, twin))
    eps = float(jnp.finfo(least_precise(evolution.solved_for(window.final, window.last_clock))).eps)
    begun = np.flatnonzero(along)[:1]  # the change begins at the first C-point, or at the second
    if not begun.size:
        return Amplification(0.0, 0.0, eps)
    along, sizes = along[begun[0] :], sizes[begun[0] :]
    width = min(_ENVELOPE, len(along) // 8)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(along, width), 2 * width + 1).max(axis=1)
    # A change that has shrunk to nothing begins again with the next rounding.
    around = np.maximum(around, np.maximum(eps * sizes / 4, np.finfo(float).tiny))
    grown = float(along[-1 - width :].max()) / around
    moves = float(travelled) > ROUNDINGS_TOLD * eps * float(sizes[-1])
    rounding = float((grown * sizes).max()) * eps / float(travelled) if moves else 0.0
    return Amplification(float(grown.max()), rounding, eps, not moves or float(along.max()) <= _SMALL * float(travelled))
