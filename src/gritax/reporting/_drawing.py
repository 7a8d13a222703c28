"""Pictures as SVG: scales, axes, lines. Colours are classes of the page's style sheet, so that they follow its theme."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape


Scale = Callable[[float], float]
_LETTER = 7.0  # the width of a letter of 12 units, rather too wide
SHADES = 10  # classes s0, …, s9 of the style sheet, from little to much


@dataclass
class Drawing:
    """A picture of so many units, which text of 12 units is to be read in; `label` says what it shows to who cannot see it."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def path(self, commands: str, style: str) -> None:
        self.parts.append(f'<path class="{style}" d="{commands}"/>')

    def line(self, points: Iterable[tuple[float, float] | None], style: str) -> None:
        """Through these points; None is a gap."""
        commands, pen = [], "M"
        for point in points:
            if point is not None:
                commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "M" if point is None else "L"
        if commands:
            self.path("".join(commands), style)

    def dot(self, x: float, y: float, style: str, radius: float = 3) -> None:
        self.parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def box(self, x: float, y: float, width: float, height: float, style: str) -> None:
        self.parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", style: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>')

    def __str__(self) -> str:
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
        return "".join([head, *self.parts, "</svg>"])


@dataclass(frozen=True)
class Frame:
    """The part of a drawing between axes."""

    left: float
    top: float
    right: float
    bottom: float

    def across(self, low: float, high: float) -> Scale:
        return _between(low, high, self.left, self.right)

    def up(self, low: float, high: float) -> Scale:
        return _between(low, high, self.bottom, self.top)

    def x_axis(
        self, drawing: Drawing, scale: Scale, ticks: Sequence[tuple[float, str]], title: str, rules: bool = True
    ) -> None:
        for at, name in ticks:
            x = scale(at)
            if rules:
                drawing.line([(x, self.top), (x, self.bottom)], "rule")
            inside = min(x, drawing.width - _LETTER / 2 * len(name))
            drawing.text(inside, self.bottom + 16, name, "middle", "tick")
        drawing.text((self.left + self.right) / 2, self.bottom + 33, title, "middle", "title")

    def y_axis(self, drawing: Drawing, scale: Scale, ticks: Sequence[tuple[float, str]]) -> None:
        for at, name in ticks:
            y = scale(at)
            drawing.line([(self.left, y), (self.right, y)], "rule")
            drawing.text(self.left - 6, y + 4, name, "end", "tick")


def _between(low: float, high: float, first: float, last: float) -> Scale:
    return lambda value: first + (last - first) * ((value - low) / (high - low) if high > low else 0.5)


def even_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most so many multiples of 1, 2 or 5 times a power of ten; of whole numbers."""
    wanted = max((high - low) / most, 1)
    power = 10 ** math.floor(math.log10(wanted))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= wanted)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(each * step, f"{each * step:,.0f}") for each in range(first, last + 1)]


def decades(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Powers of ten between the logarithms `low` and `high`, at most so many."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(-(-(last - first + 1) // most), 1)
    return [(each, short(10.0**each)) for each in range(last, first - 1, -step)]


def short(value: float) -> str:
    """0.01, 1, 10,000, and beyond them 1e-3 and 1e5."""
    if 100 <= abs(value) < 1e5:
        return f"{value:,.0f}"
    if 1e-2 <= abs(value) < 100 or value == 0:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def logarithm(value: float | None) -> float | None:
    return math.log10(value) if value is not None and value > 0 else None


def limits(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Whole numbers that the values lie between; None where there are none."""
    known = [each for each in values if each is not None]
    if not known:
        return None
    low, high = math.floor(min(known)), math.ceil(max(known))
    return low, max(high, low + 1)
