"""What a generator hands to the runner: operations as parallel arrays; a million of them are no million objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

UInt8s = NDArray[np.uint8]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Op(IntEnum):
    """What is done to a record; the numbers are those in `Batch.op`."""

    READ = 0
    UPDATE = 1
    INSERT = 2
    SCAN = 3
    RMW = 4
    DELETE = 5


@dataclass(frozen=True, slots=True)
class Batch:
    """`len(batch)` operations in the order in which one thread does them.

    op: uint8, an `Op`. key: int64, the record number (for a scan, of the first record). size: int32, bytes of the
    value that is written, 0 where none is. length: int32, records that a scan reads, 0 for anything else. at: float64
    or None, seconds since the run began at which the operation is due, never falling; None: as soon as the one before
    is done.
    """

    op: UInt8s
    key: Int64s
    size: Int32s
    length: Int32s
    at: Floats | None = None

    def __len__(self) -> int:
        return len(self.op)

    def part(self, start: int, stop: int) -> Batch:
        """Operations `start` to `stop`, without copying."""
        cut = slice(start, stop)
        at = None if self.at is None else self.at[cut]
        return Batch(self.op[cut], self.key[cut], self.size[cut], self.length[cut], at)


def share(total: int, thread: int, threads: int) -> int:
    """How many of `total` operations thread `thread` of `threads` does; the shares add up to `total`."""
    return total // threads + (thread < total % threads)


def take(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The first `count` operations of `batches`, or all if there are fewer."""
    if count <= 0:
        return
    for batch in batches:
        if len(batch) >= count:
            yield batch.part(0, count)
            return
        yield batch
        count -= len(batch)
