"""The command `gritax`."""

import sys
import warnings

import jax
import tyro
from rich.console import Console

from .. import placement
from ..placement._processes import abandon
from ._doctor import Doctor
from ._launch import Launch
from ._page import Report
from ._report import BAD_ARGUMENTS
from ._solve import Solve
from ._tables import Tables
from ._train import Train


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with `arguments`, those of the process if not given, and exits with its status."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"solve": Solve, "train": Train, "tables": Tables, "report": Report, "doctor": Doctor, "launch": Launch},
        prog="gritax",
        description="Training in parallel over its own steps.",
        args=arguments,
    )
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(f"gritax: warning: {message}")
    try:
        if isinstance(command, Solve | Train | Tables):
            jax.config.update("jax_enable_x64", True)
            placement.join()
        status = command.run(Console(quiet=not placement.is_first(), highlight=False, markup=False, soft_wrap=True))
    except (ValueError, ImportError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        errors.print(f"gritax: {str(error).splitlines()[0]}", style="red")
        status = BAD_ARGUMENTS
        abandon(status)
    sys.exit(status)
