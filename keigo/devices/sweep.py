"""What is measured of a device: which cells, in which order, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from keigo.devices import fio
from keigo.devices.fio import Point
from keigo.devices.identity import MEMORY
from keigo.devices.profile import Cell, DeviceId, Direction
from keigo.devices.scratch import room_for, scratch_file

KIB: Final = 1 << 10
MIB: Final = 1 << 20

_KS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BLOCKS: Final = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
_DIRECTIONS: Final[tuple[Direction, ...]] = ("read", "write")
_BATCH: Final = 12  # cells of one fio process: an error or a lost process costs no more than these


@dataclass(frozen=True, slots=True)
class Sweep:
    """A plan: points in order, each for `runtime` seconds, on a file of at most `size` bytes."""

    points: tuple[Point, ...]
    runtime: float
    size: int
    layout_seconds: float
    """How long the file may take to be written; a slow device gets a smaller one."""

    @property
    def seconds(self) -> float:
        """How long a tier takes, if its file takes all the time it may and no request takes longer than `runtime`."""
        return self.layout_seconds + sum(fio.planned_seconds(batch, self.runtime) for batch in self.batches())

    def batches(self) -> Iterator[tuple[Point, ...]]:
        """The points by fio process."""
        for start in range(0, len(self.points), _BATCH):
            yield self.points[start : start + _BATCH]


def quick_sweep(size: int | None = None, runtime: float | None = None) -> Sweep:
    """Enough for the shape of each cost: k at 4 KiB, a few larger blocks, one mixed cell. About 15 s a tier."""
    points = [Point(way, "random", k, 4 * KIB) for way in _DIRECTIONS for k in (1, 2, 4, 8, 16, 32, 64)]
    points += [
        Point(way, "random", k, block)
        for way in _DIRECTIONS
        for k, block in ((1, 64 * KIB), (1, 256 * KIB), (16, 256 * KIB))
    ]
    points += [Point(way, "sequential", 1, 128 * KIB) for way in _DIRECTIONS]
    points.append(Point("read", "random", 4, 4 * KIB, beside=4))
    return Sweep(tuple(points), runtime or 0.35, size or 128 * MIB, layout_seconds=2.0)


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
        for batch in sweep.batches():
            cells += fio.run(_fitting(batch, scratch.size), scratch, sweep.runtime, told)
        return Measured(scratch.direct, device.filesystem in MEMORY, scratch.size, tuple(cells))


def _fitting(points: Sequence[Point], size: int) -> list[Point]:
    """Points whose requests are small beside the file; on a small one, large blocks would meet in each other's way."""
    return [point for point in points if point.block_bytes * 4 <= size]
