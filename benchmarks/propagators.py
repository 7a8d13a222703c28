"""All coarse propagators on all problems, failures left in: the table of docs/propagators.md.

    python benchmarks/propagators.py [names of problems] [--json FILE] [--page FILE]

Counts do not depend on the machine. Seconds are those of a second call beside a second serial run, both compiled.
`--page` writes the table between the two marks of a page.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import optax
from _rows import row, write

import gritax


jax.config.update("jax_enable_x64", True)

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
    names = {"problem": problem, "propagator": name}
    try:
        return row(make(PROPAGATORS[name]()), steps, warm=True, max_iterations=20, **names)
    except ValueError as error:
        return {**names, "steps": steps, "refused": str(error)}


_FIGURES = ("iterations", "depth", "speedup", "on 64 devices", "work", "seconds", "serial")


def table(rows):
    lines = [
        _line(["problem", "steps", "coarse propagator", *_FIGURES]),
        _line(["---", "--:", "---", *["--:"] * len(_FIGURES)]),
    ]
    for each in rows:
        begin = [each["problem"], f"{each['steps']:,}", each["propagator"]]
        if "refused" in each:
            lines.append(_line([*begin, "refused", *[""] * 6]))
            continue
        chosen = f" ({each['coarse_steps'].split(',')[0].split('(')[0]})" if each["propagator"] == '"auto"' else ""
        begin[-1] += chosen
        iterations = str(each["iterations"]) if each["converged"] else f"not in {each['iterations']}"
        speedups = [f"{each[name]:.2f}" for name in ("potential_speedup", "speedup_on_devices")]
        figures = speedups if each["converged"] else ["", ""]
        seconds = [f"{each[name]:.2f}" for name in ("warm_seconds", "warm_serial_seconds")]
        lines.append(_line([*begin, iterations, f"{each['depth']:,}", *figures, f"{each['work_per_step']:.1f}", *seconds]))
    return "\n".join(lines)


def _line(cells):
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", help=f"all, if none is named: {', '.join(PROBLEMS)}")
    parser.add_argument("--json", help="written after every solve")
    parser.add_argument("--page")
    arguments = parser.parse_args()
    rows = []
    for problem in arguments.problems or PROBLEMS:
        for name in PROPAGATORS:
            rows.append(measured(problem, name))
            print({key: value for key, value in rows[-1].items() if key not in ("levels", "metrics")}, flush=True)
            if arguments.json:
                write(arguments.json, rows)
    if arguments.page:
        page = Path(arguments.page)
        before, _, rest = page.read_text().partition(START)
        page.write_text(f"{before}{START}\n{table(rows)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
