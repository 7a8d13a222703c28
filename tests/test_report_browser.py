"""The page of a run in a real browser: nothing is wider than the screen, and no word of a picture is cut."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

import gritax
from gritax.reporting import figures, page


_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(_BROWSER is None, reason="needs Chromium")
# The page in a frame as wide as a screen, and beside it what the browser makes of it.
_FRAME = """<!doctype html>
<iframe id="page" style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
window.onload = () => {{
  const inner = document.getElementById("page").contentDocument, cut = [];
  for (const text of inner.querySelectorAll("svg text")) {{
    const box = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
    const inside = box.left > all.left - 1 && box.right < all.right + 1 && box.bottom < all.bottom + 1;
    if (box.width && !inside) cut.push(text.textContent);
  }}
  const shown = [...inner.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width).length;
  const width = inner.scrollingElement.scrollWidth, ground = getComputedStyle(inner.body).backgroundColor;
  document.getElementById("found").textContent = JSON.stringify({{width, cut, shown, ground}});
}};
</script>"""


@pytest.fixture(scope="module")
def html():
    problem = gritax.problems.xor(alpha=0.1, coarse=gritax.FrozenGradient(16))
    solution = gritax.solve(problem.step, problem.state, 4096, profile=True)
    return page(figures(solution, gritax.spectrum(problem.step, problem.state, 4096)) | {"settings": {"problem": "xor"}})


def _seen(html, width, folder, *options):
    frame = folder / "frame.html"
    frame.write_text(_FRAME.format(width=width, page=escape(html)), encoding="utf-8")
    command = [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL).group(1)))


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_at_any_width(html, width, tmp_path):
    found = _seen(html, width, tmp_path)
    assert found["width"] <= width and found["cut"] == [] and found["shown"] == 6
    assert found["ground"] == "rgb(246, 247, 249)"


def test_it_is_dark_where_the_reader_is(html, tmp_path):
    assert _seen(html, 1280, tmp_path, "--blink-settings=preferredColorScheme=0")["ground"] == "rgb(15, 18, 24)"
