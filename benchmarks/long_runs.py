"""Long runs of `gritax.train`: what it takes beside serial training where that is faster, and memory that does not grow.

    python benchmarks/long_runs.py [overhead] [memory] [--json FILE]

- `overhead`: `gritax.train` against `gritax.solve_serial`, in turns, each in a fresh process with all that it compiles.
- `memory`: peak resident memory of runs by `goal="depth"`, in windows.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from _measuring import child, load, ratios, spread, summary, today


OVERHEAD = {"xor": 40_000_000, "digits": 500_000, "adder": 3_000_000}
MEMORY = {"xor": ((250_000, 2**16), (1_000_000, 2**16)), "digits": ((12_288, 4096), (100_000, 4096))}
PAIRS = 5


def run(kind, name, steps, window):
    """In a process of its own."""
    import resource

    import jax

    import gritax

    problem = {"xor": gritax.problems.xor, "digits": gritax.problems.digits, "adder": gritax.problems.adder}[name]()
    step, state, steps = problem.step, problem.state, int(steps)
    began = time.perf_counter()
    found = {}
    if kind == "serial":
        params = gritax.solve_serial(step, state, steps).params
    else:
        options = {"goal": "depth", "window": int(window)} if kind == "depth" else {}
        trained = gritax.train(step.loss, step.optimizer, step.batch, state.params, steps, **options)
        params = trained.params
        found = {"depth": trained.depth, "work": trained.work, "reason": trained.reason, "windows": len(trained.windows)}
    jax.block_until_ready(params)
    found["seconds"] = time.perf_counter() - began
    if kind == "depth":
        serial = gritax.solve_serial(step, state, steps).params
        distance = lambda a, b: (
            float(sum(((x - y) ** 2).sum() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))) ** 0.5
        )
        found["relative_error"] = distance(params, serial) / distance(serial, state.params)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def overhead(name):
    steps, times, reasons = OVERHEAD[name], ([], []), set()
    for pair in range(PAIRS):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            found = child("long_runs.py", "run", ("train", "serial")[which], name, steps, 0)
            times[which].append(found["seconds"])
            reasons |= {found["reason"]} if "reason" in found else set()
    row = {"kind": "overhead", "problem": name, "steps": steps, "train": summary(times[0]), "serial": summary(times[1])}
    return row | {"ratio": summary(ratios(times)), "reasons": sorted(reasons), "load": load(), "date": today()}


def memory(name):
    for steps, window in MEMORY[name]:
        found = child("long_runs.py", "run", "depth", name, steps, window)
        yield {"kind": "memory", "problem": name, "steps": steps, "window": window, **found, "date": today()}


def main():
    if sys.argv[1:2] == ["run"]:
        return run(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "which", nargs="*", help="overhead, memory, memory-xor or memory-digits; the first two, if none is named"
    )
    parser.add_argument("--json", metavar="FILE", help="rows of other problems in it are kept")
    arguments, rows = parser.parse_args(), []
    which = arguments.which or ["overhead", "memory"]
    todo = [(overhead, name) for name in OVERHEAD if "overhead" in which]
    todo += [(memory, name) for name in MEMORY if {"memory", f"memory-{name}"} & set(which)]
    for measure, name in todo:
        found = measure(name)
        for row in [found] if isinstance(found, dict) else found:
            rows.append(row)
            print({**row, "ratio": spread(row["ratio"])} if "ratio" in row else row, flush=True)
            if arguments.json:
                keep(arguments.json, rows)
    return None


def keep(file, rows):
    from _rows import write

    key = lambda row: (row["kind"], row["problem"], row["steps"])
    known = json.loads(Path(file).read_text())["rows"] if Path(file).exists() else []
    write(file, list(({key(row): row for row in known} | {key(row): row for row in rows}).values()))


if __name__ == "__main__":
    main()
