"""`gritax report`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from ..reporting import page
from ._report import CONVERGED, require_writable


@dataclass
class Report:
    """Make a page of a run: one HTML file with its figures and pictures, which needs no network.

    The run is a file that gritax solve or gritax train wrote with --json.

    Example: gritax solve xor --json run.json && gritax report run.json --output run.html

    Exit status: 0, or 2 bad arguments.
    """

    run_file: tyro.conf.Positional[Path]
    """What --json wrote."""
    output: Path | None = None
    """Write the page to this file, replacing it; without it the page goes to standard output."""

    def run(self, console: Console) -> int:
        if self.output is not None and self.output.exists() and self.run_file.exists() and self.output.samefile(self.run_file):
            raise ValueError(f"--output {self.output} is the run itself: name another file.")
        require_writable(self.output, "--output")
        run = _read(self.run_file)
        try:
            html = page(run)
        except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError, ValueError) as error:
            raise ValueError(
                f"{self.run_file}: not as gritax solve or gritax train wrote it ({type(error).__name__}: {error}). Name "
                "one that they wrote with --json."
            ) from error
        if self.output is None:
            sys.stdout.buffer.write(html.encode())
        else:
            self.output.write_text(html, encoding="utf-8")
            console.print(f"wrote {self.output}")
        return CONVERGED


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}. Name a file that gritax solve or gritax train wrote with --json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON. Name a file that gritax solve or gritax train wrote with --json.") from error
