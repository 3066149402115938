"""Scales and shapes for inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

Point = tuple[float, float]
FINE: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
COARSE: Final = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Linear:
    """Maps values from `low` to `high` to places from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        span = self.high - self.low
        return self.begin + (value - self.low) / (span or 1.0) * (self.end - self.begin)


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """As `Linear`, for values above 0 on a logarithmic axis; what is below `low` lies at its place."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = math.log(max(value, self.low) / self.low) / (math.log(self.high / self.low) or 1.0)
        return self.begin + share * (self.end - self.begin)


def escape(text: str) -> str:
    """Text as markup shows it."""
    return html.escape(text)


def ticks(most: float, about: int, steps: Sequence[float] = FINE) -> list[float]:
    """Round values from 0 to the first that is `most` or more, about as many as asked.

    They are multiples of one of `steps`, which end with 10, times a power of ten.
    """
    if not most > 0:
        return [0.0, 1.0]
    rough = most / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in steps if step * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def decades(least: float, most: float) -> list[float]:
    """Powers of ten around values above 0, two at least."""
    first = math.floor(math.log10(least))
    last = max(first + 1, math.ceil(math.log10(most)))
    return [10.0**power for power in range(first, last + 1)]


def element(name: str, content: str = "", **attributes: str | float) -> str:
    """An element; `content` is markup. `class_` is class, and `_` in a name stands for `-`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_number(value)}"' for key, value in attributes.items() if value != ""
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _number(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> str:
    """A text; `anchor` is start, middle or end."""
    return element("text", html.escape(text), x=x, y=y, class_=class_, text_anchor=anchor)


def line(begin: Point, end: Point, class_: str = "", colour: str = "") -> str:
    """A straight line; `colour` a CSS colour."""
    style = f"stroke:{colour}" if colour else ""
    return element("line", x1=begin[0], y1=begin[1], x2=end[0], y2=end[1], class_=class_, style=style)


def path(points: Sequence[Point], class_: str, colour: str, title: str = "") -> str:
    """A line through points."""
    return element("path", _title(title), d="M" + _through(points), class_=class_, style=f"stroke:{colour}")


def area(upper: Sequence[Point], lower: Sequence[Point], class_: str, colour: str, title: str = "") -> str:
    """What is between two lines of points."""
    outline = "M" + _through([*upper, *reversed(lower)]) + "Z"
    return element("path", _title(title), d=outline, class_=class_, style=f"fill:{colour}")


def stairs(ends: Sequence[float], values: Sequence[float], begin: float) -> list[Point]:
    """The points of values that each hold from the end of the one before to their own: as counted."""
    found: list[Point] = []
    for end, value in zip(ends, values, strict=True):
        found += [(begin, value), (end, value)]
        begin = end
    return found


def bar(x: float, y: float, width: float, height: float, class_: str, colour: str, title: str = "") -> str:
    """A rectangle."""
    shape = {"x": x, "y": y, "width": max(0.0, width), "height": height}
    return element("rect", _title(title), **shape, class_=class_, style=f"fill:{colour}" if colour else "")


def dot(x: float, y: float, class_: str, colour: str, title: str = "") -> str:
    """A small circle."""
    return element("circle", _title(title), cx=x, cy=y, r=3.2, class_=class_, style=f"fill:{colour}")


def drawing(width: float, height: float, parts: Iterable[str], name: str) -> str:
    """A drawing that is as wide as the page lets it be; `name` is what it shows, for those who cannot see it."""
    return (
        f'<div class="scroll"><svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(name)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""


def _through(points: Sequence[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
