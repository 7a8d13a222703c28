"""What a solve by V-cycles takes in sequence, before it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ._cycle import intervals_alone
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
    alone = intervals_alone(hierarchy)
    found = [Applications(1, finest.num_intervals, (alone[0] + 1) * finest.factor, (finest.sweeps + 1) * finest.factor)]
    for level, (first, count) in zip(between, pairwise(alone), strict=True):
        # FC sweeps and the F-relaxation before them, whose first step is known, F-points on the way up; the right-hand side.
        sweeps = (level.sweeps + 2) * level.factor - 2
        found.append(Applications(level.stride, level.num_intervals, (count + 1) * level.factor - 1 - first, sweeps))
        found.append(Applications(level.stride, level.size, 0, 1))
    marched = Applications(last.stride, 1, last.size - alone[-1], last.size - 1)
    return [*found, marched, Applications(last.stride, last.size, 0, 1)]


def expected_depth(hierarchy: Hierarchy, depth: Callable[[int], int], iterations: int) -> int:
    """Evaluations in sequence, for steps of `depth(stride)`."""
    return sum((each.guess + iterations * each.iteration) * depth(each.stride) for each in applications(hierarchy))
