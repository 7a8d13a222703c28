"""The coarse step of Schroder (2017): one training step with a larger learning rate."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


@dataclass(frozen=True)
class RescaledRate:
    r"""One training step whose update is multiplied by $\min(M^p, c)$, for a stride of $M$ steps.

    **Arguments**

    - `power`: $p$. 0 is the paper's naive solver, 1 its Solvers 1 and 2 (eq. 14), $\log_2 1.25$ its eq. 18 with $m = 2$.
    - `max_factor`: $c$, the paper's $\alpha_{max} / \alpha$. Without it the step is unstable once
      $M \alpha h_{max} > 2$, with $h_{max}$ the largest curvature.
    - `data`: which batch the step trains on. `"level"` counts steps on their own level, `batch(start // stride)` (eq. 15);
      `"injected"` takes the batch of the first step replaced, `batch(start)`; `"averaged"` takes the mean of the leaves of
      all batches replaced (Remark 1).

    Raises `ValueError` for a negative power, a factor below 1 or an unknown `data`; and, when it is first traced, for
    `"averaged"` batches with leaves that are not floating point.

    Schroder 2017, arXiv 1708.02276, sections 3 and 4.

    >>> import gritax
    >>> gritax.RescaledRate(max_factor=8.0).factor(4), gritax.RescaledRate(max_factor=8.0).factor(64)
    (4.0, 8.0)
    """

    power: float = 1.0
    max_factor: float = math.inf
    data: Literal["level", "injected", "averaged"] = "level"

    def __post_init__(self):
        if not isinstance(self.power, Real) or not 0 <= self.power < math.inf:
            raise ValueError(f"power must be a number of at least 0, not {self.power!r}.")
        if not isinstance(self.max_factor, Real) or not self.max_factor >= 1:
            raise ValueError(f"max_factor must be at least 1, or inf for no limit, not {self.max_factor!r}.")
        if self.data not in ("level", "injected", "averaged"):
            raise ValueError(f'data must be "level", "injected" or "averaged", not {self.data!r}.')

    def factor(self, stride: int) -> float:
        """What the update of a step of this stride is multiplied by."""
        return float(min(stride**self.power, self.max_factor))

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        key_of = start // stride if self.data == "level" else start
        return step.update(state, self._batch(step.data, start, stride), key_of, self.factor(stride))

    def depth(self, stride: int) -> int:
        return 1

    def work(self, stride: int) -> int:
        return 1

    def _batch(self, data, start, stride):
        if self.data == "level":
            return data(start // stride)
        if self.data == "injected":
            return data(start)
        first = jax.tree.map(jnp.asarray, data(start))
        if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(first)):
            raise ValueError(
                'RescaledRate(data="averaged") takes the mean of batches, but batch(step) has leaves that are not floating '
                'point. Use data="injected", or make labels one-hot.'
            )

        def add(total, j):
            return jax.tree.map(jnp.add, total, data(start + j)), None

        total = jax.lax.scan(add, first, jnp.arange(1, stride, dtype=jnp.int32))[0]
        return jax.tree.map(lambda leaf: leaf / stride, total)
