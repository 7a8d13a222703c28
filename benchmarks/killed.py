"""Training that is killed at random moments and taken up again: does it end with the weights of an uninterrupted run?

    python benchmarks/killed.py [--goal time] [--processes 1] [--times 20] [--seed 1] [--json FILE]

Digits with Adam by `goal="time"`, one step after the other, or XOR by `goal="depth"` in windows that are solved in parallel
(rows of other runs in FILE are kept), in a process that gets SIGKILL at a moment drawn over the whole duration, start and
compilation included, and then in others with the same directory of checkpoints until one of them finishes; runs follow until
there were so many kills, half of them in training steps. What a process has reached is what it printed as each stretch of
steps began. A row is a process:

- `killed_after`: seconds; None where it finished. `begun_at`: the step from which it took the run up.
- `last`: (first step, steps) of the stretch that it was in. `checkpoint`: the steps that were kept.
- `lost_stretches`: those that were begun and not kept, without the ones that measure the device, which are kept with the next.
- `lost_seconds` of training: since the newest checkpoint, or since the first stretch began.
- `ended_after`: of several processes, of which a random one is killed: seconds until all had ended.
- `unfinished`: files that were being written.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from _measuring import load
from _rows import write

import gritax
from gritax.checkpoint import Directory, digest


class Told(gritax.Progress):
    def window(self, first, num_steps, kind, reason):
        print(json.dumps([first, num_steps, reason.startswith("to measure"), time.time()]), flush=True)


# (problem, steps, arguments of gritax.train) for each goal.
RUNS = {
    "time": (gritax.problems.digits, 500_000, {}),
    "depth": (gritax.problems.xor, 1_000_000, {"window": 8192}),
}


def train(directory, goal):
    gritax.placement.join()
    jax.config.update("jax_enable_x64", goal == "depth")  # rounding adds up over so many windows in float32
    make, steps, arguments = RUNS[goal]
    problem = make()
    step, params = problem.step, problem.state.params
    arguments |= {"goal": goal, "resume": directory, "progress": Told(), "mesh": gritax.placement.mesh()}
    solution = gritax.train(step.loss, step.optimizer, step.batch, params, steps, **arguments)
    if gritax.placement.is_first():
        print(json.dumps({"weights": digest(solution.params), "depth": solution.depth}), flush=True)


def process(directory, goal, processes, seconds=None):
    """(the stretches that a process began, what it says at its end, seconds to its end), killed after so many seconds."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", directory, "--goal", goal]
    if processes > 1:
        command = [sys.executable, "-m", "gritax", "launch", "--processes", str(processes), "--", *command]
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=output)
        try:
            if child.wait(seconds):
                raise RuntimeError(f"a process with the checkpoints in {directory} failed with {child.returncode}")
        except subprocess.TimeoutExpired:
            began = time.perf_counter()
            os.kill(victim(child.pid, processes, seconds), signal.SIGKILL)
            child.wait(60)
        ended_after = time.perf_counter() - began
        output.seek(0)
        lines = [json.loads(line) for line in output if line.endswith("\n") and not line.startswith("[Gloo]")]
    finished = lines.pop() if lines and isinstance(lines[-1], dict) else None
    return lines, finished, ended_after


def victim(launcher, processes, seconds):
    """The process itself, or one of those that it has launched, if they are there already."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return int(children[int(1000 * seconds) % len(children)]) if processes > 1 and children else launcher


def row(names, run, directory, seconds):
    stretches, finished, ended_after = process(directory, *names.values(), seconds)
    now, checkpoints = time.time(), Directory(directory)
    newest = checkpoints.latest()
    done, saved = (newest.done, checkpoints.files()[0].stat().st_mtime) if newest else (0, 0.0)
    since = max(saved, stretches[0][-1]) if stretches else now
    return {
        **names,
        "run": run,
        "killed_after": None if finished else round(seconds, 2),
        "begun_at": stretches[0][0] if stretches else None,
        "last": stretches[-1][:2] if stretches else None,
        "checkpoint": done,
        "lost_stretches": len({first for first, _, measures, _ in stretches if first >= done and not measures}),
        "lost_seconds": None if finished else round(now - since, 2),
        "ended_after": None if finished else round(ended_after, 2),
        "unfinished": sum(1 for _ in Path(directory).glob("*.unfinished")),
        "finished": finished,
        "load": load(),
    }


def right(rows, wanted):
    """Whether every process went on from the checkpoint before it, lost one stretch at most, and ended with these weights."""
    kept = {}
    for each in rows:
        if each["begun_at"] not in (None, kept.get(each["run"], 0)) or each["lost_stretches"] > 1:
            return False
        if each["checkpoint"] < kept.get(each["run"], 0) or each["finished"] not in (None, wanted):
            return False
        kept[each["run"]] = each["checkpoint"]
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--goal", choices=RUNS, default="time")
    parser.add_argument("--processes", type=int, default=1, help="with --goal depth only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="written after every process")
    parser.add_argument("--child", metavar="DIRECTORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return train(arguments.child, arguments.goal)
    names = {"goal": arguments.goal, "processes": arguments.processes}
    rng, rows, killed, inside, run = np.random.default_rng(arguments.seed), [], [], [], 0
    enough = lambda: len(killed) >= arguments.times and 2 * len(inside) >= arguments.times
    known = json.loads(Path(arguments.json).read_text())["rows"] if arguments.json and Path(arguments.json).exists() else []
    others = [each for each in known if any(each[name] != value for name, value in names.items())]
    with tempfile.TemporaryDirectory() as directory:
        _, wanted, duration = process(f"{directory}/uninterrupted", *names.values())
        while not enough():
            finished, run = None, run + 1
            while not finished:
                moment = None if enough() else rng.uniform(0, duration)
                rows.append(row(names, run, f"{directory}/{run}", moment))
                finished = rows[-1]["finished"]
                killed += [rows[-1]] * (not finished)
                inside = [each for each in killed if each["last"]]
                if arguments.json:
                    whole = {**names, "uninterrupted": wanted, "seconds": round(duration, 2)}
                    write(arguments.json, [*others, whole, *rows])
    lost, verdict = [each["lost_seconds"] for each in inside], "as they should" if right(rows, wanted) else "NOT as they should"
    print(
        f"{len(killed)} kills, {len(inside)} of them in training steps, in {run} runs of {duration:.0f} s: resumed and ended "
        f"{verdict}, with the same weights bit for bit; lost {np.median(lost):.1f} s in the median, {max(lost):.1f} s at most"
    )
    sys.exit(verdict != "as they should")


if __name__ == "__main__":
    main()
