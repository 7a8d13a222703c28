"""gritax and PyMGRIT 1.0.6 on the same equation, hierarchy, cycle, relaxation, residual and tolerance."""

import json
import os
import shutil
import sys

from _measuring import child, ratios, seconds, spread, summary, verdict


SIZES = (1_024, 4_096, 16_384)
COARSENING = 4
TOLERANCE = 1e-10  # both stop on the 2-norm of the residual over the C-points
GOAL = 30.0  # for the largest
GUESSES = ("nested", "zeros")
HEADER = ("steps", "processes", "PyMGRIT ms", "guess", "gritax cold ms", "gritax warm ms", "ratio", "errors", "goal", "")
HOW_TO = """peer: left out. It needs PyMGRIT in an environment of its own, with an MPI library:
  apt-get install -y libopenmpi-dev openmpi-bin
  python -m venv pymgrit-env && pymgrit-env/bin/pip install 'numpy<2.4' pymgrit==1.0.6
and then  --peer-python pymgrit-env/bin/python"""


def measure(peer_python: str, repeats: int = 5) -> dict:
    comparisons = [_compare(num_steps, peer_python, repeats) for num_steps in SIZES]
    return {"coarsening": COARSENING, "tolerance": TOLERANCE, "goal_ratio": GOAL, "sizes": comparisons}


def rows(results: dict) -> list[tuple]:
    return [
        (
            f"{each['num_steps']:,}",
            peer["processes"],
            spread(peer["seconds"], 1e-3, 0),
            f"{peer['guess']}, {peer['iterations']} iterations",
            spread(each["gritax"]["cold_seconds"], 1e-3, 0),
            spread(each["gritax"]["warm_seconds"], 1e-3, 1),
            spread(peer["ratio"], digits=1),
            f"{peer['relative_error']:.0e}, {each['gritax']['relative_error']:.0e}",
            f"{GOAL:.0f}" if each is results["sizes"][-1] else "",
            verdict(peer["ratio"]["median"] >= GOAL) if each is results["sizes"][-1] else "",
        )
        for each in results["sizes"]
        for peer in each["pymgrit"]
        if peer["fastest_guess"]
    ]


def _compare(num_steps: int, peer_python: str, repeats: int) -> dict:
    ours, theirs = [], {}
    for _ in range(repeats):
        ours.append(child("peer.py", num_steps))
        for guess in GUESSES:
            for processes, launcher in _launchers().items():
                arguments = ("decay", num_steps, COARSENING, ours[-1]["levels"], TOLERANCE, guess)
                run = child("peer_pymgrit.py", *arguments, python=peer_python, launcher=launcher)
                theirs.setdefault((processes, guess), []).append(run)
    serial = ours[0]["serial"]
    peers = [
        {
            "processes": processes,
            "guess": guess,
            "iterations": runs[0]["iterations"],
            "residual": runs[0]["residual"],
            "relative_error": abs(runs[0]["value"] - serial) / serial,
            "seconds": summary([run["seconds"] for run in runs]),
            "setup_seconds": summary([run["setup_seconds"] for run in runs]),
            "ratio": summary(ratios(([run["seconds"] for run in runs], [run["warm"] for run in ours]))),
            "versions": {name: runs[0][name] for name in ("pymgrit", "numpy")},
        }
        for (processes, guess), runs in theirs.items()
    ]
    for peer in peers:
        rivals = [other["seconds"]["median"] for other in peers if other["processes"] == peer["processes"]]
        peer["fastest_guess"] = peer["seconds"]["median"] == min(rivals)
    gritax = {name: ours[0][name] for name in ("levels", "iterations", "residual")} | {
        "relative_error": abs(ours[0]["value"] - serial) / serial,
        "cold_seconds": summary([run["cold"] for run in ours]),
        "second_call_seconds": summary([run["second"] for run in ours]),
        "warm_seconds": summary([run["warm"] for run in ours]),
    }
    return {"num_steps": num_steps, "serial_value": serial, "gritax": gritax, "pymgrit": sorted(peers, key=_order)}


def _order(peer: dict) -> tuple:
    return peer["processes"], peer["guess"]


def _launchers() -> dict[int, tuple[str, ...]]:
    """PyMGRIT alone, and, where MPI can be started, once on every core."""
    cores = os.cpu_count() or 1
    if cores == 1 or not shutil.which("mpirun"):
        return {1: ()}
    as_root = ("--allow-run-as-root",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    return {1: (), cores: ("mpirun", *as_root, "-n", str(cores))}


def _gritax(num_steps: int, warm_calls: int = 9) -> dict:
    import statistics

    import gritax

    step = 5 / num_steps

    def phi(u, start, stride):
        return u / (1 + step * stride)

    solution = None

    def solve():
        nonlocal solution
        solution = gritax.solve(phi, 1.0, num_steps, gritax.Multigrid(coarsening=COARSENING), tolerance=TOLERANCE)
        solution.state.block_until_ready()

    cold, *warm = [seconds(solve) for _ in range(1 + warm_calls)]
    return {
        "cold": cold,
        "second": warm[0],
        "warm": statistics.median(warm),
        "levels": len(solution.level_sizes),
        "iterations": solution.iterations,
        "residual": float(solution.residuals[-1]),
        "value": float(solution.state),
        "serial": float(gritax.solve_serial(phi, 1.0, num_steps)),
    }


if __name__ == "__main__":
    print(json.dumps(_gritax(int(sys.argv[1]))))
