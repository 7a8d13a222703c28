"""Quasi-Newton on the chain of training steps, in a window that slides along it."""

from ._method import Newton as Newton
