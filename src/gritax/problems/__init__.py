"""Training problems with their data, initial weights and loss, ready to solve."""

from ._adder import adder as adder
from ._diabetes import diabetes as diabetes
from ._digits import digits as digits
from ._long_memory import long_memory as long_memory
from ._poisson import poisson as poisson
from ._problem import Problem as Problem
from ._recurrence import GILR as GILR, GILRLSTM as GILRLSTM, linear_recurrence as linear_recurrence
from ._sine import sine as sine
from ._xor import xor as xor
