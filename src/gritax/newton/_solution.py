"""The solution of a run of sweeps."""

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import PyTree

from .._amplification import ROUNDINGS_TOLD, Serial, serial_twins
from .._convergence import DEFAULT_TOLERANCE, Verdict
from .._evolution import Evolution, optional
from .._hierarchy import Hierarchy, Level
from .._method import Options, Task
from .._solution import Solution, counted
from .._warning import warn
from ..checkpoint import digest
from ..training import TrainState
from ._chain import chain_of, tabulated
from ._fronts import Fronts
from ._method import Newton
from ._solve import Run, require_room, run


# The standard deviation of what one rounding to nearest leaves, in units of the last digit: that of a uniform distribution.
_WALK = 12**-0.5


def solution_by(method: Newton, task: Task, options: Options) -> Solution:
    """The steps of the task, solved by `method`. Raises `ValueError` for what it cannot take."""
    evolution, floating, clock, num_steps = task.evolution, task.floating, task.clock, task.num_steps
    tolerance, phi = options.tolerance, evolution.phi
    _require_corrected(evolution, floating, clock)
    require_room(method, floating)
    keep, asked = None, {"num_steps": num_steps, "tolerance": tolerance if tolerance is None else float(tolerance)}
    asked |= {"save_every": options.save_every}
    if options.checkpoint:
        asked |= method.asked | {"origin": digest(evolution.merge(floating, clock))}
        keep = Fronts(*options.checkpoint, asked, task, options.mesh)
    evolution = tabulated(evolution, floating, clock, num_steps)
    with keep or nullcontext():
        found = run(method, replace(task, evolution=evolution), options, keep)
    eps = chain_of(evolution, floating, clock).eps
    # What is evaluated with others is rounded otherwise than by itself, in every step.
    error = found.error + eps * found.size * max(1.0, _WALK * math.sqrt(found.taken))
    serial, estimate = None, _estimated(found, error, tolerance, eps)
    if found.finite and (method.verify or (method.verify is None and not estimate.settles)):
        serial = serial_twins(evolution, floating, clock, num_steps, evolution.split(found.state)[0])
    verdict = _verdict(found, estimate, tolerance, serial)
    params, sweeps = optional(phi, "params"), len(found.history)
    residuals = np.append(found.history[:, 2], error)
    travelled = found.moved or math.inf
    return Solution(
        state=found.state,
        params=found.state if params is None else params(found.state),
        num_steps=num_steps,
        converged=verdict.converged,
        reason=verdict.sentence,
        iterations=sweeps,
        residuals=residuals,
        relaxed_residuals=np.full(sweeps, math.nan),
        relative_residuals=residuals / travelled,
        hierarchy=Hierarchy((Level(0, num_steps, 1, num_steps),)),
        work=int(found.history[:, 1].sum()),
        exact_steps=1,
        coarse_steps=str(method),
        amplification=serial.amplification.growth if serial else found.growth,
        states=found.states,
        _depth_by_lanes=Counter(found.history[:, 1].astype(int).tolist()),
        _losses=None if (losses := found.losses) is None else lambda: losses,
    )


@dataclass(frozen=True)
class Estimate:
    """What a run says of itself, in units of the distance travelled: its `error`, `rounding` as training amplifies it.

    `allowed` is what the error may be. `doubt` says why none of this is an estimate, or nothing.
    """

    error: float
    rounding: float
    allowed: float
    doubt: str

    @property
    def settles(self) -> bool:
        return not self.doubt and self.error <= self.allowed and self.rounding <= self.allowed


def _estimated(found: Run, error: float, tolerance: float | None, eps: float) -> Estimate:
    travelled = found.moved or math.inf
    allowed = max(DEFAULT_TOLERANCE, ROUNDINGS_TOLD * eps) if tolerance is None else tolerance / travelled
    share = lambda x: x / travelled if math.isfinite(x) else math.inf
    return Estimate(share(error), share(found.growth * eps * found.size), allowed, found.doubt)


def _verdict(found: Run, estimate: Estimate, tolerance: float | None, serial: Serial | None) -> Verdict:
    """Whether the final state is good enough: by serial steps if they were taken, else by the estimate."""
    sweeps, allowed = counted(len(found.history), "sweep"), estimate.allowed
    if not found.finite:
        return Verdict(
            False,
            f"diverged: training one step after the other is not finite at step {found.taken:,}. Lower the learning rate, or "
            "look at the loss and the data of that step",
        )
    if serial is None:
        good, rounding, growth = estimate.settles, estimate.rounding, found.growth
        how = f"estimated error {estimate.error:.2g} of the distance travelled, not compared with serial steps"
        if estimate.doubt:
            how = f"{how}: {estimate.doubt}, so that this says little"
    else:
        good, rounding, growth = serial.apart <= allowed, serial.amplification.rounding, serial.amplification.growth
        how = f"{serial.apart:.2g} of the distance travelled from the final state of serial steps"
        if good and tolerance is None and rounding > allowed:
            warn(
                f"the evolution amplifies a small change of its state {growth:.2g}-fold, and so rounding to {rounding:.1g} of "
                "the distance travelled: on another machine, serial steps would agree no better. Lower the learning rate or "
                "take fewer steps."
            )
    if good:
        return Verdict(True, f"converged in {sweeps}: {how}")
    return Verdict(
        False,
        f"not converged in {sweeps}: {how}, tolerance {allowed:.2g}. Training amplifies a small change {growth:.2g}-fold. Take "
        "fewer steps or a lower rate, a smooth activation for ReLU, or train one step after the other",
    )


def _require_corrected(evolution: Evolution, floating: PyTree, clock: PyTree) -> None:
    """Raises `ValueError` for a state that a correction of one flat vector would change in its precision, or forget."""
    state = evolution.merge(floating, clock)
    stats = jax.tree.leaves(state.stats) if isinstance(state, TrainState) else []
    dtypes = {str(leaf.dtype) for leaf in [*jax.tree.leaves(evolution.trained(floating)), *stats]}
    if others := sorted(dtypes - {"float32", "float64"}):
        raise ValueError(
            f"method: gritax.Newton corrects leaves of float32 and float64, and some are {', '.join(others)}. Use "
            "gritax.Multigrid, or other dtypes."
        )
