"""The obvious slow MGRIT: every point of every level stored, written down from the textbook, in plain Python.

It shares nothing with gritax but the signature `phi(u, start, stride)`, with `start` an int and `u` a NumPy array.
"""

import numpy as np


class ObviousMGRIT:
    def __init__(self, phi, u0, guess, sizes, factors, relaxation, weight, cycle):
        self.phi, self.sizes, self.factors = phi, sizes, [*factors, None]
        self.relaxation, self.weight, self.cycle = [*relaxation, None], weight, cycle
        self.strides = [int(np.prod(factors[:level], dtype=int)) for level in range(len(sizes))]
        self.u = [[np.zeros_like(u0) for _ in range(size + 1)] for size in sizes]
        self.g = [[np.zeros_like(u0) for _ in range(size + 1)] for size in sizes]
        self.u[0] = [u0] + [guess(step) for step in range(1, sizes[0] + 1)]
        self.last = len(sizes) - 1

    def step(self, level, k):
        """What the equation of the level wants at point k."""
        stride = self.strides[level]
        return self.phi(self.u[level][k - 1], (k - 1) * stride, stride) + self.g[level][k]

    def f_relax(self, level):
        for k in range(1, self.sizes[level] + 1):
            if k % self.factors[level]:
                self.u[level][k] = self.step(level, k)

    def c_relax(self, level):
        new = {k: self.step(level, k) for k in range(self.factors[level], self.sizes[level] + 1, self.factors[level])}
        for k, value in new.items():
            self.u[level][k] = self.weight * value + (1 - self.weight) * self.u[level][k]

    def relax(self, level):
        for _ in range(self.relaxation[level]):
            self.f_relax(level)
            self.c_relax(level)
        self.f_relax(level)

    def c_residuals(self, level):
        return [
            self.step(level, k) - self.u[level][k]
            for k in range(self.factors[level], self.sizes[level] + 1, self.factors[level])
        ]

    def inject(self, level):
        self.u[level + 1] = self.u[level][:: self.factors[level]][: self.sizes[level + 1] + 1]

    def down(self, level):
        self.relax(level)
        residuals = self.c_residuals(level)
        if level == 0:
            self.relaxed_residual = np.sqrt(sum(np.sum(r**2) for r in residuals))
        self.inject(level)
        self.v[level + 1] = list(self.u[level + 1])
        zero = np.zeros_like(self.u[0][0])
        self.g[level + 1] = [zero for _ in self.g[level + 1]]
        self.g[level + 1] = [zero] + [
            self.u[level + 1][k] - self.step(level + 1, k) + residuals[k - 1] for k in range(1, self.sizes[level + 1] + 1)
        ]

    def up(self, level):
        for k in range(1, self.sizes[level + 1] + 1):
            self.u[level][k * self.factors[level]] = (
                self.u[level][k * self.factors[level]] + self.u[level + 1][k] - self.v[level + 1][k]
            )
        self.f_relax(level)

    def solve_coarsest(self):
        for k in range(1, self.sizes[self.last] + 1):
            self.u[self.last][k] = self.step(self.last, k)

    def v_cycle(self, level):
        for each in range(level, self.last):
            self.down(each)
        self.solve_coarsest()
        for each in reversed(range(level, self.last)):
            self.up(each)

    def iterate(self, skip_down=False):
        """One iteration; gives the residual before its correction, nan if the down-sweep is skipped."""
        self.v = [None] * len(self.sizes)
        self.relaxed_residual = np.nan
        if skip_down:
            for level in range(self.last):
                self.inject(level)
                self.v[level + 1] = list(self.u[level + 1])
                self.g[level + 1] = [np.zeros_like(self.u[0][0]) for _ in self.g[level + 1]]
        else:
            for level in range(self.last):
                self.down(level)
        self.solve_coarsest()
        for level in reversed(range(1, self.last)):
            self.up(level)
            if self.cycle == "F":
                kept = self.v[: level + 1]
                self.v_cycle(level)
                self.v[: level + 1] = kept
        self.up(0)
        return self.relaxed_residual

    def residual(self):
        self.f_relax(0)
        return np.sqrt(sum(np.sum(r**2) for r in self.c_residuals(0)))
