"""A figure of one run: what each tier moved, requests under way, its room, migrations, and where levels were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench_placement_watch import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0")
_MIB: Final = 1 << 20


def draw(found: Timeline, title: str, path: Path) -> None:
    """Write a PNG; nothing where there are no samples."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    if not found.seconds:
        return
    rows = [_bandwidth, _concurrency, _used]
    rows += [_moves] if any(moved is not None for moved in found.moved) else []
    rows += [_levels] if found.levels else []
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(11, 2.3 * len(rows)), sharex=True, layout="constrained")
    for axis, plot in zip(axes, rows, strict=True):
        plot(axis, found)
        for number, (at, what) in enumerate(found.marks):
            axis.axvline(at, color="0.6", lw=0.6)
            if axis is axes[0]:
                axis.annotate(what, (at, 1.0 + 0.09 * (number % 2)), xycoords=("data", "axes fraction"), fontsize=7)
        axis.set_ylim(bottom=0)
        axis.margins(x=0)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    axes[-1].set_xlabel("seconds")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _line(axis: Axes, found: Timeline, column: Sequence[float], label: str, colour: str, style: str = "-") -> None:
    if column:
        axis.plot(found.seconds[: len(column)], column, style, color=colour, lw=1, label=label)


def _bandwidth(axis: Axes, found: Timeline) -> None:
    for (name, tier), colour in zip(found.tiers.items(), _COLOURS, strict=False):
        _line(axis, found, [value / _MIB for value in tier.read_bandwidth], f"{name} read", colour)
        _line(axis, found, [value / _MIB for value in tier.write_bandwidth], f"{name} written", colour, "--")
    axis.set_ylabel("MiB/s")


def _concurrency(axis: Axes, found: Timeline) -> None:
    for (name, tier), colour in zip(found.tiers.items(), _COLOURS, strict=False):
        _line(axis, found, tier.read_k, f"{name} reads", colour)
        _line(axis, found, tier.write_k, f"{name} writes", colour, "--")
    axis.set_ylabel("requests under way")
    axis.set_yscale("symlog", linthresh=1)


def _used(axis: Axes, found: Timeline) -> None:
    last = [*found.tiers][-1]  # as large as its device
    for (name, tier), colour in zip(found.tiers.items(), _COLOURS, strict=False):
        _line(axis, found, [value / _MIB for value in tier.used], f"{name} used", colour)
        room = [max(0, value or 0) / _MIB for value in tier.room]
        if name != last and any(value is not None for value in tier.room):
            _line(axis, found, room, f"{name} room", colour, ":")
    axis.set_ylabel("MiB")


def _moves(axis: Axes, found: Timeline) -> None:
    _line(axis, found, [(moved or 0) / _MIB for moved in found.moved], "moved, in all", "0.2")
    top = max((moved or 0) / _MIB for moved in found.moved) or 1.0
    stalled = [top * stalled for stalled in found.stalled]
    axis.fill_between(found.seconds, 0, stalled, color="#ff725c", alpha=0.2, lw=0, label="stalled")
    axis.set_ylabel("MiB moved")


def _levels(axis: Axes, found: Timeline) -> None:
    """Bytes of each level by tier, one bar of each listing beside the other: tiers are colours, levels rise."""
    names = sorted({level for _, tiers in found.levels for of in tiers.values() for level in of})
    tiers = list(found.tiers)
    most = max(sum(sum(of.values()) for of in where.values()) for _, where in found.levels) / _MIB
    width = max(1.0, found.seconds[-1] / max(1, len(found.levels)) * 0.8)
    for at, where in found.levels:
        bottom = 0.0
        for level in names:
            for tier, colour in zip(tiers, _COLOURS, strict=False):
                size = where.get(tier, {}).get(level, 0) / _MIB
                if size:
                    axis.bar(at, size, width, bottom, color=colour, edgecolor="white", lw=0.4)
                    if size > 0.04 * most and (at, where) == found.levels[-1]:
                        axis.annotate(level, (at + width * 0.6, bottom + size / 2), fontsize=6, va="center")
                    bottom += size
    for tier, colour in zip(tiers, _COLOURS, strict=False):
        axis.bar(0, 0, color=colour, label=tier)
    axis.set_ylabel("MiB, by level")
