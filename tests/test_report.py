"""The page of a run: well-formed, whole by itself, and with the figures of the run."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

import gritax
from gritax.cli import main
from gritax.reporting import figures, page
from gritax.reporting._drawing import decades, even_ticks, short
from gritax.reporting._levels import way


_VOID = {"meta", "br", "img", "input", "link"}


class _Page(HTMLParser):
    """The elements in their order; fails where one is not closed, or has what leads elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert not {"src", "href", "xlink:href", "srcset", "data"} & {name for name, _ in attrs}
        assert tag not in ("script", "link", "iframe", "object", "img")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data.strip())

    @property
    def headings(self):
        return [text for text in self.texts if text in _HEADINGS]

    def classes(self, tag):
        return [attrs.get("class", "") for found, attrs in self.elements if found == tag]


_HEADINGS = (
    *("Figures", "Convergence", "Where residuals are left", "One V-cycle", "One F-cycle", "Potential speedup"),
    *("Predicted convergence", "Levels"),
)


def _decay(u, start, stride):
    return u / (1 + stride * jnp.array([0.01, 0.3]))


@pytest.fixture(scope="module")
def xor():
    problem = gritax.problems.xor(alpha=0.1, coarse=gritax.FrozenGradient(16))
    solution = gritax.solve(problem.step, problem.state, 400, profile=True)
    return solution, gritax.spectrum(problem.step, problem.state, 400)


def test_a_page_has_the_figures_of_its_run(xor):
    solution, spectrum = xor
    html = page(json.loads(json.dumps(figures(solution, spectrum), allow_nan=False)))
    found = _Page(html)
    assert found.headings == ["Figures", *_HEADINGS[1:4], *_HEADINGS[5:]]
    for expected in (
        f"400 training steps, {solution.iterations} iterations",
        f"{solution.residuals[0]:.3e} → {solution.residuals[-1]:.3e}",
        f"{solution.relative_residuals[-1]:.3e} of the distance travelled",
        f"{solution.depth:,} evaluations in sequence",
        f"{solution.work:,} evaluations in all",
        f"{solution.potential_speedup:.2f}",
        solution.coarse_steps,
    ):
        assert expected in found.texts, expected
    assert any(f"Predicted: {short(spectrum.factor)} an iteration" in text for text in found.texts)
    for size, spent in zip(solution.level_sizes, solution.depth_by_level, strict=True):
        assert f"{size:,}" in found.texts and f"{spent:,}" in found.texts


def test_it_needs_nothing_beside_itself_and_follows_the_theme(xor):
    html = page(figures(*xor))
    for lead in ("http:", "https:", "//", "url(", "@import", "file:"):
        assert lead not in html
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    used = {name for _, attrs in _Page(html).elements for name in (attrs.get("class") or "").split()}
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert used - {"legend"} <= set(re.findall(r"\.([a-z][a-z0-9]*)", style))
    assert not re.findall(r'(?:fill|stroke|style)="', html)  # colours are the theme's


def test_curves_go_through_the_figures(xor):
    run = figures(xor[0])
    found = _Page(page(run))
    paths = [attrs["d"] for tag, attrs in found.elements if tag == "path" and attrs["class"] == "curve a"]
    points = [tuple(map(float, each.split())) for each in re.split("[ML]", paths[0])[1:]]
    heights = -np.array([y for _, y in points])
    logs = np.log10(run["residuals"])
    assert len(points) == len(logs)
    np.testing.assert_allclose((heights - heights[0]) / np.ptp(heights), (logs - logs[0]) / np.ptp(logs), atol=2e-3)


def test_the_heat_map_has_every_cell_once():
    solution = gritax.solve(_decay, jnp.ones(2), 997, profile=True)
    found = _Page(page(figures(solution)))
    cells = [attrs["d"] for tag, attrs in found.elements if tag == "path" and attrs["class"].startswith("cell")]
    area, width = 0.0, 720 - 58 - 10
    wide = cells[: len(cells) // 2]  # the same shades in both sizes
    for first, end, height in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)v([\d.]+)", "".join(wide)):
        area += (float(end) - float(first)) * float(height)
    rows = len(solution.residuals)
    assert area == pytest.approx(width * 996 / 997 * rows * min(max(round(260 / rows, 1), 7), 24), rel=1e-2)


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("steps", "options", "pictures"),
    [
        (3, {}, []),
        (500, {"method": gritax.Multigrid(max_levels=1)}, []),
        (500, {"profile": False}, ["Convergence", "One V-cycle", "Potential speedup"]),
        (500, {}, ["Convergence", "Where residuals are left", "One V-cycle", "Potential speedup"]),
        (
            *(500, {"method": gritax.Multigrid(cycle="F")}),
            ["Convergence", "Where residuals are left", "One F-cycle", "Potential speedup"],
        ),
    ],
)
def test_pictures_are_left_out_where_there_is_nothing_to_see(steps, options, pictures):
    solution = gritax.solve(_decay, jnp.ones(2), steps, **{"profile": True, **options})
    assert _Page(page(figures(solution))).headings == ["Figures", *pictures, "Levels"]


@pytest.mark.slow
def test_what_is_not_finite():
    grows = lambda u, start, stride: u * (1.0 if stride == 1 else 1e200)
    with np.errstate(all="ignore"):
        solution = gritax.solve(grows, jnp.ones(2), 600, gritax.Multigrid(4), profile=True, throw=False, initial_guess="zeros")
    run = json.loads(json.dumps(figures(solution), allow_nan=False))
    assert not solution.converged and None in run["residuals"]
    found = _Page(page(run))
    assert "not converged" in found.texts and any("not finite" in text for text in found.texts)


def test_words_of_a_run_are_escaped(xor):
    run = figures(xor[0]) | {"reason": "<script>alert(1)</script>", "command": "a & b", "settings": {"problem": "<b>"}}
    found = _Page(page(run))
    assert any("<script>" in text for text in found.texts)


@pytest.mark.slow
def test_of_train(mixed_dtypes):
    problem = gritax.problems.xor()
    step = problem.step
    trained = gritax.train(step.loss, step.optimizer, step.batch, problem.state.params, 300, goal="depth", throw=False)
    _Page(page(figures(trained)))


def test_what_is_no_run():
    for other in ([], {"residuals": []}, None, "text"):
        with pytest.raises(ValueError, match=r"run has no '.*': it must be what gritax.reporting.figures gives"):
            page(other)


@pytest.mark.long
@pytest.mark.slow
def test_the_command(tmp_path):
    solution = gritax.solve(_decay, jnp.ones(2), 100, profile=True)
    run, html = tmp_path / "run.json", tmp_path / "run.html"
    run.write_text(json.dumps(figures(solution)))

    def report(*arguments):
        return subprocess.run([sys.executable, "-m", "gritax", "report", *map(str, arguments)], capture_output=True, text=True)

    done = report(run, "--output", html)
    assert (done.returncode, done.stderr) == (0, "") and str(html) in done.stdout.replace("\n", "")
    assert report(run).stdout == html.read_text() == page(figures(solution))
    run.write_text(json.dumps({**figures(solution), "levels": 3}))
    done = report(run)
    assert done.returncode == 2 and "not as gritax solve or gritax train wrote it" in done.stderr
    assert "Traceback" not in done.stderr
    kept = run.read_text()
    done = report(run, "--output", run)
    assert done.returncode == 2 and "is the run itself" in done.stderr and run.read_text() == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("versions", None), ("settings", [1]), ("command", 3), ("level_seconds", [0.0, 0.0]), ("num_steps", "x")),
        ("speedup_on", [[0, 0], [0, 0]]),
    ],
)
def test_a_run_that_was_changed_is_refused_in_a_line(name, value, tmp_path, capsys):
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**figures(gritax.solve(_decay, jnp.ones(2), 40)), name: value}))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"gritax: {run}: not as gritax solve or gritax train wrote it")


@pytest.mark.slow
def test_a_run_that_fell_short_promises_no_speedup():
    solution = gritax.solve(_decay, jnp.ones(2), 600, gritax.Multigrid(2), max_iterations=1, throw=False, profile=True)
    html = page(figures(solution))
    assert html.count("did not reach the answer") == 2
    assert "of iterations that fell short" in str(solution)
    assert "did not reach" not in page(figures(gritax.solve(_decay, jnp.ones(2), 600, profile=True)))


def test_a_mode_without_a_factor_is_explained(xor):
    solution, spectrum = xor
    none = dataclasses.replace(spectrum, factors=spectrum.factors + 1e20)
    for told in (str(none), page(figures(solution, none))):
        assert "coarse steps amplify one" in told
    for told in (str(spectrum), page(figures(solution, spectrum))):
        assert "coarse steps amplify one" not in told


def test_the_way_of_a_cycle():
    assert way(1, "V") == [0]
    assert way(2, "F") == [0, 1, 0]
    assert way(4, "F") == [0, 1, 2, 3, 2, 3, 2, 1, 2, 3, 2, 1, 0]


def test_ticks():
    assert [name for _, name in even_ticks(0, 25_600, 6)] == ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]
    assert even_ticks(0, 1, 5) == [(0, "0"), (1, "1")]
    assert [name for _, name in decades(-5, 2, 4)] == ["100", "1", "0.01", "1e-4"]
    assert [short(x) for x in (0, 0.25, 12_345, 1e5, 1e-12)] == ["0", "0.25", "12,345", "1e5", "1e-12"]
