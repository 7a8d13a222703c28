"""The command `gritax`."""

import os
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
from ._plan import Plan
from ._report import BAD_ARGUMENTS
from ._solve import Solve
from ._tables import Tables
from ._train import Train


_INTERRUPTED = 130  # as shells say it
_COMMANDS = {
    "solve": Solve,
    "train": Train,
    "plan": Plan,
    "tables": Tables,
    "report": Report,
    "doctor": Doctor,
    "launch": Launch,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with `arguments`, those of the process if not given, and exits with its status."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(f"gritax: warning: {message}")
    command = None
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            _COMMANDS, prog="gritax", description="Training in parallel over its own steps.", args=arguments
        )
        if isinstance(command, Solve | Train | Plan | Tables):
            jax.config.update("jax_enable_x64", True)
            placement.join()
        status = command.run(Console(quiet=not placement.is_first(), highlight=False, markup=False, soft_wrap=True))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `gritax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        kept = getattr(command, "resume", None)
        errors.print(f"gritax: interrupted{f'; the same command goes on from what {kept} has' if kept else ''}", style="red")
        status = _INTERRUPTED
        abandon(status)
    except (ValueError, ImportError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        errors.print(f"gritax: {(str(error) or type(error).__name__).splitlines()[0]}", style="red")
        status = BAD_ARGUMENTS
        abandon(status)
    sys.exit(status)
