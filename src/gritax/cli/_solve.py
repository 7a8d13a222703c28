"""`gritax solve`."""

import math
from dataclasses import dataclass
from typing import Literal

import tyro
from rich.console import Console

from .. import problems
from .._arguments import require_seed, require_whole
from .._convergence import require_tolerance
from .._hierarchy import Multigrid
from ..coarse import RescaledRate, Tangent
from ._files import Perhaps, require_writable
from ._report import compared, one_or_many


@dataclass
class Solve:
    """Train a problem in parallel over its steps, and compare with serial training.

    xor: the 3-4-1 network of Schroder (2017), by gradient descent on all four examples.

    Example: gritax solve xor --coarsening 4 --cycle V --json run.json

    Exit status: 0 converged, 2 bad arguments, 3 not converged.
    """

    problem: tyro.conf.Positional[Literal["xor"]]
    """Which problem."""
    steps: int = 25_600
    """Training steps."""
    alpha: float = 1.0
    """Learning rate."""
    seed: int = 1
    """Seed of the initial weights."""
    coarsening: tuple[int, ...] | None = None
    """Coarsening factor: one number, or one per level; 2 if not given."""
    levels: int | None = None
    """At most so many levels."""
    cycle: Literal["V", "F"] | None = None
    """Multigrid cycle; F if not given."""
    relaxation: tuple[int, ...] | None = None
    """FC sweeps before the last F-relaxation (0: F, 1: FCF): one number, or one per level; 1 if not given."""
    coarse: Literal["rescaled", "naive", "tangent"] = "rescaled"
    """Coarse step: the paper's, learning rate times stride, at most --alpha-max; the same rate on every level; or the
    linearised network's (gritax.Tangent), which chooses a cycle of its own unless one is given."""
    alpha_max: float | None = None
    """Largest learning rate of a rescaled coarse step; 8 if not given."""
    tolerance: float | None = None
    """On the residual, absolute; without it, 1e-6 of the distance that the weights travel."""
    max_iterations: int = 50
    """At most so many iterations."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of weights and data."""
    resume: Perhaps = None
    """Keep the iterates in this directory, and go on from the newest if it has some (pip install orbax-checkpoint)."""
    spectrum: bool = False
    """Predict the convergence factor as well, from the curvature along serial training."""
    json: Perhaps = None
    """Write the results to this file as well, replacing it: gritax report makes a page of it."""

    def run(self, console: Console) -> int:
        require_seed("--seed", self.seed)
        require_whole("--steps", self.steps, 1)
        if self.levels is not None:
            require_whole("--levels", self.levels, 1)
        problem = problems.xor(self.alpha, self.seed, coarse=self._coarse_step(), dtype=self.dtype)
        method = self._method()
        require_tolerance(self.tolerance)
        require_whole("--max-iterations", self.max_iterations, 0)
        require_writable(self.json, resume=self.resume)
        console.print(f"XOR, {self.steps:,} steps of gradient descent at learning rate {self.alpha:g}, {self.dtype}\n")
        return compared(self, console, problem, method)

    def _method(self) -> Multigrid | None:
        if self.coarse == "tangent" and self.coarsening is None and self.levels is None and self.cycle is None:
            if self.relaxation is not None:
                raise ValueError("--relaxation is for a method of your own: give --coarsening, --levels or --cycle as well.")
            return None
        factors, sweeps = one_or_many(self.coarsening, 2), one_or_many(self.relaxation, 1)
        method = Multigrid(factors, self.levels, cycle=self.cycle or "F", relaxation=sweeps)
        method.hierarchy(self.steps)
        return method

    def _coarse_step(self) -> RescaledRate | Tangent:
        if self.coarse != "rescaled":
            if self.alpha_max is not None:
                raise ValueError(f"--alpha-max is for --coarse rescaled, not for {self.coarse}.")
            return Tangent() if self.coarse == "tangent" else RescaledRate(power=0.0)
        most = 8.0 if self.alpha_max is None else self.alpha_max
        if not 0 < self.alpha <= most or self.alpha == math.inf:
            raise ValueError(f"--alpha must be positive and at most --alpha-max, {most:g}, not {self.alpha:g}.")
        return RescaledRate(max_factor=most / self.alpha)
