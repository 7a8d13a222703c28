"""The serial twin: the obvious slow solver that every parallel solve is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._adaptation import prepared
from ._arguments import require_steps
from ._entry import entry
from ._evolution import Evolution, Phi
from ._kernel import kernel
from ._validation import validated


@entry
def solve_serial(phi: Phi, state: PyTree, num_steps: int) -> PyTree:
    """`w[i+1] = phi(w[i], i, 1)` for `i = 0, …, num_steps - 1`, one step after the other, as one compiled loop.

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
    require_steps(num_steps)
    evolution, floating, clock = validated(prepared(phi, int(num_steps)), state, num_steps)
    return evolution.merge(*advance(evolution, floating, clock, np.int32(num_steps)))


@kernel
def advance(
    evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], num_steps: Array
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The split state after so many steps. One program for any number of them."""

    def step(i, carry):
        floating, clock = carry
        return evolution.advance(floating, clock, i, 1)

    return jax.lax.fori_loop(jnp.int32(0), num_steps, step, (floating, clock))
