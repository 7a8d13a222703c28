"""What trains beside gritax: the cases, and for each the programs of all rivals."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _in_c import COMPILER, xor_loop
from _measuring import seconds
from _scan import fastest

import gritax
from gritax import FrozenGradient, Multigrid, RescaledRate, Stabilized, Tangent
from gritax.problems import adder, diabetes, digits, poisson, sine, xor


MANY = 8
AT_ONCE = f"{MANY} at once"
BESIDE = "scan, processor"
PEER, PEER_STEPS = "XOR, as PyMGRIT", 1_024
PEER_TOLERANCE = 1e-9 * PEER_STEPS**0.5


@dataclass(frozen=True)
class Case:
    """`make(optimizer, coarse=, **options)`, so many steps; `batch_size` where it can be raised; `rivals`, where not all."""

    make: Callable[..., Any]
    optimizer: str
    rate: float
    steps: int
    coarse: Any
    method: Any = None
    tolerance: float | None = None
    batch_size: int | None = None
    rivals: tuple[str, ...] | None = None

    def problem(self, rate=None, **options):
        make = {"sgd": optax.sgd, "momentum": partial(optax.sgd, momentum=0.9), "adam": optax.adam}[self.optimizer]
        return self.make(optimizer=make(rate or self.rate), coarse=self.coarse, **options)

    def larger(self):
        rate = self.rate * (MANY**0.5 if self.optimizer == "adam" else MANY)
        return self.problem(rate, batch_size=MANY * self.batch_size), self.steps // MANY


_gradient_descent = lambda optimizer, **options: xor(1.0, **options)
_task, _softmax = partial(sine, widths=(40, 40), num_points=10), partial(digits, widths=())
CASES = {
    "XOR": Case(_gradient_descent, "sgd", 1.0, 1_024, Tangent()),
    "XOR, 25,600": Case(_gradient_descent, "sgd", 1.0, 25_600, Tangent()),
    "XOR, 10^6": Case(_gradient_descent, "sgd", 1.0, 1_000_000, Tangent()),
    PEER: Case(_gradient_descent, "sgd", 1.0, PEER_STEPS, RescaledRate(max_factor=8.0), Multigrid(4), PEER_TOLERANCE),
    "adder": Case(partial(adder, reduction="mean"), "sgd", 0.025, 12_800, FrozenGradient(math.inf), Multigrid(4)),
    "digits, SGD": Case(digits, "sgd", 0.1, 8_192, Stabilized(), batch_size=32),
    "digits, Adam": Case(digits, "adam", 1e-3, 8_192, FrozenGradient(64), batch_size=32),
    "logistic regression": Case(_softmax, "sgd", 0.01, 16_384, "auto", batch_size=32),
    "Poisson": Case(poisson, "adam", 1e-4, 1_024, FrozenGradient()),
    "sine fit": Case(sine, "adam", 3e-4, 1_024, FrozenGradient()),
    "inner loop of MAML": Case(_task, "sgd", 0.01, 1_024, "auto"),
}
SCANS = ("gritax", "scan", BESIDE)
ON_A_GPU = {
    "XOR, 4.2 10^6": Case(_gradient_descent, "sgd", 1.0, 2**22, Tangent(), rivals=SCANS),
    "XOR, 409,600": Case(_gradient_descent, "sgd", 1.0, 409_600, Tangent()),
    "adder": CASES["adder"],
    "digits, Adam": CASES["digits, Adam"],
    "digits, SGD, 65,536": Case(digits, "sgd", 0.1, 65_536, Stabilized(), batch_size=32),
    "diabetes, SGD, 65,536": Case(diabetes, "sgd", 0.02, 65_536, Stabilized(), rivals=SCANS),
}


def programs(case):
    """(the problem, makers by rival, what became known of each).

    A maker returns a function without arguments that trains and returns the parameters; it is compiled when it is first called.
    """
    problem, known = case.problem(), {}
    platform = jax.default_backend()

    def parallel():
        options = {"tolerance": case.tolerance, "throw": False, "max_iterations": 30}
        solution = gritax.solve(problem.step, problem.state, case.steps, case.method, **options)
        known["gritax"] = solution
        return jax.block_until_ready(solution.params)

    def serial():
        run, known["scan"] = fastest(problem.step.prepared(case.steps), problem.state, case.steps)
        return lambda: run().params

    def beside():
        with jax.default_device(jax.devices("cpu")[0]):
            there = case.problem()
            run, known[BESIDE] = fastest(there.step.prepared(case.steps), there.state, case.steps)
        return lambda: run().params

    def many():
        starts = [case.problem(seed=seed).state for seed in range(1, MANY + 1)]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        together = jax.vmap(problem.step.prepared(case.steps), (0, None, None))
        run, known[AT_ONCE] = fastest(together, states, case.steps)
        return lambda: jax.tree.map(lambda x: x[0], run().params)

    def larger():
        other, steps = case.larger()
        run, known["larger batch"] = fastest(other.step.prepared(steps), other.state, steps)
        return lambda: run().params

    def compiled():
        import torch
        from rivals_torch import program

        batch = problem.step.batch
        if isinstance(batch, gritax.data.Epochs):
            examples = batch.arrays
            rows = jax.vmap(batch.tabulated(case.steps).indices)(jnp.arange(case.steps))
        elif problem.name == "adder":
            rows = jnp.arange(case.steps)[:, None] % 500
            examples = jax.vmap(lambda i: jax.tree.map(lambda x: x[0], batch(i)))(jnp.arange(500))
        else:
            examples, rows = batch(0), case.steps
        device = "cuda" if platform == "gpu" else "cpu"
        run = program(problem, examples, rows, case.optimizer, case.rate, device=device)
        run()
        if device == "cpu":
            _on_fewer_threads(torch, run)
        structure = jax.tree.structure(problem.state.params)
        return lambda: jax.tree.unflatten(structure, run())

    rivals = {"gritax": lambda: parallel, "scan": serial, AT_ONCE: many}
    if case.make is _gradient_descent and platform == "cpu" and COMPILER and jax.config.jax_enable_x64:
        rivals["C"] = lambda: xor_loop(problem.state.params, case.rate, case.steps)
    if platform != "cpu":
        rivals[BESIDE] = beside
    if importlib.util.find_spec("torch"):
        rivals["torch.compile"] = compiled
    if case.batch_size:
        rivals["larger batch"] = larger
    return problem, {rival: make for rival, make in rivals.items() if rival in (case.rivals or rivals)}, known


def _on_fewer_threads(torch, run):
    """One or all, as is faster."""
    times = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        times[threads] = seconds(run)
    torch.set_num_threads(min(times, key=times.__getitem__))
