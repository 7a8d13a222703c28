"""The sweep: one application of phi inside a relaxation kernel against one in a bare scan over the same lanes."""

import json
import sys
from functools import partial

from _measuring import child, paired, ratios, seconds, spread, summary, verdict


LIMIT = 1.3
XOR = ((1_600, 16), (6_400, 4), (100_000, 4))  # lanes of the finest level, coarsening
MLP = (128, 16)
HEADER = ("problem", "dtype", "level", "lanes", "sweep us", "bare us", "ratio", "limit", "")
_CALL_SECONDS = 0.1


def measure(pairs: int = 15) -> list[dict]:
    return [result for x64 in (True, False) for result in child("sweep.py", pairs, x64=x64)["results"]]


def rows(results: list[dict]) -> list[tuple]:
    return [
        (
            *(each[name] for name in ("problem", "dtype", "level")),
            f"{each['lanes']:,}",
            *(spread(each[name], 1e-6, 1) for name in ("sweep_seconds", "bare_seconds")),
            spread(each["ratio"]),
            LIMIT,
            verdict(each["ratio"]["median"] <= LIMIT),
        )
        for each in results
    ]


def _mlp():
    """tanh, 64-32-10, minibatches of 32 out of 2,048 examples."""
    import jax.numpy as jnp
    import numpy as np
    import optax

    import gritax

    random = np.random.default_rng(0)
    dtype = jnp.zeros(0).dtype
    inputs = jnp.asarray(random.standard_normal((64, 32, 64)), dtype)
    targets = jnp.asarray(random.standard_normal((64, 32, 10)), dtype)

    def loss(params, batch):
        x, y = batch
        hidden = jnp.tanh(x @ params["w0"] + params["b0"])
        return jnp.mean((hidden @ params["w1"] + params["b1"] - y) ** 2)

    coarse = gritax.RescaledRate(max_factor=2.0)
    step = gritax.TrainStep(loss, optax.sgd(0.05), lambda i: (inputs[i % 64], targets[i % 64]), coarse)
    shapes = {"w0": (64, 32), "b0": (32,), "w1": (32, 10), "b1": (10,)}
    return step, step.init({name: jnp.asarray(0.1 * random.standard_normal(shape), dtype) for name, shape in shapes.items()})


def _bare(phi, level, lanes):
    """jit of (states, right-hand side or None, number of sweeps) -> states: scans over vmap(phi), the states' memory reused."""
    import jax
    import jax.numpy as jnp

    starts = jnp.arange(lanes, dtype=jnp.int32) * (level.factor * level.stride)
    offsets = jnp.arange(level.factor, dtype=jnp.int32) * level.stride
    advance = jax.vmap(lambda state, start: phi(state, start, level.stride))

    def step(states, inputs):
        offset, g_j = inputs
        states = advance(states, starts + offset)
        return states if g_j is None else jax.tree.map(jnp.add, states, g_j), None

    @partial(jax.jit, donate_argnums=0)
    def run(states, g, sweeps):
        return jax.lax.fori_loop(0, sweeps, lambda _, states: jax.lax.scan(step, states, (offsets, g))[0], states)

    return run


def _compare(name, phi, state, level, pairs):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gritax._evolution import Evolution
    from gritax._points import arrived
    from gritax._relaxation import relax_coarse, relax_finest
    from gritax._state import as_arrays

    state = as_arrays(state)
    evolution, lanes = Evolution(phi, state), level.num_intervals

    def stacked(tree, *shape):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)).copy(), tree)

    zero = jax.tree.map(jnp.zeros_like, state)
    bare = _bare(phi, level, lanes)
    right_hand_side = stacked(zero, level.factor, lanes) if level.index else None
    g = stacked(evolution.split(zero)[0], level.size) if level.index else None
    reached = stacked(evolution.split(zero)[0], level.factor, lanes) if level.index else None
    c, states = stacked(evolution.split(state)[0], lanes + 1), stacked(state, lanes)
    e = arrived(level, c)

    def sweep(count):
        nonlocal c, e
        if level.index:
            c = relax_coarse(level, evolution, c, reached, g, *map(np.int32, (count, level.factor, 0, 0)))[0]
        else:
            c, e, _ = relax_finest(level, evolution, c, e, np.int32(count))
        jax.block_until_ready(c)

    def scan(count):
        nonlocal states
        states = jax.block_until_ready(bare(states, right_hand_side, np.int32(count)))

    sweep(1), scan(1)
    count = max(2, round(_CALL_SECONDS * 4 / seconds(lambda: scan(4))))
    ours, theirs = paired(lambda: sweep(count), lambda: scan(count), pairs)
    applications = count * level.factor
    return {
        "problem": name,
        "dtype": str(jnp.zeros(0).dtype),
        "level": level.index,
        "stride": level.stride,
        "coarsening": level.factor,
        "lanes": lanes,
        "sweeps_per_call": count,
        "sweep_seconds": summary([each / applications for each in ours]),
        "bare_seconds": summary([each / applications for each in theirs]),
        "ratio": summary(ratios((ours, theirs))),
        "limit_ratio": LIMIT,
    }


def _main(pairs: int) -> dict:
    import gritax

    problem = gritax.problems.xor(coarse=gritax.RescaledRate(max_factor=8.0))
    cases = [("xor", problem.step, problem.state, *sizes) for sizes in XOR] + [("mlp", *_mlp(), *MLP)]
    results = []
    for name, phi, state, lanes, coarsening in cases:
        hierarchy = gritax.Multigrid(coarsening=coarsening, max_levels=3).hierarchy(lanes * coarsening)
        results += [_compare(name, phi, state, level, pairs) for level in hierarchy.levels[:2]]
    return {"results": results}


if __name__ == "__main__":
    print(json.dumps(_main(int(sys.argv[1]))))
