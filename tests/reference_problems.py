"""The problems of `reference/mgrit_histories.json`, as phi, initial state and initial guess."""

import jax
import jax.numpy as jnp
import numpy as np


def problem(case):
    """(phi, initial state, guess: step -> state) of a stored case, in float64."""
    phi, state, guess = _BUILDERS[case["problem"]["name"]](case)
    factor = case["coarsening"] if isinstance(case["coarsening"], int) else case["coarsening"][0]
    if "initial_guess_values" in case:
        values = jnp.asarray(case["initial_guess_values"])
        guess = lambda step: values[step // factor - 1]
    return phi, jnp.asarray(state), guess


def _constant(value, state):
    return lambda step: jnp.full_like(jnp.asarray(state), value)


def _times(case):
    n = case["num_steps"]
    return jnp.arange(n + 1) / n * case["problem"]["final_time"]


def _decay(case):
    t = _times(case)
    midpoint = case["problem"].get("fine_scheme") == "implicit_midpoint"

    def phi(u, start, stride):
        dt = t[start + stride] - t[start]
        if midpoint and stride == 1:
            return u - dt / (1 + dt / 2) * u
        return u / (1 + dt)

    return phi, 1.0, _constant(case["problem"].get("guess", 0.0), 1.0)


def _linear_forced(case):
    t = _times(case)

    def slope(x, s, d):
        return (-4 * x + 1 - s) / (1 + 4 * d)

    def backward_euler(u, start, stride):
        dt = t[start + stride] - t[start]
        return u + dt * slope(u, t[start] + dt, dt)

    def sdirk23(u, start, stride):
        dt, gamma = t[start + stride] - t[start], (2 - 2**0.5) / 2
        k1 = slope(u, t[start] + gamma * dt, gamma * dt)
        k2 = slope(u + (1 - 2 * gamma) * dt * k1, t[start] + (1 - gamma) * dt, gamma * dt)
        return u + dt / 2 * (k1 + k2)

    scheme = {"backward_euler": backward_euler, "sdirk23": sdirk23}[case["problem"]["scheme"]]
    return scheme, 1.0, _constant(0.456, 1.0)


def _decay_bdf2(case):
    t, h = _times(case), 0.5

    def bdf2(s0, s1, s2, y1, y2):
        d, q = s0 - s1, (s0 - s1) / (s1 - s2)
        c = (2 * q + 1) / (q + 1) + d
        return (q + 1) / c * y1 - q**2 / (q + 1) / c * y2

    def phi(state, start, stride):
        a, b = state
        ta, tb = t[start], t[start + stride]
        x = bdf2(tb, ta + h, ta, b, a)
        return jnp.stack([x, bdf2(tb + h, tb, ta + h, x, b)])

    state = np.array([1.0, np.exp(-h)])
    return phi, state, _constant(0.456, state)


def _brusselator(case):
    t = _times(case)

    def slope(u):
        x, y = u
        return jnp.stack([1 + x**2 * y - 4 * x, 3 * x - x**2 * y])

    def phi(u, start, stride):
        dt = t[start + stride] - t[start]
        k1 = slope(u)
        k2 = slope(u + dt / 2 * k1)
        k3 = slope(u + dt / 2 * k2)
        k4 = slope(u + dt * k3)
        return u + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return phi, np.array([0.0, 1.0]), None


def _heat_dirichlet(case):
    nodes, n = case["problem"]["nodes"], case["num_steps"]
    t = jnp.arange(n + 1) / n * (2 * np.pi)
    x = jnp.linspace(0, np.pi, nodes)
    dx = np.pi / (nodes - 1)
    inner = jnp.ones(nodes).at[jnp.array([0, nodes - 1])].set(0.0)

    def phi(u, start, stride):
        now = t[start + stride]
        dt = now - t[start]
        c = dt / dx**2 * inner
        v = u.at[0].set(jnp.sin(0.0) * jnp.cos(now)).at[-1].set(jnp.sin(np.pi) * jnp.cos(now))
        v = v + dt * (-jnp.sin(x) * jnp.sin(now) + jnp.sin(x) * jnp.cos(now))
        return jax.lax.linalg.tridiagonal_solve(-c, 1 + 2 * c, -c, v[:, None])[:, 0]

    seed, values = 1, []
    for _ in range(n // case["coarsening"] * nodes):
        seed = (seed * 1103515245 + 12345) % 2**64
        values.append((seed // 65536) % 2**32 % 32768 / 32768)
    values = jnp.asarray(values).reshape(-1, nodes)
    return phi, np.sin(np.linspace(0, np.pi, nodes)), lambda step: values[step // case["coarsening"] - 1]


def _heat_dirichlet_unit(case):
    nodes, length, n = case["problem"]["nodes"], case["problem"]["length"], case["num_steps"]
    t = jnp.arange(n + 1) / n * case["problem"]["final_time"]
    x = jnp.linspace(0, length, nodes)[1:-1]
    dx = length / (nodes - 1)
    ends = jnp.ones(nodes - 2)

    def phi(u, start, stride):
        now = t[start + stride]
        dt = now - t[start]
        b = -jnp.sin(np.pi * x) * (jnp.sin(now) - np.pi**2 * jnp.cos(now))
        c = dt / dx**2 * ends
        lower, upper = -c.at[0].set(0.0), -c.at[-1].set(0.0)
        return jax.lax.linalg.tridiagonal_solve(lower, 1 + 2 * c, upper, (u + dt * b)[:, None])[:, 0]

    state = np.sin(np.pi * np.linspace(0, length, nodes)[1:-1])
    return phi, state, _constant(0.0, state)


def _xor(case):
    options = case["problem"]
    inputs = jnp.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    targets = jnp.array([[0.0], [1], [1], [0]])

    def phi(w, start, stride):
        alpha = min(options["alpha_base"] * stride, options["alpha_max"])
        x, y = inputs, targets
        if options["serialized"]:
            index = start // stride % 4
            x, y = x[index][None], y[index][None]
        w0, w1 = w[:12].reshape(3, 4), w[12:].reshape(4, 1)
        l1 = jax.nn.sigmoid(x @ w0)
        l2 = jax.nn.sigmoid(l1 @ w1)
        d2 = (y - l2) * l2 * (1 - l2)
        d1 = (d2 @ w1.T) * l1 * (1 - l1)
        return w + alpha * jnp.concatenate([(x.T @ d1).ravel(), (l1.T @ d2).ravel()])

    state = np.array(options["initial_weights"])
    return phi, state, _constant(0.0, state)


_BUILDERS = {
    "decay": _decay,
    "linear_forced": _linear_forced,
    "decay_bdf2": _decay_bdf2,
    "brusselator": _brusselator,
    "heat_dirichlet": _heat_dirichlet,
    "heat_dirichlet_unit": _heat_dirichlet_unit,
    "xor": _xor,
}
