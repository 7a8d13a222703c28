"""Public functions beside the solver name what they cannot use."""

import re
from math import inf, nan

import jax.numpy as jnp
import optax
import pytest

import gritax
from gritax import experiments, placement, reporting


def _decay(u, start, stride):
    return u / (1 + stride * jnp.array([0.01, 0.3]))


@pytest.fixture(scope="module")
def solution():
    return gritax.solve(_decay, jnp.ones(2), 40, profile=True)


_TABLE = experiments.paper_table(2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        *(
            (lambda x=x: reporting.figures(x), "solution must be what gritax.solve or gritax.train gives")
            for x in (None, 3, {})
        ),
        *((lambda x=x: gritax.progress.Lines(x), "console must be a rich.console.Console") for x in ("x", 3)),
        *((lambda x=x: gritax.progress.Live(x), "console must be a rich.console.Console") for x in ("x", 3)),
        *((lambda x=x: experiments.compare(x, 10), "problem must be a gritax.problems.Problem") for x in (None, "xor")),
        *((lambda x=x: experiments.paper_table(x), "the paper has the tables 1 to 16") for x in (0, "1", None, True, nan)),
        *((lambda x=x: experiments.paper_levels(x), "num_steps must be a whole number") for x in (0, "x", None, inf)),
        *((lambda x=x: experiments.run_row(x, 100), "table must be a PaperTable") for x in (None, 2)),
        *((lambda x=x: experiments.run_row(_TABLE, 20, seed=x), "seed must be a whole number") for x in (None, "x", nan, -1)),
        *((lambda x=x: experiments.run_table(2, max_steps=x), "max_steps must be a number of steps") for x in (None, "x", nan)),
        (lambda: experiments.paper_potential_speedup("x", 3, "F"), "num_steps must be a whole number"),
        (lambda: experiments.paper_potential_speedup(100, 0, "F"), "iterations must be a whole number"),
        (lambda: experiments.paper_potential_speedup(100, 3, "F", nan), "levels must be a whole number"),
        *(
            (lambda x=x: placement.join(x, 2, 1), "coordinator must be host:port of process 0")
            for x in (123, b"a:1", "127.0.0.1:²", "a:" + "9" * 5000, "a:0", "a:65536")
        ),
        (lambda: placement.join("a:1", 10**30, 1), "processes must be below 2^31"),
        (lambda: placement.join("a:1", 2, 1, timeout=10**30), "timeout must be below 2^31"),
        (lambda: placement.join("a:1", 2, 0, bind=5), "bind must be an address of this machine"),
    ],
)
def test_what_cannot_be_used_is_named(call, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        call()


def test_hosts_that_cannot_be_are_named():
    with pytest.raises(ConnectionError, match=r"coordinator a\.\.b:1 was not reached"):
        placement.join("a..b:1", 2, 1)
    with pytest.raises(ConnectionError, match=r"process 0 cannot listen at a\.\.b, port 1"):
        placement.join("a..b:1", 2, 0)


@pytest.mark.parametrize("text", ["²", "-1", "", "1.5", "9" * 5000])
def test_what_is_no_number_in_the_environment_is_named(text, monkeypatch):
    monkeypatch.setenv("GRITAX_PROCESSES", text)
    with pytest.raises(ValueError, match="GRITAX_PROCESSES in the environment must be a whole number"):
        placement.join()


def test_a_spectrum_must_be_one(solution):
    with pytest.raises(ValueError, match=r"spectrum must be what gritax\.spectrum gives"):
        reporting.figures(solution, solution)


@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}, -1, 0, nan, object()])
def test_a_page_is_made_or_refused(solution, value):
    """By ValueError alone, whichever figure has been changed; none of them can be words that nobody wrote."""
    run, refused = reporting.figures(solution), 0
    for name in run:
        try:
            assert reporting.page(run | {name: value}).encode()
        except ValueError:
            refused += 1
    assert refused


def test_weights_that_do_not_move():
    problem = gritax.problems.xor(1e-30, coarse=gritax.RescaledRate())
    found = experiments.compare(problem, 8)
    assert (found.distance, found.travelled, found.relative_distance) == (0, 0, 0)
    assert found.sentence.startswith("No step has moved the weights")


@pytest.mark.slow
def test_a_plan_of_one_step(mixed_dtypes):
    plan = gritax.plan(lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(0.01), lambda step: jnp.ones(2), jnp.zeros(2), 1)
    assert plan.seconds > 0
