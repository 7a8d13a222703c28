"""One step of an Optax transformation, and what is found out about one."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import PyTree, Scalar


def updated(optimizer: Any, gradient: PyTree, opt_state: PyTree, params: PyTree, value: Scalar) -> tuple[PyTree, PyTree]:
    """(parameters, optimizer state) after one step; the loss `value` goes to those that take extra arguments."""
    updates, opt_state = update(optimizer, gradient, opt_state, params, value)
    return optax.apply_updates(params, updates), opt_state


def update(optimizer: Any, gradient: PyTree, opt_state: PyTree, params: PyTree, value: Scalar) -> tuple[PyTree, PyTree]:
    """(updates, optimizer state)."""
    if isinstance(optimizer, optax.GradientTransformationExtraArgs):
        try:
            return optimizer.update(gradient, opt_state, params, value=value)
        except TypeError as error:
            # Of itself, or of one within it, whose keywords no signature of a chain shows.
            if "unexpected keyword argument 'value'" not in str(error):
                raise
    return optimizer.update(gradient, opt_state, params)


def found_once(find: Callable[[Any, PyTree], Any]) -> Callable[[Any, PyTree], Any]:
    """`find(optimizer, shapes)` as a function of an optimizer and parameters that looks once for each.

    It depends on the shapes and dtypes of the parameters only, and runs at once even while a kernel that needs it is traced.
    """

    def at_once(optimizer, structure, shapes):
        like = jax.tree.unflatten(structure, shapes)
        if not isinstance(jnp.zeros(()), Tracer):
            return find(optimizer, like)
        with jax.ensure_compile_time_eval():  # operation by operation, which compiles each of them
            return find(optimizer, like)

    remembered = lru_cache(at_once)

    def found(optimizer: Any, params: PyTree) -> Any:
        leaves, structure = jax.tree.flatten(params)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        try:
            hash((optimizer, structure))
        except TypeError:
            return at_once(optimizer, structure, shapes)
        return remembered(optimizer, structure, shapes)

    return found
