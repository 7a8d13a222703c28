"""The picture of README.md: `python benchmarks/travel.py` solves XOR anew and draws where residuals are left."""

import re
from importlib.resources import files
from pathlib import Path

import jax

import gritax
from gritax.reporting import figures
from gritax.reporting._iterates import heat_map


STEPS, WIDTH = 25_600, 720
TITLE = 34


def style():
    """Of a report: its colours, light and dark, and what a heat map is drawn with."""
    sheet = files("gritax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    colours = sheet[: sheet.index("* {")]
    drawn = re.findall(r"(?:^|(?<=} ))(?:text|\.tick|\.front|\.cell|\.unknown|\.s\d)[^{}]*{[^}]*}", sheet, re.MULTILINE)
    return colours + "\n".join([*drawn, "text { font-family: system-ui, sans-serif } .card { fill: var(--card) }"])


def main():
    jax.config.update("jax_enable_x64", True)
    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0))
    method = gritax.Multigrid(2, cycle="F")
    run = figures(gritax.solve(problem.step, problem.state, STEPS, method, profile=True))
    drawing = heat_map(run, WIDTH)
    words = f"XOR, {STEPS:,} training steps at once: where residuals are left, iteration by iteration (rows, from the top)"
    height = drawing.height + TITLE
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    Path(__file__).parent.parent.joinpath("docs", "pictures", "travel.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
        f"<title>{words}</title>\n<style>{style()}</style>\n"
        f'<rect class="card" width="{WIDTH}" height="{height:g}" rx="8"/>\n<text x="58" y="22">{words}</text>\n'
        f'<g transform="translate(0 {TITLE})">{"".join(drawing.parts)}</g>\n</svg>\n'
    )


if __name__ == "__main__":
    main()
