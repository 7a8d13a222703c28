"""The pictures of docs/how.md: `python benchmarks/pictures.py`, from the root; some ten seconds on two cores.

Two of them show runs of XOR and are computed anew. Each has a background of its own, dark where the reader's system is.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gritax


jax.config.update("jax_enable_x64", True)

_STYLE = """
  .ground { fill: #fbfbf8 } text { fill: #24292f; font: 14px system-ui, sans-serif } .small { font-size: 12px }
  .ink { stroke: #24292f; fill: none } .faint { stroke: #8c959f; fill: none } .f { fill: #fbfbf8; stroke: #57606a }
  .c { fill: #0b62c4; stroke: #0b62c4 } .done { fill: #1a7f37; stroke: #1a7f37 } .warm { fill: #bc4c00; stroke: #bc4c00 }
  .one { stroke: #0b62c4; fill: none } .two { stroke: #bc4c00; fill: none } .three { stroke: #1a7f37; fill: none }
  .four { stroke: #8250df; fill: none } .middle { text-anchor: middle } .end { text-anchor: end }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #161b22 } text { fill: #e6edf3 } .ink { stroke: #e6edf3 } .f { fill: #161b22; stroke: #9198a1 }
    .faint { stroke: #6e7681 } .c { fill: #58a6ff; stroke: #58a6ff } .done { fill: #3fb950; stroke: #3fb950 }
    .warm { fill: #f0883e; stroke: #f0883e } .one { stroke: #58a6ff } .two { stroke: #f0883e } .three { stroke: #3fb950 }
    .four { stroke: #bc8cff }
  }
"""


class Picture:
    def __init__(self, name, width, height, title):
        self.name, self.width, self.height, self.title, self.parts = name, width, height, title, []

    def text(self, x, y, words, classes=""):
        self.parts.append(f'<text x="{x:.5g}" y="{y:.5g}" class="{classes}">{words}</text>')

    def line(self, points, classes="ink", width=1.5, dashes=None, arrow=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        more = (f' stroke-dasharray="{dashes}"' if dashes else "") + (' marker-end="url(#arrow)"' if arrow else "")
        self.parts.append(f'<polyline points="{path}" class="{classes}" stroke-width="{width}"{more}/>')

    def circle(self, x, y, radius, classes):
        self.parts.append(f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius}" class="{classes}" stroke-width="1.5"/>')

    def box(self, x, y, width, height, classes, opacity=1.0):
        size = f'x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}"'
        self.parts.append(f'<rect {size} class="{classes}" fill-opacity="{opacity}"/>')

    def write(self, folder):
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
            f"<title>{self.title}</title>\n<style>{_STYLE}</style>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#8c959f"/></marker></defs>\n'
            f'<rect class="ground" width="{self.width}" height="{self.height}" rx="8"/>\n'
        )
        (folder / f"{self.name}.svg").write_text(head + "\n".join(self.parts) + "\n</svg>\n")


def points(picture, y, every, count=16, left=120, gap=34, done=0):
    """The C- and F-points of one level, and where they are."""
    where = [left + gap * i for i in range(count + 1)]
    for i, x in enumerate(where):
        if every is None or i % every == 0:
            picture.circle(x, y, 6, "done" if i <= done and done else "c")
        else:
            picture.circle(x, y, 4, "f")
    return where


def chain():
    picture = Picture("chain", 720, 190, "One chain of steps, and its intervals all at once")
    picture.text(20, 34, "one by one")
    where = [120 + 34 * i for i in range(17)]
    for i, x in enumerate(where):
        picture.circle(x, 30, 4, "c" if i == 0 else "f")
        if i:
            picture.line([(where[i - 1] + 6, 30), (x - 6, 30)], "faint", arrow=True)
    picture.text(where[0], 58, "w0", "small middle")
    picture.text(where[-1], 58, "w16", "small middle")
    picture.text(20, 104, "at once")
    for j in range(4):
        y = 90 + 22 * j
        for i in range(5):
            x = where[4 * j + i]
            picture.circle(x, y, 5 if i == 0 else 4, "c" if i == 0 else "f")
            if i:
                picture.line([(where[4 * j + i - 1] + 7, y), (x - 6, y)], "one", arrow=True)
    picture.text(20, 178, "Each chain of four needs a beginning (blue): that is what multigrid finds.", "small")
    return picture


def levels():
    picture = Picture("levels", 720, 330, "Relaxation on the training steps, a coarse solve, and its correction")
    fine, coarse = 110, 250
    picture.text(20, 34, "1. Relax: from each C-point (blue) through its interval, all intervals at once.", "small")
    picture.text(20, 54, "What arrives at the next C-point contradicts what is there: the residual.", "small")
    picture.text(20, fine + 5, "level 0")
    where = points(picture, fine, 4)
    for i in range(16):
        picture.line([(where[i] + 7, fine - 6), (where[i] + 17, fine - 16), (where[i + 1] - 6, fine - 7)], "one", arrow=True)
    picture.text(20, coarse + 5, "level 1")
    points(picture, coarse, None, 4, gap=136)
    for x, far in zip(where[:-4:4], where[4::4], strict=True):
        picture.line([(x + 8, coarse), (far - 9, coarse)], "two", width=3, arrow=True)
        picture.line([(far - 8, fine + 12), (far - 8, coarse - 12)], "faint", dashes="4 4", arrow=True)
        picture.line([(far + 8, coarse - 12), (far + 8, fine + 12)], "three", arrow=True)
    picture.text(where[2], 172, "2. restrict (grey)", "small middle")
    picture.text(where[2], 190, "4. correct (green)", "small middle")
    picture.text(20, 292, "3. Solve: a coarse step (orange) stands for four training steps. It is cheap, not exact.", "small")
    picture.text(20, 312, "Level 1 has few enough steps to take them one by one, or it has a level 2 of its own.", "small")
    return picture


def axes(picture, left, top, width, height, low, high, label, below):
    """Powers of ten from `low` to `high`, upwards; returns what puts a value in its place."""
    place = lambda value: top + height * (high - min(max(math.log10(max(value, 1e-300)), low), high)) / (high - low)
    for power in range(low, high + 1, 4 if high - low > 8 else 2):
        y = place(10.0**power)
        picture.line([(left, y), (left + width, y)], "faint", width=0.5)
        picture.text(left - 8, y + 4, f"1e{power}" if power else "1", "small end")
    picture.line([(left, top), (left, top + height), (left + width, top + height)])
    picture.text(left, top - 10, label, "small")
    picture.text(left + width, top + height + 34, below, "small end")
    return place


def front(steps=256, factor=8):
    """Errors of the iterates of a run whose coarse steps are bad: what is exact by construction stays exact."""
    problem = gritax.problems.xor(alpha=1.0, coarse=gritax.RescaledRate(power=0.0))
    method = gritax.Multigrid(factor, max_levels=2)
    serial = problem.state
    truth = []
    for _ in range(steps // factor):
        serial = gritax.solve_serial(problem.step.after(factor * len(truth)), serial, factor)
        truth.append(serial.params)
    distance = math.sqrt(sum(float(jnp.sum((a - problem.state.params[k]) ** 2)) for k, a in truth[-1].items()))
    picture = Picture("front", 720, 330, "Errors of the states after each iteration: zero up to the exactness front")
    place = axes(picture, 70, 40, 520, 220, -16, 0, "error of a state, over the distance travelled", "training step")
    for k, classes in ((1, "one"), (3, "two"), (6, "three"), (9, "four")):
        solution = gritax.solve(
            problem.step,
            problem.state,
            steps,
            method,
            tolerance=0,
            max_iterations=k,
            initial_guess="constant",
            save_every=factor,
        )
        curve = []
        for i, right in enumerate(truth):
            error = math.sqrt(sum(float(jnp.sum((solution.states.params[n][i] - a) ** 2)) for n, a in right.items()))
            curve.append((70 + 520 * factor * (i + 1) / steps, place(error / distance)))
        picture.line(curve, classes, width=2)
        picture.text(598, curve[-1][1] + {1: -4, 3: 6, 6: 12, 9: 4}[k], f"after {k} iteration" + "s" * (k > 1), "small")
        edge = 70 + 520 * min(2 * k * factor, steps) / steps
        picture.line([(edge, 252), (edge, 260)], classes, width=3)
    for at in range(0, steps + 1, 64):
        picture.text(70 + 520 * at / steps, 276, str(at), "small middle")
    picture.text(70, 316, "Marks on the axis: up to here steps are exact by construction, 16 more an iteration.", "small")
    return picture


def work(steps=1600):
    """Depth and work of a real solve as two areas: evaluations in sequence to the right, at once upwards."""
    problem = gritax.problems.xor(coarse=gritax.Tangent())
    solution = gritax.solve(problem.step, problem.state, steps)
    picture = Picture("work", 720, 240, "Serial training is long and thin, a solve short and thick")
    scale = 560 / steps
    picture.text(20, 36, f"serial: {steps:,} evaluations in sequence, one at a time", "small")
    picture.line([(20, 50), (20 + steps * scale, 50)], "one", width=0.5)
    width, high = solution.depth * scale, 0.5 * solution.work / solution.depth
    each = f"{solution.work / steps:.0f} for each training step"
    picture.text(20, 84, f"a solve: {solution.depth:,} evaluations in sequence, {each}", "small")
    picture.box(20, 96, width, high, "warm", 0.8)
    picture.text(40 + width, 140, f"{solution.work / solution.depth:.0f} at once in the mean; all to scale.", "small")
    picture.text(40 + width, 166, "What is won in length is paid for in area.", "small")
    picture.text(40 + width, 186, "It is a gain where a device makes many evaluations", "small")
    picture.text(40 + width, 206, "in the time of one, and a loss where it does not.", "small")
    print(f"work.svg: depth {solution.depth}, work {solution.work}, iterations {solution.iterations}")
    return picture


def stabilised(x, stages, damping=0.05):
    """The damped Chebyshev polynomial of first order of so many stages (van der Houwen and Sommeijer)."""
    w0 = 1 + damping / stages**2
    chebyshev = np.polynomial.chebyshev.Chebyshev.basis(stages)
    w1 = chebyshev(w0) / chebyshev.deriv()(w0)
    return chebyshev(w0 - w1 * x) / chebyshev(w0)


def factors(stride=16):
    """How much of an error two levels leave, for each curvature, by four coarse steps."""
    picture = Picture("factors", 720, 330, "The factor of an iteration against curvature, for four coarse steps")
    place = axes(picture, 70, 40, 420, 220, -6, 2, "factor of an iteration", "stride × learning rate × curvature")
    z = np.logspace(-2, math.log10(32), 240)  # M alpha h
    training = (1 - z / stride) ** stride
    rest = {
        "same rate": ("two", 1 - z / stride),
        "frozen gradient": ("one", 1 - z),
        "stabilised, 5 stages": ("four", stabilised(z, 5)),
    }
    ends = {"same rate": 60, "frozen gradient": 80, "stabilised, 5 stages": 100}
    across = lambda value: 70 + 420 * (math.log10(value) + 2) / (math.log10(32) + 2)
    for name, (classes, coarse) in rest.items():
        with np.errstate(divide="ignore"):
            left = np.where(np.abs(coarse) < 1, np.abs(training - coarse) / (1 - np.abs(coarse)) * np.abs(training), 1e3)
        picture.line([(across(a), place(b)) for a, b in zip(z, left, strict=True)], classes, width=2)
        picture.line([(510, ends[name] - 4), (534, ends[name] - 4)], classes, width=3)
        picture.text(542, ends[name], name, "small")
    picture.line([(70, 260), (490, 260)], "three", width=4)
    picture.line([(510, 116), (534, 116)], "three", width=4)
    picture.text(542, 120, "tangent: 0", "small")
    picture.line([(70, place(1)), (490, place(1))], "ink", dashes="6 4")
    picture.text(76, place(1) - 6, "above 1 no help", "small")
    for at in (0.01, 0.1, 1, 2, 10):
        picture.text(across(at), 276, f"{at:g}", "small middle")
    picture.text(70, 316, "Quadratic loss, stride 16, FCF-relaxation, two levels.", "small")
    return picture


if __name__ == "__main__":
    folder = Path(__file__).parent.parent / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    for draw in (chain, levels, front, work, factors):
        draw().write(folder)
