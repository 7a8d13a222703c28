"""The method as users name it."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from .._arguments import require_bool, require_whole
from .._method import Method, Options, Task


@dataclass(frozen=True)
class Newton(Method):
    r"""Quasi-Newton on the whole chain of steps, in a window that slides along it.

    For the residuals $r_{i+1} = \Phi_i(w_i) - w_{i+1}$ of all steps in flight, a *sweep* solves
    $\delta_{i+1} = A_i \delta_i + r_{i+1}$ and adds $\delta$. $A_i$ is what the optimizer makes of a low-rank model of the
    curvature, which the sweeps themselves tell: two evaluations of a step at different states are a secant pair. Steps whose
    correction has become small enough leave the window for good at its *front*, and new ones enter at its end. A sweep
    evaluates each step in flight once, all at the same time; the first of them is exact, so serial training is the worst case.

    Use it where multigrid makes too many evaluations: a step is evaluated about `sweeps` times in all.

    **Arguments**

    - `rank`: directions of the curvature model; 0 for none (windowed Picard). It takes memory for as many states. Of fewer than
      64 parameters it has half as many directions at most, or 8.
    - `sweeps`: how many sweeps a step is to be in flight for: about the evaluations in all for each step. More of them make the
      window longer, and the evaluations in sequence fewer; from 3.5 to 6 is useful.
    - `window`: at most so many steps in flight, at least 16; `None` for 2,048, or a sixteenth of a longer run, as far as they
      fit into 2 GiB. Each takes memory for eight states or so.
    - `verify`: whether the final state is compared with that of serial steps, which are not in `depth` and `work`, but take
      their time. Two tangents that ride along with the front tell what training makes of errors, so there is an estimate of the
      error. `None` compares only where the estimate is above the tolerance, or is none: gradients that may jump (ReLU), an
      optimizer that is modelled by a rate alone. With `False` such a solve has not converged.

    Raises `ValueError` for a rank below 0, sweeps outside 1 to 64, a window below 16, and a `verify` that is no bool.

    Schroder 2017 (arXiv 1708.02276) poses the chain of steps as one system of equations; the multi-secant update is Schnabel's
    (1983, Quasi-Newton methods using multiple secant equations).

    >>> import gritax, jax.numpy as jnp, optax
    >>> step = gritax.TrainStep(lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(0.01), lambda step: jnp.ones(2))
    >>> solution = gritax.solve(step, step.init(jnp.zeros(2)), 500, gritax.Newton())
    >>> bool(jnp.allclose(solution.params, 1 - 0.99**500, atol=1e-5)), solution.depth < 100
    (True, True)
    """

    takes: ClassVar[frozenset[str]] = frozenset({"save_every", "checkpoint", "mesh"})
    trains: ClassVar[bool] = True

    rank: int = 32
    sweeps: float = 5.0
    window: int | None = None
    verify: bool | None = None

    def __post_init__(self):
        require_whole("rank", self.rank, 0)
        sweeps = self.sweeps
        if isinstance(sweeps, bool) or not isinstance(sweeps, Real) or not math.isfinite(sweeps) or not 1 <= sweeps <= 64:
            raise ValueError(f"sweeps must be a number from 1 to 64, about the evaluations of each step, not {sweeps!r}.")
        if self.window is not None:
            require_whole("window", self.window, 16)
        if self.verify is not None:
            require_bool("verify", self.verify)

    def require(self, num_steps: int, options: Options) -> None:
        super().require(num_steps, options)
        if options.tolerance == 0:
            raise ValueError("tolerance must be above 0 with gritax.Newton: steps are in flight until their error is small.")

    @property
    def asked(self) -> dict[str, Any]:
        window = self.window if self.window is None else int(self.window)
        return {**super().asked, "rank": int(self.rank), "sweeps": float(self.sweeps), "window": window}

    def solved(self, task: Task, options: Options) -> tuple[Any, None]:
        from ._solution import solution_by  # it is built upon this class

        return solution_by(self, task, options), None
