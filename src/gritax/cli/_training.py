"""What the commands train: a problem, its optimizer and its precision."""

from dataclasses import dataclass
from typing import Literal

import optax
import tyro

from .. import problems
from .._arguments import require_seed
from ..coarse import Choice


@dataclass
class Training:
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
    reduction: Literal["sum", "mean"] | None = None
    """adder: over the twelve outputs, the sum if not given. The mean is as if the learning rate were a twelfth."""
    seed: int = 1
    """Seed of the initial weights and of the order of the examples."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of weights and data."""

    def with_coarse(self, coarse: Choice) -> problems.Problem:
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--rate must be positive, not {self.rate:g}.")
        require_seed("--seed", self.seed)
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
                reduction=self.reduction or "sum",
                optimizer=optimizer,
                coarse=coarse,
                dtype=self.dtype,
            )
        if self.batch or self.reduction is not None:
            raise ValueError(f"--{'batch' if self.batch else 'reduction'} is for the adder.")
        make = {"digits": problems.digits, "diabetes": problems.diabetes}[self.problem]
        activation = self.activation or {"digits": "gelu", "diabetes": "tanh"}[self.problem]
        return make(optimizer, self.seed, activation=activation, coarse=coarse, dtype=self.dtype)
