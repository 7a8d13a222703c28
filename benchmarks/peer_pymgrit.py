"""PyMGRIT on u' = -u by backward Euler, or on XOR, run in its own environment; prints one JSON object."""

import itertools
import json
import logging
import resource
import sys
import time
from importlib.metadata import version

import numpy as np
from pymgrit.core.application import Application
from pymgrit.core.mgrit import Mgrit
from pymgrit.core.vector import Vector


class Scalar(Vector):
    """A number, without the checks and copies of the vectors that PyMGRIT brings."""

    __slots__ = ("value",)

    def __init__(self, value=0.0):
        self.value = value

    def __add__(self, other):
        return Scalar(self.value + other.value)

    def __sub__(self, other):
        return Scalar(self.value - other.value)

    def __mul__(self, other):
        return Scalar(self.value * other)

    def norm(self):
        return abs(self.value)

    def clone(self):
        return Scalar(self.value)

    def clone_zero(self):
        return Scalar()

    def clone_rand(self):
        return Scalar(np.random.rand())

    def set_values(self, values):
        self.value = values

    def get_values(self):
        return self.value

    def pack(self):
        return self.value

    def unpack(self, values):
        self.value = values


class Decay(Application):
    def __init__(self, t):
        super().__init__(t_interval=t)
        self.vector_template, self.vector_t_start = Scalar(), Scalar(1.0)
        self.factor = float(1 / (1 + t[1] - t[0]))

    def step(self, u_start, t_start, t_stop):
        return Scalar(u_start.value * self.factor)


class Weights(Scalar):
    """Those of XOR, one after the other, never changed in place."""

    __slots__ = ()

    def __init__(self, value=None):
        self.value = np.zeros(16) if value is None else value

    def __add__(self, other):
        return Weights(self.value + other.value)

    def __sub__(self, other):
        return Weights(self.value - other.value)

    def __mul__(self, other):
        return Weights(self.value * other)

    def norm(self):
        return float(np.linalg.norm(self.value))

    def clone(self):
        return Weights(self.value)

    def clone_zero(self):
        return Weights()

    def clone_rand(self):
        return Weights(np.random.rand(16))


class Xor(Application):
    """`gritax.problems.xor()`, its coarse steps `RescaledRate(max_factor=8)`."""

    def __init__(self, t):
        super().__init__(t_interval=t)
        random = np.random.RandomState(1)
        first = [2 * random.random_sample((3, 4)) - 1, 2 * random.random_sample((4, 1)) - 1]
        self.vector_template, self.vector_t_start = Weights(), Weights(np.concatenate([w.ravel() for w in first]))
        self.rate = float(min(t[1] - t[0], 8))
        self.x = np.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
        self.y = np.array([[0.0], [1], [1], [0]])

    def step(self, u_start, t_start, t_stop):
        w = u_start.value
        w0, w1 = w[:12].reshape(3, 4), w[12:, None]
        hidden = 1 / (1 + np.exp(-self.x @ w0))
        output = 1 / (1 + np.exp(-hidden @ w1))
        back = (output - self.y) * output * (1 - output)
        inner = back * w1.T * hidden * (1 - hidden)
        return Weights(w - self.rate * np.concatenate([(self.x.T @ inner).ravel(), (hidden.T @ back).ravel()]))


def main(name: str, num_steps: int, coarsening: int, levels: int, tolerance: float, nested: bool) -> None:
    kind, length = {"decay": (Decay, 5), "xor": (Xor, num_steps)}[name]
    t = np.linspace(0, length, num_steps + 1)
    problem = [kind(t[:: coarsening**level]) for level in range(levels)]
    quiet = {"logging_lvl": logging.ERROR, "output_lvl": 0}
    before = peak_mb()
    mgrit = Mgrit(problem, tol=tolerance, nested_iteration=nested, cf_iter=1, cycle_type="V", **quiet)
    mgrit.comm_time.barrier()
    began = time.perf_counter()
    info = mgrit.solve()
    seconds, used = time.perf_counter() - began, peak_mb() - before
    serial = first = problem[0].vector_t_start
    for start, stop in itertools.pairwise(t):
        serial = problem[0].step(serial, start, stop)
    figures = {
        "seconds": seconds,
        "setup_seconds": info["time_setup"],
        "iterations": len(info["conv"]),
        "residual": float(info["conv"][-1]),
        "value": np.asarray(mgrit.u[0][-1].value).tolist(),
        "relative_error": (mgrit.u[0][-1] - serial).norm() / (serial - first).norm(),
        "peak_mb": round(used, 1),
        "pymgrit": version("pymgrit"),
        "numpy": np.__version__,
        "processes": mgrit.comm_time_size,
    }
    if mgrit.comm_time_rank == mgrit.comm_time_size - 1:  # the one that holds the last point
        print(json.dumps(figures))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    name, num_steps, coarsening, levels, tolerance, nested = sys.argv[1:]
    main(name, int(num_steps), int(coarsening), int(levels), float(tolerance), nested == "nested")
