"""Why the steps of a run can only be taken one after the other."""

import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._batching import difference_when_batched
from ._clocks import dependence
from ._evolution import Evolution
from ._kernel import kernel
from ._state import first_line
from ._validation import infinite_leaf, one_step


logger = logging.getLogger("gritax")


def obstacle(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], num_steps: int) -> str:
    """A sentence on what keeps the steps of a validated phi from being solved at once; "" if nothing does.

    Steps are taken for it only where callbacks or keys give reason to.
    """
    leaf = infinite_leaf(evolution.merge(floating, clock))
    if leaf is not None:
        return (
            f"state is not finite{leaf}, and corrections are differences of finite states. An optimizer that begins with "
            "infinity (optax.contrib.reduce_on_plateau) may be replaced by a schedule of the step."
        )
    return (
        _unmappable(evolution, floating, clock)
        or dependence(evolution, floating, clock)
        or difference_when_batched(evolution, floating, clock, num_steps)
    )


def require_no_obstacle(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], num_steps: int) -> None:
    """Raises `ValueError` for steps that can only be taken one after the other."""
    if reason := obstacle(evolution, floating, clock, num_steps):
        raise ValueError(f"{reason} gritax.train and gritax.solve_serial take such steps one after the other.")


@kernel
def _steps(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], starts: Array):
    return jax.vmap(one_step, (None, 0, 0, 0))(evolution, floating, clock, starts)


def _unmappable(evolution, floating, clock) -> str:
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), (floating, clock, jnp.int32(0)))
    try:
        jax.eval_shape(_steps, evolution, *several)
    except Exception as error:  # one step is known to work, so this is of an operation that has no rule for many
        logger.debug("phi cannot be mapped", exc_info=error)
        return (
            f"many steps cannot be taken at once, since jax.vmap of phi fails: {first_line(error)} Give jax.pure_callback a "
            "vmap_method, leave io_callback unordered, compute data from the step by jnp, give a primitive a batching rule."
        )
    return ""
