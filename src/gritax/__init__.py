"""gritax: neural-network training in parallel over its own training steps."""

from ._convergence import ConvergenceError as ConvergenceError
from ._hierarchy import Multigrid as Multigrid
from ._serial import solve_serial as solve_serial
from ._solution import Iteration as Iteration, Solution as Solution
from ._solve import Progress as Progress, solve as solve
