"""What a state is, and that a user's function gives back one like it."""

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from ._static import is_data, key, structure_key


CONTROL_FLOW_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def is_number(leaf) -> bool:
    return isinstance(leaf, int | float | complex) and not isinstance(leaf, bool | np.generic)


def as_arrays(state: PyTree, constant: PyTree | None = None) -> PyTree:
    """The state with its numbers as strongly typed arrays; flags, strings and functions stay as they are.

    So do the leaves that `constant`, a pytree of bools, marks. Raises ValueError for what JAX has no arrays of.
    """

    def convert(path, leaf, is_constant=False):
        if is_constant or not (is_data(leaf) or is_number(leaf)):
            return leaf
        try:
            array = jnp.asarray(leaf)
        except (TypeError, OverflowError) as error:
            kind = getattr(leaf, "dtype", leaf)
            raise ValueError(
                f"{leaf_name(path)} is {kind}, of which JAX has no arrays: make it float32, float64 or an integer of at most "
                "64 bits, or keep it out of the tree."
            ) from error
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map_with_path(convert, state, *(() if constant is None else (constant,)))


def called(name: str, argument: str, function: Callable[[PyTree, Any], PyTree], state: PyTree, step: Any) -> PyTree:
    """`function(state, step)` as arrays, where it is a state like `state`.

    Costs nothing once compiled: it looks while JAX traces. Raises ValueError, naming the leaf, if structure, shape or dtype
    change, and as `traced` does.
    """
    out = traced(name, argument, function, state, step)
    same = is_same_structure(*map(jax.tree.structure, (out, state)))
    out = as_arrays(out, jax.tree.map(is_number, state) if same else None)
    if change := Outline(state).change(Outline(out)):
        raise ValueError(f"{name} {change}: it must return a state of the same structure, shapes, dtypes and constants.")
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


class Outline:
    """A tree without its values: paths, shapes and dtypes, constants. Classes of trees, and of leaves, seldom define `==`.

    `name` is what the whole tree is called.
    """

    def __init__(self, tree: PyTree, name: str = "the state"):
        self._name = name
        leaves, self._structure = tree_flatten_with_path(tree)
        self._leaves = {path: _described(leaf) for path, leaf in leaves}

    def change(self, into: "Outline") -> str:
        """What makes the other tree of this one, as the rest of a sentence that begins with its maker; "" if they are alike."""
        before, after = self._leaves, into._leaves
        for path in [*before, *after]:
            if path not in after or path not in before:
                return f"{'lacks' if path in before else 'adds'} {leaf_name(path, self._name)}"
            (words, what), (other_words, other) = before[path], after[path]
            if what != other:
                is_constant = not isinstance(what, str)
                how = f", {words}; make it an array if it is to change" if is_constant else f" from {words} to {other_words}"
                return f"changes {leaf_name(path, self._name)}{how}"
        if not is_same_structure(self._structure, into._structure):
            return f"changes the structure of {self._name}, from {self._structure} to {into._structure}"
        return ""


def is_same_structure(structure: Any, other: Any) -> bool:
    if structure_key(structure) == structure_key(other):
        return True
    try:
        return bool(structure == other)
    except (TypeError, ValueError):  # static fields that are compared element by element
        return False


def _described(leaf) -> tuple[str, Hashable]:
    """(in words, what must be equal)."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        words = f"{leaf.dtype}{list(leaf.shape)}"
        return words, words
    return f"the Python constant {leaf!r}", key(leaf)


def first_line(error: Exception) -> str:
    """What an error says, as one sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('. ')}."


def leaf_name(path, whole: str = "the state") -> str:
    return f"leaf {keystr(path)}" if path else whole


def at_leaf(path) -> str:
    return f" at leaf {keystr(path)}" if path else ""
