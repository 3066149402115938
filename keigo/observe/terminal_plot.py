"""Log-log plots in a terminal: lines in braille dots, points as marks that are told apart without colours, too.

Own code, for plotext, which does this, changed its whole interface between 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Final

from rich.text import Text

from keigo.observe.profile_axes import Axis

_COLOURS: Final = ("green", "cyan", "blue", "magenta", "yellow", "red")
_MARKS: Final = "●▲■◆▼○△□◇▽"
_ASCII_MARKS: Final = "oxs*vOXS#V"
# Dots 1-8 of a braille pattern (Unicode 16, 24.5): the bit of each, by row and column of a 2 x 4 cell.
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE: Final = 0x2800

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points, and a line over the range of x that they span."""

    points: Sequence[Point]
    line: Callable[[float], float] | None
    number: int
    """Decides the mark and the colour."""


def mark(number: int, *, ascii_only: bool) -> tuple[str, str]:
    """The mark and the colour of the series of this number."""
    marks = _ASCII_MARKS if ascii_only else _MARKS
    return marks[number % len(marks)], _COLOURS[number % len(_COLOURS)]


@dataclass
class _Canvas:
    """Characters of `width` x `height`; each has 2 x 4 dots, or a mark. Dots are counted from the upper left corner."""

    width: int
    height: int
    x: Axis
    y: Axis
    ascii_only: bool
    dots: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    marks: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def column(self, x: float) -> int:
        """The dot column of a value, which may lie outside."""
        return round(self.x.share(x) * (self.width * 2 - 1))

    def row(self, y: float) -> int:
        """The dot row of a value, which may lie outside."""
        return round((1 - self.y.share(y)) * (self.height * 4 - 1))

    def set_dot(self, column: int, row: int, style: str) -> None:
        """Set a dot; one that lies outside is not seen."""
        cell = column // 2, row // 4
        before, _ = self.dots.get(cell, (0, ""))
        self.dots[cell] = (before | _DOTS[row % 4][column % 2], style)

    def draw_line(self, series: Series) -> None:
        """Draw a series' line, from its first point to its last."""
        if series.line is None or not series.points:
            return
        _, style = mark(series.number, ascii_only=self.ascii_only)
        first, last = (self.column(edge(at for at, _ in series.points)) for edge in (min, max))
        before: int | None = None
        for column in range(first, last + 1):
            row = self.row(series.line(self.x.at(column / (self.width * 2 - 1))))
            # A steep line skips rows: they are filled, so that it stays one line.
            for between in _from(before, row):
                self.set_dot(column, between, style)
            before = row

    def draw_points(self, series: Series) -> None:
        """Draw a series' points; of two in one place the later one is seen."""
        for x, y in series.points:
            self.marks[self.column(x) // 2, self.row(y) // 4] = mark(series.number, ascii_only=self.ascii_only)

    def line(self, row: int) -> Iterator[tuple[str, str]]:
        """The characters of a line, in runs of one style."""
        signs = [self._sign(column, row) for column in range(self.width)]
        for style, run in groupby(signs, key=itemgetter(1)):
            yield "".join(sign for sign, _ in run), style

    def _sign(self, column: int, row: int) -> tuple[str, str]:
        if (column, row) in self.marks:
            return self.marks[column, row]
        if (column, row) in self.dots:
            bits, style = self.dots[column, row]
            return "." if self.ascii_only else chr(_BRAILLE | bits), style
        return " ", ""


def _from(before: int | None, row: int) -> range:
    """The rows from next to `before` up to `row`."""
    if before is None or abs(row - before) <= 1:
        return range(row, row + 1)
    return range(before + 1, row + 1) if before < row else range(row, before)


def plot(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, width: int, height: int, ascii_only: bool = False
) -> list[Text]:
    """Draw the series: `height` lines of title, plot, axis and its labels, each of exactly `width` columns."""
    margin = max((len(label) for _, label in y.ticks), default=0) + 1
    # The last column stays free for the second half of the last label.
    canvas = _Canvas(width - margin - 2, height - 3, x, y, ascii_only)
    for one in series:
        canvas.draw_line(one)
    for one in series:
        canvas.draw_points(one)
    corner, flat, tick, upright, side = "+-++|" if ascii_only else "└─┬┤│"
    lines = [Text(" " * (margin + 1) + title, style="bold")]
    labels = {canvas.row(value) // 4: label for value, label in y.ticks}
    for row in range(canvas.height):
        edge = upright if row in labels else side
        lines.append(Text.assemble((f"{labels.get(row, ''):>{margin - 1}} {edge}", "dim"), *canvas.line(row)))
    ticks = {canvas.column(value) // 2: label for value, label in x.ticks}
    rule = "".join(tick if column in ticks else flat for column in range(canvas.width))
    lines.append(Text(" " * margin + corner + rule, style="dim"))
    lines.append(Text(" " * (margin + 1) + _below(ticks), style="dim"))
    for line in lines:
        line.truncate(width, pad=True)
    return lines


def _below(ticks: dict[int, str]) -> str:
    """The labels of the x axis, each below its tick; one that would touch its neighbour is left out."""
    line = ""
    for column, label in sorted(ticks.items()):
        start = column - (len(label) - 1) // 2
        if not line or start > len(line):
            line = line.ljust(start) + label
    return line
