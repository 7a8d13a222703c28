"""What `solve` asks of the user's phi before it runs it for long: one trace for each stride, and one step."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._evolution import Evolution, Phi, as_arrays
from ._hierarchy import require_whole


_CONTROL_FLOW_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def validated(phi: Phi, state: PyTree, num_steps: int) -> tuple[Evolution, PyTree, PyTree[Array]]:
    """(evolution, floating leaves, clocks) of `state`, once the training step is known to work on it."""
    require_whole("num_steps", num_steps, 1)
    if not callable(phi):
        raise ValueError(f"phi must be callable as phi(state, start, stride); {phi!r} is not callable.")
    _require_three_arguments(phi)
    state = as_arrays(state)
    evolution = Evolution(phi, state)
    floating, clock = evolution.split(state)
    if not jax.tree.leaves(floating):
        raise ValueError("state has no floating-point array: there is nothing to solve for.")
    require_same_structure(phi, state, [1])
    require_finite("state", state, "Give a finite initial state.")
    after = evolution.merge(*_first_step(evolution, floating, clock))
    require_finite("phi(state, 0, 1)", after, "Lower the learning rate, or look at the loss and data of step 0.")
    return evolution, floating, clock


def _require_three_arguments(phi: Phi) -> None:
    try:
        signature = inspect.signature(phi)
    except ValueError:  # built-in callables have none
        return
    try:
        signature.bind(None, None, 1)
    except TypeError:
        raise ValueError(f"phi must take three arguments, phi(state, start, stride); it is phi{signature}.") from None


@jax.jit
def _first_step(evolution, floating, clock):
    return evolution.advance(floating, clock, jnp.int32(0), 1)


def require_finite(name: str, state: PyTree, cure: str) -> None:
    for path, leaf in tree_leaves_with_path(state):
        if (
            isinstance(leaf, jax.Array)
            and jnp.issubdtype(leaf.dtype, jnp.inexact)
            and not np.all(np.isfinite(np.asarray(leaf)))
        ):
            raise ValueError(f"{name} is not finite{at_leaf(path)}. {cure}")


def require_same_structure(phi: Phi, state: PyTree, strides: Iterable[int]) -> None:
    """Traces phi at each stride; raises ValueError, naming the leaf, unless it gives back a state like `state`."""
    for stride in strides:
        out = _shapes(f"phi at stride {stride}", lambda state, start, s=stride: phi(state, start, s), state, "start")
        _compare(f"phi(state, start, {stride})", out, state)


def require_guess(initial_guess: Callable[[Any], PyTree], state: PyTree) -> None:
    """The same for an initial guess, `step -> state`."""
    out = _shapes("initial_guess", lambda _, step: initial_guess(step), state, "step")
    _compare("initial_guess(step)", out, state)


def _shapes(name: str, function: Callable, state: PyTree, argument: str) -> PyTree:
    """Shapes of `function(state, step)`, both traced; control flow on either is reported by name."""

    def run(state, step):
        return as_arrays(function(state, step))

    try:
        return eqx.filter_eval_shape(run, state, jax.ShapeDtypeStruct((), jnp.int32))
    except _CONTROL_FLOW_ERRORS as error:
        try:
            eqx.filter_eval_shape(run, state, jnp.int32(0).item())
            cause = f"`{argument}`"
        except _CONTROL_FLOW_ERRORS:
            cause = "the state"
        raise ValueError(
            f"{name} needs the value of {cause} while it is traced: Python control flow on it, int(), float() or a NumPy "
            "function. It runs under jit and vmap, so use jnp.where, lax.cond or lax.switch, and index with jnp arrays."
        ) from error


def _compare(name: str, out: PyTree, state: PyTree) -> None:
    given, wanted = (dict(tree_leaves_with_path(tree)) for tree in (out, state))
    for path in [*wanted, *given]:
        if path not in given or path not in wanted:
            change = "lacks" if path in wanted else "adds"
            raise ValueError(f"{name} {change} {leaf_name(path)}: it must return a state of the same structure.")
        leaf, like = given[path], wanted[path]
        if isinstance(like, jax.Array) and (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} changes {leaf_name(path)} from {_describe(like)} to {_describe(leaf)}: shape and dtype must stay."
            )
    if jax.tree.structure(out) != jax.tree.structure(state):
        raise ValueError(
            f"{name} changes the structure of the state, from {jax.tree.structure(state)} to {jax.tree.structure(out)}."
        )


def _describe(leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def leaf_name(path) -> str:
    return f"leaf {keystr(path)}" if path else "the state"


def at_leaf(path) -> str:
    return f" at leaf {keystr(path)}" if path else ""
