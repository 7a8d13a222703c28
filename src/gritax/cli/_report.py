"""What commands show and write, and the statuses they end with."""

import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from .._hierarchy import Multigrid
from .._method import Method
from .._spectrum import Spectrum, spectrum
from ..experiments import Comparison, compare
from ..placement import is_first, mesh
from ..problems import Problem
from ..progress import Live
from ..reporting import figures, plain
from ._files import write


CONVERGED, BAD_ARGUMENTS, NOT_CONVERGED = 0, 2, 3


def one_or_many(values: tuple[int, ...] | None, otherwise: int) -> int | tuple[int, ...]:
    if values is None:
        return otherwise
    return values[0] if len(values) == 1 else values


def compared(command: Any, console: Console, problem: Problem, method: Method | None) -> int:
    """Solves and trains serially on the devices there are, shows it, writes it if that was asked for; the exit status."""
    takes = (method or Multigrid()).takes
    with Live(console) as progress:
        comparison = compare(
            problem,
            command.steps,
            method,
            progress=progress,
            tolerance=command.tolerance,
            max_iterations=command.max_iterations,
            mesh=mesh() if "mesh" in takes else None,
            resume=command.resume or False,
            profile=command.json is not None and "profile" in takes,
        )
    _show(console, comparison)
    predicted = None
    if command.spectrum and isinstance(method, Multigrid | None):
        predicted = spectrum(problem.step, problem.state, command.steps, method)
    if predicted is not None:
        console.print(f"\n{predicted}")
    if command.json is not None:
        settings = {name: value for name, value in vars(command).items() if name not in ("json", "resume")}
        write_json(command.json, {"settings": settings, **_figures(comparison, predicted)})
    return CONVERGED if comparison.solution.converged else NOT_CONVERGED


def _show(console: Console, comparison: Comparison) -> None:
    rows = (
        ("distance from serial", f"{comparison.distance:.2e} ({comparison.relative_distance:.1e} of the distance travelled)"),
        ("loss", f"{comparison.loss:.3e} (serial {comparison.serial_loss:.3e})"),
        *((name, f"{value:.4g} (serial {comparison.serial_metrics[name]:.4g})") for name, value in comparison.metrics.items()),
        ("seconds", f"{comparison.seconds:.3f} parallel, {comparison.serial_seconds:.3f} serial, both compiled before"),
        ("first solve", f"{comparison.first_seconds:.2f} s with its compilation"),
    )
    lines = [str(comparison.solution), *(f"{name:<21}  {value}" for name, value in rows)]
    console.print("\n".join(lines))
    console.print(f"\n{comparison.sentence}")


def _figures(comparison: Comparison, predicted: Spectrum | None) -> dict[str, Any]:
    beside = {name: plain(value) for name, value in vars(comparison).items() if name != "solution"}
    return {**figures(comparison.solution, predicted), **beside, "sentence": comparison.sentence}


def write_json(path: Path, content: dict[str, Any]) -> None:
    if not is_first():
        return
    command = shlex.join(["gritax", *sys.argv[1:]])
    made_by = {
        "command": command.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),  # names may be no UTF-8
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("gritax", "jax", "numpy")}},
    }
    write(path, json.dumps(made_by | content, indent=2) + "\n")
