"""Peak resident memory of a solve, less that of a process that only imports gritax and builds the problem."""

import json
import resource
import sys

from _measuring import child, spread, summary, verdict


COARSENING = 16
SIZES = (62_500, 250_000, 1_000_000)
LIMIT = 1e9  # bytes in all, for the largest
FLOATS = 16  # of XOR's state, 8 bytes each
HEADER = ("steps", "C-points", "peak MB", "above baseline MB", "bytes per C-point more", "per float", "limit MB", "")
_MB = 1e6


def measure(repeats: int = 5) -> dict:
    peaks: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    for _ in range(repeats):
        for size, values in peaks.items():
            values.append(child("memory.py", size)["peak_bytes"])
    baseline = summary(peaks.pop(0))
    results = [
        {"num_steps": size, "c_points": size // COARSENING, "peak_bytes": summary(values)} for size, values in peaks.items()
    ]
    for before, each in zip([None, *results[:-1]], results, strict=True):
        each["above_baseline_bytes"] = each["peak_bytes"]["median"] - baseline["median"]
        if before:  # the slope, which leaves out what compilation takes
            more = each["peak_bytes"]["median"] - before["peak_bytes"]["median"]
            each["bytes_per_c_point"] = round(more / (each["c_points"] - before["c_points"]), 1)
            each["bytes_per_float"] = round(each["bytes_per_c_point"] / FLOATS, 1)
    return {"coarsening": COARSENING, "limit_bytes": LIMIT, "baseline_bytes": baseline, "sizes": results}


def rows(results: dict) -> list[tuple]:
    largest = results["sizes"][-1]
    return [("baseline", "", spread(results["baseline_bytes"], _MB, 0), "", "", "", "", "")] + [
        (
            f"{each['num_steps']:,}",
            f"{each['c_points']:,}",
            spread(each["peak_bytes"], _MB, 0),
            f"{each['above_baseline_bytes'] / _MB:.0f}",
            each.get("bytes_per_c_point", ""),
            each.get("bytes_per_float", ""),
            f"{results['limit_bytes'] / _MB:,.0f}" if each is largest else "",
            verdict(each["peak_bytes"]["max"] <= results["limit_bytes"]) if each is largest else "",
        )
        for each in results["sizes"]
    ]


def _peak(num_steps: int) -> dict:
    import gritax

    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0))
    if num_steps:
        method = gritax.Multigrid(coarsening=COARSENING, cycle="V")
        gritax.solve(problem.step, problem.state, num_steps, method, tolerance=0, max_iterations=2)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


if __name__ == "__main__":
    print(json.dumps(_peak(int(sys.argv[1]))))
