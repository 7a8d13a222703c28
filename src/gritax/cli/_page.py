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
        require_writable(self.output, "--output")
        try:
            html = page(_read(self.run_file))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{self.run_file}: not as gritax wrote it ({type(error).__name__}: {error}). Write it again."
            ) from error
        if self.output is None:
            sys.stdout.write(html)
        else:
            self.output.write_text(html)
            console.print(f"wrote {self.output}")
        return CONVERGED


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}. Name a file that gritax solve or gritax train wrote with --json."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON. Name a file that gritax solve or gritax train wrote with --json.") from error
