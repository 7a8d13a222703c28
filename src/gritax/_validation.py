"""What `solve` asks of the user's phi before it runs it for long: one step."""

import inspect
import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._arguments import require_steps
from ._evolution import Evolution, Phi, optional
from ._kernel import kernel, make_room
from ._program import notice_changes
from ._state import as_arrays, at_leaf, is_number
from ._static import is_data


logger = logging.getLogger("gritax")

CLOSES_OVER_TRACED = (
    "phi closes over values that are being traced by grad, jvp, vmap or jit. gritax.solve can be differentiated, and mapped, "
    "by what is in the state (a learning rate by optax.inject_hyperparams, made outside and set by eqx.tree_at) and by arrays "
    "that are leaves of phi: fields of an eqx.Module, or arguments of a jax.tree_util.Partial, such as a loss. See "
    "docs/gradients.md."
)


def validated(phi: Phi, state: PyTree, num_steps: int) -> tuple[Evolution, PyTree, PyTree[Array]]:
    """(evolution, floating leaves, clocks) of `state`, once the training step is known to work on it."""
    require_steps(num_steps)
    if not callable(phi):
        raise ValueError(f"phi must be callable as phi(state, start, stride); {phi!r} is not callable.")
    _require_three_arguments(phi)
    state = as_arrays(state, _constant(phi, state))
    require_concrete("state", state)
    require_concrete("phi", phi)
    evolution = Evolution(phi, state)
    make_room((jax.tree.structure(evolution), num_steps))
    floating, clock = evolution.split(state)
    if not jax.tree.leaves(floating):
        raise ValueError("state has no floating-point array: there is nothing to solve for.")
    if infinite_leaf(evolution.params(floating, clock)) is not None:
        raise ValueError(f"state is not finite{infinite_leaf(state)}. Give a finite initial state.")
    _notice_changes(evolution, floating, clock)
    *after, loss = first_step(evolution, floating, clock)
    if loss is not None and not np.isfinite(np.asarray(loss)):
        raise ValueError(f"the loss at step 0 is {float(loss)}: look at the data of step 0 and at the initial parameters.")
    after = evolution.merge(*after)
    if not is_concrete(after):
        raise ValueError(CLOSES_OVER_TRACED)
    if infinite_leaf(evolution.params(*evolution.split(after))) is not None:
        raise ValueError(
            f"phi(state, 0, 1) is not finite{infinite_leaf(after)}. Lower the learning rate, or look at the loss and data of "
            "step 0."
        )
    return evolution, floating, clock


def _constant(phi: Phi, state: PyTree) -> PyTree:
    """Which leaves are numbers, beside arrays, that phi gives back as they were: a model's dropout rate, say."""
    leaves, structure = jax.tree.flatten(state)
    nothing = [False] * len(leaves)
    if not (any(map(is_number, leaves)) and any(map(is_data, leaves))):
        return jax.tree.unflatten(structure, nothing)
    try:
        after = jax.tree.leaves(eqx.filter_eval_shape(lambda state, start: phi(state, start, 1), state, jnp.int32(0)))
    except Exception as error:  # whatever is wrong with phi is told by the first step
        logger.debug("phi does not take the state as it is", exc_info=error)
        after = nothing
    same = [is_number(x) and x is y for x, y in zip(leaves, after, strict=True)] if len(after) == len(leaves) else nothing
    return jax.tree.unflatten(structure, same)


def is_concrete(tree: PyTree) -> bool:
    """Whether nothing of it is being traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def require_concrete(name: str, tree: PyTree) -> None:
    """Raises `ValueError` for what is being traced."""
    if not is_concrete(tree):
        raise ValueError(
            f"{name} holds values that are being traced: this call iterates in Python and cannot run under jit, vmap or grad. "
            "Call it outside of them; what it calls is compiled."
        )


def _require_three_arguments(phi: Phi) -> None:
    try:
        signature = inspect.signature(phi)
    except Exception:  # built-in callables have none, and what defines `==` may not stand being compared
        return
    try:
        signature.bind(None, None, 1)
    except TypeError:
        raise ValueError(f"phi must take three arguments, phi(state, start, stride); it is phi{signature}.") from None


def one_step(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], start: Array):
    """(floating leaves, clocks) after one step, and the loss before it if phi has `loss_at`, else None."""
    loss_at = optional(evolution.phi, "loss_at")
    loss = None if loss_at is None else loss_at(evolution.merge(floating, clock), start)
    return *evolution.advance(floating, clock, start, 1), loss


@kernel
def first_step(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]):
    """(floating leaves, clocks) after the first step, and the loss before it, if any."""
    return one_step(evolution, floating, clock, jnp.int32(0))


def _notice_changes(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array]) -> None:
    """What phi reads from outside must be what it was when the same phi was compiled."""
    # A function of its own, so that nothing is known of it from before.
    program = jax.make_jaxpr(lambda *arguments: one_step(*arguments))(evolution, floating, clock, np.int32(0))
    notice_changes((jax.tree.structure((evolution, floating, clock)), tuple(map(str, program.in_avals))), program)


def infinite_leaf(state: PyTree) -> str | None:
    """Which leaf is not finite, as the end of a sentence; None if all are."""
    for path, leaf in tree_leaves_with_path(state):
        if (
            isinstance(leaf, jax.Array)
            and jnp.issubdtype(leaf.dtype, jnp.inexact)
            and not np.all(np.isfinite(np.asarray(leaf)))
        ):
            return at_leaf(path)
    return None
