"""The sliding window: evaluations in all and in sequence, beside the serial twin, on the project's problems.

    python benchmarks/newton.py [NAME ...] [--seeds 1 2 3 4 5] [--dtype float32] [--again] [--json FILE] [--page FILE]

Float64 unless asked otherwise, to 1e-6 of the distance travelled, everything counted: `work` are evaluations for each step,
`rows` those that fill blocks as well over those, `speedup` is steps over sweeps. `error` is that of the final parameters
against the serial twin, `rounding` that of a second twin whose first state is off by one rounding; `estimate` is what the solve
said of its error. Seconds: `first` is the first call, `again` a second one, compiled (--again),
and `serial` the jitted loop.
"""

import argparse
import itertools
import json
import statistics
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _newton_problems import PROBLEMS
from _rows import distance, write, write_table

import gritax
from gritax.newton._flight import block_of


jax.config.update("jax_enable_x64", True)

MARKS = "<!-- newton: begin -->", "<!-- newton: end -->"
HEADER = [
    "problem",
    "weights",
    "steps",
    "seeds",
    "evaluations a step",
    "in sequence",
    "steps over those (worst)",
    "error (worst)",
    "estimate",
    "converged",
]


def row(name, seed, dtype, rank, again_too):
    make, steps, sweeps, window = PROBLEMS[name]
    problem, method = make(seed=seed, dtype=dtype), gritax.Newton(rank, sweeps, window)
    solve = lambda: gritax.solve(problem.step, problem.state, steps, method, throw=False)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        solution = solve()
    first = time.perf_counter() - began
    again = None
    if again_too:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solve()
        again = round(time.perf_counter() - began, 2)
    gritax.solve_serial(problem.step, problem.state, 1)
    began = time.perf_counter()
    serial = jax.block_until_ready(gritax.solve_serial(problem.step, problem.state, steps))
    one_by_one = time.perf_counter() - began
    trained = lambda state: jax.tree.map(np.asarray, problem.step.split(state.params)[0])
    travelled = distance(trained(serial), trained(problem.state))
    weights = sum(leaf.size for leaf in jax.tree.leaves(trained(serial)))
    block = block_of(weights)
    nearby = jax.tree.map(lambda x: x * (1 + jnp.finfo(x.dtype).eps).astype(x.dtype), problem.state.params)
    other = gritax.solve_serial(problem.step, problem.step.init(nearby), steps)
    return {
        "problem": name,
        "dtype": dtype,
        "seed": seed,
        "weights": weights,
        "steps": steps,
        "sweeps_asked": sweeps,
        "rank": rank,
        "converged": solution.converged,
        "depth": solution.depth,
        "speedup": round(steps / solution.depth, 1),
        "work": round(solution.work / steps, 2),
        "rows": round(sum(-(-rows // block) * block * n for rows, n in solution._depth_by_lanes.items()) / solution.work, 3),
        "error": float(f"{distance(trained(solution.state), trained(serial)) / travelled:.2e}"),
        "rounding": float(f"{distance(trained(other), trained(serial)) / travelled:.2e}"),
        "estimate": float(f"{solution.relative_residuals[-1]:.2e}"),
        "amplification": float(f"{solution.amplification:.3g}"),
        "warned": len(told),
        "seconds": {"first": round(first, 2), "again": again, "serial": round(one_by_one, 2)},
        "reason": solution.reason,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROBLEMS)}; all of them if none is given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--again", action="store_true", help="time a second call")
    parser.add_argument("--json", type=Path, help="written after every row; rows of other problems and seeds in it stay")
    parser.add_argument("--page", type=Path, help="the page whose table is drawn from the file")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in PROBLEMS]:
        parser.error(f"no problem is called {unknown[0]!r}")
    known = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    for name in options.names or PROBLEMS:
        for seed in options.seeds:
            this = (name, options.dtype, seed)
            known = [each for each in known if (each["problem"], each["dtype"], each["seed"]) != this]
            known.append(row(name, seed, options.dtype, options.rank, options.again))
            print(json.dumps(known[-1]), flush=True)
            if options.json:
                write(options.json, known)
    if options.page:
        write_table(options.page, MARKS, HEADER, 1, list(cells(known)))


def cells(rows):
    """A line for each problem: medians over the seeds, and the worst."""
    for name, dtype in itertools.product(PROBLEMS, ("float64", "float32")):
        found = [each for each in rows if (each["problem"], each["dtype"]) == (name, dtype)]
        if found:
            middle = lambda key, found=found: statistics.median(each[key] for each in found)
            yield [
                name if dtype == "float64" else f"{name}, {dtype}",
                f"{found[0]['weights']:,}",
                f"{found[0]['steps']:,}",
                str(len(found)),
                f"{middle('work'):.2f}",
                f"{middle('depth'):.0f}",
                f"{middle('speedup'):.1f} ({min(each['speedup'] for each in found):.1f})",
                f"{middle('error'):.1e} ({max(each['error'] for each in found):.1e})",
                f"{middle('estimate'):.1e}",
                f"{sum(each['converged'] for each in found)} of {len(found)}",
            ]


if __name__ == "__main__":
    main()
