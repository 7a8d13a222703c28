"""The command `gritax`."""

import importlib.metadata
import logging
import signal
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
from ._report import BAD_ARGUMENTS, STANDARD_OUTPUT
from ._solve import Solve
from ._streams import Output, forsake, open_all
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
    open_all()
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        sys.stdout.write(f"gritax {importlib.metadata.version('gritax')}\n")
        sys.exit(0)
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(f"gritax: warning: {message}")
    command, log = None, logging.getLogger("gritax")
    try:
        log.propagate = False  # all of it is shown already, and some packages give the root logger a handler
        command = tyro.extras.subcommand_cli_from_dict(
            _COMMANDS, prog="gritax", description="Training in parallel over its own steps.", args=arguments
        )
        if isinstance(command, Solve | Train | Plan | Tables):
            jax.config.update("jax_enable_x64", True)
            placement.join()
        to_stdout = getattr(command, "json", None) == STANDARD_OUTPUT
        console = Output(stderr=to_stdout, quiet=not placement.is_first(), highlight=False, markup=False, soft_wrap=True)
        console.goes_on = bool(getattr(command, "json", None) or getattr(command, "resume", None))
        if console.is_terminal and not isinstance(command, Launch):  # which has its own; the cursor is shown again
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        status = command.run(console)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `gritax … | head`
        forsake(sys.stdout)
        status = 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough, and the way out is not to be interrupted
        kept = getattr(command, "resume", None)
        goes_on = kept and kept.is_dir() and any(kept.iterdir())
        then = f"; the same command goes on from what {kept} has" if goes_on else ""
        errors.print(f"gritax: interrupted{then}", style="red")
        status = _INTERRUPTED
        abandon(status)
    except (ValueError, ImportError, OSError, MemoryError, RuntimeError) as error:
        errors.print(f"gritax: {(str(error) or type(error).__name__).splitlines()[0]}", style="red")
        status = BAD_ARGUMENTS
        abandon(status)
    finally:
        log.propagate = True
    sys.exit(status)
