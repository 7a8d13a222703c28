"""Predicted convergence factors beside measured ones: the table of docs/theory.md.

    python benchmarks/spectrum.py [names of problems] [--json FILE] [--page FILE]

Measured are the ratios of two residuals in a row down to a relative residual of 1e-13, ten times what rounding leaves: their
mean in the second half of the iterations, for what is predicted is a factor in the long run; the mean of all from the second
iteration on; and the largest.
Counts and factors do not depend on the machine. `--page` writes the table between the two marks of a page.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _rows import table_arguments, write, write_table

import gritax


jax.config.update("jax_enable_x64", True)

FLOOR = 1e-13
START, END = "<!-- table of predicted factors -->", "<!-- end of table -->"


def quadratics(seed, coarse):
    """40 curvatures from 1e-3 to 1, in each direction of a random basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(40, 40)))[0]
    root = jnp.asarray(np.sqrt(np.geomspace(1e-3, 1, 40))[:, None] * basis)
    loss = gritax.CompositeLoss(lambda w, _: root @ w, lambda z, _: 0.5 * jnp.sum(z**2))
    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda step: (), coarse)
    return step, step.init(jnp.ones(40))


def of(problem, *arguments, **names):
    def make(seed, coarse):
        made = problem(*arguments, seed=seed, coarse=coarse, **names)
        return made.step, made.state

    return make


# With the exact directions the prediction for `Stabilized` is for what is left beside them, which is not the question here.
PROPAGATORS = {
    "FrozenGradient": gritax.FrozenGradient,
    "Stabilized without directions": functools.partial(gritax.Stabilized, directions=0),
}
RESCALED = {"RescaledRate": gritax.RescaledRate}
PROBLEMS = {
    "quadratics": (1024, quadratics, RESCALED | PROPAGATORS),
    "XOR": (1600, of(gritax.problems.xor, 1.0), PROPAGATORS),
    "XOR, one example a step": (1600, of(gritax.problems.xor, 1.0, serialized=True), PROPAGATORS),
    "adder, one example a step": (1600, of(gritax.problems.adder, 0.025), PROPAGATORS),
    "digits, SGD": (1024, of(gritax.problems.digits, optax.sgd(0.1)), PROPAGATORS),
    "digits, heavy ball": (1024, of(gritax.problems.digits, optax.sgd(0.02, momentum=0.9)), PROPAGATORS),
    "digits, Adam": (1024, of(gritax.problems.digits, optax.adam(1e-3)), PROPAGATORS),
    "diabetes, SGD": (1024, of(gritax.problems.diabetes, optax.sgd(0.05)), PROPAGATORS),
    "diabetes, Adam": (1024, of(gritax.problems.diabetes, optax.adam(1e-3)), PROPAGATORS),
}


def measured(problem, name, seed):
    steps, make, propagators = PROBLEMS[problem]
    step, state = make(seed, propagators[name]())
    method = gritax.Multigrid(max_levels=3) if name in RESCALED else None
    predicted = gritax.spectrum(step, state, steps, method)
    solution = gritax.solve(step, state, steps, method, tolerance=FLOOR, throw=False, max_iterations=40)
    falling = [r for r in solution.relative_residuals[1:] if r > FLOOR]
    ratios = [after / before for before, after in itertools.pairwise(falling)]
    return {
        "problem": problem,
        "propagator": name,
        "seed": seed,
        "steps": steps,
        "levels": solution.level_sizes,
        "coarse_steps": predicted.coarse_steps,
        "kappa": float(f"{predicted.kappas.max():.3g}"),
        "predicted": float(f"{predicted.factor:.3g}"),
        "bound": float(f"{predicted.bound:.3g}"),
        "measured_late": mean(ratios[len(ratios) // 2 :]),
        "measured_mean": mean(ratios),
        "measured_largest": float(f"{max(ratios, default=math.nan):.3g}"),
        "relative_residuals": [float(f"{r:.2e}") for r in solution.relative_residuals],
        "iterations": solution.iterations,
        "restarts": solution.restarts,
    }


def mean(ratios):
    return float(f"{math.prod(ratios) ** (1 / max(len(ratios), 1)):.3g}")


def cells(row):
    predicted = [f"{row[name]:.3f}" if row[name] < 1 else "none" for name in ("predicted", "bound")]
    measured = [f"{row[f'measured_{name}']:.3f}" for name in ("late", "mean", "largest")]
    return [row["problem"], row["propagator"], str(row["seed"]), *predicted, *measured, str(row["iterations"])]


def main():
    arguments, rows = table_arguments(__doc__, PROBLEMS), []
    for problem in arguments.problems or PROBLEMS:
        for name in PROBLEMS[problem][2]:
            for seed in (1, 2):
                rows.append(measured(problem, name, seed))
                print(rows[-1], flush=True)
                if arguments.json:
                    write(arguments.json, rows)
    if arguments.page:
        header = ("problem", "coarse steps", "seed", "predicted", "bound", "measured", "mean", "largest", "iterations")
        write_table(arguments.page, (START, END), header, 2, map(cells, rows))


if __name__ == "__main__":
    main()
