"""When to stop: tolerances by dtype, the rounding floor, divergence, finite termination; results as sentences."""

import math
from dataclasses import dataclass, field, replace
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._norms import Norms


DEFAULT_TOLERANCE = 1e-6  # on relative residuals, when the caller names none

# Rounding in a sweep leaves a residual of about eps times the norm of the states: observed between a tenth and ten times that.
_FLOOR_MARGIN = 10.0
# Where the residual no longer falls: the floor of coarse steps that round more, as those with many stages do.
_ROUGH_FLOOR_MARGIN = 100.0
# Residuals may rise a thousandfold after a bad first guess and still fall; beyond this they have not been seen to.
_DIVERGED = 1e4
# With finer coarse steps at hand there is no need to wait so long.
_REFINED = 10.0
_PATIENCE = 4


class ConvergenceError(RuntimeError):
    """The solve did not reach its tolerance. What was computed is in `solution`."""

    def __init__(self, message: str, solution):
        super().__init__(message)
        self.solution = solution

    def __reduce__(self):
        return type(self), (self.args[0], self.solution)


def require_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and (
        isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= _as_float(tolerance) < math.inf
    ):
        raise ValueError(
            f"tolerance must be a number of at least 0, or None for {DEFAULT_TOLERANCE:g} of the distance travelled, "
            f"not {tolerance!r}."
        )


def _as_float(number: Real) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def least_precise(floating: PyTree[Array]) -> jnp.dtype:
    """The floating dtype with the fewest digits."""
    return max((leaf.dtype for leaf in jax.tree.leaves(floating)), key=lambda dtype: float(jnp.finfo(dtype).eps))


@dataclass(frozen=True)
class Verdict:
    """Why the iterations ended, as a sentence.

    `undiagnosed` if the cause must be looked for in the levels, `restart` if finer coarse steps are to be tried first.
    """

    converged: bool
    sentence: str
    undiagnosed: bool = False
    restart: bool = False

    def because(self, diagnosis: str) -> "Verdict":
        return replace(self, sentence=f"{self.sentence}. {diagnosis}")


@dataclass
class Monitor:
    """Watches the residuals of one attempt against the tolerance. `can_refine`: finer coarse steps could be tried.

    `dtype` is that of the least precise parameters that are solved for. Without a tolerance of the caller's, `aim` is that of
    the relative residual and of the final parameters.
    """

    tolerance: float | None
    max_iterations: int
    dtype: jnp.dtype
    can_refine: bool = False
    aim: float = DEFAULT_TOLERANCE
    history: list[float] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list)
    moves: list[float] = field(default_factory=list)
    at_floor: bool = False
    final_error: float = math.inf
    wanted: float = 0.0

    @property
    def _wider(self) -> str:
        return "" if jnp.finfo(self.dtype).bits >= 64 else "use float64 or "

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.dtype).eps)

    def _measured(self, norms: Norms) -> tuple[float, float, float, str]:
        """(residual, tolerance, rounding floor, name) in the measure that this solve stops on."""
        if self.tolerance is None:
            floor = norms.relative_floor
            # The share of a window in a long run may lie below what can be reached: then as far as the precision goes.
            return norms.relative, max(self.aim, min(DEFAULT_TOLERANCE, _FLOOR_MARGIN * floor)), floor, "relative residual"
        return norms.residual, self.tolerance, norms.floor, "residual"

    def unreachable(self, norms: Norms) -> str | None:
        """A warning if rounding alone keeps the residual above the tolerance that the caller named."""
        residual, tolerance, floor, _ = self._measured(norms)
        if self.tolerance and math.isfinite(floor) and tolerance * _FLOOR_MARGIN < floor and residual > tolerance:
            return (
                f"tolerance={tolerance:.3g} lies below what {self.dtype} can reach here: rounding keeps the residual near "
                f"{floor:.0e}. Use tolerance={_FLOOR_MARGIN * floor:.0e} or more, {self._wider}use tolerance=None."
            )
        return None

    def verdict(self, iteration: int, norms: Norms, exact: bool) -> Verdict | None:
        """None to go on."""
        residual, tolerance, floor, name = self._measured(norms)
        self.history.append(residual)
        self.moves.append(norms.moved)
        self.wanted, self.at_floor = tolerance, residual <= _ROUGH_FLOOR_MARGIN * floor
        self.final_error = self._final_error(norms)
        if self.tolerance == 0:
            if iteration < self.max_iterations:
                return None
            return Verdict(
                residual == 0 or (exact and math.isfinite(residual)),
                f"ran the {iteration} iterations asked for; {name} {residual:.3g}",
            )
        if (diverged := self._diverged(iteration, norms)) is not None:
            return diverged
        if residual <= tolerance and self._final_state_is_close(norms, floor):
            return Verdict(True, f"converged in {iteration} iterations: {name} {residual:.3g}, tolerance {tolerance:.3g}")
        if exact and math.isfinite(residual) and math.isfinite(norms.travelled):
            return Verdict(
                True,
                f"exact by finite termination after {iteration} iterations: every step has been taken from serial states, "
                f"and rounding leaves a {name} of {residual:.3g} (tolerance {tolerance:.3g})",
            )
        # Residuals that jump, as where moments have few digits, stall near the floor as well; parameters still move then.
        if self._stagnates() and (self.tolerance is not None or norms.moved <= max(tolerance, _ROUGH_FLOOR_MARGIN * floor)):
            at_floor = f"{name} {residual:.3g} after {iteration} iterations is the rounding floor of {self.dtype}"
            if self.tolerance is None:
                return Verdict(True, f"converged as far as the precision goes: {at_floor} (aim {tolerance:.3g})")
            return Verdict(False, f"not converged: {at_floor}, above the tolerance {tolerance:.3g}; {self._wider}ask for less")
        if iteration >= self.max_iterations and residual <= tolerance:
            return Verdict(
                False,
                f"not converged: after {iteration} iterations the {name} is {residual:.3g}, but the final parameters have not "
                "settled to 1e-6 of the distance travelled: raise max_iterations by one or two",
            )
        if iteration >= self.max_iterations:
            return self._too_slow(iteration, residual, tolerance, name)
        return None

    @property
    def more_iterations(self) -> float:
        """How many it would take at the factor of the last two; none is known of the first three."""
        if len(self.history) < 4 or not 0 < self.history[-1] < math.inf:
            return 1.0
        factor = math.sqrt(self.history[-1] / self.history[-3])
        wanted = self.wanted / self.history[-1]
        if wanted >= 1:
            return 1.0
        return max(math.log(wanted) / math.log(factor), 1.0) if factor < 1 else math.inf

    @property
    def slow(self) -> bool:
        """Whether the last two iterations, after the first correction, each left more than 0.7 of the residual."""
        last = self.absolute[1:][-3:]
        return len(last) == 3 and not self.at_floor and last[1] > 0.7 * last[0] and last[2] > 0.7 * last[1]

    def _diverged(self, iteration: int, norms: Norms) -> Verdict | None:
        # On the residual itself: a relative one is divided by weights that grow as well.
        # The initial guess does not count: its residual says nothing of the states to come.
        residual = norms.residual if math.isfinite(norms.travelled) else math.nan
        best = min((each for each in self.absolute[1:] if math.isfinite(each)), default=math.inf)
        self.absolute.append(residual)
        allowed = _REFINED if self.can_refine else _DIVERGED
        if math.isfinite(residual) and residual <= allowed * max(min(best, residual), norms.floor):
            return None
        when = f"diverged at iteration {iteration}" if iteration else "diverged in the initial guess"
        grew = f"grew to {residual:.3g}" if math.isfinite(residual) else "is not finite"
        so_far = f" (best so far {best:.3g})" if math.isfinite(best) else ""
        return Verdict(False, f"{when}: the residual {grew}{so_far}", True, restart=self.can_refine)

    def _final_state_is_close(self, norms: Norms, floor: float) -> bool:
        """Without a tolerance of the caller's: whether the final parameters are near serial training's, as far as can be seen.

        Mismatches at C-points may each be small and add up. Iterates that converge by a factor q move by (1 - q) of their
        error, which leaves q / (1 - q) of the last move. Of residuals and moves, the slower tells the factor.
        """
        if self.tolerance is not None:
            return True
        # What is no parameter (statistics, averages of the weights) counts as well, relative to its size.
        if norms.residual > max(self.aim, _FLOOR_MARGIN * self.eps) * norms.scale:
            return False
        if norms.relative <= _FLOOR_MARGIN * floor and norms.residual <= _FLOOR_MARGIN * norms.floor:
            return True
        if len(self.history) < 2:
            return False
        return self.final_error <= max(self.aim, min(DEFAULT_TOLERANCE, _FLOOR_MARGIN * floor))

    def _final_error(self, norms: Norms) -> float:
        if len(self.history) < 2:
            return norms.relative
        moves = self.moves[-2:]
        factors = [
            self.history[-1] / self.history[-2] if self.history[-2] else 0.0,
            moves[-1] / moves[0] if moves[0] > 0 else 0.0,
        ]
        q = min(max(factors), 0.5)
        return norms.moved * q / (1 - q)

    def _stagnates(self) -> bool:
        past, recent = self.history[:-_PATIENCE], self.history[-_PATIENCE:]
        return self.at_floor and bool(past) and min(recent) > 0.7 * min(past)

    def _too_slow(self, iteration: int, residual: float, tolerance: float, name: str) -> Verdict:
        sentence = f"not converged: {name} {residual:.3g} after {iteration} iterations, tolerance {tolerance:.3g}"
        # The initial guess is no iterate to judge a rate by; and a relative residual may fall because the weights run away.
        past, absolute = self.history[1:][-6:], self.absolute[1:][-6:]
        if len(past) < 2:
            return Verdict(False, f"{sentence}. So few show no rate yet: raise max_iterations")
        if 0 < residual < 0.95 * past[0] and absolute[-1] < 0.95 * absolute[0]:
            factor = (residual / past[0]) ** (1 / (len(past) - 1))
            more = math.ceil(math.log(tolerance / residual) / math.log(factor))
            if more <= max(30, 4 * iteration):
                cure = f"At the last factor of {factor:.2f}, about {more} more would do: raise max_iterations"
                return Verdict(False, f"{sentence}. {cure}")
        return Verdict(False, f"{sentence}, and it hardly falls", True)
