"""The paper's tables, computed by gritax with the paper's settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import jax.numpy as jnp

from .._arguments import require_steps
from .._hierarchy import Multigrid
from .._solve import solve
from ..coarse import RescaledRate
from ..problems import Problem, adder, xor
from ._paper import PaperTable, paper_table


@dataclass(frozen=True)
class Row:
    """One column of a table of the paper, and ours: `iterations` is None where 50 were not enough.

    `rho` is the average rate `(||r_k|| / ||r_0||)^(1/k)` over the k iterations, `depth` the counted evaluations in sequence.
    """

    table: int
    num_steps: int
    published: int | None
    iterations: int | None
    published_rho: float | None
    rho: float
    depth: int


def run_table(number: int, *, max_steps: int = 25_600, seed: int = 1) -> Iterator[Row]:
    """The rows of a table of the paper with up to `max_steps` steps, one after the other. Needs float64 (x64 enabled).

    Raises `ValueError` for a table that the paper does not have, and without float64.
    """
    table = paper_table(number)
    if isinstance(max_steps, bool) or not isinstance(max_steps, Real) or not max_steps >= 0:
        raise ValueError(f"max_steps must be a number of steps, or inf for all rows, not {max_steps!r}.")
    return (run_row(table, num_steps, seed=seed) for num_steps in table.num_steps if num_steps <= max_steps)


def run_row(table: PaperTable, num_steps: int, *, seed: int = 1, max_iterations: int = 50, **method) -> Row:
    """One row, with the paper's settings: m = 2, FCF, a guess of zeros, halted on `residuals` at `1e-9 sqrt(N)`.

    `method` replaces single options of the `Multigrid`, to see what a count depends on.
    """
    if not isinstance(table, PaperTable):
        raise ValueError(f"table must be a PaperTable, such as gritax.experiments.paper_table(1), not {table!r}.")
    require_steps(num_steps)
    if jnp.zeros(0).dtype != jnp.float64:
        raise ValueError('the paper\'s tolerance needs float64: call jax.config.update("jax_enable_x64", True) first.')
    problem = _problem(table, seed)
    cycle = "F" if table.cycle == "F" else "V"
    options = {"coarsening": 2, "max_levels": table.max_levels, "cycle": cycle, "relaxation": 1} | method
    solution = solve(
        problem.step,
        problem.state,
        num_steps,
        Multigrid(**options),
        tolerance=1e-9 * math.sqrt(num_steps),
        max_iterations=max_iterations,
        initial_guess="zeros",
        throw=False,
    )
    published = dict(zip(table.num_steps, zip(table.iterations, table.rho, strict=True), strict=True))
    iterations, rho = published.get(num_steps, (None, None))
    return Row(
        table=table.table,
        num_steps=num_steps,
        published=iterations,
        iterations=solution.iterations if solution.converged else None,
        published_rho=rho,
        rho=float((solution.residuals[-1] / solution.residuals[0]) ** (1 / max(solution.iterations, 1))),
        depth=solution.depth,
    )


def _problem(table: PaperTable, seed: int) -> Problem:
    power = {"2^l": 1.0, "1.25^l": math.log2(1.25), "none": 0.0}[table.growth]
    coarse = RescaledRate(power, math.inf if table.alpha_max is None else table.alpha_max / table.alpha_base)
    if table.problem == "three-layer XOR":
        return xor(table.alpha_base, seed, serialized=table.serialized, coarse=coarse)
    return adder(table.alpha_base, seed, serialized=table.serialized, num_examples=table.training_examples, coarse=coarse)
