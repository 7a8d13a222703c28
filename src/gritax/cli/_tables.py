"""`gritax tables`."""

from dataclasses import dataclass

import tyro
from rich.console import Console

from .. import experiments
from .._arguments import require_seed, require_whole
from ._files import Perhaps, require_writable
from ._report import CONVERGED, write_json


@dataclass
class Tables:
    """Regenerate tables of Schroder (2017) beside the published numbers.

    Iterations are those to a residual of 1e-9 sqrt(N), from a guess of zeros, in float64.

    Example: gritax tables 1,3-5 --max-steps 3200

    Exit status: 0, or 2 bad arguments.
    """

    tables: tyro.conf.Positional[str] = "1-7"
    """Which tables: a number, a range like 1-7, or several with commas."""
    max_steps: int = 25_600
    """Leave out rows with more steps."""
    seed: int = 1
    """Seed of the initial weights (that of the paper is not stated)."""
    json: Perhaps = None
    """Write the rows to this file as well, replacing it."""

    def run(self, console: Console) -> int:
        require_seed("--seed", self.seed)
        require_writable(self.json)
        numbers = _numbers(self.tables)
        require_whole("--max-steps", self.max_steps, 100)
        tables = [
            (experiments.paper_table(n), experiments.run_table(n, max_steps=self.max_steps, seed=self.seed)) for n in numbers
        ]
        rows = []
        for table, results in tables:
            cap = "none" if table.alpha_max is None else f"{table.alpha_max:g}"
            console.print(
                f"Table {table.table}: {table.solver}, {table.cycle}, learning rate {table.alpha_base:g}, at most {cap}"
                f"{', one example a step' if table.serialized else ''}\n"
                "   steps  published  gritax  published rho   rho   depth"
            )
            for row in results:
                published, ours = (str(count or "50+") for count in (row.published, row.iterations))
                rho = "*" if row.published_rho is None else f"{row.published_rho:.2f}"
                console.print(f"{row.num_steps:8,}  {published:>9}  {ours:>6}  {rho:>13}  {row.rho:4.2f}  {row.depth:6,}")
                rows.append(vars(row))
            console.print()
        if self.json is not None:
            write_json(self.json, {"seed": self.seed, "rows": rows})
        return CONVERGED


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError(f"tables must be numbers and ranges such as 1-7 or 1,3,5, not {text!r}.")
        for each in (first, last or first):
            experiments.paper_table(int(each))
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise ValueError(f"tables {text!r} names none: write a range from the lower number to the higher.")
    return numbers


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # Python reads no number of thousands of digits
