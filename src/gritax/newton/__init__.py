"""Quasi-Newton on the chain of training steps, in a window that slides along it."""

from ._method import Newton as Newton
from ._solution import solution_by as solution_by
