"""Training problems drawn at random: do `gritax.train` and `gritax.solve` end with the serial weights, or say that they do not?

    python benchmarks/drawn.py [--first 0] [--count 200] [--by train solve newton] [--json FILE]

Problem i is a pure function of i: a perceptron or one head of attention, with or without dropout, random keys of three kinds,
optimizers with moments in bfloat16 among others, a frozen leaf in bfloat16 in some, 2^7 to 2^9.5 steps. Learning rates lie
between 0.01 and 1.2 of the stability limit, where the curvature that gritax measures at the initial state makes training steps
unstable (kappa of 2; with momentum, 2 (1 + beta) / (1 - beta)). Each problem is put to `gritax.train(goal="depth")`, to
`gritax.solve` of at most 12 iterations, by the method of its own or two levels of 8 steps, and to `gritax.solve` by
`gritax.Newton()`, all with `throw=False`. An error is the
distance of the final parameters from those of serial training over the distance that these travel; `rounding` is the same of a
serial run whose first parameters are one unit of rounding larger. Programs are compiled without optimisation, which would take
most of the time; counts do not depend on it.
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
from collections import Counter
from pathlib import Path
from typing import Any

import equinox as eqx
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
# By the rate and the dtype of first moments, where None is that of the parameters.
OPTIMIZERS = {
    "sgd": (lambda rate, _: optax.sgd(rate), 0.0),
    "heavy ball": (lambda rate, dtype: optax.sgd(rate, momentum=0.9, accumulator_dtype=dtype), 0.9),
    "nesterov": (lambda rate, dtype: optax.sgd(rate, momentum=0.9, nesterov=True, accumulator_dtype=dtype), 0.9),
    "adam": (lambda rate, dtype: optax.adam(rate, mu_dtype=dtype), 0.9),
    "adamw, cosine": (
        lambda rate, dtype: optax.adamw(optax.cosine_decay_schedule(rate, 2000), mu_dtype=dtype, weight_decay=1e-3),
        0.9,
    ),
    "rmsprop": (lambda rate, _: optax.rmsprop(rate, decay=0.99), 0.0),
}
KEYS = ("threefry2x32", "rbg", "unsafe_rbg")
EXAMPLES, TOKENS, FEATURES, KEPT = 128, 5, 4, 0.8
MAX_ITERATIONS = 12
CHAOS = 1e-2  # An error beyond it is to be told of even where one rounding makes as much.
METHODS = {"its own": (None, None), "two levels": (gritax.FrozenGradient(8), gritax.Multigrid((8,)))}


def is_trained(leaf):
    return eqx.is_inexact_array(leaf) and leaf.dtype != jnp.bfloat16


def drawn(index):
    """(names, problem as arguments of gritax.train, further ones of it and of gritax.TrainStep, steps)."""
    rng = np.random.default_rng([2027, index])
    pick = lambda values, **how: values[rng.choice(len(values), **how)]
    model, activation = pick(("perceptron", "attention"), p=[0.7, 0.3]), pick(list(ACTIVATIONS), p=[0.3, 0.25, 0.2, 0.1, 0.15])
    criterion, name = pick(CRITERIA), pick(list(OPTIMIZERS))
    dtype, batch_size = pick(("float64", "float32")), pick((4, 16, EXAMPLES))
    moments = pick((None, "bfloat16")) if name not in ("sgd", "rmsprop") else None
    method = pick(list(METHODS), p=[0.3, 0.7])
    kind, dropout, frozen = pick(KEYS), rng.random() < 0.2, rng.random() < 0.25
    width, steps = int(rng.integers(4, 17)), int(2 ** rng.uniform(7, 9.5))
    share = float(np.exp(rng.uniform(np.log(0.01), np.log(1.2))))
    outputs = {"squares": 2, "cross-entropy": 3, "huber": 1, "logistic": 1}[criterion]
    shape = (EXAMPLES, FEATURES) if model == "perceptron" else (EXAMPLES, TOKENS, FEATURES)
    x = rng.normal(size=shape) * np.exp(rng.uniform(-1, 1, FEATURES))
    teacher = np.sin(x.reshape(EXAMPLES, -1) @ rng.normal(size=(x[0].size, outputs)))
    y = {"cross-entropy": np.argmax(teacher, 1), "logistic": (teacher > 0).astype(float)}.get(criterion, teacher)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, jnp.int32 if criterion == "cross-entropy" else dtype)
    shapes = {"w": (FEATURES, width), "v": (width, outputs)}
    if model == "attention":
        shapes |= {"query": (FEATURES, width), "key": (FEATURES, width)}
    params = {n: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), dtype) for n, s in shapes.items()} | {
        "b": jnp.zeros(width, dtype)
    }
    if frozen:
        params["frozen"] = jnp.asarray(rng.normal(size=shapes["w"]) / 4, jnp.bfloat16)
    act = ACTIVATIONS[activation]

    def network(params, batch, key=None):
        x = batch[0]
        h = x @ (params["w"] + params["frozen"].astype(dtype) if frozen else params["w"])
        if model == "attention":
            scores = jnp.einsum("...ik,...jk->...ij", x @ params["query"], x @ params["key"]) / np.sqrt(width)
            h = jnp.mean(jax.nn.softmax(scores, axis=-1) @ h, axis=-2)
        h = act(h + params["b"])
        if key is not None:
            h = jnp.where(jax.random.bernoulli(key, KEPT, (width,)), h / KEPT, 0).astype(dtype)
        return h @ params["v"]

    def of(z, batch):
        if criterion == "cross-entropy":
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, batch[1]))
        if criterion == "logistic":
            return jnp.mean(optax.sigmoid_binary_cross_entropy(z, batch[1]))
        return jnp.mean((optax.huber_loss if criterion == "huber" else optax.squared_error)(z, batch[1]))

    key = jax.random.key(index, impl=kind)
    arguments: dict[str, Any] = {"trainable": is_trained} | ({"key": jax.random.fold_in(key, 1)} if dropout else {})
    loss = (lambda params, batch, key: of(network(params, batch, key), batch)) if dropout else gritax.CompositeLoss(network, of)
    batch = (lambda step: (x, y)) if batch_size == EXAMPLES else gritax.data.Epochs((x, y), batch_size, key)
    make, beta = OPTIMIZERS[name]
    # Differences of so small steps would drown in bfloat16.
    step = gritax.TrainStep(loss, make(1e-4, None), batch, **arguments)
    states = jax.tree.map(lambda leaf: leaf[None], step.init(params))
    kappa = float(largest_kappas(step, states, np.zeros(1, np.int32), 16, 16)[0][0]) / 1e-4
    rate = share * 2 * (1 + beta) / (1 - beta) / max(kappa, 1e-6)
    names = {
        "problem": index,
        "model": model,
        "activation": activation,
        "criterion": criterion,
        "optimizer": name,
        "moments": moments,
        "dtype": dtype,
        "batch": batch_size,
        "keys": kind if dropout or batch_size < EXAMPLES else None,
        "dropout": bool(dropout),
        "frozen_leaf": bool(frozen),
        "weights": sum(leaf.size for leaf in params.values()),
        "share_of_limit": round(share, 3),
        "rate": float(f"{rate:.3g}"),
        "steps": steps,
        "method": method,
    }
    return names, (loss, make(rate, moments), batch, params), arguments, steps


BY = ("train", "solve", "newton")


def row(index, by):
    names, problem, arguments, steps = drawn(index)
    loss, optimizer, batch, params = problem
    step = gritax.TrainStep(loss, optimizer, batch, **arguments)
    serial, twin = (
        gritax.solve_serial(step, step.init(first), steps).params
        for first in (params, jax.tree.map(lambda x: x * (1 + jnp.finfo(x.dtype).eps) if is_trained(x) else x, params))
    )
    finite = all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(serial))
    # In float64: the norm of weights that are finite may not be.
    in_float64 = lambda tree: jax.tree.map(lambda x: np.asarray(x, float), tree)
    serial, first = in_float64(serial), in_float64(params)
    error = lambda weights: float(f"{distance(in_float64(weights), serial) / distance(serial, first):.2e}") if finite else None
    bound = min(max(1e-6, 10 * error(twin)), CHAOS) if finite else None
    coarse, method = METHODS[names["method"]]
    step, plain = (gritax.TrainStep(loss, optimizer, batch, each, **arguments) for each in (coarse, "auto"))
    few: dict[str, Any] = {"throw": False, "max_iterations": MAX_ITERATIONS}
    calls = {
        "train": lambda: gritax.train(*problem, steps, goal="depth", throw=False, **arguments),
        "solve": lambda: gritax.solve(step, step.init(params), steps, method, **few),
        "newton": lambda: gritax.solve(plain, plain.init(params), steps, gritax.Newton(), throw=False),
    }
    found = {name: told(calls[name], error, bound) for name in by}
    return names | {"serial_is_finite": finite, "rounding": error(twin)} | found


def told(call, error, bound):
    """A solution as entries of a row; `verdict` is "right", how it said otherwise, or "wrong in silence"."""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            solution = call()
        except Exception as raised:
            kind = "refused" if isinstance(raised, ValueError) else "crashed"
            return {"verdict": kind, "reason": f"{type(raised).__name__}: {raised}"}
    warned = [str(each.message) for each in heard if each.category is UserWarning]
    off = error(solution.params)
    entries = {
        "verdict": verdict(off, bound, solution.converged, warned),
        "error": off,
        "converged": solution.converged,
        "depth": solution.depth,
        "depth_per_step": round(solution.depth / solution.num_steps, 3),
        "work_per_step": round(solution.work / solution.num_steps, 1),
        "amplification": solution.amplification,
        "warned": [message.split(":")[0] for message in warned],
        "seconds": round(time.perf_counter() - began, 1),
        "reason": solution.reason,
    }
    if solution.windows:
        return entries | {"windows": [(each.kind, each.num_steps, each.iterations, each.depth) for each in solution.windows]}
    return entries | {"iterations": solution.iterations, "coarse_steps": solution.coarse_steps}


def verdict(off, bound, converged, warned):
    """`off` and `bound` are None where serial training is not finite, which a solve is right to say."""
    if off is not None and off <= bound:
        return "right"
    if not converged:
        return "not converged"
    return "warned" if warned else "wrong in silence"


def summary(rows):
    by = {name: Counter(row[name]["verdict"] for row in rows if name in row) for name in BY}
    bad = ("wrong in silence", "crashed")
    right = {n: [r[n] for r in rows if n in r and r["serial_is_finite"] and r[n]["verdict"] == "right"] for n in BY}
    gains = {n: [1 / each["depth_per_step"] for each in right[n] if each["depth_per_step"] < 1] for n in BY}
    return {
        "problems": len(rows),
        "serially not finite": sum(not row["serial_is_finite"] for row in rows),
        **{f"by {name}": dict(counts) for name, counts in by.items()},
        **{
            f"{verdict} by {name}": [row["problem"] for row in rows if name in row and row[name]["verdict"] == verdict]
            for name in by
            for verdict in bad
        },
        **{f"by {n}, within 1e-6": sum(each["error"] <= 1e-6 for each in right[n]) for n in BY},
        **{f"share that gains by {n}": round(len(gains[n]) / len(rows), 3) for n in BY},
        **{f"gain of those by {n}, median": round(statistics.median(gains[n]), 2) for n in BY if gains[n]},
        **{f"gain of those by {n}, largest": round(max(gains[n]), 2) for n in BY if gains[n]},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--by", nargs="+", choices=BY, default=BY)
    parser.add_argument("--json", metavar="FILE", help="rows of other problems in it are kept")
    arguments = parser.parse_args()
    path = Path(arguments.json) if arguments.json else None
    known = {each["problem"]: each for each in json.loads(path.read_text())["rows"]} if path and path.exists() else {}
    asked = range(arguments.first, arguments.first + arguments.count)
    for index in asked:
        known[index] = known.get(index, {}) | row(index, arguments.by)
        jax.clear_caches()
        print(known[index], flush=True)
        if path:
            write(path, [known[key] for key in sorted(known)])
    rows = {index: known[index] for index in asked}
    print(summary(list(rows.values())))


if __name__ == "__main__":
    main()
