"""`gritax report`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from ..reporting import page
from ._files import STANDARD, Named, require_writable, write
from ._report import CONVERGED


@dataclass
class Report:
    """Make a page of a run: one HTML file with its figures and pictures, which needs no network.

    The run is a file that gritax solve or gritax train wrote with --json.

    Example: gritax solve xor --json run.json && gritax report run.json --output run.html

    Exit status: 0, or 2 bad arguments.
    """

    run_file: tyro.conf.Positional[Named]
    """What --json wrote; - is standard input."""
    output: Named = STANDARD
    """Write the page to this file, replacing it; - is standard output."""

    def run(self, console: Console) -> int:
        if self.output != STANDARD and self.output.exists() and self.run_file.exists() and self.output.samefile(self.run_file):
            raise ValueError(f"--output {self.output} is the run itself: name another file.")
        require_writable(self.output, "--output")
        run = _read(self.run_file)
        try:
            html = page(run)
        except ValueError as error:
            raise ValueError(f"{self.run_file}: not as gritax solve or gritax train wrote it: {error}") from error
        write(self.output, html, "--output")
        if self.output != STANDARD:
            console.print(f"wrote {self.output}")
        return CONVERGED


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(0 if path == STANDARD else path, encoding="utf-8-sig", closefd=path != STANDARD) as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}. Name a file that gritax solve or gritax train wrote with --json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON. Name a file that gritax solve or gritax train wrote with --json.") from error
