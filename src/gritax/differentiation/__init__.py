"""Derivatives of a solve: its tangents and adjoints are evolutions too, and are solved by the same multigrid."""

from ._linear import AIM as AIM
from ._traced import traced as traced
