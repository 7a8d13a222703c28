"""Standard output and error as they are found: closed, full, piped to who has seen enough, of another encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console


class Output(Console):
    """Rich's console. Where nothing can be written any more a command that also writes files goes on in silence, others end."""

    goes_on = False
    failed: OSError | None = None

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            with writing("standard error" if self.stderr else "standard output"):
                super().print(*objects, **options)
        except OSError as error:
            forsake(self.file)
            self.quiet, self.failed = True, error
            if not self.goes_on:
                raise


def standard_error() -> Output:
    """For errors and warnings; where nobody can read them the exit status remains."""
    output = Output(stderr=True, highlight=False, markup=False, soft_wrap=True)
    output.goes_on = True
    return output


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """Names in an error of the system what it could not write to; a reader who has seen enough is another matter."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"{where} cannot be written: {error.strerror or error}.") from error


def flush() -> None:
    """Writes what Python holds back of standard output, and leaves nothing of it to the end of the process."""
    try:
        with writing("standard output"):
            sys.stdout.flush()
    except OSError:
        forsake(sys.stdout)
        raise


def forsake(stream: IO[str]) -> None:
    """What is still written to it goes nowhere, also at the end of the process."""
    with contextlib.suppress(OSError):  # of a stream in memory
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_all() -> None:
    """Both streams are there, and take any character, for which they may write another."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
