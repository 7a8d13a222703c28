"""The growth of a small change along an evolution: where rounding is amplified, a small residual says nothing of the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._convergence import DEFAULT_TOLERANCE, Verdict, least_precise
from ._correction import keep_exact
from ._cycle import Cycle
from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._layout import local, replicated
from ._norms import norm
from ._points import Points, arrived, states_at
from ._sensitivity import irregular
from ._serial import advance
from ._warning import warn
from ._window import Window


# The change is far above rounding. Where rounding is amplified to a ten-thousandth of the distance travelled, the change is as
# large as a tenth of it: no longer small, so that it grows less than rounding does, and the figure is no bound.
_ROUNDINGS = 2**10
_TOO_LARGE = 1e-4
# So it is measured as well: a change that fills the state within a few points seems to grow little from there.
_SMALL = 0.1  # of the distance travelled
# A change that oscillates is small for a moment: its length at a point is the largest at so many points on either side.
_ENVELOPE = 4
_LEAST = 100.0  # roundings


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
    def is_bound(self) -> bool:
        return self.stayed_small and self.rounding <= _TOO_LARGE

    @property
    def least_error(self) -> float:
        """What may be asked for in this precision."""
        return max(DEFAULT_TOLERANCE, _LEAST * self.eps)


def judged(verdict: Verdict, found: Amplification, error: Callable[[], float]) -> Verdict:
    """The verdict of a solve, unless amplified rounding has spoilt what it says has converged.

    Warns where rounding grows beyond what is asked for. Where the figure is no bound any more, `error` has to tell how far the
    final state is from that of serial steps, in units of the distance travelled.
    """
    reproducible = found.rounding <= found.least_error
    if not verdict.converged or (reproducible and found.is_bound):
        return verdict
    sentence = (
        f"the evolution amplifies a small change of its state {found.growth:.2g}-fold, and so rounding to {found.rounding:.1g} "
        "of the distance travelled"
    )
    cure = f"Lower the learning rate{', use float64' * (found.eps > 1e-12)} or take fewer steps"
    if not found.is_bound and (apart := error()) > found.least_error:
        return Verdict(
            False,
            f"not converged: {sentence} or more. The final state is {apart:.2g} of that distance from the one that steps taken "
            f"one after the other end in here, and on another machine these would end elsewhere too. {cure}",
        )
    if reproducible:
        return verdict
    warn(f"{sentence}: on another machine, serial steps would agree with the final state no better than that. {cure}.")
    return verdict


def judged_window(window: Window) -> tuple[Verdict, Amplification | None]:
    """(the verdict on a window of multigrid, the amplification if it converged)."""
    if not window.verdict.converged:
        return window.verdict, None
    evolution, finest = window.evolution, window.hierarchy[0]

    def error():
        first = evolution.natural(local(states_at(finest, window.c, np.int32(0)), window.mesh))
        return error_of(evolution, first, evolution.clock(jnp.int32(0)), finest.size, window.final)

    found = amplification(window)
    return judged(window.verdict, found, error), found


def error_of(evolution: Evolution, first: PyTree[Array], clock: PyTree[Array], num_steps: int, last: PyTree[Array]) -> float:
    """The distance of `last` from the state that serial steps end in, in units of the distance that these travel."""
    final, clock = advance(evolution, first, clock, np.int32(num_steps))
    params = [evolution.solved_for(state, clock) for state in (last, final, first)]
    apart, travelled = (float(norm(jax.tree.map(jnp.subtract, params[i], params[1]))) for i in (0, 2))
    return apart / travelled if math.isfinite(apart) and travelled > 0 else math.inf


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
        twin, arrivals, _ = cycle.relax_finest(first := change_first(finest, evolution, c, e, c), arrived(finest, first), 1)
        plain, twin = (keep_exact(finest, x, x, y, np.int32(1)) for x, y in ((c, e), (twin, arrivals)))
    else:
        changed = change_first(finest, evolution, c, e, e)
        plain, twin = (cycle.correct(finest, c, each, 1, window.method.cycle) for each in (e, changed))
    lengths, size, travelled = map(np.asarray, _lengths(finest, evolution, plain, twin))
    eps = float(jnp.finfo(least_precise(evolution.solved_for(window.final, window.last_clock))).eps)
    lengths = np.trim_zeros(lengths, "f")  # the change begins at the first C-point, or at the second
    if not lengths.size:
        return Amplification(0.0, 0.0, eps)
    width = min(_ENVELOPE, len(lengths) // 8)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(lengths, width), 2 * width + 1).max(axis=1)
    # A change that has shrunk to nothing begins again with the next rounding.
    least = max(float(around.min()), eps * float(size) / 4)
    growth = float(lengths[-1 - width :].max()) / least if least > 0 else 0.0
    moves = float(travelled) > _LEAST * eps * float(size)
    rounding = growth * eps * float(size) / float(travelled) if moves else 0.0
    return Amplification(growth, rounding, eps, not moves or float(lengths.max()) <= _SMALL * float(travelled))


@per_level("intervals", c="intervals", e="intervals", values="intervals")
def change_first(level: Level, evolution: Evolution, c: Points, e: Points, values: Points) -> Points:
    """`values`, of C-points or arrivals, with the first of them changed by 2^10 roundings, irregularly along what has moved."""
    c = level.layout.arrivals(c, e)
    first, last = level.layout.at(c, 0), level.layout.at(c, level.num_intervals)
    change = irregular(evolution, first, last)
    size, length = norm(evolution.trained(last)), norm(change)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(evolution.trained(evolution.natural(last))))
    share = _ROUNDINGS * eps * jnp.where(length > 0, size / jnp.where(length > 0, length, 1), 0)

    def begin(x, change):
        is_first = level.layout.index()[: len(x)] == 0
        return jnp.where(jax.lax.expand_dims(is_first, range(1, x.ndim)), x + share.astype(x.dtype) * change[None], x)

    return jax.tree.map(begin, values, change)


@per_level((None, None, None), c="intervals", twin="intervals")
def _lengths(level: Level, evolution: Evolution, c: Points, twin: Points) -> tuple[Array, Array, Array]:
    """(distance between the two at each C-point, size of the last state, its distance from the first)."""
    c, twin = level.layout.collected((c, twin))

    def params(stored, point):
        return evolution.solved_for(evolution.natural(stored), evolution.clock(point * level.factor))

    def apart(x, y):
        return norm(jax.tree.map(jnp.subtract, x, y))

    points = jnp.arange(level.num_intervals + 1, dtype=jnp.int32)
    between = jax.vmap(lambda x, y, k: apart(params(x, k), params(y, k)))
    at = lambda k: params(jax.tree.map(lambda x: x[k], c), jnp.int32(k))
    last = at(level.num_intervals)
    return between(c, twin, points), norm(last), apart(last, at(0))
