"""The speedups of docs/paper.md: `python benchmarks/curves.py` draws them, from the stored results and the paper's figures."""

import json
import math
from pathlib import Path

from pictures import Picture

from gritax.experiments import paper_figure


RESULTS = Path(__file__).parent / "results"
FIRST, LAST = 2, math.log10(5e6)
LOW, HIGH = -3, 3
TOP, HEIGHT, WIDTH = 60, 300, 330
PUBLISHED = {3: "one", 4: "two", 7: "four", 14: "one", 15: "two", 16: "four"}


def rows(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def median(values):
    return sorted(values)[len(values) // 2]


def potential(found, of_steps):
    """[(steps, median speedup over seeds)] of rows with a depth."""
    sizes = sorted({row[of_steps] for row in found})
    return [(n, median([n / row["depth"] for row in found if row[of_steps] == n])) for n in sizes]


def of_table(name, number):
    return potential([row for row in rows(name) if row["table"] == number and row["depth"]], "num_steps")


def tangent():
    return potential(rows("tangent_graded"), "steps")


def frozen():
    return potential([row for row in rows("training") if row["group"] == "adder, mean over outputs"], "steps")


class Panel:
    def __init__(self, picture, left, title):
        self.picture, self.left = picture, left
        picture.text(left, TOP - 32, title)
        picture.text(left, TOP - 12, "speedup", "small")
        for power in range(LOW, HIGH + 1):
            y = self.place(1e2, 10.0**power)[1]
            picture.line([(left, y), (left + WIDTH, y)], "ink" if power == 0 else "faint", 0.5, "6 4" if power == 0 else None)
            picture.text(left - 8, y + 4, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}", "small end")
        for power in range(2, 7):
            x = self.place(10.0**power, 1)[0]
            picture.text(x, TOP + HEIGHT + 18, {2: "100", 3: "1,000", 4: "10^4", 5: "10^5", 6: "10^6"}[power], "small middle")
        picture.text(left + WIDTH, TOP + HEIGHT + 38, "training steps", "small end")

    def place(self, steps, speedup):
        x = self.left + WIDTH * (math.log10(steps) - FIRST) / (LAST - FIRST)
        return x, TOP + HEIGHT * (HIGH - max(math.log10(speedup), LOW)) / (HIGH - LOW)

    def curve(self, points, classes, width=1.5, dashes=None):
        self.picture.line([self.place(*each) for each in points], classes, width, dashes)

    def marks(self, points, classes):
        for each in points:
            self.picture.circle(*self.place(*each), 4, classes)


def speedups():
    picture = Picture("speedups", 820, 520, "Speedups by the number of training steps, the paper's and ours")
    xor, adder = Panel(picture, 60, "XOR (Figure 6)"), Panel(picture, 460, "adder, one example a step (Figure 7)")
    for panel, figure, ours in ((xor, 6, "paper_tables"), (adder, 7, "adder_tables")):
        for curve in paper_figure(figure):
            number = curve["table"]
            panel.curve(zip(curve["num_steps"], curve["speedup"], strict=True), PUBLISHED[number], 1.5, "5 4")
            panel.curve(of_table(ours, number), PUBLISHED[number])
    xor.curve(tangent(), "three", 3)
    adder.curve(frozen(), "three", 3)
    for panel, problem in ((xor, "xor"), (adder, "adder")):
        gpu = [row for row in rows("gpu") if row["problem"].startswith(problem)]
        panel.marks([(row["steps"], row["over_gpu"]) for row in gpu], "done")
        panel.marks([(row["steps"], row["over_cpu"]) for row in gpu], "warm")
        beside = [row for row in rows("rivals") if row["problem"].lower().startswith(problem) and row["rival"] == "scan"]
        panel.marks([(row["steps"], row["ratio"]["median"]) for row in beside if "PyMGRIT" not in row["problem"]], "c")
    legend(picture)
    return picture


def legend(picture):
    y = TOP + HEIGHT + 66
    for x, classes, words in ((60, "one", "3, 14"), (190, "two", "4, 15"), (320, "four", "7, 16")):
        picture.line([(x, y - 4), (x + 24, y - 4)], classes, 2)
        picture.text(x + 30, y, f"Tables {words}", "small")
    picture.line([(450, y - 4), (474, y - 4)], "ink", 1.5, "5 4")
    picture.text(480, y, "as published; full: our counts of the same cycles", "small")
    picture.line([(60, y + 18), (84, y + 18)], "three", 3)
    picture.text(90, y + 22, "coarse steps of gritax: Tangent (XOR), FrozenGradient (adder, mean over the outputs)", "small")
    picture.circle(72, y + 40, 4, "done")
    picture.text(90, y + 44, "measured: seconds of a lax.scan over those of a solve, both on one H200", "small")
    picture.circle(72, y + 62, 4, "warm")
    picture.text(90, y + 66, "a lax.scan on the processor beside it, over a solve on the H200", "small")
    picture.circle(552, y + 40, 4, "c")
    picture.text(568, y + 44, "both on two cores", "small")


if __name__ == "__main__":
    speedups().write(Path(__file__).parent.parent / "docs" / "pictures")
