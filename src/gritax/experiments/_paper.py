"""The published numbers of Schroder (2017), and the paper's model of the potential speedup."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from .._arguments import require_steps, require_whole


@dataclass(frozen=True)
class PaperTable:
    """One published table: its settings and, by number of steps, iterations and average convergence rates.

    `iterations` and `rho` are None where the paper prints `50+` and `*`; `alpha_max` and `max_levels` where it has none.
    """

    table: int
    problem: str
    solver: str
    cycle: Literal["two-level", "V", "F"]
    max_levels: int | None
    alpha_base: float
    alpha_max: float | None
    growth: Literal["2^l", "1.25^l", "none"]
    serialized: bool
    training_examples: int
    examples_per_step: int
    num_steps: tuple[int, ...]
    iterations: tuple[int | None, ...]
    rho: tuple[float | None, ...]


@cache
def _published() -> dict:
    return json.loads(files("gritax.experiments").joinpath("paper_tables.json").read_text())


def paper_table(number: int) -> PaperTable:
    """Table `number` of the paper, 1 to 16. Raises `ValueError` for any other.

    >>> from gritax.experiments import paper_table
    >>> paper_table(3).iterations
    (6, 6, 7, 7, 7, 8, 11, 16, 21)
    """
    for entry in _published()["tables"]:
        if entry["table"] == number and not isinstance(number, bool):
            fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
            return PaperTable(**fields)
    raise ValueError(f"the paper has the tables 1 to 16, not {number!r}.")


def paper_figure(number: int) -> list[dict]:
    """The curves plotted in Figure 6 or 7: table, cycle, `num_steps`, `levels` and `speedup` of each.

    Read from the vector graphics of the paper, to about 0.2 percent.
    """
    curves = [c for c in _published()["potential_speedup"]["figures_6_and_7"]["curves"] if c["figure"] == number]
    if not curves:
        raise ValueError(f"potential speedups are plotted in Figures 6 and 7, not in {number!r}.")
    return curves


def paper_levels(num_steps: int) -> int:
    """Levels that the paper counts: halvings of `num_steps` until at most 10 steps are left."""
    require_steps(num_steps)
    levels = 1
    while num_steps > 10:
        num_steps, levels = num_steps // 2, levels + 1
    return levels


def paper_potential_speedup(num_steps: int, iterations: int, cycle: Literal["V", "F"], levels: int | None = None) -> float:
    r"""$N / \sigma$, with the paper's count of consecutive applications of $\Phi$ for $m = 2$ and FCF-relaxation.

    $\sigma_V(L) = n (17 + 8 (L - 2))$ (eq. 16): 7 on the finest level, 8 on each below it, 10 on the coarsest.
    $\sigma_F(L) = n \sum_{k=2}^{L} (17 + 8 (k - 2))$, the V-cycles that an F-cycle is made of. This is how the plotted values
    follow from the tables; the limits of the sum as printed in eq. 17 do not give them.

    A count of another method than ours: `Solution.depth` is smaller, since nothing is computed twice on the finest level.

    >>> from gritax.experiments import paper_potential_speedup
    >>> round(paper_potential_speedup(25600, 12, "F"), 3)
    2.914
    """
    require_steps(num_steps)
    require_whole("iterations", iterations, 1)
    levels = paper_levels(num_steps) if levels is None else levels
    require_whole("levels", levels, 1)
    if levels < 2:
        raise ValueError(f"the paper's count needs at least 2 levels, not {levels}.")
    if cycle not in ("V", "F"):
        raise ValueError(f'cycle must be "V" or "F", not {cycle!r}.')
    coarse = levels - 1
    return num_steps / (iterations * (8 * coarse + 9 if cycle == "V" else (4 * coarse + 13) * coarse))
