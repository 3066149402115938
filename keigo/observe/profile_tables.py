"""A profile for people: what was measured of each tier, the model's parameters beside it, and how well they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from keigo.devices.baselines import FITS
from keigo.devices.fit import parameters
from keigo.devices.identity import shown
from keigo.devices.model import CostModel
from keigo.devices.profile import Cell, Profile, TierProfile
from keigo.observe.profile_plots import save_figure
from keigo.observe.profile_series import (
    DIRECTIONS,
    cells_over_k,
    format_errors,
    headline,
    held_out_errors,
    minute,
    model_errors,
    model_time,
    requests_per_second,
    summary,
)
from keigo.observe.profile_terminal import ProfilePlots
from keigo.units import format_size

_NONE: Final = "-"
_ERRORS: Final = (
    "error: |model - measured| / measured time of a request, median (90th percentile); "
    "held out: of cells that were left out of the fit"
)


def show(profile: Profile, picture: Path, console: Console) -> None:
    """Print tables and plots of a profile and write its picture, a PNG. Raises ProfileError."""
    save_figure(profile, picture)
    console.print(profile_report(profile))
    console.print(f"picture: {picture}", style="dim", soft_wrap=True, highlight=False)


def profile_report(profile: Profile) -> RenderableType:
    """Tables, then plots, of all tiers."""
    parts: list[RenderableType] = [
        Text(headline(profile), style="bold"),
        *(_device_line(tier) for tier in profile.tiers),
        Text(),
    ]
    parts += [
        measured_table(profile),
        Text(),
        model_table(profile),
        Text(),
        held_out_table(profile),
        Text(_ERRORS, style="dim"),
        Text(),
    ]
    if any(cell.beside for tier in profile.tiers for cell in tier.cells):
        parts += [mixed_table(profile), Text()]
    return Group(*parts, ProfilePlots(profile))


def measured_table(profile: Profile) -> Table:
    """A row a tier and direction: the three figures of its summary, with the 99th percentile and the highest rate."""
    table = _table("measured", ("4 KiB at k=1", "p99", "k*", "4 KiB at most", "bandwidth"))
    for tier in profile.tiers:
        for direction in DIRECTIONS:
            found, small = summary(tier, direction), cells_over_k(tier, direction)
            if found is None:
                table.add_row(tier.tier, direction, *[_NONE] * 5)
                continue
            table.add_row(
                tier.tier,
                direction,
                format_time(found.latency_us / 1e6),
                format_time(small[0].p99_us / 1e6),
                str(found.saturation_k),
                format_rate(max(map(requests_per_second, small))),
                f"{format_size(round(found.bandwidth))}/s",
            )
    return table


def model_table(profile: Profile) -> Table:
    """A row a tier and direction: the model's parameters, and its errors over the cells it was fitted to."""
    table = _table("model", ("form", "base time", "slots", "bandwidth", "error (p90)", "cells"))
    for tier in profile.tiers:
        for direction in DIRECTIONS:
            found = model_errors(tier, direction)
            if found is None:
                table.add_row(tier.tier, direction, *[_NONE] * 5, "0")
                continue
            base, slots, bandwidth = parameters(tier.model, direction, tier.cells)
            table.add_row(
                tier.tier,
                direction,
                _form(tier.model.cost(direction)),
                format_time(base),
                f"{slots:.1f}",
                f"{format_size(round(bandwidth))}/s" if math.isfinite(bandwidth) else _NONE,
                format_errors(found),
                str(found.cells),
            )
    return table


def held_out_table(profile: Profile) -> Table:
    """A row a tier and direction: median and 90th percentile error of each model over cells held out of its fit."""
    table = _table("held out", list(FITS))
    for tier in profile.tiers:
        found = held_out_errors(tier)
        for direction in DIRECTIONS:
            errors = {row.model: format_errors(row.errors) for row in found if row.direction == direction}
            table.add_row(tier.tier, direction, *(errors.get(name, _NONE) for name in FITS))
    return table


def mixed_table(profile: Profile) -> Table:
    """A row a mixed cell: how many times as long a request takes as with nothing beside it."""
    table = _table("mixed", ("k", "beside", "block", "mean time", "x alone", "model"))
    for tier in profile.tiers:
        for cell in tier.cells:
            if not cell.beside:
                continue
            alone = _alone(tier.cells, cell)
            other = "writers" if cell.direction == "read" else "readers"
            modelled = model_time(tier.model, cell) / model_time(tier.model, msgspec.structs.replace(cell, beside=0))
            table.add_row(
                tier.tier,
                cell.direction,
                str(cell.k),
                f"{cell.beside} {other}",
                format_size(cell.block_bytes),
                format_time(cell.mean_us / 1e6),
                _NONE if alone is None else f"{cell.mean_us / alone.mean_us:.2f}",
                f"{modelled:.2f}",
            )
    return table


def _device_line(tier: TierProfile) -> Text:
    parts = [shown(tier.device), format_size(tier.device.size_bytes)]
    parts.append(f"{len(tier.cells)} cells on a file of {format_size(tier.file_bytes)}")
    if tier.created:
        parts.append(f"measured before the others: {minute(tier.created)}, Linux {tier.kernel}")
    line = Text.assemble((tier.tier, "bold"), ": ", ", ".join(parts))
    if not tier.direct:
        line.append("; through the page cache, for direct I/O is refused here", style="yellow")
    return line


def _form(cost: CostModel) -> str:
    """additive, max, or from which k on it is max."""
    changes = [k for before, form, k in zip(cost.form, cost.form[1:], cost.ks[1:], strict=False) if before != form]
    return cost.form[0] if not changes else f"max from k={changes[0]}"


def _alone(cells: Sequence[Cell], mixed: Cell) -> Cell | None:
    """The cell like a mixed one, but with nothing beside it."""
    like = (mixed.direction, mixed.pattern, mixed.k, mixed.block_bytes, 0)
    return next((c for c in cells if (c.direction, c.pattern, c.k, c.block_bytes, c.beside) == like), None)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(title, overflow="fold")
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    return table


def format_time(seconds: float) -> str:
    """A time with three digits in s, ms or us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale * 0.9995:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds / 1e-6)} us"


def format_rate(per_second: float) -> str:
    """Requests a second with three digits: 870/s, 14.2 k/s, 1.20 M/s."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if per_second >= scale * 0.9995:
            return f"{_three(per_second / scale)} {unit}/s"
    return f"{_three(per_second)}/s"


def _three(value: float) -> str:
    """Three digits, and no exponent: 1.23, 12.3, 123, 1234."""
    return f"{value:.{max(0, 2 - max(0, len(str(int(value))) - 1))}f}"
