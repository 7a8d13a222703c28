"""The Python of README and docs runs."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest


_ROOT = Path(__file__).parent.parent
_PAGES = [path for path in [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))] if "```python" in path.read_text()]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_python_blocks(page, capsys):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        scope = {}
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize("page", [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["start.md"])
def test_commands_run(page):
    for block in re.findall(r"```sh\n(.*?)```", (_ROOT / "docs" / page).read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("gritax "):
                done = subprocess.run([sys.executable, "-m", *line.split()], capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stderr
