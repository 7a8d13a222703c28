"""Training on a GPU: in parallel, one step after the other there, and one after the other on the processor beside it.

    python benchmarks/gpu.py [names of problems] [--rounds 3] [--json FILE]

Serial training is a jitted `lax.scan` of the same training step over the finished order of the examples, unrolled by whichever
of 1 and 8 is faster. All three take turns and were compiled before; each problem has a process of its own.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from _measuring import load, seconds, spread, summary


# Matrices as small as these are multiplied faster by one thread.
FLAGS = "--xla_cpu_multi_thread_eigen=false"
WHERE = ("parallel", "gpu", "cpu")
LONGEST = 200  # seconds for a problem


def problems():
    """By name: what makes the problem, so many steps, its method."""
    import optax

    from gritax import FrozenGradient, Multigrid, Stabilized, Tangent
    from gritax.problems import adder, diabetes, digits, xor

    stabilized, whole = Stabilized(), FrozenGradient(math.inf)
    return {
        "xor": (partial(xor, coarse=Tangent()), 2**22, None),
        "digits, adam": (partial(digits, optax.adam(1e-3), coarse=FrozenGradient(64)), 8192, None),
        "adder": (partial(adder, reduction="mean", coarse=whole), 12_800, Multigrid(4)),
        "digits, sgd": (partial(digits, optax.sgd(0.1), coarse=stabilized), 65_536, None),
        "diabetes, sgd": (partial(diabetes, optax.sgd(0.02), coarse=stabilized), 65_536, None),
        "xor, 409,600": (partial(xor, coarse=Tangent()), 409_600, None),
    }


def measure(name, rounds):
    """In a process of its own: the row of a problem."""
    import jax
    import optax
    from _scan import fastest

    import gritax

    jax.config.update("jax_enable_x64", True)
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    if name not in problems():
        raise SystemExit(f"{name!r} is no problem here; there are: {'; '.join(problems())}.")
    if device.platform == "cpu":
        raise SystemExit("JAX sees no GPU here.")
    make, steps, method = problems()[name]
    problem = make()
    on_gpu, unrolled = fastest(problem.step, problem.state, steps)
    with jax.default_device(cpu):
        beside = make()
        on_cpu, unrolled_beside = fastest(beside.step, beside.state, steps)

    def parallel():
        return gritax.solve(problem.step, problem.state, steps, method, tolerance=None, throw=False, max_iterations=14)

    cold = seconds(parallel)
    runs, times = {"parallel": parallel, "gpu": on_gpu, "cpu": on_cpu}, {where: [] for where in WHERE}
    for turn in range(rounds):
        for where in WHERE if turn % 2 == 0 else WHERE[::-1]:
            times[where].append(seconds(runs[where]))
    found, twin = parallel(), on_gpu()
    distance = lambda a, b: float(optax.tree.norm(jax.tree.map(lambda x, y: x - y, a, b)))
    return {
        "problem": name,
        "steps": steps,
        "dtype": "float64",
        "device": device.device_kind,
        **{where: summary(each) for where, each in times.items()},
        "over_gpu": statistics.median(b / a for a, b in zip(times["parallel"], times["gpu"], strict=True)),
        "over_cpu": statistics.median(b / a for a, b in zip(times["parallel"], times["cpu"], strict=True)),
        "cold": cold,
        "unrolled": [unrolled, unrolled_beside],
        "relative_error": distance(found.params, twin.params) / distance(twin.params, problem.state.params),
        "converged": found.converged,
        "iterations": found.iterations,
        "depth": found.depth,
        "potential_speedup": found.potential_speedup,
        "work_per_step": found.work / steps,
        "coarse_steps": found.coarse_steps,
        "peak_mb": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20,
        "load": load(),
    }


def line(row):
    columns = (row["problem"], f"{row['steps']:,}", *(spread(row[where], digits=3) for where in WHERE))
    ratios = f"{row['over_gpu']:.2f} times {row['over_cpu']:.2f} times  {row['relative_error']:.0e}"
    return f"{columns[0]:>15} {columns[1]:>10}  " + "  ".join(f"{each:>26}" for each in columns[2:]) + "  " + ratios


def main():
    if sys.argv[1:2] == ["measure"]:
        return print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="written after every problem")
    arguments, rows = parser.parse_args(), []
    from _rows import write

    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"}
    for name in arguments.problems or problems():
        command = [sys.executable, str(Path(__file__)), "measure", name, str(arguments.rounds)]
        try:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LONGEST, check=True)
        except subprocess.CalledProcessError as error:
            return error.returncode  # the child has said why
        except subprocess.TimeoutExpired:
            print(f"{name}: not within {LONGEST} s", flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
        if arguments.json:
            write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
