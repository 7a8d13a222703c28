"""One solve by several processes, each on a core of its own: does it take as little as the simulator says?

    python benchmarks/scaling.py [--pairs 5] [--json FILE] [--plot FILE]

The adder with the mean over its outputs, 50 pairs of numbers a step, by gradient descent at .025; 1,024 steps, V-cycles, m = 4,
frozen gradients of 8 steps. What is timed is an iteration, compiled before: a quarter of the difference between solves of 6
and of 2. One process on one core and two on two take turns; four, two to a core, are run as often. The simulator times the
kernels on one core, for two and more processes while another does the same on the other, since cores share the memory and
its caches; and messages between two processes. Then it simulates 65,536 steps, with one gradient a coarse step, on up to 4,096
devices, each as fast as a core that has the memory to itself.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _measuring import load


STEPS, REFRESH, MANY, FEW = 1024, 8, 6, 2
PROCESSES = (1, 2, 4)
LONG, DEVICES = 65_536, tuple(2**k for k in range(4, 13))


def problem(refresh):
    import jax

    import gritax

    jax.config.update("jax_enable_x64", True)
    found = gritax.problems.adder(
        0.025, serialized=False, num_examples=50, reduction="mean", coarse=gritax.FrozenGradient(refresh)
    )
    return found.step, found.state, gritax.Multigrid(4)


def solves():
    """In each process: seconds of an iteration, of a serial step, and of messages."""
    import jax

    import gritax

    gritax.placement.join()
    step, state, method = problem(REFRESH)
    mesh = gritax.placement.mesh()

    def seconds(iterations):
        began = time.perf_counter()
        gritax.solve(step, state, STEPS, method, tolerance=0, max_iterations=iterations, mesh=mesh)
        return time.perf_counter() - began

    seconds(1)
    found = {"iteration": [(seconds(MANY) - seconds(FEW)) / (MANY - FEW) for _ in range(3)]}
    jax.block_until_ready(gritax.solve_serial(step, state, STEPS))
    began = time.perf_counter()
    jax.block_until_ready(gritax.solve_serial(step, state, STEPS))
    found["serial_step"] = (time.perf_counter() - began) / STEPS
    if mesh is not None:
        found["exchange"] = messages(mesh, state)
    if gritax.placement.is_first():
        print(json.dumps(found))


def messages(mesh, state):
    """(latency, seconds a byte) of messages to a neighbour, from some of a number and some of a state."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    repeats, devices = 20, mesh.shape["time"]
    ring = [(each, each + 1) for each in range(devices - 1)]

    def taken(size):
        def exchange(x):
            return jax.lax.fori_loop(0, repeats, lambda _, x: jax.lax.ppermute(x, "time", ring), x)

        run = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=P(), out_specs=P("time"), check_vma=False))
        x, times = jnp.ones(size), []
        for _ in range(6):
            began = time.perf_counter()
            jax.block_until_ready(run(x))
            times.append(time.perf_counter() - began)
        return min(times[1:]) / repeats

    size = sum(x.size for x in jax.tree.leaves(state.params))
    little, much = taken(1), taken(size)
    return little, max(much - little, 0.0) / (8 * size)


def simulated(steps, refresh, devices, exchange):
    """In a process: (seconds of an iteration by the simulator, its evaluations in sequence), for each number of devices."""
    import gritax

    step, state, method = problem(refresh)
    simulation = gritax.placement.Simulation(step, state, steps, method, gritax.placement.Exchange(*exchange))
    print(json.dumps({each: (simulation.seconds(each), simulation.evaluations(each)) for each in devices}))


def simulate(together, *case):
    """What as many children find at the same time, each on a core of its own: of the first."""
    command = [sys.executable, __file__, "simulated", json.dumps(case)]
    pinned = lambda core: lambda: os.sched_setaffinity(0, {core})
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=pinned(core)) for core in range(together)]
    outputs = [child.communicate()[0] for child in children]
    return {int(devices): found for devices, found in json.loads(outputs[0]).items()}


def run(processes, *arguments):
    """What a child prints; several processes have a core each, in turns."""
    command = [sys.executable, __file__, *arguments]
    if processes > 1:
        launch = [sys.executable, "-m", "gritax", "launch", "--processes", str(processes), "--pin", "--"]
        command = launch + command
    core = None if processes > 1 else lambda: os.sched_setaffinity(0, {0})
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, preexec_fn=core, text=True).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def measured(pairs):
    found = {processes: [] for processes in PROCESSES}
    for pair in range(pairs):
        for processes in PROCESSES if pair % 2 == 0 else PROCESSES[::-1]:
            found[processes].append(run(processes, "solves")[0] | {"load": load()})
            print(processes, found[processes][-1], flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="of the strong scaling (needs matplotlib)")
    arguments = parser.parse_args()
    found = measured(arguments.pairs)
    seconds = {n: [statistics.median(each["iteration"]) for each in runs] for n, runs in found.items()}
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    exchange = [statistics.median(each["exchange"][i] for each in found[2]) for i in (0, 1)]
    predicted = simulate(1, STEPS, REFRESH, PROCESSES[:1], exchange) | simulate(2, STEPS, REFRESH, PROCESSES[1:], exchange)
    long = simulate(1, LONG, math.inf, DEVICES, exchange)
    rows = []
    for processes, taken in seconds.items():
        # Four processes share two cores, so that each of them has half of one.
        simulated = predicted[processes][0] * max(processes / 2, 1)
        row = {"processes": processes, "iteration": statistics.median(taken), "of": taken, "simulated": simulated}
        rows.append(row | {"off": round(simulated / row["iteration"] - 1, 3)})
    step = statistics.median(each["serial_step"] for each in found[1])
    rows.append({"two over one": statistics.median(ratios), "of": ratios, "serial_step": step, "exchange": exchange})
    taken, evaluations = ({devices: each[i] for devices, each in long.items()} for i in (0, 1))
    rows.append({"steps": LONG, "simulated": taken, "evaluations": evaluations, "serial": LONG * step})
    print(*rows, sep="\n")
    if arguments.json:
        from _rows import write

        write(arguments.json, rows)
    if arguments.plot:
        plot(arguments.plot, rows[-1])


def plot(file, row):
    import matplotlib.pyplot as plt

    devices = [int(each) for each in row["simulated"]]
    taken, evaluations = list(row["simulated"].values()), list(row["evaluations"].values())
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    axes.loglog(devices, taken, "o-", markersize=4, label="an iteration, simulated")
    potential = [each * row["serial"] / row["steps"] for each in evaluations]
    axes.loglog(devices, potential, "s--", markersize=3, label="its evaluations in sequence,\nat a serial step each")
    axes.loglog(devices, [devices[0] * taken[0] / n for n in devices], ":", color="grey", label="one over devices")
    axes.axhline(row["serial"], color="black", linewidth=1, label="all steps, serially")
    axes.set(xlabel="devices", ylabel="seconds", xticks=devices[::2], xticklabels=devices[::2])
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(Path(file))


if __name__ == "__main__":
    if sys.argv[1:2] == ["solves"]:
        solves()
    elif sys.argv[1:2] == ["simulated"]:
        simulated(*json.loads(sys.argv[2]))
    else:
        main()
