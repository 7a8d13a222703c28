"""Training loops as evolutions."""

from ._composite_loss import CompositeLoss as CompositeLoss
from ._train_step import TrainState as TrainState, TrainStep as TrainStep
