"""Coarse propagators: what one step of a large stride does."""

from ._protocol import CoarseStep as CoarseStep
from .rescaled import RescaledRate as RescaledRate
