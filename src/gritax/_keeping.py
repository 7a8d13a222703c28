"""What a solve asks of the one who keeps its iterates."""

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Array, PyTree

from ._adaptation import Event
from ._evolution import Evolution
from ._hierarchy import Level
from ._points import Points


@dataclass(frozen=True)
class Iterate:
    """An iterate as it was kept: what is known of it, what phi had been shown by then, and the arrays."""

    facts: dict[str, Any]
    events: list[Event]
    c: Points
    final: PyTree[Array]


class Keep(Protocol):
    """Keeps the iterates of a solve, which can be taken up again from the `latest` of an earlier call."""

    latest: Iterate | None

    def save(
        self,
        level: Level,
        evolution: Evolution,
        c: Points,
        final: PyTree[Array],
        events: list[Event],
        facts: dict[str, Any],
    ) -> None:
        """Keeps the C-points of an iterate on the finest level, and the final state of the one before it."""

    def points(self, iterate: Iterate, level: Level, evolution: Evolution) -> tuple[Points, PyTree[Array]]:
        """(C-points on the finest level, the final state) of it, on the devices that are to have them now."""
        ...
