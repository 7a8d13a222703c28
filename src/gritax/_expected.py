"""What a solve by V-cycles takes in sequence, before it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ._cycle import intervals_alone
from ._hierarchy import Hierarchy
from ._relaxation import exact_points


@dataclass(frozen=True)
class Applications:
    """`count` applications of phi with this stride one after the other, each for `lanes` points."""

    stride: int
    lanes: int
    count: int


def applications(hierarchy: Hierarchy, iterations: int) -> list[Applications]:
    """Of the graded guess, and of so many V-cycles, each with the sweep that measures what it gives.

    A single level is solved by its guess.
    """
    *relaxed, last = hierarchy.levels
    if not relaxed:
        return [Applications(1, 1, 2 * last.size)]
    finest, *between = relaxed
    alone = intervals_alone(hierarchy)
    sweeps = alone[0] + 1 + iterations * (finest.sweeps + 1)
    found = [Applications(1, finest.num_intervals, sweeps * finest.factor)]
    for level, (first, count) in zip(between, pairwise(alone), strict=True):
        # FC sweeps and the F-relaxation before them, whose first step is known, F-points on the way up; the right-hand side.
        steps = (count + 1) * level.factor - 1 - first + iterations * ((level.sweeps + 2) * level.factor - 2)
        found.append(Applications(level.stride, level.num_intervals, steps))
        found.append(Applications(level.stride, level.size, iterations))
    steps = last.size - alone[-1]
    for iteration in range(1, iterations + 1):
        known = alone[0] + iteration * finest.exact_intervals
        for level in between:
            known = min(exact_points(level, known, level.exact_intervals) // level.factor, level.num_intervals)
        steps += max(last.size - known, 0)
    return [*found, Applications(last.stride, 1, steps), Applications(last.stride, last.size, iterations)]


def expected_depth(hierarchy: Hierarchy, depth: Callable[[int], int], iterations: int) -> int:
    """Evaluations in sequence, for steps of `depth(stride)`."""
    return sum(each.count * depth(each.stride) for each in applications(hierarchy, iterations))
