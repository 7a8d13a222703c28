"""What `gritax.plan` predicts beside what is measured: serial training, and a solve with the plan's coarse steps and levels.

    python benchmarks/plan.py [names of problems] [--json FILE] [--page FILE]

Both are timed compiled, the least of two solves and of three serial runs. `--page` writes the table between marks of a page.
"""

import statistics
import time

import jax
import optax
from _measuring import load, today
from _rows import table_arguments, write, write_table

import gritax


jax.config.update("jax_enable_x64", True)

START, END = "<!-- table of plans -->", "<!-- end of plans -->"
HEADER = ("problem", "steps", "coarse steps", "serial s", "predicted", "solve s", "predicted", "depth", "predicted", "plan s")

PROBLEMS = {
    "XOR": (25600, lambda: gritax.problems.xor(0.1)),
    "XOR, one example a step": (6400, lambda: gritax.problems.xor(0.1, serialized=True)),
    "adder, mean": (1600, lambda: gritax.problems.adder(0.025, reduction="mean")),
    "digits, SGD": (2048, lambda: gritax.problems.digits(optax.sgd(0.1))),
    "digits, Adam": (2048, lambda: gritax.problems.digits(optax.adam(1e-3))),
    "diabetes, SGD": (8192, lambda: gritax.problems.diabetes(optax.sgd(0.05))),
    "diabetes, Adam": (8192, lambda: gritax.problems.diabetes(optax.adam(1e-3))),
}


def seconds(run, times):
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return result, min(taken)


def row(name):
    steps, make = PROBLEMS[name]
    problem = make()
    step, state = problem.step, problem.state
    began = time.perf_counter()
    plan = gritax.plan(step.loss, step.optimizer, step.batch, state.params, steps, key=step.key, has_aux=step.has_aux)
    planning = time.perf_counter() - began
    solve = lambda: vars(gritax.solve(plan.step, plan.state, steps, plan, throw=False))
    solve()
    solution, solving = seconds(solve, 2)
    gritax.solve_serial(step, state, steps)
    _, serial = seconds(lambda: gritax.solve_serial(step, state, steps), 3)
    short = lambda x: float(f"{x:.4g}")
    return {
        "problem": name,
        "steps": steps,
        "coarse_steps": plan.coarse_steps,
        "planning_seconds": short(planning),
        "serial_seconds": short(serial),
        "serial_predicted": short(plan.serial_seconds),
        "solve_seconds": short(solving),
        "solve_predicted": short(plan.seconds),
        "converged": solution["converged"],
        "iterations": solution["iterations"],
        "iterations_of_pilot": plan.pilot.iterations,
        "depth": sum(solution["_depth_by_lanes"].values()),
        "depth_predicted": plan.depth,
        "sentence": plan.sentence,
        "load": load(),
        "date": today(),
    }


def off(rows, what):
    return [abs(each[f"{what}_predicted"] / each[f"{what}_seconds"] - 1) for each in rows]


def cells(row):
    return [
        row["problem"],
        f"{row['steps']:,}",
        row["coarse_steps"].split(",")[0],
        *(f"{row[name]:.3g}" for name in ("serial_seconds", "serial_predicted", "solve_seconds", "solve_predicted")),
        *(f"{row[name]:,}" for name in ("depth", "depth_predicted")),
        f"{row['planning_seconds']:.0f}",
    ]


def main():
    arguments, rows = table_arguments(__doc__, PROBLEMS), []
    for name in arguments.problems or PROBLEMS:
        rows.append(row(name))
        print(rows[-1], flush=True)
        if arguments.json:
            write(arguments.json, rows)
    for what in ("serial", "solve"):
        print(f"{what}: off by {statistics.median(off(rows, what)):.0%} in the median, {max(off(rows, what)):.0%} at most")
    if arguments.page:
        write_table(arguments.page, (START, END), HEADER, 1, map(cells, rows))


if __name__ == "__main__":
    main()
