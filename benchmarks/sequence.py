"""Recurrences along a sequence and affine evolutions along the steps, in parallel, beside their serial loops.

    python benchmarks/sequence.py [recurrence] [affine] [long-memory] [--json FILE]

- `recurrence`: `linear_recurrence` of 64 units against a jitted `lax.scan` (best of unroll 1, 8 and 32), values and gradients,
  float32, in turns, compiled before. Depth: products in sequence.
- `affine`: least squares by gradient descent: `AffineStep`, which is a scan of the steps; multigrid by `FrozenGradient` and by
  `Tangent`; the serial loop, a jitted `lax.scan` of the best unroll, its order known. The same data at every step, and
  minibatches of one, whose steps are of low rank.
- `long-memory`: a recurrent network trained on sequences, both axes parallel, against serial training.
"""

import argparse
import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from _measuring import load, paired, ratios, seconds, spread, summary, today
from _rows import distance, row, write

import gritax
from gritax.problems import linear_recurrence


LENGTHS = (100, 1_000, 10_000, 100_000)
UNITS, UNROLLS, PAIRS = 64, (1, 8, 32), 9


def _serially(gates, inputs, unroll):
    def after(h, each):
        h = each[0] * h + each[1]
        return h, h

    return jax.lax.scan(after, jnp.zeros_like(inputs[0]), (gates, inputs), unroll=unroll)[1]


def _gradient(run):
    return jax.grad(lambda gates, inputs: jnp.sum(run(gates, inputs) ** 2), (0, 1))


def recurrence():
    for length in LENGTHS:
        keys = jax.random.split(jax.random.key(0))
        gates = jax.nn.sigmoid(2 + jax.random.normal(keys[0], (length, UNITS), jnp.float32))
        inputs = jax.random.normal(keys[1], (length, UNITS), jnp.float32)
        for what, of in (("values", lambda run: run), ("gradients", _gradient)):
            ours = jax.jit(of(linear_recurrence))
            rivals = {unroll: jax.jit(of(partial(_serially, unroll=unroll))) for unroll in UNROLLS}
            times, call = {}, lambda run: jax.block_until_ready(run(gates, inputs))
            wanted = call(rivals[1])
            error = distance(call(ours), wanted) / distance(wanted, jax.tree.map(jnp.zeros_like, wanted))
            for unroll, rival in rivals.items():
                call(rival)
                times[unroll] = paired(partial(call, ours), partial(call, rival), PAIRS)
            best = min(UNROLLS, key=lambda unroll: summary(times[unroll][1])["median"])
            yield {
                "kind": "recurrence",
                "what": what,
                "length": length,
                "depth": 2 * math.ceil(math.log2(length)),
                "serial_depth": length,
                "seconds": summary(times[best][0]),
                "serial": summary(times[best][1]) | {"unroll": best},
                "ratio": summary(ratios(times[best])),
                "relative_error": error,
            }


def _least_squares(size, minibatch, num_steps):
    """(loss, data of a step, rate, the affine step, the serial loop) of a regression on `size` unknowns."""
    x = jax.random.normal(jax.random.key(0), (4 * size, size)) / math.sqrt(size)
    y = x @ jax.random.normal(jax.random.key(1), (size,))
    rate = 0.5
    if minibatch:
        order = jax.random.randint(jax.random.key(2), (num_steps,), 0, len(x))
        at = lambda step: order[step]
        batch = lambda step: (x[at(step)][None], y[at(step)][None])
        matrix = lambda step: gritax.LowRank(-rate * x[at(step)][:, None], x[at(step)][:, None])
        offset = lambda step: rate * y[at(step)] * x[at(step)]
    else:
        batch = lambda step: (x, y)
        matrix, offset = jnp.eye(size) - rate * x.T @ x / len(x), rate * x.T @ y / len(x)
    criterion = lambda outputs, batch: 0.5 * jnp.mean((outputs - batch[1]) ** 2)
    loss = gritax.CompositeLoss(lambda w, batch: batch[0] @ w, criterion)
    if minibatch:
        descend = lambda w, i: (w - rate * x[i] * (x[i] @ w - y[i]), None)
    else:
        order, descend = None, lambda w, _: (matrix @ w + offset, None)
    loops = [jax.jit(partial(jax.lax.scan, descend, xs=order, length=num_steps, unroll=unroll)) for unroll in UNROLLS]
    return loss, batch, rate, gritax.AffineStep(matrix, offset), loops


def affine():
    for minibatch, size, num_steps in ((False, 32, 4_096), (False, 32, 65_536), (True, 32, 4_096), (True, 32, 16_384)):
        loss, batch, rate, exact, loops = _least_squares(size, minibatch, num_steps)
        first = jnp.zeros(size)
        coarse = {"FrozenGradient": None, "Tangent": gritax.Tangent()}
        steps = {name: gritax.TrainStep(loss, optax.sgd(rate), batch, each) for name, each in coarse.items()}
        loop = lambda run: jax.block_until_ready(run(first)[0])
        wanted, *_ = map(loop, loops)
        serial = partial(loop, min(loops, key=lambda each: min(seconds(partial(loop, each)) for _ in range(PAIRS))))
        for name, step in {"AffineStep": exact, **steps}.items():
            state = first if step is exact else step.init(first)
            run = lambda: gritax.solve(step, state, num_steps, throw=False)
            found = run()
            times = paired(lambda: jax.block_until_ready(run().state), serial, 5)
            yield {
                "kind": "affine",
                "what": "one example a step" if minibatch else "full batch",
                "size": size,
                "steps": num_steps,
                "coarse": name,
                "converged": found.converged,
                "iterations": found.iterations,
                "depth": found.depth,
                "work_per_step": round(found.work / num_steps, 1),
                "seconds": summary(times[0]),
                "serial": summary(times[1]),
                "ratio": summary(ratios(times)),
                "relative_error": distance(found.params, wanted) / distance(wanted, first),
            }


def long_memory():
    for optimizer, named in ((optax.sgd(0.3), "sgd .3"), (None, "adam 3e-3")):
        problem = gritax.problems.long_memory(1_000, optimizer)
        yield {"kind": "long-memory", **row(problem, 1_024, warm_below=math.inf, optimizer=named, length=1_000)}


def main():
    jax.config.update("jax_enable_x64", True)
    kinds = {"recurrence": recurrence, "affine": affine, "long-memory": long_memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"some of {', '.join(kinds)}; all, if none is named")
    parser.add_argument("--json", metavar="FILE", help="written after every row")
    arguments, rows = parser.parse_args(), []
    for kind in arguments.kinds or kinds:
        for found in kinds[kind]():
            rows.append(found | {"load": load(), "date": today()})
            print({**found, "ratio": spread(found["ratio"])} if "ratio" in found else found, flush=True)
            if arguments.json:
                write(arguments.json, rows)


if __name__ == "__main__":
    main()
