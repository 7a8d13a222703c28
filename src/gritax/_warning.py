"""Warnings, at the line of the user's that called gritax."""

import sys
import warnings


_INSIDE = {"gritax", "jax", "equinox"}


def warn(message: str) -> None:
    """A `UserWarning` at the innermost line that is neither of this package nor of what calls it back."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
