"""Training problems drawn at random: does `gritax.train` end with the serial weights, and what does it gain?

    python benchmarks/drawn.py [--first 0] [--count 200] [--json FILE]

Problem i is a pure function of i. Learning rates lie between .01 and 1.2 of the stability limit, where the curvature that
gritax measures at the initial state makes training steps unstable (kappa of 2; with momentum, 2 (1 + beta) / (1 - beta)).
`goal="depth"`, tolerance None. An error is the distance of the final parameters from those of serial training over the
distance that these travel; `rounding` is the same of a serial run whose first parameters are one unit of rounding larger.
Programs are compiled without optimisation, since it would take most of the time; counts do not depend on it.
"""

import os


os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _rows import distance, write

import gritax
from gritax.coarse._curvature import largest_kappas


jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {"tanh": jnp.tanh, "gelu": jax.nn.gelu, "softplus": jax.nn.softplus, "relu": jax.nn.relu, "linear": lambda x: x}
CRITERIA = ("squares", "cross-entropy", "huber", "logistic")
OPTIMIZERS = {
    "sgd": (lambda rate: optax.sgd(rate), 0.0),
    "heavy ball": (lambda rate: optax.sgd(rate, momentum=0.9), 0.9),
    "nesterov": (lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.9),
    "adam": (lambda rate: optax.adam(rate), 0.9),
    "adamw, cosine": (lambda rate: optax.adamw(optax.cosine_decay_schedule(rate, 2000), weight_decay=1e-3), 0.9),
    "rmsprop": (lambda rate: optax.rmsprop(rate, decay=0.99), 0.0),
}
EXAMPLES = 128


def drawn(index):
    """(names, problem as arguments of gritax.train, steps)."""
    rng = np.random.default_rng([2026, index])
    pick = lambda values, **how: values[rng.choice(len(values), **how)]
    activation = pick(list(ACTIVATIONS), p=[0.3, 0.25, 0.2, 0.1, 0.15])
    criterion, name = pick(CRITERIA), pick(list(OPTIMIZERS))
    dtype, batch_size = pick(("float64", "float32")), pick((4, 16, EXAMPLES))
    width, steps = int(rng.integers(4, 25)), int(2 ** rng.uniform(8, 11))
    share = float(np.exp(rng.uniform(np.log(0.01), np.log(1.2))))
    outputs = {"squares": 2, "cross-entropy": 3, "huber": 1, "logistic": 1}[criterion]
    x = rng.normal(size=(EXAMPLES, 4)) * np.exp(rng.uniform(-1, 1, 4))
    teacher = np.sin(x @ rng.normal(size=(4, outputs)))
    y = {"cross-entropy": np.argmax(teacher, 1), "logistic": (teacher > 0).astype(float)}.get(criterion, teacher)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, jnp.int32 if criterion == "cross-entropy" else dtype)
    weights = [("w", (4, width), 4), ("v", (width, outputs), width)]
    params = {n: jnp.asarray(rng.normal(size=s) / np.sqrt(fan), dtype) for n, s, fan in weights} | {
        "b": jnp.zeros(width, dtype)
    }
    act = ACTIVATIONS[activation]

    def network(params, batch):
        return act(batch[0] @ params["w"] + params["b"]) @ params["v"]

    def of(z, batch):
        if criterion == "cross-entropy":
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, batch[1]))
        if criterion == "logistic":
            return jnp.mean(optax.sigmoid_binary_cross_entropy(z, batch[1]))
        return jnp.mean((optax.huber_loss if criterion == "huber" else optax.squared_error)(z, batch[1]))

    loss = gritax.CompositeLoss(network, of)
    batch = (lambda step: (x, y)) if batch_size == EXAMPLES else gritax.data.Epochs((x, y), batch_size, jax.random.key(index))
    make, beta = OPTIMIZERS[name]
    step = gritax.TrainStep(loss, make(1e-4), batch)
    states = jax.tree.map(lambda leaf: leaf[None], step.init(params))
    kappa = float(largest_kappas(step, states, np.zeros(1, np.int32), 16, 16)[0][0]) / 1e-4
    rate = share * 2 * (1 + beta) / (1 - beta) / max(kappa, 1e-6)
    names = {
        "problem": index,
        "activation": activation,
        "criterion": criterion,
        "optimizer": name,
        "dtype": dtype,
        "batch": batch_size,
        "weights": sum(leaf.size for leaf in params.values()),
        "share_of_limit": round(share, 3),
        "rate": float(f"{rate:.3g}"),
    }
    return names, (loss, make(rate), batch, params), steps


def row(index):
    names, problem, steps = drawn(index)
    loss, optimizer, batch, params = problem
    step = gritax.TrainStep(loss, optimizer, batch)
    try:
        serial = gritax.solve_serial(step, step.init(params), steps).params
    except ValueError as error:
        return names | {"steps": steps, "refused": str(error)}
    nudged = jax.tree.map(lambda leaf: leaf * (1 + jnp.finfo(leaf.dtype).eps), params)
    twin = gritax.solve_serial(step, step.init(nudged), steps).params
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained = gritax.train(*problem, steps, goal="depth", throw=False)
    finite = all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(serial))
    # In float64: the norm of weights that are finite may not be.
    serial, twin, params, weights = (
        jax.tree.map(lambda x: np.asarray(x, float), t) for t in (serial, twin, params, trained.params)
    )
    travelled = distance(serial, params)
    return names | {
        "steps": steps,
        "serial_is_finite": finite,
        "converged": trained.converged,
        "error": float(f"{distance(weights, serial) / travelled:.2e}") if finite else None,
        "rounding": float(f"{distance(twin, serial) / travelled:.2e}") if finite else None,
        "depth": trained.depth,
        "depth_per_step": round(trained.depth / steps, 3),
        "work_per_step": round(trained.work / steps, 1),
        "windows": [(each.kind, each.num_steps, each.iterations, each.depth) for each in trained.windows],
        "amplification": trained.amplification,
        "warned": [str(each.message).split(":")[0] for each in told],
        "seconds": round(time.perf_counter() - began, 1),
        "reason": trained.reason,
    }


def right(row):
    """The serial weights to the tolerance, or the same divergence."""
    if not row["serial_is_finite"]:
        return not row["converged"] and row["reason"].startswith("diverged")
    return row["error"] <= max(1e-6, 10 * row["rounding"])


def summary(rows):
    rows = [row for row in rows if "refused" not in row]
    finite = [row for row in rows if row["serial_is_finite"]]
    gains = [1 / row["depth_per_step"] for row in finite if row["depth_per_step"] < 1]
    return {
        "problems": len(rows),
        "right": sum(map(right, rows)),
        "wrong": [row["problem"] for row in rows if not right(row)],
        "within 1e-6": sum(row["error"] <= 1e-6 for row in finite),
        "serially not finite": len(rows) - len(finite),
        "said not to have converged, though finite": [row["problem"] for row in finite if not row["converged"]],
        "largest depth a step": max(row["depth_per_step"] for row in rows),
        "share that gains": round(len(gains) / len(rows), 3),
        "gain of those, median": round(statistics.median(gains), 2) if gains else None,
        "gain of those, largest": round(max(gains), 2) if gains else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--json", metavar="FILE", help="rows of other problems in it are kept")
    arguments = parser.parse_args()
    rows = {}
    for index in range(arguments.first, arguments.first + arguments.count):
        rows[index] = row(index)
        print(rows[index], flush=True)
        if arguments.json:
            known = json.loads(Path(arguments.json).read_text())["rows"] if Path(arguments.json).exists() else []
            merged = {each["problem"]: each for each in known} | rows
            write(arguments.json, [merged[key] for key in sorted(merged)])
    print(summary(list(rows.values())))


if __name__ == "__main__":
    main()
