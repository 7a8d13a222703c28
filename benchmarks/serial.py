"""The serial twin: `gritax.solve_serial` against a scan by hand, without Optax or gritax, that trains the same network."""

import json

from _measuring import child, paired, ratios, spread, summary


CASES = ((25_600, 15), (1_000_000, 5))  # steps, pairs
HEADER = ("steps", "solve_serial s", "by hand s", "ratio", "us per step", "largest difference")


def measure() -> list[dict]:
    return child("serial.py")["results"]


def rows(results: list[dict]) -> list[tuple]:
    return [
        (
            f"{each['num_steps']:,}",
            spread(each["seconds"], digits=3),
            spread(each["by_hand_seconds"], digits=3),
            spread(each["ratio"]),
            f"{each['seconds']['median'] / each['num_steps'] * 1e6:.2f}",
            f"{each['largest_difference']:.1e}",
        )
        for each in results
    ]


def _by_hand():
    import jax
    import jax.numpy as jnp

    x = jnp.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    y = jnp.array([[0.0], [1], [1], [0]])

    def loss(w):
        return 0.5 * jnp.sum((y - jax.nn.sigmoid(jax.nn.sigmoid(x @ w["w0"]) @ w["w1"])) ** 2)

    def step(w, _):
        return jax.tree.map(lambda p, g: p - g, w, jax.grad(loss)(w)), None

    return jax.jit(lambda w, count: jax.lax.scan(step, w, None, length=count)[0], static_argnums=1)


def _main() -> dict:
    import jax
    import jax.numpy as jnp

    import gritax

    problem, train = gritax.problems.xor(), _by_hand()
    results = []
    for num_steps, pairs in CASES:

        def ours():
            return jax.block_until_ready(gritax.solve_serial(problem.step, problem.state, num_steps))

        def theirs():
            return jax.block_until_ready(train(problem.state.params, num_steps))

        differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), ours().params, theirs())
        times = paired(ours, theirs, pairs)
        results.append(
            {
                "num_steps": num_steps,
                "seconds": summary(times[0]),
                "by_hand_seconds": summary(times[1]),
                "ratio": summary(ratios(times)),
                "largest_difference": float(max(jax.tree.leaves(differences))),
            }
        )
    return {"results": results}


if __name__ == "__main__":
    print(json.dumps(_main()))
