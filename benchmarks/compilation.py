"""Cold compilation: seconds of the first `gritax.solve` of a process, one iteration, no compilation cache."""

import json
import sys
import time

from _measuring import child, spread, summary, verdict


NUM_STEPS = 25_600
CASES = (("V", 4, 5.0), ("F", 2, 12.0))  # cycle, coarsening, limit in seconds
HEADER = ("cycle", "coarsening", "levels", "seconds cold", "CPU seconds", "warm", "limit", "")


def measure(repeats: int = 5) -> list[dict]:
    results = []
    for cycle, coarsening, limit in CASES:
        runs = [child("compilation.py", coarsening, cycle) for _ in range(repeats)]
        results.append(
            {
                "num_steps": NUM_STEPS,
                "cycle": cycle,
                "coarsening": coarsening,
                "levels": runs[0]["levels"],
                "limit_seconds": limit,
            }
            | {name: summary([run[name] for run in runs]) for name in ("seconds", "cpu_seconds", "warm_seconds")}
        )
    return results


def rows(results: list[dict]) -> list[tuple]:
    return [
        (
            *(each[name] for name in ("cycle", "coarsening", "levels")),
            *(spread(each[name]) for name in ("seconds", "cpu_seconds", "warm_seconds")),
            f"{each['limit_seconds']:.0f}",
            verdict(each["seconds"]["median"] <= each["limit_seconds"]),
        )
        for each in results
    ]


def _first_solve(coarsening: int, cycle: str) -> dict:
    import gritax

    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0))
    method = gritax.Multigrid(coarsening=coarsening, cycle=cycle)

    def solve():
        return gritax.solve(problem.step, problem.state, NUM_STEPS, method, tolerance=0, max_iterations=1)

    wall, cpu = time.perf_counter(), time.process_time()
    solution = solve()
    cold, cpu = time.perf_counter() - wall, time.process_time() - cpu
    again = time.perf_counter()
    solve()
    warm = time.perf_counter() - again
    return {"seconds": cold, "cpu_seconds": cpu, "warm_seconds": warm, "levels": len(solution.level_sizes)}


if __name__ == "__main__":
    print(json.dumps(_first_solve(int(sys.argv[1]), sys.argv[2])))
