"""What a power loss leaves on disks whose writes were recorded.

A flush makes durable what was written to its disk, and answered, before it. Of what came later, up to the moment of the
loss, a disk may have any part: each write is there or not, whatever came after it, and one may be there up to a sector.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.recorder import HEAD

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Record:
    """One write, or, with no length, one flush."""

    flush: bool
    disk: int
    offset: int
    start: int
    """Of the bytes in the log."""
    length: int


def records_of(log: Path) -> list[Record]:
    """All whole records of a log."""
    found = []
    size = log.stat().st_size
    if not size:
        return []
    with log.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as raw:
        at = 0
        while at + HEAD.size <= size:
            kind, disk, offset, length = HEAD.unpack_from(raw, at)
            at += HEAD.size
            if at + length > size:
                break
            found.append(Record(kind == b"F", disk, offset, at, length))
            at += length
    return found


def position(log: Path) -> int:
    """Bytes of the log, now: all that was answered so far is before it."""
    return log.stat().st_size


class Disks:
    """Disks that are played forward through a log, to losses at ever later positions."""

    def __init__(self, log: Path, count: int, size: int) -> None:
        self._raw = log.read_bytes()
        self._records = records_of(log)
        self._durable = [bytearray(size) for _ in range(count)]
        self._pending: list[list[Record]] = [[] for _ in range(count)]
        self._next = 0

    @property
    def positions(self) -> list[int]:
        """Every moment that can be told from another: the end of each record."""
        return [record.start + record.length for record in self._records]

    def _apply(self, to: bytearray, record: Record, length: int | None = None) -> None:
        length = record.length if length is None else length
        to[record.offset : record.offset + length] = self._raw[record.start : record.start + length]

    def forward(self, until: int) -> None:
        """Let everything happen up to a position."""
        while self._next < len(self._records):
            record = self._records[self._next]
            if record.start + record.length > until:
                return
            self._next += 1
            if not record.flush:
                self._pending[record.disk].append(record)
                continue
            for write in self._pending[record.disk]:
                self._apply(self._durable[record.disk], write)
            self._pending[record.disk].clear()

    def lose(self, chance: random.Random, images: Sequence[Path]) -> str:
        """Write what the disks may have now; returns what was kept, for whoever reads a failure."""
        told = []
        keep = chance.choice([0.0, 0.5, 0.9, 1.0])
        for durable, pending, image in zip(self._durable, self._pending, images, strict=True):
            found = bytearray(durable)
            kept = [record for record in pending if chance.random() < keep]
            for record in kept:
                self._apply(found, record)
            lost = [record for record in pending if record not in kept and record.length > SECTOR]
            if lost and chance.random() < 0.5:
                torn = chance.choice(lost)
                self._apply(found, torn, chance.randrange(torn.length // SECTOR) * SECTOR)
            image.write_bytes(b"")
            os.truncate(image, len(found))
            with image.open("r+b") as file:
                file.write(found)
            told.append(f"{len(kept)} of {len(pending)}")
        return ", ".join(told)
