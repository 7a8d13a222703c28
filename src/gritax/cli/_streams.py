"""Standard output and error as they are found: closed, piped to who has seen enough, of another encoding."""

import io
import os
import sys
from typing import IO

from rich.console import Console


class Output(Console):
    """Rich's console. Where nobody reads any more a command that also writes files goes on in silence, others end."""

    goes_on = False

    def on_broken_pipe(self) -> None:
        forsake(self.file)
        self.quiet = True
        if not self.goes_on:
            raise BrokenPipeError


def forsake(stream: IO[str]) -> None:
    """What is still written to it goes nowhere, also at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_all() -> None:
    """Both streams are there, and take any character, for which they may write another."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
