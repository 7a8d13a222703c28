"""What theory says of a solve before it runs: convergence factors over the curvatures that the run meets."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._adaptation import points_along, prepared
from ._entry import entry
from ._evolution import Evolution
from ._hierarchy import Hierarchy, Multigrid
from ._kernel import kernel
from ._modes import predicted, transfer
from ._obstacles import require_no_obstacle
from ._optional import needs
from ._validation import validated
from .coarse._curvature import SPAN, largest_kappas
from .coarse._slow import memory
from .training import TrainState, TrainStep


_MODES = 48
_CHUNK = 16
_FLATTEST = 1e-12
NO_FACTOR = (
    "None: at some step the cycles do not shrink every mode, since coarse steps amplify one, or all but miss it. Where that "
    "lasts few steps the solve may converge all the same."
)


@dataclass(frozen=True)
class Spectrum:
    """The curvature along a run and the convergence factors that follow from it; prints as a table.

    - `steps`: where the run was looked at, P of them.
    - `kappas`: [P], the largest curvature of the loss there times the learning rate, over $1 - \\beta$ with momentum, over the
      root of the second moment with Adam.
    - `curvatures`: [P, modes], from the slowest mode that N steps move to the stiffest.
    - `level_factors`: [P, levels - 1, modes], the factor of two levels: of one with an exact solve on the next.
    - `factors`, `bounds`: [P, modes], the largest ratio of residuals in cycles 2 to 6 of a quadratic loss, and at most.
    - `factor`, `bound`: the largest of each. Above 1 they promise nothing.
    - `hierarchy`, `coarse_steps`: what it is a prediction for.
    """

    steps: np.ndarray = field(repr=False)
    kappas: np.ndarray
    curvatures: np.ndarray = field(repr=False)
    level_factors: np.ndarray = field(repr=False)
    factors: np.ndarray = field(repr=False)
    bounds: np.ndarray = field(repr=False)
    hierarchy: Hierarchy = field(repr=False)
    coarse_steps: str

    @property
    def factor(self) -> float:
        return float(np.max(self.factors))

    @property
    def bound(self) -> float:
        return float(np.max(self.bounds))

    def __str__(self) -> str:
        levels = [f"levels {level.index}, {level.index + 1}" for level in self.hierarchy.levels[:-1]]
        rows = [["step", "kappa", *levels, "cycle"]]
        for step, kappa, of_levels, of_cycle in zip(self.steps, self.kappas, self.level_factors, self.factors, strict=True):
            rows.append([f"{step:,}", f"{kappa:.3g}", *map(_shown, (*of_levels.max(axis=-1), of_cycle.max()))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        ending = [f"predicted factor an iteration: {_shown(self.factor)}, bound {_shown(self.bound)}"]
        ending += [NO_FACTOR] * (not self.factor < 1)
        return "\n".join([*[self.coarse_steps] * bool(self.coarse_steps), *table, *ending])

    def plot(self, axes: Any = None) -> Any:
        """The factors over the spectrum where the run is stiffest, on these Matplotlib axes or new ones, which it returns.

        Raises `ImportError` without Matplotlib.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise needs("Spectrum.plot", "matplotlib") from error
            axes = pyplot.subplots(layout="constrained")[1]
        stiffest = int(np.argmax(self.factors.max(axis=1)))
        x = self.curvatures[stiffest]
        for level, values in zip(self.hierarchy.levels[:-1], self.level_factors[stiffest], strict=True):
            axes.loglog(x, np.maximum(values, 1e-16), label=f"levels {level.index} and {level.index + 1}")
        axes.loglog(x, np.maximum(self.factors[stiffest], 1e-16), "k--", label="cycle")
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(
            xlabel="learning rate times curvature",
            ylabel="convergence factor",
            title=f"step {self.steps[stiffest]:,}, kappa {self.kappas[stiffest]:.2g}",
            ylim=(1e-6, 10),
        )
        axes.legend()
        return axes


def _shown(factor: float) -> str:
    return f"{factor:.3g}" if factor < 1 else "none"


@entry
def spectrum(step: TrainStep, state: TrainState, num_steps: int, method: Multigrid | None = None) -> Spectrum:
    r"""$\rho(x)$ for $0 < x \le \kappa$: the predicted convergence factor of `solve` with the same arguments.

    Trains serially, measures the largest curvature $\kappa$ at eight steps by power iteration, and applies the training step
    and its coarse steps, as they are chosen for this run, to quadratics of all curvatures up to it, on which it then plays six
    cycles. Momentum and moments take the form of a heavy ball that remembers as long as the optimizer. Beside the serial run
    this takes some seconds, and half a minute for 400,000 steps.

    It knows nothing of how the loss bends: `Tangent`, exact on quadratics, has a factor of zero here; nor of negative
    curvature and of what minibatches have not in common.

    **Arguments**: those of `gritax.solve`, where `step` is a `TrainStep`.

    **Returns** a `Spectrum`.

    Raises `ValueError` for a `step` of another kind, and as `gritax.solve` does.

    Dobrev, Kolev, Petersson and Schroder 2017, SIAM J. Sci. Comput. 39, S501, for two levels; more in `docs/theory.md`.

    >>> import gritax
    >>> problem = gritax.problems.xor(alpha=0.1, coarse=gritax.FrozenGradient(16))
    >>> found = gritax.spectrum(problem.step, problem.state, 400)
    >>> found.level_factors.shape[:2], 0 < found.factor < 1
    ((8, 2), True)
    """
    if not isinstance(step, TrainStep):
        raise ValueError(f"step must be a gritax.TrainStep, whose loss has a curvature, not a {type(step).__name__}.")
    (method or Multigrid()).hierarchy(num_steps)
    step = cast(TrainStep, prepared(step, int(num_steps)))
    evolution, floating, clock = validated(step, state, num_steps)
    require_no_obstacle(evolution, floating, clock, num_steps)
    along = points_along(int(num_steps))
    states = _trajectory(evolution, floating, clock, along)
    for after, finite in zip(along, _finite(states), strict=True):
        if not finite:
            raise ValueError(f"step: serial training is not finite after {after} steps. Lower the learning rate, or num_steps.")
    first = evolution.merge(*jax.tree.map(lambda x: x[None], (floating, clock)))
    step = step.adapted(first, np.zeros(1, np.int32), num_steps, None)[0] or step
    step = step.adapted(states, along, num_steps, 0)[0] or step
    method = method or step.method(num_steps)
    step = step.adapted(states, along, num_steps, 1)[0] or step
    hierarchy = method.hierarchy(num_steps)
    span = min(SPAN, max(num_steps // 2, 1))
    kappas = largest_kappas(step, states, np.clip(along, 0, max(num_steps - 2 * span, 0)), span, _CHUNK)[0]
    most = np.maximum(kappas, _FLATTEST)
    curvatures = np.geomspace(np.minimum(most / 10, 0.1 / num_steps), most, _MODES, axis=1)
    lasting = memory(step.optimizer, step.split(state.params)[0])
    with np.errstate(all="ignore"):  # infinite is what is meant, and what follows from it no number
        levels, factors, bounds = predicted(hierarchy, method.cycle, partial(transfer, step.coarse, lasting, curvatures, along))
    return Spectrum(along, kappas, curvatures, levels, factors, bounds, hierarchy, str(step.coarse))


def _finite(states: TrainState) -> np.ndarray:
    leaves = [np.asarray(x) for x in jax.tree.leaves(states.params) if eqx.is_inexact_array(x)]
    return np.all([np.isfinite(x.reshape(len(x), -1)).all(axis=1) for x in leaves], axis=0)


def _trajectory(evolution: Evolution, floating: PyTree, clock: PyTree, along: np.ndarray) -> TrainState:
    """The states of serial training at these steps, stacked."""
    before, found = 0, []
    for after in along.tolist():
        floating, clock = _train(evolution, floating, clock, np.int32(before), np.int32(after))
        found.append((floating, clock))
        before = after
    return evolution.merge(*jax.tree.map(lambda *x: jnp.stack(x), *found))


@kernel
def _train(evolution, floating, clock, before, after):
    return jax.lax.fori_loop(before, after, lambda k, carry: evolution.advance(*carry, k, 1), (floating, clock))
