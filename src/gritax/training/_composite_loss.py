"""A loss made of a network and a criterion."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree, Scalar


class CompositeLoss(eqx.Module):
    r"""$\mathrm{loss}(w, b) = \mathrm{criterion}(\mathrm{outputs}(w, b), b)$, a loss whose function space is visible.

    For coarse propagators that work with the network's outputs; to any other it is a loss like any other.

    **Arguments**

    - `outputs`: `outputs(params, batch) -> array`, the network on a batch; `outputs(params, batch, key)` where TrainStep has a
      key.
    - `criterion`: `criterion(outputs, batch) -> scalar`.

    Raises `ValueError` for arguments that are no functions.

    >>> import gritax, jax.numpy as jnp
    >>> loss = gritax.CompositeLoss(lambda w, batch: batch[0] @ w, lambda z, batch: jnp.mean((z - batch[1]) ** 2))
    >>> float(loss(jnp.ones(2), (jnp.ones((3, 2)), jnp.zeros(3))))
    4.0
    """

    outputs: Callable[..., Any]
    criterion: Callable[[Any, PyTree], Scalar]

    def __init__(self, outputs, criterion):
        for name, value, wanted in (("outputs", outputs, "(params, batch)"), ("criterion", criterion, "(outputs, batch)")):
            if not callable(value):
                raise ValueError(f"{name} must be a function {name}{wanted}, not a {type(value).__name__}.")
        self.outputs, self.criterion = outputs, criterion

    def __call__(self, params: PyTree, batch: PyTree, *key: Any) -> Scalar:
        return self.criterion(self.outputs(params, batch, *key), batch)
