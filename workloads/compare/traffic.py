"""What the devices under the tiers move, by the kernel's own count: the same for every setup, whoever does the I/O."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from workloads.compare.hierarchy import Tier

_SECTOR: Final = 512  # bytes, in these files whatever the device's own sector is (Documentation/block/stat.rst)
_READ: Final = 2
_WRITTEN: Final = 6


class Moved(msgspec.Struct, frozen=True):
    """Counts since the beginning, as columns: `seconds[i]`, and of each tier the bytes at that moment."""

    seconds: list[float]
    read_bytes: dict[str, list[int]]
    written_bytes: dict[str, list[int]]
    used: dict[str, list[int]]
    """Bytes on the tier's file system beyond those that were there at the beginning."""


def counters_of(tiers: Sequence[Tier]) -> dict[str, Path] | None:
    """Tier -> the file with its device's counts; None where one has none, or two tiers are on one device."""
    found = {}
    for tier in tiers:
        number = tier.directory.stat().st_dev
        path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
        if not path.exists():
            return None
        found[tier.name] = path.resolve()
    return found if len(set(found.values())) == len(found) else None


class Recorder:
    """Notes the counts whenever it is told to."""

    def __init__(self, tiers: Sequence[Tier], counters: Mapping[str, Path]) -> None:
        self._tiers = tiers
        self._counters = counters
        self._began = time.monotonic()
        self._rows: list[tuple[float, dict[str, tuple[int, int, int]]]] = []

    def note(self) -> None:
        """Now."""
        now = {tier.name: (*_moved(self._counters[tier.name]), _used(tier.directory)) for tier in self._tiers}
        self._rows.append((time.monotonic() - self._began, now))

    def moved(self) -> Moved:
        """All that was noted, at least once."""
        first = self._rows[0][1]
        read, written, used = (
            {name: [row[name][column] - first[name][column] for _, row in self._rows] for name in first}
            for column in range(3)
        )
        return Moved([seconds for seconds, _ in self._rows], read, written, used)


def _moved(counter: Path) -> tuple[int, int]:
    fields = counter.read_text().split()
    return int(fields[_READ]) * _SECTOR, int(fields[_WRITTEN]) * _SECTOR


def _used(directory: Path) -> int:
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
