"""Training loops as evolutions."""

from ._train_step import TrainState as TrainState, TrainStep as TrainStep
