"""One step of an Optax transformation."""

from typing import Any

import optax
from jaxtyping import PyTree, Scalar


def updated(optimizer: Any, gradient: PyTree, opt_state: PyTree, params: PyTree, value: Scalar) -> tuple[PyTree, PyTree]:
    """(parameters, optimizer state) after one step; the loss `value` goes to those that take extra arguments."""
    updates, opt_state = update(optimizer, gradient, opt_state, params, value)
    return optax.apply_updates(params, updates), opt_state


def update(optimizer: Any, gradient: PyTree, opt_state: PyTree, params: PyTree, value: Scalar) -> tuple[PyTree, PyTree]:
    """(updates, optimizer state)."""
    extra = {"value": value} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
    return optimizer.update(gradient, opt_state, params, **extra)
