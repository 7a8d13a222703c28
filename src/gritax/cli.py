"""The command `gritax`."""

import json
import math
import os
import platform
import shlex
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from . import experiments, problems
from ._arguments import require_whole
from ._convergence import require_tolerance
from ._hierarchy import Multigrid
from .coarse import RescaledRate
from .experiments import Comparison
from .progress import Lines


_CONVERGED, _BAD_ARGUMENTS, _NOT_CONVERGED = 0, 2, 3


@dataclass
class Solve:
    """Train a problem in parallel over its steps, and compare with serial training.

    xor: the 3-4-1 network of Schroder (2017), by gradient descent on all four examples.

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
    coarsening: tuple[int, ...] = (2,)
    """Coarsening factor: one number, or one per level."""
    levels: int | None = None
    """At most so many levels."""
    cycle: Literal["V", "F"] = "F"
    """Multigrid cycle."""
    relaxation: tuple[int, ...] = (1,)
    """FC sweeps before the last F-relaxation (0: F, 1: FCF): one number, or one per level."""
    coarse: Literal["rescaled", "naive"] = "rescaled"
    """Coarse step: learning rate times stride, at most --alpha-max; or the same rate on every level."""
    alpha_max: float = 8.0
    """Largest learning rate of a coarse step."""
    tolerance: float | None = None
    """On the residual, absolute; without it, 1e-6 of the distance that the weights travel."""
    max_iterations: int = 50
    """At most so many iterations."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of weights and data."""
    json: Path | None = None
    """Write the results to this file as well, replacing it."""

    def run(self, console: Console) -> int:
        problem = problems.xor(self.alpha, self.seed, coarse=self._coarse_step(), dtype=self.dtype)
        method = Multigrid(
            _one_or_many(self.coarsening), self.levels, cycle=self.cycle, relaxation=_one_or_many(self.relaxation)
        )
        method.hierarchy(self.steps)
        require_tolerance(self.tolerance)
        require_whole("--max-iterations", self.max_iterations, 0)
        _require_writable(self.json)
        console.print(f"XOR, {self.steps:,} steps of gradient descent at learning rate {self.alpha:g}, {self.dtype}\n")
        comparison = experiments.compare(
            problem, self.steps, method, progress=Lines(console), tolerance=self.tolerance, max_iterations=self.max_iterations
        )
        _show(console, comparison)
        if self.json is not None:
            settings = {name: value for name, value in vars(self).items() if name != "json"}
            _write_json(self.json, {"settings": settings, **_figures(comparison)})
        return _CONVERGED if comparison.solution.converged else _NOT_CONVERGED

    def _coarse_step(self) -> RescaledRate:
        if self.coarse == "naive":
            return RescaledRate(power=0.0)
        if not 0 < self.alpha <= self.alpha_max:
            raise ValueError(f"--alpha must be positive and at most --alpha-max, {self.alpha_max:g}, not {self.alpha:g}.")
        return RescaledRate(max_factor=self.alpha_max / self.alpha)


@dataclass
class Tables:
    """Regenerate tables of Schroder (2017) beside the published numbers.

    Iterations are those to a residual of 1e-9 sqrt(N), from a guess of zeros, in float64.
    """

    tables: tyro.conf.Positional[str] = "1-7"
    """Which tables: a number, a range like 1-7, or several with commas."""
    max_steps: int = 25_600
    """Leave out rows with more steps."""
    seed: int = 1
    """Seed of the initial weights (that of the paper is not stated)."""
    json: Path | None = None
    """Write the rows to this file as well, replacing it."""

    def run(self, console: Console) -> int:
        _require_writable(self.json)
        numbers = _numbers(self.tables)
        require_whole("--max-steps", self.max_steps, 100)
        tables = [
            (experiments.paper_table(n), experiments.run_table(n, max_steps=self.max_steps, seed=self.seed)) for n in numbers
        ]
        rows = []
        for table, results in tables:
            cap = "none" if table.alpha_max is None else f"{table.alpha_max:g}"
            console.print(
                f"Table {table.table}: {table.solver}, {table.cycle}, learning rate {table.alpha_base:g}, at most {cap}"
                f"{', one example a step' if table.serialized else ''}\n"
                "   steps  published  gritax  published rho   rho   depth"
            )
            for row in results:
                published, ours = (str(count or "50+") for count in (row.published, row.iterations))
                rho = "*" if row.published_rho is None else f"{row.published_rho:.2f}"
                console.print(f"{row.num_steps:8,}  {published:>9}  {ours:>6}  {rho:>13}  {row.rho:4.2f}  {row.depth:6,}")
                rows.append(vars(row))
            console.print()
        if self.json is not None:
            _write_json(self.json, {"seed": self.seed, "rows": rows})
        return _CONVERGED


def _one_or_many(values: tuple[int, ...]) -> int | tuple[int, ...]:
    return values[0] if len(values) == 1 else values


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"tables must be numbers and ranges such as 1-7 or 1,3,5, not {text!r}.")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise ValueError(f"tables {text!r} names none: write a range from the lower number to the higher.")
    return numbers


def _show(console: Console, comparison: Comparison) -> None:
    rows = (
        ("distance from serial", f"{comparison.distance:.2e} ({comparison.relative_distance:.1e} of the distance travelled)"),
        ("loss, accuracy", f"{comparison.loss:.3e}, {comparison.accuracy:.0%} (serial loss {comparison.serial_loss:.3e})"),
        ("seconds", f"{comparison.seconds:.3f} parallel, {comparison.serial_seconds:.3f} serial, both compiled before"),
        ("first solve", f"{comparison.first_seconds:.2f} s with its compilation"),
    )
    lines = [str(comparison.solution), *(f"{name:<21}  {value}" for name, value in rows)]
    console.print("\n".join(lines))
    console.print(f"\n{comparison.sentence}")


def _figures(comparison: Comparison) -> dict[str, Any]:
    solution = comparison.solution
    return {
        "converged": solution.converged,
        "reason": solution.reason,
        "iterations": solution.iterations,
        "residuals": solution.residuals.tolist(),
        "relaxed_residuals": [None if math.isnan(r) else r for r in solution.relaxed_residuals.tolist()],
        "relative_residuals": solution.relative_residuals.tolist(),
        "level_sizes": solution.level_sizes,
        "depth": solution.depth,
        "work": solution.work,
        "potential_speedup": solution.potential_speedup,
        **{name: value for name, value in vars(comparison).items() if name != "solution"},
    }


def _require_writable(path: Path | None) -> None:
    if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()):
        raise ValueError(f"--json {path}: no file can be written there. Name a file in a folder that exists.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    made_by = {
        "command": shlex.join(["gritax", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("gritax", "jax", "numpy")}},
    }
    path.write_text(json.dumps(made_by | content, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with `arguments`, those of the process if not given, and exits with its status."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"solve": Solve, "tables": Tables},
        prog="gritax",
        description="Training in parallel over its own steps.",
        args=arguments,
    )
    jax.config.update("jax_enable_x64", True)
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(f"gritax: warning: {message}")
    try:
        status = command.run(Console(highlight=False, markup=False, soft_wrap=True))
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        errors.print(f"gritax: {str(error).splitlines()[0]}", style="red")
        status = _BAD_ARGUMENTS
    sys.exit(status)
