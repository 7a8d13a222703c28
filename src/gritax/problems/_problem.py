"""What every problem provides."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import PyTree

from ..training import TrainState, TrainStep


@dataclass(frozen=True)
class Problem:
    """A training step, the state it starts from, and how good parameters are: loss and accuracy on all examples."""

    name: str
    step: TrainStep
    state: TrainState
    loss: Callable[[PyTree], float]
    accuracy: Callable[[PyTree], float]
