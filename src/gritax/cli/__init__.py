"""The command `gritax`."""

import contextlib
import importlib.metadata
import logging
import signal
import sys
import warnings
from typing import Any

import jax
import tyro

from .. import placement
from ..placement._processes import abandon
from ._doctor import Doctor
from ._files import STANDARD
from ._launch import Launch
from ._page import Report
from ._plan import Plan
from ._report import BAD_ARGUMENTS
from ._solve import Solve
from ._streams import Output, flush, forsake, open_all, standard_error, writing
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
    errors = standard_error()
    warnings.showwarning = lambda message, *_, **__: errors.print(f"gritax: warning: {message}")
    log = logging.getLogger("gritax")
    log.propagate = False  # all of it is shown already, and some packages give the root logger a handler
    try:
        status = _status(arguments, errors)
    finally:
        log.propagate = True
    if arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends, and its way out is not to be interrupted
    sys.exit(status)


def _status(arguments: list[str] | None, errors: Output) -> int:
    """The exit status of the command, which has said all that it has to say."""
    command = None
    try:
        try:
            with writing("standard output"):
                command = _understood(arguments)
            status = 0 if command is None else _run(command)
        except SystemExit as ended:  # after help, after what is not understood, and by SIGTERM
            status = int(ended.code or 0)
        flush()
        return status
    except BrokenPipeError:  # who reads has seen enough, as `gritax … | head`
        forsake(sys.stdout)
        return 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        kept = getattr(command, "resume", None)
        goes_on = kept and kept.is_dir() and any(kept.iterdir())
        then = f"; the same command goes on from what {kept} has" if goes_on else ""
        return _failed(_INTERRUPTED, f"interrupted{then}", errors)
    except (ValueError, ImportError, OSError, MemoryError, RuntimeError) as error:
        return _failed(BAD_ARGUMENTS, (str(error) or type(error).__name__).splitlines()[0], errors)


def _understood(arguments: list[str] | None) -> Any:
    """The command as it was asked for; None where its version was."""
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        sys.stdout.write(f"gritax {importlib.metadata.version('gritax')}\n")
        return None
    return tyro.extras.subcommand_cli_from_dict(
        _COMMANDS, prog="gritax", description="Training in parallel over its own steps.", args=arguments
    )


def _run(command: Any) -> int:
    if isinstance(command, Solve | Train | Plan | Tables):
        jax.config.update("jax_enable_x64", True)
        placement.join()
    json, resume = getattr(command, "json", None), getattr(command, "resume", None)
    console = Output(stderr=json == STANDARD, quiet=not placement.is_first(), highlight=False, markup=False, soft_wrap=True)
    console.goes_on = bool(json or resume)
    if console.is_terminal and not isinstance(command, Launch):  # which has its own; the cursor is shown again
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = command.run(console)
    if console.failed is not None and not isinstance(console.failed, BrokenPipeError):
        raise console.failed
    return status


def _failed(status: int, why: str, errors: Output) -> int:
    errors.print(f"gritax: {why}", style="red")
    with contextlib.suppress(OSError):  # one error is told already
        flush()
    abandon(status)
    return status
