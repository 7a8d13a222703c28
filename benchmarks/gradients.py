"""Gradients through training: those of a parallel solve beside autodiff of the serial loop, with and without checkpoints.

    python benchmarks/gradients.py [CASE …] [--json FILE]

Each row is a fresh process in float64. `gritax`: `jax.grad` of `gritax.solve`; `scan`: of a jitted `jax.lax.scan`;
`checkpointed`: of a scan in sqrt(N) parts, each computed again on the way back. The gradient is that of the problem's loss
after training, by initial parameters, learning rate and training inputs. Seconds are those of the second call; memory is that
of the process at its highest, less that of one that only builds the problem.
"""

import argparse
import json
import math
import sys
import time

from _measuring import child, load, today


KINDS = ("gritax", "scan", "checkpointed")
CASES = {
    "xor-sgd": ("xor", "sgd", 1.0, (1_024, 25_600)),
    "xor-momentum": ("xor", "momentum", 0.1, (1_024,)),
    "xor-adam": ("xor", "adam", 1e-2, (1_024,)),
    "digits-sgd": ("digits", "sgd", 0.1, (1_024, 4_096)),
    "digits-momentum": ("digits", "momentum", 0.02, (1_024,)),
    "digits-adam": ("digits", "adam", 1e-3, (1_024, 4_096)),
    "sine-sgd": ("sine", "sgd", 0.05, (1_024,)),
    "sine-momentum": ("sine", "momentum", 0.005, (1_024,)),
    "sine-adam": ("sine", "adam", 3e-4, (1_024,)),
}


def _case(name):
    import equinox as eqx
    import jax.numpy as jnp
    import optax

    import gritax

    problem, optimizer, rate, _ = CASES[name]
    optimizer = {
        "sgd": optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
        "momentum": optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.9),
        # Pixels that are always zero leave second moments of zero, where a root has no derivative.
        "adam": optax.inject_hyperparams(optax.adam)(learning_rate=rate, eps_root=1e-16),
    }[optimizer]
    problem = getattr(gritax.problems, problem)()
    batch = problem.step.batch
    examples = batch.arrays if isinstance(batch, gritax.data.Epochs) else batch(0)

    class Whole(eqx.Module):
        """All examples at every step."""

        arrays: tuple

        def __call__(self, step):
            return self.arrays

    if not isinstance(batch, gritax.data.Epochs):
        batch = Whole(examples)

    def prepared(params, rate, x):
        step = gritax.TrainStep(problem.step.loss, optimizer, eqx.tree_at(lambda batch: batch.arrays[0], batch, x))
        state = step.init(params)
        return step, eqx.tree_at(lambda state: state.opt_state.hyperparams["learning_rate"], state, rate)

    return prepared, (problem.state.params, jnp.asarray(rate), examples[0]), problem.step.loss, examples


def run(kind, name, num_steps):
    """In a process of its own."""
    import resource

    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import gritax

    num_steps = int(num_steps)
    prepared, arguments, loss, examples = _case(name)

    def serial(step, state, part):
        arrays, rest = eqx.partition(state, eqx.is_array)
        advance = lambda w, i: (eqx.filter(step(eqx.combine(w, rest), i, 1), eqx.is_array), None)
        some = lambda w, first: jax.lax.scan(advance, w, first + jnp.arange(part, dtype=jnp.int32))
        if part < num_steps:
            some = jax.checkpoint(some)
        return eqx.combine(jax.lax.scan(some, arrays, jnp.arange(0, num_steps, part, dtype=jnp.int32))[0], rest)

    def gradient(kind):
        def trained(*arguments):
            step, state = prepared(*arguments)
            if kind == "gritax":
                return loss(gritax.solve(step, state, num_steps).params, examples)
            part = num_steps if kind == "scan" else math.isqrt(num_steps)
            return loss(serial(step, state, part).params, examples)

        found = jax.grad(trained, (0, 1, 2))
        return found if kind == "gritax" else jax.jit(found)

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if kind == "none":
        return print(json.dumps({"peak_mb": peak()}))
    found, called = {"kind": kind}, gradient(kind)
    for which in ("first_seconds", "seconds"):
        began = time.perf_counter()
        values = jax.block_until_ready(called(*arguments))
        found[which] = time.perf_counter() - began
    found["peak_mb"] = peak()
    if kind == "gritax":
        wanted = gradient("checkpointed")(*arguments)
        norm = lambda tree: math.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tree)))
        for part, one, other in zip(("params", "rate", "inputs"), values, wanted, strict=True):
            found[f"error_{part}"] = norm(jax.tree.map(jnp.subtract, one, other)) / norm(other)
    return print(json.dumps(found))


def main():
    if sys.argv[1:2] == ["run"]:
        return run(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all, if none is named")
    parser.add_argument("--json", metavar="FILE")
    arguments, rows = parser.parse_args(), []
    for name in arguments.cases or CASES:
        baseline = child("gradients.py", "run", "none", name, 0)["peak_mb"]
        for num_steps in CASES[name][-1]:
            for kind in KINDS:
                found = child("gradients.py", "run", kind, name, num_steps)
                found["mb"] = round(found.pop("peak_mb") - baseline, 1)
                found = {key: float(f"{x:.3g}") if isinstance(x, float) else x for key, x in found.items()}
                rows.append({"case": name, "steps": num_steps, **found, "load": load(), "date": today()})
                print(rows[-1], flush=True)
                if arguments.json:
                    from _rows import write

                    write(arguments.json, rows)
    return None


if __name__ == "__main__":
    main()
