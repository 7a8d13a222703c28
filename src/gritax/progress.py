"""Progress of a solve, for people: the level table, then a line an iteration, and below it what is being computed."""

import math

from rich import box
from rich.console import Console
from rich.progress import Progress as Bar, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ._hierarchy import Hierarchy
from ._solution import Iteration, Solution, counted
from ._solve import Progress


class Lines(Progress):
    """Shows the levels before a solve starts and one line an iteration while it runs; of `gritax.train`, each window.

    - `console`: where to; standard output if not given.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: 0.9**stride * u, 1.0, 40, progress=gritax.progress.Lines())
     level   steps   stride   factor   relaxation
    ──────────────────────────────────────────────
         0      40        1        4          FCF
         1      10        4                serial
    ...
    """

    _COLUMNS = (("iteration", 9), ("residual", 10), ("factor", 8), ("exact steps", 11), ("elapsed", 9))

    def __init__(self, console: Console | None = None):
        if console is not None and not isinstance(console, Console):
            raise ValueError(f"console must be a rich.console.Console, such as Console(stderr=True), not {console!r}.")
        self.console = console or Console(highlight=False, soft_wrap=True)

    def begin(self, hierarchy: Hierarchy) -> None:
        heading, *rows = hierarchy.rows()
        table = Table(*heading, box=box.SIMPLE_HEAD)
        for column in table.columns:
            column.justify, column.no_wrap, column.overflow = "right", True, "ignore"
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.console.print()
        self.console.print(f"compiling {counted(len(hierarchy), 'level')}")
        self.console.print("  ".join(name.rjust(width) for name, width in self._COLUMNS))

    def iteration(self, iteration: Iteration) -> None:
        factor = "" if math.isnan(iteration.factor) else f"{iteration.factor:.2g}"
        cells = (
            str(iteration.number),
            f"{iteration.residual:.3e}",
            factor,
            f"{iteration.exact_steps:,}",
            f"{iteration.seconds:.2f} s",
        )
        self.console.print("  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, self._COLUMNS, strict=True)))

    def restart(self, reason: str) -> None:
        self.console.print(f"\nstarting again: {reason}\n")

    def window(self, first: int, num_steps: int, kind: str, reason: str) -> None:
        how = "at once" if kind == "parallel" else "one after the other"
        self.console.print(f"steps {first:,} to {first + num_steps:,} {how}{': ' if reason else ''}{reason}")

    def front(self, taken: int, num_steps: int, in_flight: int, sweeps: int, seconds: float) -> None:
        left = seconds * (num_steps - taken) / max(taken, 1)
        share = f"{taken:,} of {num_steps:,} steps ({100 * taken // num_steps} percent)"
        self.console.print(
            f"sweep {sweeps:,}: {share}, {in_flight:,} in flight, {seconds:.2f} s{f', {left:.2g} s left' * (left > 0)}"
        )

    def end(self, solution: Solution) -> None:
        self.console.print()


class Live(Lines):
    """As `Lines`, and while a solve runs in a terminal a moving line below them: what is being computed, and for how long.

    Where output is piped it is `Lines`. Use it as a context, which leaves the terminal in order whatever happens:

    >>> import gritax
    >>> with gritax.progress.Live() as progress:
    ...     solution = gritax.solve(lambda u, start, stride: 0.9**stride * u, 1.0, 40, progress=progress)
     level   steps   stride   factor   relaxation
    ──────────────────────────────────────────────
         0      40        1        4          FCF
         1      10        4                serial
    ...
    """

    def __init__(self, console: Console | None = None):
        super().__init__(console)
        spinner = SpinnerColumn("dots" if self.console.encoding.startswith("utf") else "line")
        columns = (spinner, TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Bar(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def _now(self, what: str) -> None:
        """Shows this, timed from now on, in place of what was shown."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(what, total=None)
        self._bar.start()

    def begin(self, hierarchy: Hierarchy) -> None:
        super().begin(hierarchy)
        self._now("compilation and initial guess")

    def iteration(self, iteration: Iteration) -> None:
        super().iteration(iteration)
        self._now(f"iteration {iteration.number + 1}")

    def window(self, first: int, num_steps: int, kind: str, reason: str) -> None:
        super().window(first, num_steps, kind, reason)
        self._now(f"steps {first:,} to {first + num_steps:,}")

    def front(self, taken: int, num_steps: int, in_flight: int, sweeps: int, seconds: float) -> None:
        super().front(taken, num_steps, in_flight, sweeps, seconds)
        self._now(f"steps from {taken:,} on")

    def end(self, solution: Solution) -> None:
        self._bar.stop()
        super().end(solution)
