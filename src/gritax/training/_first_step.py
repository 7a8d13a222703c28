"""What a training step asks of its loss, batch, parameters and optimizer before anything long is run."""

import inspect
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import tree_leaves_with_path
from jaxtyping import PyTree

from .._optimizer import updated
from .._program import Program
from .._state import CONTROL_FLOW_ERRORS, Outline, as_arrays, first_line, is_number, leaf_name
from .._static import is_data
from ._composite_loss import CompositeLoss


def require_usable(step: Any, params: PyTree, stats: PyTree) -> PyTree:
    """The optimizer's first state for `params`. Raises `ValueError`, naming what is wrong."""
    for tree in (params, stats):
        as_arrays(tree)  # what JAX has no arrays of is named
    _require_trainable(step, params)
    _require_pure(step)
    if jax.tree.leaves(stats) and not step.has_aux:
        raise ValueError("stats were given, but the loss takes none: pass has_aux=True to TrainStep, or leave them out.")
    _require_arguments(step)
    _require_scalar(step, params, stats)
    return _first_opt_state(step.optimizer, step.split(params)[0])


def _first_opt_state(optimizer, params):
    try:
        opt_state = optimizer.init(params)
    except Exception as error:
        raise ValueError(f"optimizer.init fails for these parameters: {first_line(error)}") from error
    try:
        with jax.numpy_dtype_promotion("standard"):  # only the structure is looked at here
            _, after = eqx.filter_eval_shape(partial(updated, optimizer), params, opt_state, params, jnp.zeros(()))
    except Exception as error:
        raise ValueError(
            f"optimizer.update fails on a gradient like the parameters: {first_line(error)} It gets that gradient, its state, "
            "the parameters and, if it takes it, the loss as `value`: no function of the loss, as line searches (optax.lbfgs) "
            'want, and no part of the gradient, as optax.lookahead wants. See "Optimizers" in docs/training.md.'
        ) from error
    if change := Outline(as_arrays(opt_state), "its state").change(Outline(after)):
        hint = " A hyperparameter such as np.float64(0.9) does that: make it a Python float." if "float64" in change else ""
        raise ValueError(f"optimizer.update {change}: it must stay as it is, as under jax.lax.scan.{hint}")
    return opt_state


def require_state(step: Any, state: Any) -> None:
    """Raises `ValueError` unless `state` looks like one from `step.init`."""
    # By its fields: the class is defined where this module is used.
    if getattr(state, "_fields", None) != ("params", "opt_state", "stats"):
        raise ValueError("state must come from TrainStep.init(params); these look like the parameters themselves.")
    wanted = jax.eval_shape(step.optimizer.init, step.split(state.params)[0])
    if change := Outline(wanted).change(Outline(as_arrays(state.opt_state))):
        raise ValueError(
            f"state has an optimizer state of another optimizer or of other parameters, which {change}: use this step's "
            "init(params)."
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

    def traced():
        found: list[Outline] = []

        def data(start):
            batch = step.data(start)
            found.append(Outline(batch, "the batch"))
            return jax.tree.leaves(batch)

        try:
            program = jax.make_jaxpr(data)(jax.ShapeDtypeStruct((), jnp.int32))
        except (TypeError, IndexError) as error:
            raise ValueError(
                f"batch(step) fails on a traced step: {first_line(error)} It must take one argument, an int32 scalar, "
                "and return arrays; slice with jax.lax.dynamic_slice_in_dim, or use gritax.data.Epochs."
            ) from error
        return Program(program), found[0]

    (first, outline), (again, outline_again) = traced(), traced()
    if change := outline.change(outline_again):
        raise ValueError(
            f"batch(step), called again, {change}: every step must have a batch of the same structure, shapes and dtypes. Drop "
            "or fill a short last batch, as gritax.data.Epochs does."
        )
    if first != again:
        raise ValueError(
            "batch(step) gave two results for the same step. It must be a pure function of the step: index arrays, or fold a "
            "JAX random key with the step, but keep no iterator, counter or generator of its own. See gritax.data.Epochs."
        )


def _require_arguments(step):
    if step.has_aux and isinstance(step.loss, CompositeLoss):
        raise ValueError("loss is a CompositeLoss, which has no statistics to return: with has_aux pass a plain function.")
    wanted = ["params", *["stats"] * step.has_aux, "batch", *["key"] * (step.key is not None)]
    try:
        signature = inspect.signature(step.loss)
    except Exception:  # built-in callables have none, and what defines `==` may not stand being compared
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
        out = eqx.filter_eval_shape(first_loss, arrays, params, stats, jax.ShapeDtypeStruct((), jnp.int32))
    except CONTROL_FLOW_ERRORS as error:
        raise ValueError(
            "loss needs the value of something traced: Python control flow on it, int(), float() or a NumPy function. It runs "
            "under jit, vmap and grad, so use jnp.where, lax.cond and jnp functions."
        ) from error
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError("with has_aux, loss must return (scalar, new_stats).")
    value, new_stats = out
    if step.has_aux:
        if change := Outline(as_arrays(stats), "the statistics").change(Outline(new_stats)):
            raise ValueError(
                f"loss must return statistics like those that it is given, but it {change}. Pass the first ones to "
                "init(params, stats)."
            )
    elif isinstance(value, tuple):
        raise ValueError("loss must return a scalar alone, not a tuple; if it returns new statistics, pass has_aux=True.")
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        found = "what is no array" if shape is None else f"{value.dtype}{list(shape)}"
        raise ValueError(f"loss must return a floating-point scalar, not {found}: sum or average over the batch.")
    _require_gradient(step, params, stats)


def _require_gradient(step, params, stats):
    def gradient(params, stats, start):
        return step.gradient(params, stats, step.data(start), start)

    try:
        eqx.filter_eval_shape(gradient, params, stats, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ValueError(
            f"loss has no gradient by the parameters: {first_line(error)} jax.value_and_grad is taken of it: put what is no "
            "part of the gradient into jax.lax.stop_gradient, and what JAX cannot differentiate into a jax.custom_vjp."
        ) from error
