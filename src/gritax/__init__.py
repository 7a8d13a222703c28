"""gritax: neural-network training in parallel over its own training steps."""

import importlib.metadata as _metadata
import logging as _logging

from . import (
    data as data,
    experiments as experiments,
    placement as placement,
    problems as problems,
    progress as progress,
    reporting as reporting,
)
from ._affine import AffineStep as AffineStep, LowRank as LowRank
from ._check import check as check
from ._convergence import ConvergenceError as ConvergenceError
from ._hierarchy import Multigrid as Multigrid
from ._profile import ResidualProfile as ResidualProfile
from ._serial import solve_serial as solve_serial
from ._solution import Iteration as Iteration, Solution as Solution, WindowReport as WindowReport
from ._solve import Progress as Progress, solve as solve
from ._spectrum import Spectrum as Spectrum, spectrum as spectrum
from ._train import train as train
from .coarse import (
    FrozenGradient as FrozenGradient,
    RescaledRate as RescaledRate,
    Stabilized as Stabilized,
    Tangent as Tangent,
)
from .newton import Newton as Newton
from .planning import Plan as Plan, plan as plan
from .training import CompositeLoss as CompositeLoss, TrainStep as TrainStep


__version__ = _metadata.version("gritax")
_logging.getLogger("gritax").addHandler(_logging.NullHandler())
