"""What a solve by V-cycles takes in sequence, before it is made."""

from collections.abc import Callable
from dataclasses import dataclass

from ._hierarchy import Hierarchy


@dataclass(frozen=True)
class Applications:
    """Applications of phi with this stride one after the other, each for `lanes` points: in the guess, and in an iteration."""

    stride: int
    lanes: int
    guess: int
    iteration: int


def applications(hierarchy: Hierarchy) -> list[Applications]:
    """Of the graded guess, and of a V-cycle with the sweep that measures what it gives."""
    *relaxed, last = hierarchy.levels
    if not relaxed:
        return [Applications(1, 1, last.size, last.size)]
    finest, *between = relaxed
    found = [Applications(1, finest.num_intervals, finest.factor, (finest.sweeps + 1) * finest.factor)]
    for level in between:
        # FC sweeps and the F-relaxation before them, F-points on the way up; and the right-hand side.
        sweeps = (level.sweeps + 2) * level.factor - 1
        found.append(Applications(level.stride, level.num_intervals, 2 * (level.factor - 1), sweeps))
        found.append(Applications(level.stride, level.size, 0, 1))
    return [*found, Applications(last.stride, 1, last.size, last.size), Applications(last.stride, last.size, 0, 1)]


def expected_depth(hierarchy: Hierarchy, depth: Callable[[int], int], iterations: int) -> int:
    """Evaluations in sequence, for steps of `depth(stride)`."""
    return sum((each.guess + iterations * each.iteration) * depth(each.stride) for each in applications(hierarchy))
