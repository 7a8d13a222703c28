"""What a training step asks of its loss, batch, parameters and optimizer before anything long is run."""

import inspect
import logging
import re
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr
from jax.tree_util import tree_leaves_with_path
from jaxtyping import PyTree

from .._kernel import forget
from .._optimizer import update
from .._state import CONTROL_FLOW_ERRORS, is_data, is_number, leaf_name
from ._composite_loss import CompositeLoss


logger = logging.getLogger("gritax")

# Of the last losses and batches: their programs, and the arrays that these close over.
_programs: dict[Any, tuple[str, list[Any]]] = {}
_MOST_PROGRAMS = 16
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def require_usable(step: Any, params: PyTree, stats: PyTree) -> PyTree:
    """The optimizer's first state for `params`. Raises `ValueError`, naming what is wrong."""
    _require_trainable(step, params)
    _require_pure(step)
    if jax.tree.leaves(stats) and not step.has_aux:
        raise ValueError("stats were given, but the loss takes none: pass has_aux=True to TrainStep, or leave them out.")
    _require_arguments(step)
    _require_scalar(step, params, stats)
    trainable = step.split(params)[0]
    try:
        opt_state = step.optimizer.init(trainable)
        with jax.numpy_dtype_promotion("standard"):  # only the structure is looked at here
            _, after = eqx.filter_eval_shape(partial(update, step.optimizer), trainable, opt_state, trainable, jnp.zeros(()))
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"optimizer does not take these parameters: {error}") from error
    if jax.tree.structure(after) != jax.tree.structure(opt_state):
        raise ValueError(
            f"optimizer.update changes the structure of its state, from {jax.tree.structure(opt_state)} to "
            f"{jax.tree.structure(after)}: it must stay, as under jax.lax.scan."
        )
    return opt_state


def require_state(step: Any, state: Any) -> None:
    """Raises `ValueError` unless `state` looks like one from `step.init`."""
    # By its fields: the class is defined where this module is used.
    if getattr(state, "_fields", None) != ("params", "opt_state", "stats"):
        raise ValueError("state must come from TrainStep.init(params); these look like the parameters themselves.")
    wanted = jax.eval_shape(step.optimizer.init, step.split(state.params)[0])
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (state.opt_state, wanted)]
    if jax.tree.structure(state.opt_state) != jax.tree.structure(wanted) or shapes[0] != shapes[1]:
        raise ValueError(
            "state has an optimizer state of another optimizer or of other parameters: use this step's init(params)."
        )


def _require_trainable(step, params):
    try:
        split = step.split(params)[0]
    except (TypeError, ValueError) as error:
        raise ValueError(
            "trainable must be a function of a leaf, or a pytree of bools of the structure of params or a prefix of it: "
            f"{str(error).splitlines()[0]}"
        ) from error
    trainable = [(path, leaf) for path, leaf in tree_leaves_with_path(split) if leaf is not None]
    for path, leaf in trainable:
        if not ((is_data(leaf) or is_number(leaf)) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"params: {leaf_name(path)} is to be trained, but it is {kind}, and only floating-point arrays have gradients. "
                "Make it floating point, or leave it out of `trainable`."
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"params: {leaf_name(path)} is complex: train its real and imaginary parts as two arrays.")
        if jnp.finfo(jnp.result_type(leaf)).bits < 32:
            raise ValueError(
                f"params: {leaf_name(path)} is {jnp.result_type(leaf)}, too coarse for corrections between iterations. Keep "
                "parameters in float32 or float64 and cast them inside the loss."
            )
    if not trainable:
        found = ", ".join(
            f"{leaf_name(path)}: {getattr(x, 'dtype', type(x).__name__)}" for path, x in tree_leaves_with_path(params)
        )
        raise ValueError(
            f"params has no leaf to train ({found or 'it is empty'}). Floating-point arrays are trained, or what `trainable` "
            "says; Python numbers are constants: make them arrays with jnp.asarray."
        )


def _require_pure(step):
    """Two calls for the same step must give the same: compared as programs, so that nothing is computed."""

    def program():
        try:
            jaxpr, out = jax.make_jaxpr(step.data, return_shape=True)(jax.ShapeDtypeStruct((), jnp.int32))
        except (TypeError, IndexError) as error:
            raise ValueError(
                f"batch(step) fails on a traced step: {str(error).splitlines()[0]} It must take one argument, an int32 scalar, "
                "and return arrays; slice with jax.lax.dynamic_slice_in_dim, or use gritax.data.Epochs."
            ) from error
        return jaxpr, out

    (first, first_out), (again, again_out) = program(), program()
    shapes = [jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", out) for out in (first_out, again_out)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"batch(step) returned {shapes[0]}, and called again {shapes[1]}: every step must have a batch of the same "
            "structure, shapes and dtypes. Drop or fill a short last batch, as gritax.data.Epochs does."
        )
    if str(first) != str(again) or not all(map(_same, first.consts, again.consts)):
        raise ValueError(
            "batch(step) gave two results for the same step. It must be a pure function of the step: index arrays, or fold a "
            "JAX random key with the step, but keep no iterator, counter or generator of its own. See gritax.data.Epochs."
        )


def _same(x, y):
    if x is y:
        return True
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) if hasattr(x, "dtype") else bool(x == y)


def _require_arguments(step):
    if step.has_aux and isinstance(step.loss, CompositeLoss):
        raise ValueError("loss is a CompositeLoss, which has no statistics to return: with has_aux pass a plain function.")
    wanted = ["params", *["stats"] * step.has_aux, "batch", *["key"] * (step.key is not None)]
    try:
        signature = inspect.signature(step.loss)
    except ValueError:  # built-in callables have none
        return
    try:
        signature.bind(*wanted)
    except TypeError:
        raise ValueError(
            f"loss must be called as loss({', '.join(wanted)}) here, but it is loss{signature}. A key given to TrainStep adds "
            "`key`, has_aux=True adds `stats`."
        ) from None


def _require_scalar(step, params, stats):
    arrays, functions = eqx.partition(step, eqx.is_array)

    def first_loss(arrays, params, stats, start):
        step = eqx.combine(arrays, functions)
        return step.evaluate(params, stats, step.data(start), start)

    try:
        program, out, _ = eqx.filter_make_jaxpr(first_loss)(arrays, params, stats, jax.ShapeDtypeStruct((), jnp.int32))
    except CONTROL_FLOW_ERRORS as error:
        raise ValueError(
            "loss needs the value of something traced: Python control flow on it, int(), float() or a NumPy function. It runs "
            "under jit, vmap and grad, so use jnp.where, lax.cond and jnp functions."
        ) from error
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError("with has_aux, loss must return (scalar, new_stats).")
    value, new_stats = out
    if step.has_aux:
        given, wanted = (jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree) for tree in (new_stats, stats))
        if given != wanted:
            raise ValueError(
                f"loss must return statistics like those it is given: {wanted} (shape and dtype), not {given}. Pass the first "
                "ones to init(params, stats)."
            )
    elif isinstance(value, tuple):
        raise ValueError("loss must return a scalar alone, not a tuple; if it returns new statistics, pass has_aux=True.")
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        found = "what is no array" if shape is None else f"{value.dtype}{list(shape)}"
        raise ValueError(f"loss must return a floating-point scalar, not {found}: sum or average over the batch.")
    _notice_changes(functions, program)


def _notice_changes(functions: Any, now: ClosedJaxpr) -> None:
    """What loss and batch read from outside may have changed since the same functions were compiled: then all is forgotten."""
    if any(isinstance(each, Tracer) for each in now.consts):  # within a derivative, whose values are none to keep
        return
    try:
        known = _programs.pop((functions, shapes := tuple(map(str, now.in_avals))), None)
    except TypeError:  # what cannot be hashed has no compiled programs to be found again
        return
    operations = _ADDRESS.sub("", str(now.jaxpr))
    if known is not None and (known[0] != operations or not all(map(_same, known[1], now.consts))):
        logger.info("the loss or the batch reads values that have changed: it is compiled anew")
        forget()
    _programs[functions, shapes] = operations, now.consts
    while len(_programs) > _MOST_PROGRAMS:
        _programs.pop(next(iter(_programs)))
