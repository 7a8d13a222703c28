"""In a process of its own: the rows of a problem in the table of rivals, or the memory that one rival needs.

python benchmarks/rival_rows.py measure|gpu PROBLEM ROUNDS
python benchmarks/rival_rows.py memory PROBLEM RIVAL
"""

import json
import resource
import sys

import jax
from _energy import joules
from _measuring import load, ratios, seconds, summary, today
from _rows import distance
from rival_programs import AT_ONCE, BESIDE, CASES, MANY, ON_A_GPU, programs


def measure(case, name, rounds):
    """The rows, without what they need of the processor's memory."""
    problem, rivals, known = programs(case)
    on_gpu = jax.default_backend() != "cpu"
    runs, results, needs = {}, {}, {}
    for rival in reversed(rivals):
        runs[rival] = rivals[rival]()
        results[rival] = jax.device_get(runs[rival]())
        needs[rival] = _needs(runs[rival], _trainings(rival)) if on_gpu and rival != BESIDE else {}
    times: dict[str, list[float]] = {rival: [] for rival in rivals}
    for turn in range(rounds):
        for rival in list(rivals)[:: 1 if turn % 2 == 0 else -1]:
            times[rival].append(seconds(runs[rival]) / _trainings(rival))
    solution, serial = known.pop("gritax"), results["scan"]
    moved = distance(serial, problem.state.params)
    rows = []
    for rival in rivals:
        params, parallel = results[rival], rival == "gritax"
        row = {"problem": name, "rival": rival, "steps": case.steps}
        row |= {"relative_error": float(f"{distance(params, serial) / moved:.2g}")}
        row |= {"seconds": summary(times[rival]), "ratio": summary(ratios((times[rival], times["gritax"])))}
        row |= {"depth": solution.depth if parallel else case.steps // (MANY if rival == "larger batch" else 1)}
        row |= {"work_per_step": round(solution.work / case.steps, 1) if parallel else 1}
        row |= {"loss": float(f"{problem.loss(params):.4g}"), "metrics": problem.metrics(params)}
        if parallel:
            row |= {"converged": solution.converged, "iterations": solution.iterations, "coarse_steps": solution.coarse_steps}
            row |= {"levels": solution.level_sizes}
        if rival in known:
            row |= {"compiled": known[rival]}
        rows.append(row | needs[rival] | {"load": load(), "date": today()})
    return rows


def _trainings(rival):
    return MANY if rival == AT_ONCE else 1


def _needs(run, trainings):
    """Megabytes of the GPU, the most that was held so far by JAX and by PyTorch, and the joules of a training."""
    held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    if "torch" in sys.modules:
        held += sys.modules["torch"].cuda.max_memory_allocated()
    energy = joules(run)
    return {"peak_mb": round(held / 2**20, 1), "joules": energy and float(f"{energy / trainings:.3g}")}


def memory(case, rival):
    """Megabytes beyond those that the problem takes."""
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rivals = programs(case)[1]
    before = peak()
    rivals[rival]()()
    return {"peak_mb": round(peak() - before, 1)}


if __name__ == "__main__":
    what, name, last = sys.argv[1:]
    if what == "memory":
        found = memory(CASES[name], last)
    elif what == "gpu" and jax.default_backend() == "cpu":
        raise SystemExit("JAX sees no GPU here.")
    else:
        found = {"rows": measure((CASES if what == "measure" else ON_A_GPU)[name], name, int(last))}
    print(json.dumps(found))
