"""`gritax train`."""

from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from .._arguments import require_whole
from .._convergence import require_tolerance
from .._hierarchy import Multigrid
from ..coarse import FrozenGradient
from ..newton import Newton
from ._files import Perhaps, require_writable
from ._report import compared, one_or_many
from ._training import Training


@dataclass
class Train(Training):
    """Train a network in parallel over its steps, and compare with serial training.

    adder: the four-layer binary adder of Schroder (2017), one pair of numbers a step, by gradient descent.
    digits: a 64-32-10 classifier of scikit-learn's 8 x 8 images, by Adam. diabetes: a 10-16-1 regression, by gradient descent
    with momentum. Coarse steps are frozen gradients.

    Example: gritax train digits --steps 8192 --resume run

    Exit status: 0 converged, 2 bad arguments, 3 not converged.
    """

    method: Literal["multigrid", "newton"] = "multigrid"
    """multigrid: levels of coarser steps. newton: a window that slides along the steps, in few evaluations for each."""
    sweeps: float | None = None
    """newton: about the evaluations of each step, 5 if not given. More of them make fewer in sequence."""
    rank: int | None = None
    """newton: directions of its model of the curvature, 32 if not given."""
    refresh: float | None = None
    """Training steps on one gradient of a coarse step, or inf for one gradient each; chosen from the curvature if not given."""
    coarsening: tuple[int, ...] | None = None
    """Coarsening factor, one number or one per level; chosen to suit the refresh if not given."""
    relaxation: tuple[int, ...] | None = None
    """FC sweeps before the last F-relaxation (0: F, 1: FCF), with --coarsening: one number or one per level, 1 if not given."""
    tolerance: float | None = None
    """On the residual, absolute; without it, 1e-6 of the distance that the weights travel."""
    max_iterations: int = 50
    """At most so many iterations."""
    resume: Perhaps = None
    """Keep the run in this directory, and go on from there if it has begun (multigrid: pip install orbax-checkpoint)."""
    spectrum: bool = False
    """Predict the convergence factor as well, from the curvature along serial training."""
    json: Perhaps = None
    """Write the results to this file as well, replacing it: gritax report makes a page of it."""

    def run(self, console: Console) -> int:
        require_whole("--steps", self.steps, 1)
        method = self._newton() if self.method == "newton" else None
        if self.method != "newton" and (self.sweeps is not None or self.rank is not None):
            raise ValueError("--sweeps and --rank are for --method newton.")
        if self.coarsening is not None:
            method = Multigrid(one_or_many(self.coarsening, 2), relaxation=one_or_many(self.relaxation, 1))
            method.hierarchy(self.steps)
        elif self.relaxation is not None:
            raise ValueError("--relaxation is for a method of your own: give --coarsening as well.")
        require_tolerance(self.tolerance)
        require_whole("--max-iterations", self.max_iterations, 0)
        require_writable(self.json, resume=self.resume)
        refresh = int(self.refresh) if self.refresh is not None and self.refresh.is_integer() else self.refresh
        problem = self.with_coarse(FrozenGradient(refresh))
        console.print(f"{self.problem}, {self.steps:,} training steps, {self.dtype}\n")
        return compared(self, console, problem, method)

    def _newton(self) -> Newton:
        for name in ("refresh", "coarsening", "relaxation", "spectrum"):
            if getattr(self, name) not in (None, False):
                raise ValueError(f"--{name} is for --method multigrid, not for newton.")
        return Newton(32 if self.rank is None else self.rank, 5.0 if self.sweeps is None else self.sweeps)
