"""PyMGRIT on u' = -u by backward Euler, run in its own environment by peer.py; prints one JSON object."""

import json
import logging
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


def main(num_steps: int, coarsening: int, levels: int, tolerance: float, nested: bool) -> None:
    t = np.linspace(0, 5, num_steps + 1)
    problem = [Decay(t[:: coarsening**level]) for level in range(levels)]
    quiet = {"logging_lvl": logging.ERROR, "output_lvl": 0}
    mgrit = Mgrit(problem, tol=tolerance, nested_iteration=nested, cf_iter=1, cycle_type="V", **quiet)
    mgrit.comm_time.barrier()
    began = time.perf_counter()
    info = mgrit.solve()
    seconds = time.perf_counter() - began
    figures = {
        "seconds": seconds,
        "setup_seconds": info["time_setup"],
        "iterations": len(info["conv"]),
        "residual": float(info["conv"][-1]),
        "value": float(mgrit.u[0][-1].value),
        "pymgrit": version("pymgrit"),
        "numpy": np.__version__,
        "processes": mgrit.comm_time_size,
    }
    if mgrit.comm_time_rank == mgrit.comm_time_size - 1:  # the one that holds the last point
        print(json.dumps(figures))


if __name__ == "__main__":
    num_steps, coarsening, levels, tolerance, nested = sys.argv[1:]
    main(int(num_steps), int(coarsening), int(levels), float(tolerance), nested == "nested")
