"""Coarse propagators: what one step of a large stride does."""

from ._automatic import Automatic as Automatic, Words as Words, candidates as candidates, named as named
from ._protocol import Choice as Choice, CoarseStep as CoarseStep, words as words
from .frozen_gradient import FrozenGradient as FrozenGradient
from .rescaled import RescaledRate as RescaledRate
from .stabilized import Stabilized as Stabilized
from .tangent import Tangent as Tangent
