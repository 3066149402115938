"""Where the bytes went: what each tier read and wrote over time, and in sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from workloads.report import svg
from workloads.report.measured import Measured, Section, Setup, Traffic
from workloads.report.panels import (
    STRIP_LEFT,
    STRIP_RIGHT,
    WIDTH,
    duration_text,
    legend,
    size_text,
    size_ticks,
    tier_colours,
    time_axis,
    value_axis,
)

_HALF: Final = 48.0
_TITLE: Final = 20.0
_HEAD: Final = 8.0
_FOOT: Final = 26.0
_MOST_SLICES: Final = 240
"""More than these are narrower than the eye can tell apart; neighbours are added up."""


def traffic_chart(section: Section, tiers: Sequence[str]) -> str:
    """A strip per setup, of its median run: written upwards, read downwards, stacked by tier, on common scales."""
    shown = [(setup, _thinned(traffic)) for setup in section.done if (traffic := setup.median_run().traffic)]
    if not shown:
        return ""
    longest = max(traffic.ends[-1] for _, traffic in shown)
    across = svg.Linear(0.0, longest, STRIP_LEFT, STRIP_RIGHT)
    most = max(max(_peak(traffic, traffic.written), _peak(traffic, traffic.read)) for _, traffic in shown)
    marks = size_ticks(most, 1)
    paint = tier_colours(tiers)
    parts: list[str] = []
    bottom = 0.0
    for setup, traffic in shown:
        top = bottom + _HEAD + _TITLE
        bottom = top + 2 * _HALF
        parts.append(time_axis(across, top, bottom, labelled=setup is shown[-1][0]))
        parts.append(_strip(setup, traffic, paint, across, marks, top))
    named = f"{section.name}: bytes per second that each tier wrote and read, over time"
    return legend([(name, paint[name]) for name in tiers]) + svg.drawing(WIDTH, bottom + _FOOT, parts, named)


def _strip(
    setup: Setup, traffic: Traffic, paint: dict[str, str], across: svg.Linear, marks: Sequence[float], top: float
) -> str:
    middle = top + _HALF
    parts = [
        svg.label(STRIP_LEFT, top - 6, setup.name, "name"),
        svg.label(STRIP_RIGHT - 4, top + 11, "written", "side", "end"),
        svg.label(STRIP_RIGHT - 4, top + 2 * _HALF - 4, "read", "side", "end"),
    ]
    for way, edge in ((traffic.written, top), (traffic.read, top + 2 * _HALF)):
        scale = svg.Linear(0.0, marks[-1], middle, edge)
        parts.append(value_axis(scale, marks[1:], lambda value: f"{size_text(value)}/s"))
        below = [0.0] * len(traffic.ends)
        for tier, moved in way.items():
            rates = _rates(traffic, moved)
            above = [low + rate for low, rate in zip(below, rates, strict=True)]
            upper, lower = (
                [(across(x), scale(y)) for x, y in svg.stairs(traffic.ends, values, 0.0)] for values in (above, below)
            )
            title = f"{setup.name}: {tier} {'wrote' if edge == top else 'read'} {size_text(sum(moved))}"
            parts.append(svg.area(upper, lower, "stack", paint[tier], title))
            below = above
    parts.append(svg.line((STRIP_LEFT, middle), (STRIP_RIGHT, middle), "axis"))
    run = setup.median_run()
    if run.run_began > 0:
        x = across(run.run_began)
        parts.append(svg.line((x, top), (x, top + 2 * _HALF), "mark"))
        parts.append(svg.label(x + 4, top + 11, f"run, {duration_text(run.seconds)}", "side"))
    return "".join(parts)


def _rates(traffic: Traffic, moved: Sequence[int]) -> list[float]:
    times = [0.0, *traffic.ends]
    return [size / max(end - begin, 1e-9) for size, (begin, end) in zip(moved, pairwise(times), strict=True)]


def _peak(traffic: Traffic, way: Mapping[str, tuple[int, ...]]) -> float:
    return max(
        (sum(rates) for rates in zip(*(_rates(traffic, moved) for moved in way.values()), strict=True)), default=0
    )


def _thinned(traffic: Traffic) -> Traffic:
    """Neighbouring slices added up until there are few enough to be seen."""
    together = -(-len(traffic.ends) // _MOST_SLICES)
    if together <= 1:
        return traffic

    def summed(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(sum(values[at : at + together]) for at in range(0, len(values), together))

    ends = tuple(
        traffic.ends[min(at + together, len(traffic.ends)) - 1] for at in range(0, len(traffic.ends), together)
    )
    read = {tier: summed(moved) for tier, moved in traffic.read.items()}
    written = {tier: summed(moved) for tier, moved in traffic.written.items()}
    return Traffic(traffic.counted_by, ends, read, written)


def totals(run: Measured) -> dict[str, tuple[int, int]]:
    """Tier -> bytes written and read in all of a run, load included."""
    if run.traffic is None:
        return {}
    return {tier: (sum(run.traffic.written[tier]), sum(run.traffic.read[tier])) for tier in run.traffic.written}
