"""What a solve by V-cycles costs in sequence, before it is made."""

from collections.abc import Callable

from ._hierarchy import Hierarchy


def guess_depth(hierarchy: Hierarchy, depth: Callable[[int], int]) -> int:
    """Evaluations in sequence of the graded guess, for coarse steps of `depth(stride)`."""
    *relaxed, last = hierarchy.levels
    if not relaxed:
        return last.size
    finest, *between = relaxed
    return (
        last.size * depth(last.stride) + sum(2 * (level.factor - 1) * depth(level.stride) for level in between) + finest.factor
    )


def iteration_depth(hierarchy: Hierarchy, depth: Callable[[int], int]) -> int:
    """The same of a V-cycle and the sweep that measures what it gives."""
    *relaxed, last = hierarchy.levels
    if not relaxed:
        return last.size
    finest, *between = relaxed
    # On a coarse level: right-hand side, FC sweeps and the F-relaxation before them, F-points on the way up.
    cycle = sum((1 + (level.sweeps + 2) * level.factor - 1) * depth(level.stride) for level in between)
    return (finest.sweeps + 1) * finest.factor + cycle + (1 + last.size) * depth(last.stride)


def expected_depth(hierarchy: Hierarchy, depth: Callable[[int], int], iterations: int) -> int:
    return guess_depth(hierarchy, depth) + iterations * iteration_depth(hierarchy, depth)
