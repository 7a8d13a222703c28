"""The serial twin: `gritax.solve_serial` against a jitted scan by hand that trains the same network to the same weights.

XOR by hand needs neither Optax nor gritax; digits are an Optax loop in a scan over epochs, each of which draws its order.
"""

import json

from _measuring import child, paired, ratios, spread, summary


# Problem, steps, pairs; digits have 44 steps in an epoch.
CASES = (("xor", 25_600, 15), ("xor", 1_000_000, 5), *((f"digits, {x}", 44 * 744, 9) for x in ("sgd", "momentum", "adam")))
HEADER = ("problem", "steps", "solve_serial s", "by hand s", "ratio", "us per step", "largest difference")


def measure() -> list[dict]:
    return child("serial.py")["results"]


def rows(results: list[dict]) -> list[tuple]:
    return [
        (
            each["problem"],
            f"{each['num_steps']:,}",
            spread(each["seconds"], digits=3),
            spread(each["by_hand_seconds"], digits=3),
            spread(each["ratio"]),
            f"{each['seconds']['median'] / each['num_steps'] * 1e6:.2f}",
            f"{each['largest_difference']:.1e}",
        )
        for each in results
    ]


def _xor_by_hand():
    import jax
    import jax.numpy as jnp

    x = jnp.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    y = jnp.array([[0.0], [1], [1], [0]])

    def loss(w):
        return 0.5 * jnp.sum((y - jax.nn.sigmoid(jax.nn.sigmoid(x @ w["w0"]) @ w["w1"])) ** 2)

    def step(w, _):
        return jax.tree.map(lambda p, g: p - g, w, jax.grad(loss)(w)), None

    return jax.jit(lambda w, count: jax.lax.scan(step, w, None, length=count)[0], static_argnums=1)


def _digits_by_hand(loss, optimizer, data):
    import jax
    import jax.numpy as jnp
    import optax

    def train(params, num_steps):
        per_epoch = data.steps_per_epoch

        def step(carry, indices):
            params, opt_state = carry
            batch = jax.tree.map(lambda x: x[indices], data.arrays)
            updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def epoch(carry, index):
            order = jax.random.permutation(jax.random.fold_in(data.key, index), data.num_examples)
            order = order[: per_epoch * data.batch_size].reshape(per_epoch, data.batch_size)
            return jax.lax.scan(step, carry, order)[0], None

        epochs = jnp.arange(num_steps // per_epoch)
        return jax.lax.scan(epoch, (params, optimizer.init(params)), epochs)[0][0]

    return jax.jit(train, static_argnums=1)


def _case(name):
    """(problem, training by hand)."""
    import optax

    import gritax

    if name == "xor":
        return gritax.problems.xor(), _xor_by_hand()
    optimizers = {"sgd": optax.sgd(0.1), "momentum": optax.sgd(0.02, momentum=0.9), "adam": optax.adam(1e-3)}
    problem = gritax.problems.digits(optimizers[name.removeprefix("digits, ")])
    return problem, _digits_by_hand(problem.step.loss, problem.step.optimizer, problem.step.batch)


def _main() -> dict:
    import jax
    import jax.numpy as jnp

    import gritax

    results = []
    for name, num_steps, pairs in CASES:
        problem, train = _case(name)

        def ours():
            return jax.block_until_ready(gritax.solve_serial(problem.step, problem.state, num_steps))

        def theirs():
            return jax.block_until_ready(train(problem.state.params, num_steps))

        differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), ours().params, theirs())
        times = paired(ours, theirs, pairs)
        results.append(
            {
                "problem": name,
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
