"""A solve and its serial twin as a row of a table."""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import jax
import optax
from _measuring import load, machine, today, versions

import gritax


DEVICES = 64


def distance(a, b):
    return float(optax.tree.norm(jax.tree.map(lambda x, y: x - y, a, b)))


def row(problem, steps, method=None, tolerance=None, /, *, warm_below=0.0, max_iterations=12, **names):
    """`seconds` are those of a first call, with its compilation; one below `warm_below` is timed again, as is the twin."""

    def parallel():
        return gritax.solve(
            problem.step, problem.state, steps, method, tolerance=tolerance, throw=False, max_iterations=max_iterations
        )

    def serial():
        return jax.block_until_ready(gritax.solve_serial(problem.step, problem.state, steps))

    solution, seconds = _timed(parallel)
    twin, serial_seconds = _timed(serial)
    times = {"seconds": seconds, "serial_seconds": serial_seconds}
    if seconds < warm_below:
        times |= {"warm_seconds": _timed(parallel)[1], "warm_serial_seconds": _timed(serial)[1], "load": load()}
    return {
        **names,
        "steps": steps,
        "levels": solution.level_sizes,
        "coarse_steps": solution.coarse_steps,
        "restarts": solution.restarts,
        "converged": solution.converged,
        "iterations": solution.iterations,
        "depth": solution.depth,
        "potential_speedup": round(solution.potential_speedup, 2),
        "devices": DEVICES,
        "speedup_on_devices": round(steps / solution.depth_on(DEVICES), 3),
        "work_per_step": round(solution.work / steps, 1),
        "relative_residuals": [float(f"{r:.2e}") for r in solution.relative_residuals],
        "relative_error": float(f"{distance(solution.params, twin.params) / distance(twin.params, problem.state.params):.2e}"),
        "metrics": problem.metrics(solution.params),
        **times,
        "reason": solution.reason,
    }


def _timed(run):
    began = time.perf_counter()
    result = run()
    return result, round(time.perf_counter() - began, 2)


def write(path, rows):
    made_by = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "versions": versions(), "date": today()}
    Path(path).write_text(json.dumps(made_by | {"rows": rows}, indent=1) + "\n")


def table_arguments(doc, problems):
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("problems", nargs="*", help=f"all, if none is named: {', '.join(problems)}")
    parser.add_argument("--json", metavar="FILE", help="written after every solve")
    parser.add_argument("--page", metavar="FILE")
    return parser.parse_args()


def write_table(path, marks, header, num_names, rows):
    """The table of these cells between two lines of a page; all columns but the first `num_names` are numbers."""
    lines = [header, ["---"] * num_names + ["--:"] * (len(header) - num_names), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    page = Path(path)
    start, end = marks
    before, _, rest = page.read_text().partition(start)
    page.write_text(f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}")
