"""What a state is, and that a user's function gives back one like it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import PyTree


CONTROL_FLOW_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def is_data(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def is_number(leaf) -> bool:
    return isinstance(leaf, int | float | complex) and not isinstance(leaf, bool | np.generic)


def as_arrays(state: PyTree, constant: PyTree | None = None) -> PyTree:
    """The state with its numbers as strongly typed arrays; flags, strings and functions stay as they are.

    So do the leaves that `constant`, a pytree of bools, marks.
    """

    def convert(leaf, is_constant=False):
        if not is_constant and (is_data(leaf) or is_number(leaf)):
            array = jnp.asarray(leaf)
            return jax.lax.convert_element_type(array, array.dtype)
        return leaf

    return jax.tree.map(convert, state) if constant is None else jax.tree.map(convert, state, constant)


def called(name: str, argument: str, function: Callable[[PyTree, Any], PyTree], state: PyTree, step: Any) -> PyTree:
    """`function(state, step)` as arrays, where it is a state like `state`.

    Costs nothing once compiled: it looks while JAX traces. Raises ValueError, naming the leaf, if structure, shape or dtype
    change, and as `traced` does.
    """
    out = traced(name, argument, function, state, step)
    same = jax.tree.structure(out) == jax.tree.structure(state)
    out = as_arrays(out, jax.tree.map(is_number, state) if same else None)
    _require_like(name, out, state)
    return out


def traced(name: str, argument: str, function: Callable[[PyTree, Any], PyTree], state: PyTree, step: Any) -> PyTree:
    """`function(state, step)`. Raises ValueError, saying of what, if the value of something traced is needed.

    `argument` is the name of `step`.
    """
    try:
        return function(state, step)
    except CONTROL_FLOW_ERRORS as error:
        try:
            eqx.filter_eval_shape(lambda state: function(state, 0), state)
            cause = f"`{argument}`"
        except CONTROL_FLOW_ERRORS:
            cause = "the state"
        hint = "" if argument == "step" else " (If it is wrapped in jax.jit itself, the stride must be static there.)"
        raise ValueError(
            f"{name} needs the value of {cause} while it is traced: Python control flow on it, int(), float() or a NumPy "
            f"function. It runs under jit and vmap, so use jnp.where, lax.cond or lax.switch, and index with jnp arrays.{hint}"
        ) from error


def _require_like(name: str, out: PyTree, state: PyTree) -> None:
    given, wanted = (dict(tree_leaves_with_path(tree)) for tree in (out, state))
    for path in [*wanted, *given]:
        if path not in given or path not in wanted:
            change = "lacks" if path in wanted else "adds"
            raise ValueError(f"{name} {change} {leaf_name(path)}: it must return a state of the same structure.")
        leaf, like = given[path], wanted[path]
        if isinstance(like, jax.Array) and _describe(leaf) != _describe(like):
            raise ValueError(
                f"{name} changes {leaf_name(path)} from {_describe(like)} to {_describe(leaf)}: shape and dtype must stay."
            )
        if not isinstance(like, jax.Array) and leaf is not like and (isinstance(leaf, jax.Array) or leaf != like):
            raise ValueError(
                f"{name} changes {leaf_name(path)}, the Python constant {like!r}, which must stay. Make it an array "
                "if it is to follow the steps."
            )
    if jax.tree.structure(out) != jax.tree.structure(state):
        raise ValueError(
            f"{name} changes the structure of the state, from {jax.tree.structure(state)} to {jax.tree.structure(out)}."
        )


def _describe(leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, jax.Array) else type(leaf).__name__


def leaf_name(path) -> str:
    return f"leaf {keystr(path)}" if path else "the state"


def at_leaf(path) -> str:
    return f" at leaf {keystr(path)}" if path else ""
