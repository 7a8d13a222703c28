"""Pictures of the method: the way of a cycle through the levels, and what it promises on so many devices."""

import math
from typing import Any

from ._drawing import SHADES, Drawing, Frame, decades, limits, logarithm, short


def way(levels: int, cycle: str) -> list[int]:
    """The levels that a cycle visits, one after the other.

    >>> way(3, "V"), way(3, "F")
    ([0, 1, 2, 1, 0], [0, 1, 2, 1, 2, 1, 0])
    """

    def solved(level: int, cycle: str) -> list[int]:
        if level == levels - 1:
            return [level]
        found = [level, *solved(level + 1, cycle), level]
        return found if cycle == "V" else [*found, *solved(level, "V")[1:]]

    return [0] if levels == 1 else [0, *solved(1, cycle), 0]


def cycle_diagram(run: dict[str, Any], width: int) -> Drawing:
    """The way of one iteration through the levels, each in the shade of its share of time or depth."""
    levels, shares = run["levels"], _shares(run)
    row, top = 24, 26
    drawing = Drawing(width, top + row * len(levels) + 4, f"One {run['cycle']}-cycle through {len(levels)} levels")
    columns = width * (0.52 if width > 500 else 0.4)
    visited = way(len(levels), run["cycle"])
    gap = (columns - 30) / max(len(visited) - 1, 1)
    points = [(12 + gap * i, top + row * (level + 0.5)) for i, level in enumerate(visited)]
    drawing.line(points, "wire")
    most = max(shares, default=0) or 1
    for level, point in zip(visited, points, strict=True):
        drawing.dot(*point, f"node s{round((SHADES - 1) * shares[level] / most)}", min(max(gap * 0.45, 2.2), 6))
    steps, bars = columns + 78, columns + 88
    share_of = "of the time" if run.get("level_seconds") else "in sequence"
    for x, words, anchor in ((columns, "level", "start"), (steps, "steps", "end"), (bars, share_of, "start")):
        drawing.text(x, 14, words, anchor, "tick")
    for level, (each, share) in enumerate(zip(levels, shares, strict=True)):
        y = top + row * level
        drawing.text(columns, y + 16, str(level), "start", "tick")
        drawing.text(steps, y + 16, f"{each['size']:,}", "end", "tick")
        length = (width - bars - 44) * share / most
        drawing.box(bars, y + 5, max(length, 0.5), row - 10, f"s{round((SHADES - 1) * share / most)}")
        drawing.text(bars + length + 5, y + 16, f"{100 * share:.0f} %", "start", "tick")
    return drawing


def _shares(run: dict[str, Any]) -> list[float]:
    """Of the time of an iteration, that of each level; if it is unknown, of all evaluations in sequence."""
    if seconds := run.get("level_seconds"):
        return [each / sum(seconds) for each in seconds]
    return [each / run["depth"] for each in run["depth_by_level"]]


def speedup(run: dict[str, Any], width: int) -> Drawing:
    """Steps divided by the evaluations in sequence that are left on so many devices."""
    drawing = Drawing(width, 250, "Potential speedup by the number of devices")
    frame = Frame(58, 8, width - 14, 206)
    points = [(logarithm(devices), logarithm(gain)) for devices, gain in run["speedup_on"]]
    across = (0, max(math.log10(run["speedup_on"][-1][0]), 1))
    up = limits([0, *(y for _, y in points)]) or (0, 1)
    x, y = frame.across(*across), frame.up(*up)
    frame.y_axis(drawing, y, decades(*up, 6))
    frame.x_axis(drawing, x, decades(*across, max(width // 90, 2)), "devices")
    drawing.line([(frame.left, y(0)), (frame.right, y(0))], "front")
    drawing.text(frame.left + 6, y(0) - 5, "serial training", "start", "tick")
    placed = [(x(a), y(b)) for a, b in points if a is not None and b is not None]
    drawing.line(placed, "curve a")
    for each in placed:
        drawing.dot(*each, "dot a")
    return drawing


def spectrum(run: dict[str, Any], width: int) -> Drawing:
    """Predicted factors over the curvatures where the run is stiffest: of two levels each, of the cycle, and its bound."""
    found = run["spectrum"]
    drawing = Drawing(width, 290, "Predicted convergence factor by curvature")
    frame = Frame(58, 8, width - 14, 246)
    curvatures = [logarithm(each) for each in found["curvatures"]]
    across, up = limits(curvatures) or (0, 1), (-6, 1)
    x, y = frame.across(*across), frame.up(*up)
    frame.y_axis(drawing, y, decades(*up, 8))
    frame.x_axis(drawing, x, decades(*across, max(width // 90, 2)), "learning rate times curvature")
    drawing.line([(frame.left, y(0)), (frame.right, y(0))], "front")
    curves = [
        *((each, "curve thin") for each in found["level_factors"]),
        (found["bounds"], "curve b"),
        (found["factors"], "curve a"),
    ]
    for values, style in curves:
        logs = [logarithm(each) for each in values]
        drawing.line([_within(x, y, *each, up) for each in zip(curvatures, logs, strict=True)], style)
    return drawing


def _within(x, y, curvature, factor, up) -> tuple[float, float] | None:
    if curvature is None or factor is None or not up[0] <= factor <= up[1]:
        return None
    return x(curvature), y(factor)


def said(factor: float | None) -> str:
    """A predicted factor in words."""
    return f"{short(factor)} an iteration" if factor is not None and factor < 1 else "none"
