"""Pictures of the iterates: how residuals fall, how far the exact answer has come, and where along the run it is not yet."""

import math
from typing import Any

from ._drawing import SHADES, Drawing, Frame, decades, even_ticks, limits, logarithm, short


_LEFT, _RIGHT, _AXIS = 58, 10, 40


def history(run: dict[str, Any], width: int) -> Drawing:
    """Residuals by iteration, and below them how many steps are exact by construction."""
    drawing = Drawing(width, 380, "Residual, relative residual and exact steps of each iteration")
    residuals, relative = ([logarithm(x) for x in run[name]] for name in ("residuals", "relative_residuals"))
    last = max(len(residuals) - 1, 1)
    above, below = Frame(_LEFT, 8, width - _RIGHT, 226), Frame(_LEFT, 256, width - _RIGHT, 340)
    x = above.across(0, last)
    ticks = even_ticks(0, last, max(width // 60, 2))
    for at, _ in ticks:
        drawing.line([(x(at), above.top), (x(at), above.bottom)], "rule")
    if (found := limits([*residuals, *relative])) is not None:
        y = above.up(*found)
        above.y_axis(drawing, y, decades(*found, 7))
        for values, style in ((relative, "b"), (residuals, "a")):
            points = [None if value is None else (x(i), y(value)) for i, value in enumerate(values)]
            drawing.line(points, f"curve {style}")
            for point in filter(None, points):
                drawing.dot(*point, f"dot {style}")
    front = [(each["number"], each["exact_steps"]) for each in run["history"]]
    if front:
        most = max(max(steps for _, steps in front), 1)
        y = below.up(0, most)
        below.y_axis(drawing, y, even_ticks(0, most, 6))
        exact = [(x(number), y(steps)) for number, steps in front]
        drawing.path(
            "M" + "L".join(f"{at:.1f} {up:.1f}" for at, up in [(x(0), y(0)), *exact, (exact[-1][0], y(0))]) + "Z", "area"
        )
        drawing.line(exact, "curve a")
        drawing.text(below.left + 6, below.top + 4, "exact steps", "start", "tick")
    below.x_axis(drawing, x, ticks, "iteration")
    return drawing


def heat_map(run: dict[str, Any], width: int) -> Drawing:
    """Residuals by step and iteration, with the exactness front."""
    steps, rows, num_steps = run["profile"]["steps"], run["profile"]["residuals"], run["num_steps"]
    height = round(min(max(260 / len(rows), 7), 24), 1)  # as it is drawn, so that rows meet
    frame = Frame(_LEFT, 8, width - _RIGHT, 8 + height * len(rows))
    drawing = Drawing(width, frame.bottom + _AXIS, "Residual at each part of the run, for each iteration")
    low, high = range_of(rows)
    x = frame.across(0, num_steps)
    edges = [x(0), *map(x, steps)]
    shades: list[list[str]] = [[] for _ in range(SHADES)]
    unknown: list[str] = []
    for number, row in enumerate(rows):
        top = frame.top + height * number
        for first, end, value in _stretches([_shade(value, low, high) for value in row]):
            kind = unknown if value is None else shades[value]
            kind.append(f"M{edges[first]:.1f} {top:.1f}H{edges[end]:.1f}v{height:.1f}H{edges[first]:.1f}Z")
    for shade, cells in enumerate(shades):
        if cells:
            drawing.path("".join(cells), f"cell s{shade}")
    if unknown:
        drawing.path("".join(unknown), "cell unknown")
    front = []
    for number, each in enumerate(run["history"]):
        top = frame.top + height * number
        front += [(x(each["exact_steps"]), top), (x(each["exact_steps"]), top + height)]
    drawing.line(front, "front")
    for at, name in even_ticks(0, len(rows) - 1, max(int(height * len(rows) / 20), 2)):
        drawing.text(_LEFT - 6, frame.top + height * (at + 0.5) + 4, name, "end", "tick")
    frame.x_axis(drawing, x, even_ticks(0, num_steps, max(width // 110, 2)), "training step", rules=False)
    return drawing


def shades_of(run: dict[str, Any], width: int) -> Drawing:
    """What the shades of the heat map mean."""
    low, high = range_of(run["profile"]["residuals"])
    drawing = Drawing(width, 34, "Shades from small residuals to large ones")
    size = min((width - _LEFT - _RIGHT) / SHADES, 28)
    for shade in range(SHADES):
        drawing.box(_LEFT + size * shade, 2, size + 0.3, 12, f"s{shade}")
    for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        value = 10 ** (low + (high - low) * part)
        drawing.text(_LEFT + size * SHADES * part, 30, short(float(f"{value:.0e}")), anchor, "tick")
    return drawing


def range_of(rows: list[list[float | None]]) -> tuple[float, float]:
    """The logarithms of the smallest and the largest residual that have shades of their own: at most 16 decades."""
    known = [found for row in rows for value in row if (found := logarithm(value)) is not None]
    high = max(known, default=0.0)
    low = max(min(known, default=high), high - 16)
    return (low, high) if low < high else (high - 1, high)


def _shade(value: float | None, low: float, high: float) -> int | None:
    if value is None:
        return None
    if value <= 0:
        return 0
    return min(max(int(SHADES * (math.log10(value) - low) / (high - low)), 0), SHADES - 1)


def _stretches(values: list[int | None]) -> list[tuple[int, int, int | None]]:
    """(first, end, value) of neighbours with the same value."""
    found, first = [], 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[first]:
            found.append((first, end, values[first]))
            first = end
    return found
