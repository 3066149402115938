"""The charts of one workload: how fast each setup was, over time, how long operations took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from workloads.report import svg
from workloads.report.measured import Latency, Measured, Section, Setup, Spread, pooled
from workloads.report.panels import (
    LEFT,
    STRIP_LEFT,
    STRIP_RIGHT,
    WIDTH,
    colours,
    count_text,
    legend,
    time_axis,
    time_text,
    value_axis,
)

TIMES: Final = "\N{MULTIPLICATION SIGN}"
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
_ROW: Final = 34.0
_FIGURES: Final = 256.0
"""Room at the right of the bars."""
_STRIP: Final = 74.0
_PANEL: Final = 300.0
_HEAD: Final = 8.0
_FOOT: Final = 26.0


def rates_chart(section: Section) -> str:
    """A bar per setup up to the median, a dot per repetition, the figures at the right."""
    shown = [(setup, section.rate(setup.name)) for setup in section.setups]
    most = max((rate.most for _, rate in shown if rate is not None), default=1.0)
    marks = svg.ticks(most, 6)
    scale = svg.Linear(0.0, marks[-1], LEFT, WIDTH - _FIGURES)
    bottom = _HEAD + _ROW * len(shown)
    parts = [svg.line((scale(mark), _HEAD), (scale(mark), bottom), "grid") for mark in marks]
    parts += [svg.label(scale(mark), bottom + 16, count_text(mark), "tick", "middle") for mark in marks]
    for row, (setup, rate) in enumerate(shown):
        parts.append(_rate_row(section, setup, rate, scale, _HEAD + _ROW * row))
    parts.append(svg.line((LEFT, _HEAD), (LEFT, bottom), "axis"))
    return svg.drawing(WIDTH, bottom + _FOOT, parts, f"{section.name}: operations per second of each setup")


def _rate_row(section: Section, setup: Setup, rate: Spread | None, scale: svg.Linear, top: float) -> str:
    middle = top + _ROW / 2
    parts = [svg.label(LEFT - 12, middle + 4, setup.name, "name", "end")]
    if rate is None:
        parts.append(svg.label(LEFT + 8, middle + 4, "did not run", "unable"))
        return "".join(parts)
    colour = colours(section)[setup.name]
    title = f"{setup.name}: median {rate.median:,.0f} operations/s of {rate.count}"
    parts.append(svg.bar(LEFT, middle - 9, scale(rate.median) - LEFT, 18, "bar", colour, title))
    if rate.count > 1:
        parts.append(svg.line((scale(rate.least), middle), (scale(rate.most), middle), "whisker"))
        for number, value in sorted(section.repetitions[setup.name].items()):
            parts.append(
                svg.dot(scale(value), middle, "dot", colour, f"repetition {number + 1}: {value:,.0f} operations/s")
            )
    parts.append(svg.label(WIDTH - _FIGURES + 62, middle + 4, count_text(rate.median), "figure", "end"))
    ratio = section.ratio(setup.name)
    if setup.name == section.base:
        parts.append(svg.label(WIDTH - _FIGURES + 80, middle + 4, "base", "ratio"))
    elif ratio is not None:
        parts.append(svg.label(WIDTH - _FIGURES + 80, middle + 4, ratio_text(ratio), "ratio"))
    return "".join(parts)


def ratio_text(ratio: Spread) -> str:
    """The median of the ratios, and between which they are."""
    median = f"{ratio.median:.2f} {TIMES}"
    return median if ratio.count == 1 else f"{median} ({ratio.least:.2f} \N{EN DASH} {ratio.most:.2f})"


def throughput_chart(section: Section) -> str:
    """A strip per setup on common scales: the median run in colour, the other repetitions thin."""
    strips = section.done
    several = len(strips) > 1
    most = max((max(run.throughput, default=0.0) for setup in strips for run in setup.runs), default=0.0)
    longest = max((run.ends[-1] for setup in strips for run in setup.runs if run.ends), default=1.0)
    height, title = (_STRIP, 20.0) if several else (3 * _STRIP, 0.0)
    marks = svg.ticks(most, 2 if several else 5)
    across = svg.Linear(0.0, longest, STRIP_LEFT, STRIP_RIGHT)
    paint = colours(section)
    parts: list[str] = []
    bottom = 0.0
    for setup in strips:
        top = bottom + _HEAD + title
        bottom = top + height
        if several:
            parts.append(svg.label(STRIP_LEFT, top - 6, setup.name, "name"))
        parts.append(time_axis(across, top, bottom, labelled=setup is strips[-1]))
        parts.append(
            _throughput_strip(setup, paint[setup.name], across, svg.Linear(0.0, marks[-1], bottom, top), marks)
        )
    return svg.drawing(WIDTH, bottom + _FOOT, parts, f"{section.name}: operations per second over time")


def _throughput_strip(setup: Setup, colour: str, across: svg.Linear, up: svg.Linear, marks: Sequence[float]) -> str:
    parts = [value_axis(up, marks, count_text)]
    median = setup.median_run()
    for run in sorted(setup.runs, key=lambda run: run is median):
        points = [(across(x), up(y)) for x, y in svg.stairs(run.ends, run.throughput, 0.0)]
        if not points:
            continue
        if run is median:
            parts.append(svg.area(points, [(x, up(0.0)) for x, _ in points], "wash", colour))
        parts.append(svg.path(points, "curve" if run is median else "thin", colour))
    return "".join(parts)


def operations_of(section: Section) -> list[str]:
    """The kinds of operations that were done, in the order of the first run that has them."""
    runs = [run for setup in section.done for run in setup.runs]
    return list(dict.fromkeys(name for run in runs for name in run.latencies))


def latency_of(setup: Setup, operation: str) -> Latency | None:
    """Latencies of an operation in all repetitions together."""
    found = [run.latencies[operation] for run in setup.runs if operation in run.latencies]
    return pooled(found) if found else None


def latency_charts(section: Section) -> str:
    """A panel per kind of operation: latency over the percentile, a line per setup, all on one scale."""
    operations = operations_of(section)
    curves = {
        operation: [(setup.name, points) for setup in section.done if (points := _curve(setup, operation))]
        for operation in operations
    }
    values = [value for lines in curves.values() for _, points in lines for _, value in points]
    if not values:
        return ""
    marks = svg.decades(min(values), max(values))
    paint = colours(section)
    panels = [_latency_panel(name, lines, marks, paint) for name, lines in curves.items() if lines]
    keys = legend([(setup.name, paint[setup.name]) for setup in section.done])
    return (keys if len(section.done) > 1 else "") + f'<div class="pair">{"".join(panels)}</div>'


def _curve(setup: Setup, operation: str) -> list[tuple[float, float]]:
    latency = latency_of(setup, operation)
    if latency is None:
        return []
    found = [(percent, latency.at(percent)) for percent in PERCENTILES]
    return [(percent, max(value, 1e-3)) for percent, value in found if value is not None]


def _latency_panel(
    operation: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    marks: Sequence[float],
    paint: dict[str, str],
) -> str:
    width, left, right = 490.0, 66.0, 14.0
    up = svg.Logarithmic(marks[0], marks[-1], _PANEL - _FOOT, _HEAD + 22)
    places = {
        percent: left + 12 + number * (width - left - right - 24) / (len(PERCENTILES) - 1)
        for number, percent in enumerate(PERCENTILES)
    }
    parts = [svg.label(left, _HEAD + 8, operation, "name")]
    for mark in marks:
        parts.append(svg.line((left, up(mark)), (width - right, up(mark)), "grid"))
        parts.append(svg.label(left - 8, up(mark) + 4, time_text(mark), "tick", "end"))
    for percent, x in places.items():
        parts.append(svg.line((x, _HEAD + 22), (x, _PANEL - _FOOT), "grid"))
        parts.append(svg.label(x, _PANEL - 8, percentile_text(percent), "tick", "middle"))
    for name, points in lines:
        parts.append(svg.path([(places[at], up(value)) for at, value in points], "curve", paint[name]))
        for at, value in points:
            title = f"{name}, {operation}: {percentile_text(at)} {time_text(value)}"
            parts.append(svg.dot(places[at], up(value), "dot", paint[name], title))
    return svg.drawing(width, _PANEL, parts, f"latency of {operation} by percentile")


def percentile_text(percent: float) -> str:
    """p50, p99.9."""
    return f"p{percent:g}"


def cpu_of(run: Measured, whose: str) -> float | None:
    """CPUs kept busy on average."""
    return run.cpu[whose] / run.seconds if whose in run.cpu and run.seconds else None
