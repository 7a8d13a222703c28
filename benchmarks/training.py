"""Coarse propagators on the adder, digits and XOR: iterations, depth and the distance from serial training.

    python benchmarks/training.py [names of groups] [--json FILE]

Counts do not depend on the machine; the seconds are those of one call, with its compilation, and say little.
"""

import argparse
import math
from functools import partial

import jax
import optax
from _rows import row, write

import gritax


jax.config.update("jax_enable_x64", True)

FrozenGradient, Multigrid = gritax.FrozenGradient, gritax.Multigrid
STEPS = 8192


def digits(optimizer, refresh, *, method=None, steps=STEPS, seeds=range(1, 6), coarse=None, **options):
    for seed in seeds:
        yield gritax.problems.digits(optimizer, seed, coarse=coarse or FrozenGradient(refresh), **options), seed, steps, method


def stabilized(optimizer, seeds=(1, 2), sizes=(2048, STEPS)):
    for steps in sizes:
        yield from digits(optimizer, None, steps=steps, seeds=seeds, coarse=gritax.Stabilized())


def xor(serialized):
    for steps in (1600, 6400, 25600):
        yield gritax.problems.xor(serialized=serialized, coarse=gritax.Stabilized()), 1, steps, None


def adder(reduction, refresh, method, sizes):
    for steps in sizes:
        yield gritax.problems.adder(coarse=FrozenGradient(refresh), reduction=reduction), 1, steps, method


def scaled_adder(share, coarse, sizes, method=None, alpha=0.025, **options):
    """The paper's adder with this share of its gradient, to the paper's tolerance."""
    for steps in sizes:
        yield gritax.problems.adder(alpha * share, coarse=coarse, **options), 1, steps, method, 1e-9 * steps**0.5


def tangent(serialized, alpha=1.0, sizes=(1600, 6400, 25600), seeds=(1,)):
    for steps in sizes:
        for seed in seeds:
            yield (
                gritax.problems.xor(alpha, seed, serialized=serialized, coarse=gritax.Tangent()),
                seed,
                steps,
                None,
                1e-9 * steps**0.5,
            )


SIZES_OF_BATCHES = (40, 80, 160, 320, 640, 1280)  # of the paper's Tables 8-11
SIZES = [100 * 2**k for k in range(8)]
COSINE, WARM_UP = optax.cosine_decay_schedule(1e-3, 2048), optax.warmup_cosine_decay_schedule(0.0, 1e-3, 256, 2048)
GROUPS = {
    "adam": lambda: digits(optax.adam(1e-3), 64),
    "sgd": lambda: digits(optax.sgd(0.1), 16),
    "adder, mean over outputs": lambda: adder("mean", math.inf, Multigrid(4), SIZES),
    "adamw cosine": lambda: digits(optax.adamw(COSINE), 32, steps=2048, seeds=(1, 2, 3), activation="tanh"),
    "heavy ball [32]": lambda: digits(
        optax.sgd(0.02, momentum=0.9), 16, method=Multigrid((32,)), steps=2048, seeds=(1, 2, 3), activation="tanh"
    ),
    "heavy ball [4, 4, 2], FCFCF": lambda: digits(
        optax.sgd(0.02, momentum=0.9), 32, steps=2048, seeds=(1, 2, 3), activation="tanh"
    ),
    "nesterov": lambda: digits(optax.sgd(0.02, momentum=0.9, nesterov=True), 32, steps=2048, seeds=(1,), activation="tanh"),
    "adam, warm-up and cosine": lambda: digits(optax.adam(WARM_UP), 32, steps=2048, seeds=(1,)),
    "adam, float32": lambda: digits(optax.adam(1e-3), 64, seeds=(1, 2), dtype="float32"),
    "sgd, float32": lambda: digits(optax.sgd(0.1), 16, seeds=(1, 2), dtype="float32"),
    "adam, tanh": lambda: digits(optax.adam(1e-3), 64, activation="tanh"),
    "adam with eps 1e-5, tanh": lambda: digits(optax.adam(1e-3, eps=1e-5), 64, seeds=(1,), activation="tanh"),
    "sgd, tanh": lambda: digits(optax.sgd(0.1), 16, activation="tanh"),
    "refresh from the curvature": lambda: (
        each
        for optimizer in (optax.adam(1e-3), optax.sgd(0.1), optax.sgd(0.02, momentum=0.9))
        for each in digits(optimizer, None, steps=2048, seeds=(1,))
    ),
    "adder, sum over outputs": lambda: adder("sum", None, None, (3200,)),
    "adder, a fiftieth": lambda: scaled_adder(1 / 50, FrozenGradient(math.inf), SIZES, Multigrid(4)),
    "adder, a twelfth": lambda: scaled_adder(1 / 12, FrozenGradient(math.inf), SIZES, Multigrid(4)),
    **{
        f"adder, mean over {count} pairs, alpha {alpha}": partial(
            scaled_adder, 1 / count, FrozenGradient(), SIZES_OF_BATCHES, alpha=alpha, serialized=False, num_examples=count
        )
        for count in (50, 500)
        for alpha in (0.025, 0.1)
    },
    "stabilized, sgd": lambda: stabilized(optax.sgd(0.1)),
    "stabilized, heavy ball": lambda: stabilized(optax.sgd(0.02, momentum=0.9)),
    "stabilized, adam": lambda: stabilized(optax.adam(1e-3)),
    "stabilized, sgd, 65,536": lambda: stabilized(optax.sgd(0.1), (1,), (65536,)),
    "stabilized, adam, 65,536": lambda: stabilized(optax.adam(1e-3), (1,), (65536,)),
    "stabilized, heavy ball, 65,536": lambda: stabilized(optax.sgd(0.02, momentum=0.9), (1,), (65536,)),
    "stabilized, xor": lambda: xor(False),
    "stabilized, xor serialised": lambda: xor(True),
    **{
        f"tangent, xor, {steps:,}": partial(tangent, False, sizes=(steps,), seeds=range(1, 11))
        for steps in (1600, 6400, 25600, 102400, 409600)
    },
    "tangent, xor serialised": lambda: tangent(True),
    "tangent, xor serialised, alpha .1": lambda: tangent(True, 0.1),
    "relu": lambda: digits(optax.adam(1e-3), 16, steps=512, seeds=(1,), activation="relu"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"all, if none is named: {', '.join(GROUPS)}")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.groups or GROUPS:
        for problem, seed, *case in GROUPS[name]():
            rows.append(row(problem, *case, group=name, seed=seed))
            print({key: value for key, value in rows[-1].items() if key not in ("levels", "metrics")}, flush=True)
            if arguments.json:
                write(arguments.json, rows)


if __name__ == "__main__":
    main()
