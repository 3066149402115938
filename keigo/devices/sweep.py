"""What is measured of a device: which cells, in which order, and how long that takes.

The cells of one sector come last. They tell of slots where requests of 4 KiB fill the bus first, and a device that has
to read what surrounds a sector before it writes it is busy with that for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

from keigo.devices import fio
from keigo.devices.fio import Point
from keigo.devices.identity import MEMORY
from keigo.devices.model import SMALL_BLOCK
from keigo.devices.profile import SECTOR, Cell, DeviceId, Direction
from keigo.devices.scratch import Scratch, room_for, scratch_file

KIB: Final = 1 << 10
MIB: Final = 1 << 20

_KS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BLOCKS: Final = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
_SECTOR_KS: Final = (1, 2, 4, 8, 16, 32, 64)
# Devices decline among many writes, and read from more slots than they write to: of 12 cells, which one process takes,
# writes get every k up to 32, reads have a gap at 32.
_QUICK_SECTOR_KS: Final[dict[Direction, tuple[int, ...]]] = {
    "read": (1, 2, 4, 8, 16, 64),
    "write": (1, 2, 4, 8, 16, 32),
}
# fio sees each 0.1 s whether a cell has ended: these take 0.5 and 0.4 s in all, 20 ms more would take 0.1 s more.
_QUICK_RUNTIME: Final = 0.26
_QUICK_SECTOR_RUNTIME: Final = 0.18
_DIRECTIONS: Final[tuple[Direction, ...]] = ("read", "write")
_BATCH: Final = 12  # cells of one fio process: an error or a lost process costs no more than these


class Batch(NamedTuple):
    """The points of one fio process, and the seconds that it measures each."""

    points: tuple[Point, ...]
    runtime: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """A plan: points in order, each for `runtime` seconds, on a file of at most `size` bytes."""

    points: tuple[Point, ...]
    runtime: float
    size: int
    layout_seconds: float
    """How long the file may take to be written; a slow device gets a smaller one."""
    sector_runtime: float | None = None
    """Seconds of the points below 4 KiB, which stand last; None: as the others."""

    @property
    def seconds(self) -> float:
        """How long a tier takes, if its file takes all the time it may and no request takes longer than `runtime`."""
        return self.layout_seconds + sum(fio.planned_seconds(*batch) for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The points by fio process."""
        whole = [point for point in self.points if point.block_bytes >= SMALL_BLOCK]
        sectors = [point for point in self.points if point.block_bytes < SMALL_BLOCK]
        for points, runtime in ((whole, self.runtime), (sectors, self.sector_runtime or self.runtime)):
            for start in range(0, len(points), _BATCH):
                yield Batch(tuple(points[start : start + _BATCH]), runtime)

    def on(self, scratch: Scratch) -> Sweep:
        """What of this can be measured on a file.

        Requests that reach the device as they are, and that are small beside the file: on a small one, large blocks
        would meet in each other's way.
        """
        fitting = (p for p in self.points if scratch.smallest <= p.block_bytes and p.block_bytes * 4 <= scratch.size)
        return replace(self, points=tuple(fitting))


def quick_sweep(size: int | None = None, runtime: float | None = None) -> Sweep:
    """Enough for the shape of each cost: k at 4 KiB, a few larger blocks, one mixed cell. About 19 s a tier."""
    points = [Point(way, "random", k, 4 * KIB) for way in _DIRECTIONS for k in (1, 2, 4, 8, 16, 32, 64)]
    points += [
        Point(way, "random", k, block)
        for way in _DIRECTIONS
        for k, block in ((1, 64 * KIB), (1, 256 * KIB), (16, 256 * KIB))
    ]
    points += [Point(way, "sequential", 1, 128 * KIB) for way in _DIRECTIONS]
    points.append(Point("read", "random", 4, 4 * KIB, beside=4))
    points += [Point(way, "random", k, SECTOR) for way, ks in _QUICK_SECTOR_KS.items() for k in ks]
    return Sweep(
        tuple(points),
        runtime or _QUICK_RUNTIME,
        size or 128 * MIB,
        layout_seconds=2.0,
        sector_runtime=runtime or _QUICK_SECTOR_RUNTIME,
    )


def full_sweep(size: int | None = None, runtime: float | None = None) -> Sweep:
    """Every k with every block size, sequential ones, and mixed ones with few and many on either side."""
    points = [Point(way, "random", k, block) for way, block, k in product(_DIRECTIONS, _BLOCKS, _KS)]
    points += [Point(way, "sequential", k, 128 * KIB) for way, k in product(_DIRECTIONS, _KS)]
    points += [
        Point(way, "sequential", k, block) for way, block, k in product(_DIRECTIONS, (4 * KIB, MIB), (1, 4, 16, 64))
    ]
    points += [
        Point("read", "random", k, block, beside=beside)
        for block, k, beside in product((4 * KIB, 64 * KIB), (4, 16), (4, 16))
    ]
    points += [Point(way, "random", k, SECTOR) for way, k in product(_DIRECTIONS, _SECTOR_KS)]
    return Sweep(tuple(points), runtime or 1.0, size or 1024 * MIB, layout_seconds=15.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a sweep."""

    direct: bool
    memory: bool
    file_bytes: int
    cells: tuple[Cell, ...]


def measure(
    directory: Path, device: DeviceId, sweep: Sweep, reserve: int, told: Callable[[], None] = lambda: None
) -> Measured:
    """Sweep the device of a directory. `told` is called some times a second.

    `reserve`: bytes that must stay free. Raises ProfileError; whatever happens, nothing is left in the directory.
    """
    size = room_for(directory, device.filesystem, sweep.size, reserve)
    cells: list[Cell] = []
    with scratch_file(directory, size, sweep.layout_seconds, told) as scratch:
        for points, runtime in sweep.on(scratch).batches():
            cells += fio.run(points, scratch, runtime, told)
        return Measured(scratch.direct, device.filesystem in MEMORY, scratch.size, tuple(cells))
