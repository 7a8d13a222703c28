"""The verb: all steps of an evolution, solved by a method."""

import logging
import os
import time
from dataclasses import replace
from typing import Protocol

from jax.sharding import Mesh
from jaxtyping import PyTree

from ._adaptation import prepared
from ._arguments import require_bool, require_steps, require_whole
from ._attempt import Progress as Progress
from ._convergence import ConvergenceError, require_tolerance
from ._entry import entry
from ._evolution import Phi
from ._guess import InitialGuess
from ._method import Method, Options, Task
from ._multigrid import Proposed
from ._obstacles import require_no_obstacle
from ._sharing import as_mesh
from ._solution import Solution
from ._validation import is_concrete, validated
from .checkpoint import Directory, kept_in
from .differentiation import traced


logger = logging.getLogger("gritax")


class Planned(Protocol):
    """What a solve takes from a plan."""

    @property
    def method(self) -> Method: ...


@entry
def solve(
    phi: Phi,
    state: PyTree,
    num_steps: int,
    method: Method | Planned | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 50,
    initial_guess: InitialGuess | None = None,
    save_every: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    throw: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    profile: bool = False,
) -> Solution:
    r"""`w[i+1] = phi(w[i], i, 1)`, `i = 0, …, num_steps - 1`, solved for all steps at once by multigrid reduction in time.

    **Arguments**

    - `phi`: `phi(state, start, stride) -> state` advances from step `start` by `stride` steps: exactly for stride 1, by one
      coarse step that approximates them for more. `stride` is an `int`, `start` an `int32` scalar that may be traced. A pure
      function of its arguments. It may define `depth(stride)`, `work(stride)` (what it costs), `params(state)` (in what
      distances are measured), `method(num_steps)` (the Multigrid it proposes) and more: see `docs/solver.md`.
    - `state`: `w[0]`, any pytree. Floating leaves are solved for. Integer, boolean and key arrays are clocks: phi must
      compute them from the step and from clocks alone. Other leaves are constants.
    - `num_steps`: N, at least 1.
    - `method`: a `Multigrid`, or the `Plan` of `plan.step` for its own; `None` for what phi proposes, else `Multigrid()`. Or a
      `Newton`, which does not take `initial_guess` and `profile` yet, has no use for `max_iterations`, and wants a tolerance
      above 0: on the error of the final state.
    - `tolerance`: on `Solution.residuals`, absolute. `None` stops when `Solution.relative_residuals` reaches 1e-6 and the
      final parameters have settled to 1e-6 of the distance travelled, or at the rounding floor of the dtype. 0 runs exactly
      `max_iterations` and never raises.
    - `max_iterations`: at most so many iterations.
    - `initial_guess`: `"nested"` solves the coarsest level with its own propagator and fills the finer ones from it; `"graded"`
      does so too, but begins with training steps, in strides that grow with the distance from the start; `"zeros"` and
      `"constant"` (the initial state) at every point; or a function `step -> state`, which may get a traced step. `None` for
      what phi proposes, else `"graded"`.
    - `save_every`: keep the states after every so many steps, in `Solution.states`. That bounds what a sweep of `Newton` can
      accept: no step beyond the next of these states.
    - `checkpoint`: a directory for the iterates, each kept once it is computed, the last two of them, by orbax-checkpoint
      (`pip install orbax-checkpoint`). Each device keeps its own C-points. Of `Newton`, for all that is in flight, every few
      seconds and at an interrupt, without orbax.
    - `resume`: go on from the newest whole iterate in that directory, on these devices or on others, or begin if there is none;
      iterations and weights are those of an uninterrupted solve. A path stands for `checkpoint=path, resume=True`.
    - `throw`: raise `ConvergenceError`, with the solution in its `solution`, if the tolerance is not reached.
    - `progress`: told of levels, iterations and the end.
    - `mesh`: the devices that share the intervals, or what a `Newton` evaluates, along an axis `time`, of one process or of
      many that all make this call: `jax.make_mesh((jax.device_count(),), ("time",))`. Other axes are phi's. The weights are the
      same. See `docs/devices.md`.
    - `profile`: record where along the run the residual of each iterate is, in `Solution.profile`, for which nothing waits,
      and time the levels in one more iteration at the end, in `Solution.level_seconds`.

    **Returns** a `Solution`.

    Raises `ValueError` for an argument that cannot be used, before any long work. Warns once if convergence is slow because the
    training step is discontinuous, and if the evolution amplifies rounding beyond 1e-6 of the distance travelled (in float32,
    100 roundings). Where rounding is amplified so much that the residual says nothing of the final state, the solve has not
    converged, and says so.

    Schroder 2017, arXiv 1708.02276, Algorithm 1.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000)
    >>> solution.level_sizes, solution.iterations
    ((1000, 250, 62, 15), 5)
    """
    began = time.perf_counter()
    require_steps(num_steps)
    require_whole("max_iterations", max_iterations, 0)
    require_tolerance(tolerance)
    if save_every is not None:
        require_whole("save_every", save_every, 1)
        save_every = int(min(save_every, num_steps + 1))
    for name, value in (("throw", throw), ("profile", profile)):
        require_bool(name, value)
    method = getattr(method, "method", method)
    if method is not None and not isinstance(method, Method):
        raise ValueError(
            f"method must be a gritax.Multigrid, such as gritax.Multigrid(coarsening=4), or a gritax.Newton, not {method!r}."
        )
    if progress is not None and not isinstance(progress, Progress):
        raise ValueError(f"progress must be a gritax.Progress, such as gritax.progress.Lines(), not {progress!r}.")
    mesh, asked_for = as_mesh(mesh), kept_in(checkpoint, resume)
    num_steps, method, progress = int(num_steps), method or Proposed(), progress or Progress()
    options = Options(
        progress,
        began,
        tolerance,
        int(max_iterations),
        initial_guess,
        save_every,
        asked_for and (Directory(asked_for[0]), asked_for[1]),
        mesh,
        profile,
    )
    method.require(num_steps, options)

    def solved(phi, state, exactly):
        task = Task(*validated(prepared(phi, num_steps), state, num_steps), num_steps)
        require_no_obstacle(task.evolution, task.floating, task.clock, num_steps)
        solution, window = method.solved(task, replace(options, exactly=exactly))
        return ended(solution, throw if tolerance != 0 else None, progress), window

    if is_concrete((phi, state)):
        return solved(phi, state, False)[0]
    if not method.differentiable:
        raise ValueError(f"method: a solve by {method.name} has no derivatives yet, and is not for vmap: use gritax.Multigrid.")
    if save_every is not None:
        raise ValueError("save_every is not for a solve under grad, jvp or vmap, which gives the final state: leave it out.")
    return traced(solved, phi, state, throw, asked_for is not None)


def ended(solution: Solution, throw: bool | None, progress: Progress) -> Solution:
    """`solution`, or `ConvergenceError` if it has not converged and `throw` is True; None leaves that untold."""
    progress.end(solution)
    if not solution.converged and throw is not None:
        if throw:
            raise ConvergenceError(solution.reason + ".", solution)
        logger.warning("%s", solution.reason)
    return solution
