"""The examples run, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import jax
import pytest


pytestmark = pytest.mark.usefixtures("mixed_dtypes")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def printed(monkeypatch, capsys):
    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *options])
        with jax.numpy_rank_promotion("allow"):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def _numbers(pattern, text):
    return [tuple(map(float, each)) if isinstance(each, tuple) else float(each) for each in re.findall(pattern, text)]


@pytest.mark.long
@pytest.mark.slow
def test_weight_decay(printed):
    found = printed("weight_decay.py", "--steps", "300", "--updates", "2")
    derivatives = _numbers(r"derivative (\S+), by finite differences (\S+)", found)
    assert len(derivatives) == 2
    for derivative, differences in derivatives:
        assert derivative == pytest.approx(differences, rel=1e-6)
    losses = _numbers(r"validation loss (\S+)", found)
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)


@pytest.mark.long
def test_meta_learning(printed):
    found = printed("meta_learning.py", "--steps", "200", "--updates", "2", "--tasks", "1")
    ((before, after),) = _numbers(r"not seen: (\S+) before, (\S+) after", found)
    assert after < before
