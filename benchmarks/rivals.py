"""A parallel solve beside everything else that trains: seconds, depth, work and memory, and whether the weights are the same.

    python benchmarks/rivals.py [names of problems] [--json FILE] [--page FILE] [--against FILE] [--peer-python PATH]

- `gritax`: `gritax.solve` with the coarse steps named, compiled before.
- `scan`: a jitted `lax.scan` of the same steps, the order of the examples known, unrolled as is fastest.
- `torch.compile`: the same steps in PyTorch, eight in one graph, on one thread or on all, as is faster; left out without torch.
- `8 at once`: the scan of a `vmap` over eight initial weights; its seconds are an eighth, since eight runs are done.
- `larger batch`: eight times the examples and the learning rate (Adam: its root), an eighth of the steps. Not the same weights.
- `PyMGRIT`: with `--peer-python`, see machinery.py; XOR in NumPy, the same hierarchy, cycle and coarse steps as gritax's.

All take turns in one process for each problem, PyMGRIT in its own; memory is that of a process which does nothing else, at its
highest, less what it has before. `--against` compares with ratios that were stored: it names those that have fallen by a
quarter and more, and below all that were measured, and fails.
"""

import argparse
import json
import sys
from pathlib import Path

from _measuring import child, load, ratios, seconds, spread, summary, today
from _rows import distance, write, write_table
from rival_programs import AT_ONCE, CASES, MANY, PEER, PEER_TOLERANCE, programs


ROUNDS = 5
START, END = "<!-- table of rivals -->", "<!-- end of rivals -->"
FALL = 1.25


def measure(name):
    """In a process of its own: the rows of a problem but for their memory."""
    case, problem, rivals, solutions = programs(name)
    runs = {rival: make() for rival, make in rivals.items()}
    results = {rival: run() for rival, run in runs.items()}
    times: dict[str, list[float]] = {rival: [] for rival in runs}
    for turn in range(ROUNDS):
        for rival in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            times[rival].append(seconds(runs[rival]) / (MANY if rival == AT_ONCE else 1))
    solution = solutions[-1]
    moved = distance(results["scan"], problem.state.params)
    rows = []
    for rival, params in results.items():
        parallel, larger = rival == "gritax", rival == "larger batch"
        error = distance(params, results["scan"]) / moved
        row = {"problem": name, "rival": rival, "steps": case.steps, "relative_error": float(f"{error:.2g}")}
        row |= {"seconds": summary(times[rival]), "ratio": summary(ratios((times[rival], times["gritax"])))}
        row |= {"depth": solution.depth if parallel else case.steps // (MANY if larger else 1)}
        row |= {"work_per_step": round(solution.work / case.steps, 1) if parallel else 1}
        row |= {"loss": float(f"{problem.loss(params):.4g}"), "metrics": problem.metrics(params)}
        if parallel:
            row |= {"converged": solution.converged, "iterations": solution.iterations, "coarse_steps": solution.coarse_steps}
            row |= {"levels": solution.level_sizes}
        rows.append(row | {"load": load(), "date": today()})
    return rows


def memory(name, rival):
    """In a process of its own: what `rival` needs beyond the problem."""
    import resource

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rivals = programs(name)[2]
    before = peak()
    rivals[rival]()()
    return {"peak_mb": round(peak() - before, 1)}


def pymgrit(python, ours):
    """The row of PyMGRIT beside that of gritax."""
    arguments = ("xor", ours["steps"], 4, len(ours["levels"]), PEER_TOLERANCE, "nested")
    runs = [child("peer_pymgrit.py", *arguments, python=python) for _ in range(ROUNDS)]
    times = [run["seconds"] for run in runs]
    return {
        "problem": ours["problem"],
        "rival": f"PyMGRIT {runs[0]['pymgrit']}",
        "steps": ours["steps"],
        "relative_error": float(f"{runs[0]['relative_error']:.2g}"),
        "seconds": summary(times),
        "ratio": summary(ratios((times, ours["seconds"]["values"]))),
        "iterations": runs[0]["iterations"],
        "peak_mb": runs[0]["peak_mb"],
        "load": load(),
        "date": today(),
    }


def rows_of(name, peer_python):
    rows = child("rivals.py", "measure", name)["rows"]
    rows = [row | child("rivals.py", "memory", name, row["rival"]) for row in rows]
    if name == PEER and peer_python:
        rows.append(pymgrit(peer_python, next(row for row in rows if row["rival"] == "gritax")))
    return rows


HEADER = ("problem", "steps", "", "weights", "seconds", "over gritax's", "depth", "work a step", "MB", "loss")


def words(row):
    """The cells of a row."""
    error = row["relative_error"]
    rival, weights = row["rival"], f"within {error:.0e}" if error else "bit for bit"
    if rival == "scan":
        weights = "serial"
    elif rival == "larger batch":
        weights = "others"
    elif rival == "gritax" and not row["converged"]:
        weights += ", not converged"
    if "iterations" in row:
        rival += f", {row['iterations']} iterations"
    ratio = "" if row["rival"] == "gritax" else f"{row['ratio']['median']:.3g}"
    depth, work = f"{row['depth']:,}" if "depth" in row else "", f"{row.get('work_per_step', '')}"
    loss = f"{row['loss']:.3g}" if "loss" in row else ""
    cells = (row["problem"], f"{row['steps']:,}", rival, weights, f"{row['seconds']['median']:.3g}", ratio, depth, work)
    return (*cells, f"{row['peak_mb']:,.0f}", loss)


def fallen(rows, baseline):
    """What to say of each ratio that is worse than it was."""
    known = {(row["problem"], row["rival"]): row["ratio"] for row in baseline if row["rival"] != "gritax"}
    for row in rows:
        before = known.get((row["problem"], row["rival"]))
        if before and row["ratio"]["median"] < min(before["median"] / FALL, before["min"]):
            yield f"{row['problem']}, {row['rival']}: {spread(row['ratio'], digits=3)}, was {spread(before, digits=3)}"


def main():
    if sys.argv[1:2] == ["measure"]:
        return print(json.dumps({"rows": measure(sys.argv[2])}))
    if sys.argv[1:2] == ["memory"]:
        return print(json.dumps(memory(*sys.argv[2:])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", help="all, if none is named")
    parser.add_argument("--json", metavar="FILE", help="written after every problem; rows of others in it are kept")
    parser.add_argument("--page", metavar="FILE", help="where the table goes")
    parser.add_argument("--against", metavar="FILE", help="rows of an earlier run to compare with")
    parser.add_argument("--peer-python", metavar="PATH", help="the Python of an environment with PyMGRIT")
    arguments, rows = parser.parse_args(), []
    if unknown := set(arguments.problems) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: there are only {'; '.join(CASES)}")
    baseline = stored(arguments.against)
    for name in arguments.problems or CASES:
        rows += rows_of(name, arguments.peer_python)
        for row in rows:
            if row["problem"] == name:
                print("  ".join(words(row)), flush=True)
        if arguments.json:
            write(arguments.json, merged(stored(arguments.json), rows))
    if arguments.page:
        write_table(arguments.page, (START, END), HEADER, 4, map(words, merged(stored(arguments.json or ""), rows)))
    lines = list(fallen(rows, baseline))
    for line in lines:
        print(f"fallen: {line}")
    return 1 if lines else 0


def stored(file):
    return json.loads(Path(file).read_text())["rows"] if file and Path(file).is_file() else []


def merged(known, rows):
    """In the order of the problems; those of a problem that was measured again are all new."""
    again = {row["problem"] for row in rows}
    order = list(CASES)
    return sorted([row for row in known if row["problem"] not in again] + rows, key=lambda row: order.index(row["problem"]))


if __name__ == "__main__":
    sys.exit(main())
