"""What every problem provides."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import PyTree

from ..training import TrainState, TrainStep


@dataclass(frozen=True)
class Problem:
    """A training step, the state it starts from, and how good parameters are.

    `loss(params)` is the loss on all training examples; `metrics(params)` the figures that people ask of such a model, by name.
    """

    name: str
    step: TrainStep
    state: TrainState
    loss: Callable[[PyTree], float]
    metrics: Callable[[PyTree], dict[str, float]]

    @classmethod
    def trained(
        cls, name: str, step: TrainStep, params: PyTree, examples: PyTree, metrics: Callable[[PyTree], dict[str, float]]
    ) -> "Problem":
        """The problem of training `params` by `step`, whose loss on `examples` is the problem's."""
        return cls(name, step, step.init(params), lambda params: float(step.loss(params, examples)), metrics)
