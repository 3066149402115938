"""What the tables and plots of a profile show of a tier: its cells picked and sorted, the model at the same points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from keigo.devices.baselines import Errors, HeldOut, errors, held_out
from keigo.devices.model import DeviceModel
from keigo.devices.profile import Cell, Direction, Pattern, Profile, Summary, TierProfile, summary_of

SMALL: Final = 4096
"""Bytes of the requests whose throughput and latency are shown over k."""
DIRECTIONS: Final[tuple[Direction, Direction]] = ("read", "write")
PATTERNS: Final[tuple[Pattern, Pattern]] = ("random", "sequential")


def headline(profile: Profile) -> str:
    """When, where and with what a profile was measured."""
    kind = "quick profile" if profile.quick else "profile"
    return f"{kind} of {minute(profile.created)}, Linux {profile.kernel}, fio {profile.fio}"


def minute(created: str) -> str:
    """A profile's time of creation to the minute: 2026-11-21 16:00 UTC."""
    return f"{created[:16].replace('T', ' ')} UTC"


def cells_over_k(tier: TierProfile, direction: Direction) -> list[Cell]:
    """The random 4 KiB cells of a direction with nothing beside them, by k."""
    return [cell for cell in cells_over_blocks(tier.cells, direction, "random") if cell.block_bytes == SMALL]


def cells_over_blocks(
    cells: Sequence[Cell], direction: Direction, pattern: Pattern, k: int | None = None
) -> list[Cell]:
    """The cells of a direction and pattern, at one k or all, with nothing beside them, by k and block size.

    From 4 KiB up: of smaller requests the model says nothing.
    """
    of_these = [cell for cell in cells if cell.modelled and not cell.beside and k in (None, cell.k)]
    found = [cell for cell in of_these if cell.direction == direction and cell.pattern == pattern]
    return sorted(found, key=lambda cell: (cell.k, cell.block_bytes))


def summary(tier: TierProfile, direction: Direction) -> Summary | None:
    """`summary_of` a tier's cells; None where they lack the random 4 KiB request at k = 1."""
    try:
        return summary_of(tier.cells, direction)
    except ValueError:
        return None


def wide_k(tier: TierProfile, direction: Direction) -> int | None:
    """The k at which bandwidth over block size is shown beside k = 1.

    Of the k above 1 with random cells of at least two block sizes, the first that is not below saturation, or else the
    last; None where there is none, or one request saturates the device.
    """
    found = summary(tier, direction)
    sizes: dict[int, int] = {}
    for cell in cells_over_blocks(tier.cells, direction, "random"):
        sizes[cell.k] = sizes.get(cell.k, 0) + 1
    ks = sorted(k for k, count in sizes.items() if k > 1 and count >= 2)
    if found is None or found.saturation_k == 1 or not ks:
        return None
    return next((k for k in ks if k >= found.saturation_k), ks[-1])


def requests_per_second(cell: Cell) -> float:
    """Requests a second of all k threads together."""
    return cell.requests / cell.seconds


def model_time(model: DeviceModel, cell: Cell) -> float:
    """Seconds that the model gives a request of this cell."""
    return model.request_time(cell.direction, cell.k, cell.block_bytes, pattern=cell.pattern, beside=cell.beside)


def model_errors(tier: TierProfile, direction: Direction) -> Errors | None:
    """The model's relative errors over a direction's cells from 4 KiB up; None without cells.

    These are the cells that the model was fitted to, so what it says of other points may be worse.
    """
    cells = [cell for cell in tier.cells if cell.direction == direction and cell.modelled]
    return errors(tier.model, cells) if cells else None


@lru_cache(maxsize=64)
def held_out_errors(tier: TierProfile) -> Sequence[HeldOut]:
    """Each model's errors over cells that were left out of its fit; empty where there are too few to leave some out.

    Kept, for a full profile's cost 0.7 s a tier and both the tables and the picture show them.
    """
    if any(not cells_over_blocks(tier.cells, direction, "random") for direction in DIRECTIONS):
        return ()
    try:
        return tuple(held_out(tier.cells, seed=0))
    except ValueError:
        return ()


def format_errors(found: Errors) -> str:
    """Median and, in brackets, 90th percentile: 3.1% (12%)."""
    return f"{found.median:.1%} ({found.p90:.0%})"
