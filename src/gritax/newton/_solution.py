"""The solution of a run of sweeps."""

import math
from collections import Counter

import jax
import numpy as np
from jaxtyping import PyTree

from .._amplification import judged, serial_twins
from .._attempt import Progress
from .._evolution import Phi, optional
from .._hierarchy import Hierarchy, Level
from .._obstacles import require_no_obstacle
from .._solution import Solution
from .._validation import is_concrete, validated
from ..training import TrainState
from ._chain import tabulated
from ._method import Newton
from ._solve import require_room, run


def solution_by(
    method: Newton, phi: Phi, state: PyTree, num_steps: int, tolerance: float | None, progress: Progress
) -> Solution:
    """The steps of `phi` from `state`, solved by `method`. Raises `ValueError` for what it cannot take."""
    if not is_concrete((phi, state)):
        raise ValueError("method: a solve by gritax.Newton has no derivatives yet, and is not for vmap: use gritax.Multigrid.")
    if tolerance == 0:
        raise ValueError("tolerance must be above 0 with gritax.Newton: steps are in flight until their error is small.")
    evolution, floating, clock = validated(phi, state, num_steps)
    require_no_obstacle(evolution, floating, clock, num_steps)
    _require_whole_state(evolution.merge(floating, clock))
    require_room(method, floating)
    evolution = tabulated(evolution, floating, clock, num_steps)
    found = run(method, evolution, floating, clock, num_steps, tolerance, progress)
    last = evolution.split(found.state)[0]
    serially = lambda: serial_twins(evolution, floating, clock, num_steps, last)
    verdict, grown = judged(found.verdict, found.amplification, serially)
    params, sweeps = optional(phi, "params"), len(found.history)
    residuals = np.append(found.history[:, 2], found.error)
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
        work=found.work,
        exact_steps=1,
        coarse_steps=str(method),
        amplification=grown.growth,
        _depth_by_lanes=Counter(found.history[:, 1].astype(int).tolist()),
        _losses=None if (losses := found.losses) is None else lambda: losses,
    )


def _require_whole_state(state: PyTree) -> None:
    if isinstance(state, TrainState) and jax.tree.leaves(state.stats):
        raise ValueError(
            "method: gritax.Newton takes no running statistics yet (has_aux=True with stats): use gritax.Multigrid, or a loss "
            "without them."
        )
