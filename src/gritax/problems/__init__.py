"""Training problems with their data, initial weights and loss, ready to solve."""

from ._adder import adder as adder
from ._diabetes import diabetes as diabetes
from ._digits import digits as digits
from ._problem import Problem as Problem
from ._sine import sine as sine
from ._xor import xor as xor
