"""What a solve returns."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Array, PyTree

from ._arguments import require_whole
from ._entry import entry
from ._hierarchy import Hierarchy, Multigrid
from ._profile import ResidualProfile


def counted(number: int, what: str) -> str:
    """`1 level`, `2,000 levels`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Iteration:
    """One iterate, as it is reported while the solve runs. Iteration 0 is the initial guess.

    `factor` is the residual divided by the one before; `exact_steps` is the exactness front, the number of steps whose
    states are those of serial training by construction; `seconds` have passed since the solve began, compilation included.
    """

    number: int
    residual: float
    relaxed_residual: float
    relative_residual: float
    factor: float
    exact_steps: int
    seconds: float


@dataclass(frozen=True)
class WindowReport:
    """How some of the steps were taken.

    - `first`, `num_steps`: which.
    - `kind`: `"parallel"`; `"serial"`, one after the other; `"given up"` for steps from the beginning of a window that did
      not converge as a whole, 0 if fewer than a quarter of them did.
    - `iterations`, `depth`, `work`: what it took.
    - `residuals`, `relative_residuals`: as in `Solution`, of the iterates of the window.
    - `reason`: why it ended.
    """

    first: int
    num_steps: int
    kind: Literal["parallel", "serial", "given up"]
    iterations: int
    depth: int
    work: int
    residuals: tuple[float, ...]
    relative_residuals: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Solution:
    """The states that a solve ends with, and how it got there; prints as one block.

    - `state`: the state after the last step, a pytree like the initial state.
    - `params`: `phi.params(state)` where phi has it, else `state`.
    - `converged`, `reason`: whether the tolerance was met, and a sentence that says why the solve ended.
    - `iterations`: multigrid iterations.
    - `residuals`: `iterations + 1` entries, entry k for the iterate after k iterations: the 2-norm over the C-points c of the
      finest level of `Phi(u[c-1]) - u[c]`, over all floating leaves.
    - `relaxed_residuals`: `iterations` entries, the same norm after the down-sweep of each iteration and before its
      correction (what XBraid prints); nan where the down-sweep was skipped.
    - `relative_residuals`: `iterations + 1` entries: the largest 2-norm over the parameters at a C-point, divided by the
      distance that the parameters travel, `||w_N - w_0||`.
    - `level_sizes`: the number of steps of each level.
    - `depth`, `work`: evaluations of phi on the critical path with unlimited devices, and in all. Counted are the initial
      guess, relaxation, residuals, right-hand sides and coarse solves, each at the cost that `phi.depth` and `phi.work` state.
    - `depth_on(devices)`: the same with so many devices, an interval of a level each.
    - `potential_speedup`: `num_steps / depth`. No prediction of time: see `work`, and measure.
    - `exact_steps`: how many of the first steps are exact by construction.
    - `losses`: with phi a `TrainStep`, the loss of each step on its batch, before its update, `num_steps` of them; else None.
      Computed when first asked for, by one sweep.
    - `states`: with `save_every=k`, the states after steps `k, 2 k, …`, stacked along a new first axis; else None.
    - `coarse_steps`: what phi says of its coarse steps, as they were chosen for this solve.
    - `history`: an `Iteration` for each iterate, the initial guess first.
    - `method`: the `Multigrid` that was used.
    - `level_depths`: the evaluations in sequence that phi states for one step of each level.
    - `depth_by_level`: the part of `depth` that the steps of each level make. What is missing chose coarse steps.
    - `level_seconds`: with `profile=True`, seconds of one more iteration in the programs of each level, one by one.
    - `profile`: with `profile=True`, a `ResidualProfile`: where along the run the residual of each iterate is; else None.
    - `amplification`: by how much the evolution amplifies a small change of its state, up to the last step, and rounding with
      it; None where nothing was solved in parallel or the solve did not converge. Its measurement is not in `depth` and `work`.
    - `restarts`: why the solve was started again with shorter coarse steps, if it was. `depth` and `work` count all of it.

    Of `gritax.train` also

    - `windows`: how the steps were taken, a `WindowReport` each. `residuals` and its like are then of all windows together,
      each with its last iterate once it has ended; `iterations` is the largest number in a window.

    and `history`, `method`, `level_depths`, `depth_by_level`, `level_seconds` and `profile`, of one window each, are empty.
    """

    state: PyTree = field(repr=False)
    params: PyTree = field(repr=False)
    num_steps: int
    converged: bool
    reason: str
    iterations: int
    residuals: np.ndarray = field(repr=False)
    relaxed_residuals: np.ndarray = field(repr=False)
    relative_residuals: np.ndarray = field(repr=False)
    hierarchy: Hierarchy = field(repr=False)
    work: int
    exact_steps: int
    coarse_steps: str = ""
    restarts: tuple[str, ...] = ()
    history: tuple[Iteration, ...] = field(repr=False, default=())
    method: Multigrid | None = field(repr=False, default=None)
    level_depths: tuple[int, ...] = ()
    depth_by_level: tuple[int, ...] = ()
    level_seconds: tuple[float, ...] = field(repr=False, default=())
    profile: ResidualProfile | None = field(repr=False, default=None)
    states: PyTree = field(repr=False, default=None)
    windows: tuple[WindowReport, ...] = field(repr=False, default=())
    amplification: float | None = None
    _depth_by_lanes: Mapping[int, int] = field(repr=False, default_factory=dict)
    _losses: Callable[[], Array | np.ndarray] | None = field(repr=False, default=None)

    @cached_property
    @entry
    def losses(self) -> np.ndarray | None:
        return None if self._losses is None else np.asarray(self._losses())

    def __getstate__(self):
        # What losses are computed from holds functions that cannot be pickled.
        return {**vars(self), "losses": self.losses, "_losses": None}

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return self.hierarchy.sizes

    @property
    def depth(self) -> int:
        return sum(self._depth_by_lanes.values())

    @property
    def potential_speedup(self) -> float:
        return self.num_steps / self.depth

    def depth_on(self, devices: int) -> int:
        """Evaluations on the critical path of so many devices: the lanes of a sweep take `ceil(lanes / devices)` rounds.

        A lane is an interval of a level, and a coarse step in it one evaluation a stage, whatever its minibatches.

        >>> import gritax
        >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
        >>> [solution.depth_on(devices) for devices in (1, 64, 250)]
        [19374, 434, 263]
        """
        require_whole("devices", devices, 1)
        return sum(depth * -(-lanes // int(devices)) for lanes, depth in self._depth_by_lanes.items())

    def __str__(self) -> str:
        rows = [
            ("steps", f"{self.num_steps:,} on {counted(len(self.hierarchy), 'level')}"),
            ("result", self.reason),
            ("residual", f"{self.residuals[0]:.3e} -> {self.residuals[-1]:.3e}"),
            ("relative residual", f"{self.relative_residuals[-1]:.3e} of the distance travelled"),
            ("exact by construction", f"{self.exact_steps:,} steps"),
            ("depth, work", f"{self.depth:,} evaluations in sequence, {self.work:,} in all"),
            ("potential speedup", f"{self.potential_speedup:.2f}{'' if self.converged else ', of iterations that fell short'}"),
        ]
        rows[1:1] = [("coarse steps", self.coarse_steps)] * bool(self.coarse_steps)
        rows[1:1] = [("started again", reason) for reason in self.restarts]
        if self.windows:
            kinds = Counter(window.kind for window in self.windows)
            steps = {kind: sum(window.num_steps for window in self.windows if window.kind == kind) for kind in kinds}
            rows.insert(1, ("windows", "; ".join(f"{kinds[kind]} {kind}, {steps[kind]:,} steps" for kind in kinds)))
        if self.amplification is not None:
            rows.append(("amplification", f"{self.amplification:.3g} of a small change of the state, by training"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
