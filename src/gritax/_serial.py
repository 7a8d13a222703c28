"""The serial twin: the obvious slow solver that every parallel solve is compared with."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._adaptation import prepared
from ._arguments import require_whole
from ._evolution import Phi
from ._kernel import kernel
from ._validation import validated


def solve_serial(phi: Phi, state: PyTree, num_steps: int) -> PyTree:
    """`w[i+1] = phi(w[i], i, 1)` for `i = 0, …, num_steps - 1`, one step after the other, as one compiled scan.

    **Arguments**

    - `phi`: the evolution, called with a stride of 1 only.
    - `state`: `w[0]`, any pytree of arrays.
    - `num_steps`: how many steps, at least 1.

    **Returns** `w[num_steps]`, a pytree like `state`.

    Raises `ValueError` as `gritax.solve` does.

    >>> import gritax
    >>> round(float(gritax.solve_serial(lambda u, start, stride: u / (1 + 0.5 * stride), 1.0, 2)), 6)
    0.444444
    """
    require_whole("num_steps", num_steps, 1)
    evolution, floating, clock = validated(prepared(phi, int(num_steps)), state, num_steps)
    return evolution.merge(*_scan(evolution, floating, clock, num_steps=int(num_steps)))


@partial(kernel, static_argnames="num_steps")
def _scan(evolution, floating, clock, num_steps):
    def step(carry, start):
        return evolution.advance(*carry, start, 1), None

    return jax.lax.scan(step, (floating, clock), jnp.arange(num_steps, dtype=jnp.int32))[0]
