"""All coarse propagators on all problems, failures left in: the table of docs/propagators.md.

    python benchmarks/propagators.py [names of problems] [--json FILE] [--page FILE]

Counts do not depend on the machine. Seconds are those of a second call beside a second serial run, both compiled;
in brackets those of a first call that took longer than a minute, compilation included. A row that takes longer than
fifteen minutes, in a process of its own, is given up.
Rows of problems that are not named stay in FILE as they were. `--page` writes the table between the two marks of a page.
"""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import optax
from _measuring import child, today
from _rows import row, table_arguments, write, write_table

import gritax


jax.config.update("jax_enable_x64", True)

WARM_BELOW, LIMIT = 60.0, 900.0
START, END = "<!-- table of propagators -->", "<!-- end of table -->"


def sine_after_start(coarse):
    problem = gritax.problems.sine(coarse=coarse)
    return replace(problem, state=gritax.solve_serial(problem.step, problem.state, 128))


PROPAGATORS = {
    "RescaledRate": gritax.RescaledRate,
    "FrozenGradient": gritax.FrozenGradient,
    "Stabilized": gritax.Stabilized,
    "Tangent": gritax.Tangent,
    '"auto"': lambda: "auto",
}
PROBLEMS = {
    "XOR": (1600, lambda coarse: gritax.problems.xor(1.0, coarse=coarse)),
    "XOR, one example a step": (1600, lambda coarse: gritax.problems.xor(1.0, serialized=True, coarse=coarse)),
    "adder, 50 examples": (1600, lambda coarse: gritax.problems.adder(0.025, serialized=False, num_examples=50, coarse=coarse)),
    "adder, one example a step": (1600, lambda coarse: gritax.problems.adder(0.025, coarse=coarse)),
    "adder, one example a step, mean": (1600, lambda coarse: gritax.problems.adder(0.025, reduction="mean", coarse=coarse)),
    "digits, SGD": (2048, lambda coarse: gritax.problems.digits(optax.sgd(0.1), coarse=coarse)),
    "digits, heavy ball": (2048, lambda coarse: gritax.problems.digits(optax.sgd(0.02, momentum=0.9), coarse=coarse)),
    "digits, Adam": (2048, lambda coarse: gritax.problems.digits(optax.adam(1e-3), coarse=coarse)),
    "diabetes, SGD": (2048, lambda coarse: gritax.problems.diabetes(optax.sgd(0.05), coarse=coarse)),
    "diabetes, Adam": (2048, lambda coarse: gritax.problems.diabetes(optax.adam(1e-3), coarse=coarse)),
    "sine, SGD": (2048, lambda coarse: gritax.problems.sine(optax.sgd(0.05), coarse=coarse)),
    "sine, Adam after 128 serial steps": (512, sine_after_start),
}


def measured(problem, name):
    steps, make = PROBLEMS[problem]
    names = {"problem": problem, "propagator": name, "date": today()}
    try:
        return row(make(PROPAGATORS[name]()), steps, warm_below=WARM_BELOW, max_iterations=20, **names)
    except ValueError as error:
        return {**names, "steps": steps, "refused": str(error)}


def within_limit(problem, name):
    try:
        return child("propagators.py", "measure", problem, name, limit=LIMIT)
    except subprocess.TimeoutExpired:
        return {"problem": problem, "propagator": name, "date": today(), "steps": PROBLEMS[problem][0], "given_up": LIMIT}


def known_rows(file):
    return json.loads(Path(file).read_text())["rows"] if file and Path(file).exists() else []


def merged(rows):
    """In the order of the table, the last of each problem and propagator."""
    last = {(each["problem"], each["propagator"]): each for each in rows}
    return [last[pair] for pair in itertools.product(PROBLEMS, PROPAGATORS) if pair in last]


HEADER = (
    *("problem", "coarse propagator"),
    *("steps", "iterations", "depth", "speedup", "on 64 devices", "work", "seconds", "serial"),
)


def cells(row):
    chosen = f" ({row['coarse_steps'].split(',')[0].split('(')[0]})" if "auto" in row["propagator"] and "depth" in row else ""
    begin = [row["problem"], row["propagator"] + chosen, f"{row['steps']:,}"]
    if "refused" in row or "given_up" in row:
        return [*begin, "refused" if "refused" in row else f"given up after {row['given_up'] / 60:.0f} minutes", *[""] * 6]
    iterations = str(row["iterations"]) if row["converged"] else f"not in {row['iterations']}"
    speedups = [f"{row[name]:.2f}" if row["converged"] else "" for name in ("potential_speedup", "speedup_on_devices")]
    warm = [f"{row[name]:.2f}" for name in ("warm_seconds", "warm_serial_seconds") if name in row]
    seconds = warm or [f"({row[name]:.3g})" for name in ("seconds", "serial_seconds")]
    return [*begin, iterations, f"{row['depth']:,}", *speedups, f"{row['work_per_step']:.1f}", *seconds]


def main():
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(*sys.argv[2:])))
        return
    arguments, rows = table_arguments(__doc__, PROBLEMS), []
    for problem in arguments.problems or PROBLEMS:
        for name in PROPAGATORS:
            found = within_limit(problem, name)
            print({key: value for key, value in found.items() if key not in ("levels", "metrics")}, flush=True)
            rows = merged([*known_rows(arguments.json), *rows, found])
            if arguments.json:
                write(arguments.json, rows)
    if arguments.page:
        write_table(arguments.page, (START, END), HEADER, 2, map(cells, rows))


if __name__ == "__main__":
    main()
