"""The plots of a profile in a terminal: throughput and latency over k, all tiers in one picture of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from keigo.devices.profile import Cell, Direction, Profile, TierProfile
from keigo.observe.profile_axes import count_label, doubling_axis, time_label, value_axis
from keigo.observe.profile_series import DIRECTIONS, SMALL, cells_over_k, requests_per_second
from keigo.observe.terminal_plot import Series, mark, plot

_WIDEST: Final = 64
_NARROWEST: Final = 30
_GAP: Final = 2
_LOWEST: Final = 13
_HIGHEST: Final = 18


@dataclass(frozen=True)
class _Measure:
    """What is shown over k."""

    name: str
    of_cell: Callable[[Cell], float]
    of_model: Callable[[float, float], float]
    """From k and the model's seconds of a request."""
    label: Callable[[float], str]


_MEASURES: Final = (
    _Measure("requests/s", requests_per_second, lambda k, seconds: k / seconds, count_label),
    _Measure("mean time", lambda cell: cell.mean_us / 1e6, lambda _, seconds: seconds, time_label),
)


class ProfilePlots:
    """Renders reads beside writes, or above them where there is no room; as wide as the console, up to 130 columns."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the plots."""
        half = (options.max_width - _GAP) // 2
        beside = half >= _NARROWEST
        width = min(_WIDEST, half) if beside else max(_NARROWEST, options.max_width)
        for measure in _MEASURES:
            panels = self._panels(measure, width, ascii_only=options.ascii_only)
            if beside and panels:
                yield from (Text(" " * _GAP).join(row) for row in zip(*panels, strict=True))
                yield Text()
            else:
                yield from (row for panel in panels for row in (*panel, Text()))
        legend = Text.assemble(("random 4 KiB requests; lines: the model; points: ", "dim"))
        for number, tier in enumerate(self._profile.tiers):
            legend += Text.assemble(mark(number, ascii_only=options.ascii_only), f" {tier.tier}  ")
        yield legend

    def _panels(self, measure: _Measure, width: int, *, ascii_only: bool) -> list[list[Text]]:
        """One panel for each direction that was measured, on the same axes so that they compare."""
        found = {direction: self._series(measure, direction) for direction in DIRECTIONS}
        points = [point for some in found.values() for series in some for point in series.points]
        if not points:
            return []
        x = doubling_axis(1, max(k for k, _ in points), str)
        y = value_axis([value for _, value in points], measure.label)
        height = min(_HIGHEST, max(_LOWEST, width // 3))
        return [
            plot(f"{d}s: {measure.name}, over k", some, x, y, width=width, height=height, ascii_only=ascii_only)
            for d, some in found.items()
            if any(series.points for series in some)
        ]

    def _series(self, measure: _Measure, direction: Direction) -> list[Series]:
        return [
            Series(
                [(cell.k, measure.of_cell(cell)) for cell in cells_over_k(tier, direction)],
                partial(_modelled, measure, tier, direction),
                number,
            )
            for number, tier in enumerate(self._profile.tiers)
        ]


def _modelled(measure: _Measure, tier: TierProfile, direction: Direction, k: float) -> float:
    return measure.of_model(k, tier.model.request_time(direction, k, SMALL))
