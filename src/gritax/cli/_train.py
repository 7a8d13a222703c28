"""`gritax train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optax
import tyro
from rich.console import Console

from .. import problems
from .._arguments import require_whole
from .._convergence import require_tolerance
from .._hierarchy import Multigrid
from ..coarse import FrozenGradient
from ._report import compared, one_or_many, require_writable


@dataclass
class Train:
    """Train a network in parallel over its steps, and compare with serial training.

    adder: the four-layer binary adder of Schroder (2017), one pair of numbers a step, by gradient descent.
    digits: a 64-32-10 classifier of scikit-learn's 8 x 8 images, by Adam. diabetes: a 10-16-1 regression, by gradient descent
    with momentum. Coarse steps are frozen gradients.

    Example: gritax train digits --steps 8192 --resume run

    Exit status: 0 converged, 2 bad arguments, 3 not converged.
    """

    problem: tyro.conf.Positional[Literal["adder", "digits", "diabetes"]]
    """Which problem."""
    steps: int = 2_048
    """Training steps."""
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw-cosine"] | None = None
    """In place of the problem's own."""
    rate: float | None = None
    """Learning rate, in place of the usual one of problem and optimizer."""
    activation: Literal["gelu", "tanh", "silu", "softplus", "relu"] | None = None
    """Of digits and diabetes, in place of their own. The gradient of relu jumps: see what that does."""
    batch: bool = False
    """adder: train on all 500 pairs at every step."""
    reduction: Literal["sum", "mean"] = "sum"
    """adder: over the twelve outputs. The mean is as if the learning rate were a twelfth."""
    seed: int = 1
    """Seed of the initial weights and of the order of the examples."""
    refresh: float | None = None
    """Training steps on one gradient of a coarse step, or inf for one gradient each; chosen from the curvature if not given."""
    coarsening: tuple[int, ...] | None = None
    """Coarsening factor, one number or one per level; chosen to suit the refresh if not given."""
    relaxation: tuple[int, ...] = (1,)
    """FC sweeps before the last F-relaxation (0: F, 1: FCF), if --coarsening is given: one number, or one per level."""
    tolerance: float | None = None
    """On the residual, absolute; without it, 1e-6 of the distance that the weights travel."""
    max_iterations: int = 50
    """At most so many iterations."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of weights and data."""
    resume: Path | None = None
    """Keep the iterates in this directory, and go on from the newest if it has some (pip install 'gritax[checkpoints]')."""
    spectrum: bool = False
    """Predict the convergence factor as well, from the curvature along serial training."""
    json: Path | None = None
    """Write the results to this file as well, replacing it: gritax report makes a page of it."""

    def run(self, console: Console) -> int:
        method = None
        if self.coarsening is not None:
            method = Multigrid(one_or_many(self.coarsening), relaxation=one_or_many(self.relaxation))
            method.hierarchy(self.steps)
        require_tolerance(self.tolerance)
        require_whole("--steps", self.steps, 1)
        require_whole("--max-iterations", self.max_iterations, 0)
        require_writable(self.json)
        refresh = int(self.refresh) if self.refresh is not None and self.refresh.is_integer() else self.refresh
        problem = self._problem(FrozenGradient(refresh))
        console.print(f"{self.problem}, {self.steps:,} training steps, {self.dtype}\n")
        return compared(self, console, problem, method)

    def _problem(self, coarse: FrozenGradient) -> problems.Problem:
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--rate must be positive, not {self.rate:g}.")
        named = self.optimizer or {"adder": "sgd", "digits": "adam", "diabetes": "momentum"}[self.problem]
        usual = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02, "adam": 1e-3, "adamw-cosine": 1e-3}[named]
        if "adam" not in named:  # whose steps do not depend on the scale of the loss
            usual /= {"adder": 4, "digits": 1, "diabetes": 10}[self.problem]
        rate = usual if self.rate is None else self.rate
        optimizer = {
            "sgd": lambda: optax.sgd(rate),
            "momentum": lambda: optax.sgd(rate, momentum=0.9),
            "nesterov": lambda: optax.sgd(rate, momentum=0.9, nesterov=True),
            "adam": lambda: optax.adam(rate),
            "adamw-cosine": lambda: optax.adamw(optax.cosine_decay_schedule(rate, self.steps)),
        }[named]()
        if self.problem == "adder":
            if self.activation is not None:
                raise ValueError("--activation is for digits and diabetes; the adder has sigmoids.")
            return problems.adder(
                rate,
                self.seed,
                serialized=not self.batch,
                reduction=self.reduction,
                optimizer=optimizer,
                coarse=coarse,
                dtype=self.dtype,
            )
        if self.batch:
            raise ValueError("--batch is for the adder.")
        make = {"digits": problems.digits, "diabetes": problems.diabetes}[self.problem]
        activation = self.activation or {"digits": "gelu", "diabetes": "tanh"}[self.problem]
        return make(optimizer, self.seed, activation=activation, coarse=coarse, dtype=self.dtype)
