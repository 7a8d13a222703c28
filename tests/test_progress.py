"""What people see of a solve, in a terminal and in a pipe."""

import io
import re

import jax.numpy as jnp
import pytest
from rich.console import Console

import gritax
from gritax.progress import Lines, Live


_HIDDEN, _SHOWN = "\x1b[?25l", "\x1b[?25h"


def _decay(u, start, stride):
    return u / (1 + stride * jnp.array([0.01, 0.3]))


def _console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)


def _shown(progress, console, **options):
    gritax.solve(_decay, jnp.ones(2), 300, progress=progress, **options)
    return re.sub(r"[\d.]+ s\b", "", console.file.getvalue())  # what it took


def test_piped_it_is_lines():
    plain, live = _console(False), _console(False)
    with Live(live) as progress:
        found = _shown(progress, live)
    assert found == _shown(Lines(plain), plain)
    assert "\x1b" not in found and "\r" not in found


def test_a_terminal_shows_what_is_being_computed():
    console = _console(True)
    with Live(console) as progress:
        shown = _shown(progress, console)
    assert "initial guess" in shown and "iteration 1" in shown
    lines = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line).strip() for line in shown.splitlines()]
    assert sum(bool(re.match(r"\d+  ", line)) for line in lines) >= 3  # the rows stay
    assert shown.count(_HIDDEN) == shown.count(_SHOWN) > 0


def test_an_error_leaves_the_terminal_in_order():
    console = _console(True)
    with pytest.raises(KeyboardInterrupt):
        with Live(console) as progress:
            report = progress.iteration

            def interrupted(iteration):
                report(iteration)
                raise KeyboardInterrupt

            progress.iteration = interrupted
            _shown(progress, console)
    shown = console.file.getvalue()
    assert shown.rindex(_SHOWN) > shown.rindex(_HIDDEN)


def test_a_second_solve_with_the_same_progress():
    console = _console(True)
    with Live(console) as progress:
        _shown(progress, console)
        before = console.file.getvalue()
        _shown(progress, console)
    assert "iteration 1" in console.file.getvalue().removeprefix(before)


def test_windows(mixed_dtypes):
    problem, console = gritax.problems.xor(), _console(True)
    step = problem.step
    with Live(console) as progress:
        gritax.train(step.loss, step.optimizer, step.batch, problem.state.params, 64, progress=progress, throw=False)
    shown = console.file.getvalue()
    assert "steps 0 to" in shown and shown.rindex(_SHOWN) > shown.rindex(_HIDDEN)
