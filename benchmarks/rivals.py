"""A parallel solve beside everything else that trains: seconds, depth, work and memory, and whether the weights are the same.

    python benchmarks/rivals.py [names of problems] [--json FILE] [--page FILE] [--against FILE] [--peer-python PATH]
    python benchmarks/rivals.py --gpu [names of problems] [--rounds 3] [--json FILE] [--page FILE] [--against FILE]

- `gritax`: `gritax.solve` with the coarse steps named, compiled before.
- `scan`: a jitted `lax.scan` of the same steps, the order of the examples known, unrolled as is fastest.
- `C`: of XOR, the serial loop in C, one thread, at -O3 with the processor's own instructions; left out without `cc`.
- `torch.compile`: the same steps in PyTorch, eight in one graph, on one thread or on all, as is faster; left out without torch.
- `8 at once`: the scan of a `vmap` over eight initial weights; its seconds are an eighth, since eight runs are done.
- `larger batch`: eight times the examples and the learning rate (Adam: its root), an eighth of the steps. Not the same weights.
- `PyMGRIT`: with `--peer-python`, see machinery.py; XOR in NumPy, the same hierarchy, cycle and coarse steps as gritax's.

All take turns in one process for each problem, PyMGRIT in its own; memory is that of a process which does nothing else, at its
highest, less what it has before. `--against` compares with ratios that were stored: it names those that have fallen by a
quarter and more, and below all that were measured, and fails.

With `--gpu` all of it runs on the GPU that JAX finds: the scan with its loop in one graph too, where that is faster, PyTorch
with CUDA graphs, and the scan on the processor beside them. Joules are the GPU's, and memory is its own: the most that was held
by any program up to this one, the parallel solve last, so that the little that others need is not counted twice. Each problem
has 200 seconds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from _measuring import child, load, ratios, spread, summary, today
from _rows import write, write_table
from rival_programs import CASES, ON_A_GPU, PEER, PEER_TOLERANCE


MARKS = "<!-- table of rivals -->", "<!-- end of rivals -->"
MARKS_ON_A_GPU = "<!-- table of rivals on a GPU -->", "<!-- end of rivals on a GPU -->"
FALL = 1.25
LONGEST = 200  # seconds for a problem on a GPU, which is lent by the minute
# Matrices as small as these are multiplied faster by one thread of a processor with many.
ON_THE_GPU = {"JAX_PLATFORMS": "cuda,cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


def pymgrit(python, ours, rounds):
    """The row of PyMGRIT beside that of gritax."""
    arguments = ("xor", ours["steps"], 4, len(ours["levels"]), PEER_TOLERANCE, "nested")
    runs = [child("peer_pymgrit.py", *arguments, python=python) for _ in range(rounds)]
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


def rows_of(name, rounds, peer_python):
    rows = child("rival_rows.py", "measure", name, rounds)["rows"]
    rows = [row | child("rival_rows.py", "memory", name, row["rival"]) for row in rows]
    if name == PEER and peer_python:
        rows.append(pymgrit(peer_python, next(row for row in rows if row["rival"] == "gritax"), rounds))
    return rows


def rows_on_gpu(name, rounds):
    """None, once it is said why, if there are none."""
    try:
        return child("rival_rows.py", "gpu", name, rounds, also=ON_THE_GPU, limit=LONGEST)["rows"]
    except subprocess.TimeoutExpired:
        print(f"{name}: not within {LONGEST} s", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    return None


def header(gpu):
    columns = ("problem", "steps", "", "weights", "seconds", "over gritax's", "depth", "work a step", "MB")
    return (*columns, *(["joules"] if gpu else []), "loss")


def words(row, gpu):
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
    energy = [f"{row['joules'] or ''}" if "joules" in row else ""] if gpu else []
    return (*cells, f"{row['peak_mb']:,.0f}" if "peak_mb" in row else "", *energy, loss)


def fallen(rows, baseline):
    """What to say of each ratio that is worse than it was."""
    known = {(row["problem"], row["rival"]): row["ratio"] for row in baseline if row["rival"] != "gritax"}
    for row in rows:
        before = known.get((row["problem"], row["rival"]))
        if before and row["ratio"]["median"] < min(before["median"] / FALL, before["min"]):
            yield f"{row['problem']}, {row['rival']}: {spread(row['ratio'], digits=3)}, was {spread(before, digits=3)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", help="all, if none is named")
    parser.add_argument("--gpu", action="store_true", help="on the GPU of this machine")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--json", metavar="FILE", help="written after every problem; rows of others in it are kept")
    parser.add_argument("--page", metavar="FILE", help="where the table goes")
    parser.add_argument("--against", metavar="FILE", help="rows of an earlier run to compare with")
    parser.add_argument("--peer-python", metavar="PATH", help="the Python of an environment with PyMGRIT")
    arguments, rows, failed = parser.parse_args(), [], False
    gpu, order = arguments.gpu, list(ON_A_GPU if arguments.gpu else CASES)
    if unknown := set(arguments.problems) - set(order):
        parser.error(f"{', '.join(sorted(unknown))}: there are only {'; '.join(order)}")
    if arguments.rounds < 1:
        parser.error("--rounds is a positive number")
    baseline = stored(arguments.against)
    for name in arguments.problems or order:
        rounds = arguments.rounds
        found = rows_on_gpu(name, rounds) if gpu else rows_of(name, rounds, arguments.peer_python)
        failed |= found is None
        for row in found or []:
            print("  ".join(words(row, gpu)), flush=True)
        rows += found or []
        if arguments.json:
            write(arguments.json, merged(stored(arguments.json), rows, order))
    if arguments.page:
        table = [words(row, gpu) for row in merged(stored(arguments.json), rows, order)]
        write_table(arguments.page, MARKS_ON_A_GPU if gpu else MARKS, header(gpu), 4, table)
    lines = list(fallen(rows, baseline))
    for line in lines:
        print(f"fallen: {line}")
    return 1 if lines or failed else 0


def stored(file):
    return json.loads(Path(file).read_text())["rows"] if file and Path(file).is_file() else []


def merged(known, rows, order):
    """In this order of the problems; those of a problem that was measured again are all new."""
    again = {row["problem"] for row in rows}
    return sorted([row for row in known if row["problem"] not in again] + rows, key=lambda row: order.index(row["problem"]))


if __name__ == "__main__":
    sys.exit(main())
