"""The picture of a profile: a row a tier; throughput and latency over k, bandwidth over block size; points and model.

Drawn on a Figure of its own, without pyplot, so that nothing is shared with, or left in, the process.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from keigo.devices.identity import shown
from keigo.devices.profile import Cell, Direction, Profile, ProfileError, TierProfile
from keigo.observe.profile_axes import Axis, count_label, doubling_axis, time_label, value_axis
from keigo.observe.profile_series import (
    DIRECTIONS,
    PATTERNS,
    SMALL,
    cells_over_blocks,
    cells_over_k,
    format_errors,
    headline,
    held_out_errors,
    requests_per_second,
    summary,
    wide_k,
)

COLOURS: Final[dict[Direction, str]] = {"read": "#0072b2", "write": "#d55e00"}
"""Blue and vermilion of Okabe and Ito's palette, told apart by the colour-blind."""
_INK: Final = "#333333"
_DPI: Final = 120
_WIDTH_INCHES: Final = 13.0
_ROW_INCHES: Final = 3.0
_HEAD_INCHES: Final = 0.75
_SAMPLES: Final = 160
_MIB: Final = 1 << 20
_RING: Final[dict[str, Any]] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 0.9}
_PLACES: Final = {"left": 0.055, "right": 0.985, "top": 0.81, "bottom": 0.165, "wspace": 0.23}
_STYLE: Final[dict[str, Any]] = {
    "figure.dpi": _DPI,
    "savefig.dpi": _DPI,
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
}


def save_figure(profile: Profile, path: Path) -> None:
    """Write the picture of a profile, a PNG. Raises ProfileError."""
    drawn = io.BytesIO()
    with _style():
        profile_figure(profile).savefig(drawn, format="png")
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error


def profile_figure(profile: Profile) -> Figure:
    """Draw a profile: 13 inches wide at 120 dots an inch, 3 inches a tier below a head with the legend."""
    rows = [_ROW_INCHES] * len(profile.tiers)
    with _style():
        figure = Figure(figsize=(_WIDTH_INCHES, _HEAD_INCHES + sum(rows)))
        head, *parts = figure.subfigures(1 + len(rows), 1, height_ratios=[_HEAD_INCHES, *rows], squeeze=False)[:, 0]
        _draw_head(head, profile)
        for part, tier in zip(parts, profile.tiers, strict=True):
            _draw_tier(part, tier)
        return figure


def _style() -> AbstractContextManager[None]:
    """A user's own matplotlibrc (LaTeX, a dark style) is not to decide how the picture comes out."""
    return matplotlib.style.context(["default", _STYLE], after_reset=True)


def _draw_head(part: SubFigure, profile: Profile) -> None:
    part.text(0.01, 0.9, _plain(headline(profile)), va="top", size=11)
    part.legend(
        handles=[
            *(_key(colour, marker="s", label=f"{direction}s") for direction, colour in COLOURS.items()),
            _key(_INK, marker="o", label="measured, mean"),
            _key(_INK, marker="_", label="measured, p99"),
            _key(_INK, marker="D", markersize=4.5, label="measured, sequential"),
            _key(_INK, line="-", label="model"),
            _key(_INK, line="--", label="model, sequential"),
            _key(_INK, marker="o", label="saturation k*", **_RING),
        ],
        loc="lower left",
        bbox_to_anchor=(0.003, 0.0),
        ncols=8,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.6,
    )


def _key(colour: str, *, line: Literal["-", "--", "none"] = "none", **look: Any) -> Line2D:  # noqa: ANN401
    return Line2D([], [], color=colour, linestyle=line, **look)


def _draw_tier(part: SubFigure, tier: TierProfile) -> None:
    found = [row for row in held_out_errors(tier) if row.model == "MQSSD"]
    errors = ", ".join(f"{row.direction}s {format_errors(row.errors)}" for row in found) or "unknown"
    place = shown(tier.device) + ("" if tier.direct else ", through the page cache")
    part.text(0.01, 0.98, _plain(tier.tier), va="top", weight="bold", size=12)
    line = f"{place}; {len(tier.cells)} cells; the model's error on held-out cells, median (p90): {errors}"
    part.text(0.99, 0.98, _plain(line), va="top", ha="right", size=9.5)
    # Fixed places, so that the panels of all tiers stand in line.
    throughput, latency, bandwidth = part.subplots(1, 3, gridspec_kw=_PLACES)
    _draw_throughput(throughput, tier)
    _draw_latency(latency, tier)
    _draw_bandwidth(bandwidth, tier)


def _draw_throughput(axes: Axes, tier: TierProfile) -> None:
    found = {direction: summary(tier, direction) for direction in DIRECTIONS}
    notes = [(direction, f"k* = {one.saturation_k}") for direction, one in found.items() if one is not None]
    _title(axes, "throughput, random 4 KiB", notes)
    values: list[float] = []
    for direction in DIRECTIONS:
        cells = cells_over_k(tier, direction)
        rates = [requests_per_second(cell) for cell in cells]
        values += rates + _draw_over_k(axes, tier, direction, rates, lambda k, seconds: k / seconds)
    _scale_over_k(axes, tier, values, count_label, "requests/s")


def _draw_latency(axes: Axes, tier: TierProfile) -> None:
    _title(axes, "latency, random 4 KiB", [])
    values: list[float] = []
    for direction in DIRECTIONS:
        cells = cells_over_k(tier, direction)
        ks = [cell.k for cell in cells]
        means, high = [cell.mean_us / 1e6 for cell in cells], [cell.p99_us / 1e6 for cell in cells]
        axes.vlines(ks, means, high, color=COLOURS[direction], linewidth=0.8, alpha=0.5)
        axes.plot(ks, high, "_", color=COLOURS[direction], markersize=7, gid=f"p99 {direction}")
        values += means + high + _draw_over_k(axes, tier, direction, means, lambda _, seconds: seconds)
    _scale_over_k(axes, tier, values, _time_label, "time of a request")


def _draw_over_k(
    axes: Axes, tier: TierProfile, direction: Direction, values: Sequence[float], of: Callable[[float, float], float]
) -> list[float]:
    """Points, a ring at k*, and the model's line between the smallest and largest k; the line's values."""
    ks = [cell.k for cell in cells_over_k(tier, direction)]
    if not ks:
        return []
    colour, found = COLOURS[direction], summary(tier, direction)
    line = _between(ks[0], ks[-1])
    modelled = [of(k, tier.model.request_time(direction, k, SMALL)) for k in line]
    axes.plot(line, modelled, color=colour, gid=f"model {direction}")
    axes.plot(ks, values, "o", color=colour, gid=f"measured {direction}")
    if found is not None:
        at = found.saturation_k
        (ring,) = axes.plot([at], [values[ks.index(at)]], "o", color=colour, gid=f"saturation {direction}")
        ring.set(**_RING)
    return modelled


def _scale_over_k(
    axes: Axes, tier: TierProfile, values: Sequence[float], label: Callable[[float], str], name: str
) -> None:
    largest = max((cell.k for direction in DIRECTIONS for cell in cells_over_k(tier, direction)), default=1)
    _scale(axes, doubling_axis(1, largest, str), values, label)
    axes.set_xlabel("k, concurrent requests")
    axes.set_ylabel(name)


def _draw_bandwidth(axes: Axes, tier: TierProfile) -> None:
    wide = {direction: wide_k(tier, direction) for direction in DIRECTIONS}
    _title(axes, "bandwidth", [(d, f"filled: k = {k}") for d, k in wide.items() if k is not None])
    blocks: list[int] = []
    values: list[float] = []
    for direction, many in wide.items():
        for k in (1,) if many is None else (1, many):
            for pattern in PATTERNS:
                cells = cells_over_blocks(tier.cells, direction, pattern, k)
                blocks += [cell.block_bytes for cell in cells]
                values += _draw_over_blocks(axes, tier, cells)
    x = doubling_axis(min(blocks, default=SMALL), max(blocks, default=SMALL), _size_label, step=4)
    _scale(axes, x, values, lambda value: f"{value:g}")
    axes.set_xlabel("block size; hollow: k = 1")
    axes.set_ylabel("MiB/s")


def _draw_over_blocks(axes: Axes, tier: TierProfile, cells: Sequence[Cell]) -> list[float]:
    """Points of cells that differ in block size only, and the model's line along them; the values of both."""
    if not cells:
        return []
    one = cells[0]
    colour, random = COLOURS[one.direction], one.pattern == "random"
    line = _between(one.block_bytes, cells[-1].block_bytes)
    times = [tier.model.request_time(one.direction, one.k, block, pattern=one.pattern) for block in line]
    modelled = [one.k * block / time / _MIB for block, time in zip(line, times, strict=True)]
    measured = [cell.bandwidth / _MIB for cell in cells]
    name = f"{one.direction} {one.pattern} {one.k}"
    axes.plot(line, modelled, "-" if random else "--", color=colour, lw=1.4 if random else 0.8, gid=f"model {name}")
    axes.plot(
        [cell.block_bytes for cell in cells],
        measured,
        "o" if random else "D",
        color=colour,
        markersize=5.5 if random else 4.5,
        markerfacecolor="white" if one.k == 1 else colour,
        gid=f"measured {name}",
    )
    return measured + modelled


def _title(axes: Axes, title: str, notes: Sequence[tuple[Direction, str]]) -> None:
    """What a panel shows, and at its right a note on each direction in its colour."""
    axes.set_title(title, loc="left")
    beside: Any = "axes fraction"
    corner, offset, foot = (1.0, 1.0), (0, 6), "baseline"
    for direction, note in reversed(notes):
        beside = axes.annotate(
            note, corner, offset, beside, "offset points", ha="right", va=foot, color=COLOURS[direction], size=9.5
        )
        corner, offset, foot = (0.0, 0.0), (-10, 0), "bottom"


def _scale(axes: Axes, x: Axis, values: Sequence[float], label: Callable[[float], str]) -> None:
    """Scale a panel; one without any values says so."""
    axes.set_xscale("log")
    _set_ticks(axes.xaxis, x)
    axes.set_xlim(x.at(-0.03), x.at(1.03))
    usable = [value for value in values if value > 0]
    if not usable:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#888888")
        return
    y = value_axis(usable, label)
    axes.set_yscale("log")
    _set_ticks(axes.yaxis, y)
    axes.set_ylim(y.at(-0.04), y.at(1.04))


def _set_ticks(drawn: DrawnAxis, axis: Axis) -> None:
    drawn.set_major_locator(FixedLocator([value for value, _ in axis.ticks]))
    drawn.set_major_formatter(FixedFormatter([label for _, label in axis.ticks]))
    drawn.set_minor_locator(NullLocator())
    drawn.set_minor_formatter(NullFormatter())


def _between(low: float, high: float) -> list[float]:
    """Values from low to high, evenly spaced on a logarithmic axis."""
    return [low * (high / low) ** (at / (_SAMPLES - 1)) for at in range(_SAMPLES)]


def _size_label(size: float) -> str:
    return f"{size / _MIB:g} MiB" if size >= _MIB else f"{size / 1024:g} KiB"


def _time_label(seconds: float) -> str:
    return re.sub(r"(?<=\d)(?=[a-z])", " ", time_label(seconds)).replace("u", "µ")


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
