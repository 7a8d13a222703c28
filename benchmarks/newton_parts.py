"""A sweep of the sliding window by its parts: seconds, kernels in the compiled program, seconds of compilation.

    python benchmarks/newton_parts.py [--problems "digits, sgd" ...] [--windows 256 1024] [--json FILE]

Float64. The window is full, after 8 sweeps from the first state. Each part is a program of its own here, timed alone, the best
of nine; "sweep" is the whole, 32 times one after the other as in a run. Kernels are the fusions, matrix products, loops and
calls of libraries in the text of the compiled program. The parts leave out what a sweep does between
them, and write out arrays that it need not.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from _newton_problems import PROBLEMS
from _rows import write

from gritax._adaptation import prepared
from gritax._kernel import _quick_options
from gritax._validation import validated
from gritax.newton import _chain, _sweep
from gritax.newton._flight import Aim, Shape, begun, block_of


jax.config.update("jax_enable_x64", True)

STEPS, RANK, SWEEPS, WARM = 8192, 32, 32, 8
KERNELS = (" fusion(", " dot(", " while(", " custom-call(")


def measured(part, function, *given):
    """A row for `function(*given)`, and what it gives."""
    began = time.perf_counter()
    lowered = jax.jit(function).lower(*given)
    traced = time.perf_counter()
    program = lowered.compile(compiler_options=_quick_options())
    compiled = time.perf_counter()
    text, out, seconds = program.as_text() or "", jax.block_until_ready(program(*given)), []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(program(*given))
        seconds.append(time.perf_counter() - start)
    return {
        "part": part,
        "milliseconds": round(1e3 * min(seconds), 3),
        "kernels": {kind.strip(" ("): text.count(kind) for kind in KERNELS},
        "compilation": {"trace": round(traced - began, 2), "compile": round(compiled - traced, 2)},
    }, out


def parts(name, window):
    problem = PROBLEMS[name].make(seed=1)
    evolution, floating, clock = validated(prepared(problem.step, STEPS), problem.state, STEPS)
    chain = _chain.chain_of(evolution, floating, clock)
    shape = Shape(0, block_of(chain.first.size), window, min(RANK, chain.first.size), STEPS, SWEEPS).holding(window)
    aim = Aim(*(jnp.asarray(x, chain.first.dtype) for x in (5.0, 1e-6, 0.0)))
    once = jax.jit(lambda flight: _sweep.swept(chain, shape, aim, flight))
    flight = jax.jit(lambda: begun(chain, shape, window))()
    for _ in range(WARM):
        flight = once(flight)
    full = flight.rows._replace(live=jnp.int32(window))
    flight = jax.block_until_ready(flight._replace(rows=full))
    rows, front, units = flight.rows, flight.front, flight.units
    told = jnp.concatenate([jnp.arange(window) > 0, flight.tangents.told])

    def of(part, function, *given):
        row, out = measured(part, function, *given)
        print(name, window, row, flush=True)
        found.append({"problem": name, "window": window} | row)
        return out

    found = []
    g, v, at_points = of("gradients", lambda f: _sweep.evaluated(chain, shape, f), flight)
    followed = lambda x, g, v, memory: _chain.follow_all(chain, x, g, v, memory, front.taken, window // _sweep._PART)
    following, memories = of("optimizer", followed, rows.x, g, v, front.memory)
    later = None
    if _sweep.drifts(chain):
        later = _chain.follow_some(chain, rows.x, g, v, front.memory, front.taken, jnp.int32(1)), memories
    response = of(
        "response",
        lambda f, later, g: _sweep.response_of(chain, f.known, f.front.taken, f.rows.x[0], f.front.memory, later, g[0], window),
        flight,
        later,
        g,
    )
    changes = jnp.concatenate([(rows.x - rows.before) / units, flight.tangents.changes])
    turns = jnp.concatenate([g - rows.gradients, at_points - flight.tangents.gradients]) * units
    secants = lambda m, y, s: _sweep.secant_update(m, y, s, told, shape.groups, shape.new)
    model = of("secants", secants, flight.model, changes, turns)
    delta = of("correction", _sweep.correction, following - jnp.roll(rows.x, -1, axis=0), model, response)
    accept = lambda f, new, delta: _sweep.acceptance(shape, aim, f.front, f.rows, new, delta, chain.first, f.known)
    of("acceptance", accept, flight, following, delta)
    ride = lambda f, p, m, r, g, x: _sweep.departing(
        _sweep.arrived(f.tangents, p - f.tangents.gradients, f.model, f.units)[0],
        (x, g, f.front.taken, f.rows.live // 5),
        m,
        r,
        f.known,
        1,
        x[0],
        chain.eps,
    )
    of("tangents", ride, flight, at_points, model, response, g, rows.x)
    extend = lambda last, g, x, m, r: _sweep.continued(last, jnp.arange(window), g, x, m, r, window - 1)
    of("extension", extend, following[0], g[0], rows.x[0], model, response)
    of("sweep, once", lambda f: _sweep.swept(chain, shape, aim, f), flight)
    many = jax.jit(
        lambda f: jax.lax.fori_loop(0, SWEEPS, lambda _, f: _sweep.swept(chain, shape, aim, f)._replace(rows=full), f)
    )
    jax.block_until_ready(many(flight))
    start = time.perf_counter()
    jax.block_until_ready(many(flight))
    found.append({"problem": name, "window": window, "part": "sweep", "milliseconds": _each(start)})
    print(found[-1], flush=True)
    return found


def _each(start):
    return round(1e3 * (time.perf_counter() - start) / SWEEPS, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["digits, sgd", "digits, adam", "xor"])
    parser.add_argument("--windows", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for name in options.problems for window in options.windows for row in parts(name, window)]
    if options.json:
        write(options.json, rows)


if __name__ == "__main__":
    main()
