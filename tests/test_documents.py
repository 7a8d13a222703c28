"""The Python and the commands of README and docs run, links lead somewhere, and no public name is left out."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import gritax
import gritax.progress


_ROOT = Path(__file__).parent.parent
_PAGES = [path for path in [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))] if "```python" in path.read_text()]


@pytest.mark.slow(1)
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_python_blocks(page, capsys):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        scope = {}
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize(
    "page", [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md", *sorted((_ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("part", ["README.md", "src", "docs", "examples", "benchmarks"])
def test_nothing_is_installed_by_a_name_that_no_index_has(part):
    """A folder has extras; gritax itself is in no index."""
    for page in [_ROOT / part, *(_ROOT / part).rglob("*")]:
        if page.suffix in (".py", ".md"):
            assert not re.search(r"pip install \W?gritax", page.read_text(encoding="utf-8")), page


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start.md"])
def test_commands_run(page):
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    for block in re.findall(r"```sh\n(.*?)```", (_ROOT / "docs" / page).read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("gritax "):
                done = subprocess.run(
                    [sys.executable, "-m", *line.split()], capture_output=True, text=True, timeout=300, env=environment
                )
                assert done.returncode == 0, done.stderr


def _public(module):
    """Names that `module` gives away: those that it imports for others, or, of a module that is one file, its own classes."""
    path = Path(module.__file__)
    if path.name == "__init__.py":
        return re.findall(r"\b([A-Za-z]\w*) as \1\b", path.read_text())
    return re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "module",
    [gritax, gritax.data, gritax.placement, gritax.problems, gritax.experiments, gritax.progress, gritax.reporting],
    ids=lambda m: m.__name__,
)
def test_every_public_name_is_told_of(module):
    api, reference = ((_ROOT / "docs" / page).read_text() for page in ("api.md", "reference.md"))
    for name in _public(module):
        if inspect.ismodule(getattr(module, name)):
            continue
        full = f"{module.__name__}.{name}"
        assert f"[`{full}`](reference.md#{full})" in api
        assert f"\n::: {full}\n" in reference
