"""What every coarse propagator provides."""

from dataclasses import is_dataclass
from typing import Any, Literal, Protocol, TypeAlias

from jaxtyping import Array, PyTree


class CoarseStep(Protocol):
    """Advances a training step's state from `start` by `stride` steps, approximately, and says what that costs."""

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree: ...

    def depth(self, stride: int) -> int: ...

    def work(self, stride: int) -> int: ...


Choice: TypeAlias = CoarseStep | Literal["auto"] | None
"""What users give: a coarse propagator, `"auto"`, or None for the default."""


def words(coarse: Choice) -> str:
    """What was asked for, for people and files."""
    return str(coarse) if isinstance(coarse, str | None) or is_dataclass(coarse) else type(coarse).__name__
