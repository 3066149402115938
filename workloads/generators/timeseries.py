"""Ingest of time series: each point is the newest of its series, and what is read is the recent past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from workloads.generators.workload import (
    BLOCK,
    WorkloadError,
    check_thread,
    cut,
    fraction,
    inserts,
    positive,
    stream,
    strided,
)
from workloads.operations import Batch, Int64s, Op
from workloads.records import KeyFormat, SeriesKeys

_MOST_SERIES: Final = 10**8  # digits of SeriesKeys


@dataclass(frozen=True)
class TimeSeries:
    """`series` series get a point each, in turn; `scan_share` of the operations read the last points of one of them.

    Point t of series s is record number t * series + s, and its key is `s:t` (see SeriesKeys): every insert goes to
    the end of its series, so to as many places in the key order as there are series. `loaded_points` are there when
    the run begins. A scan reads the newest 1 to `most_scanned` points of a series, in ascending order up to the last
    one inserted. Thread i of n has the series i, i + n, ... for itself. Raises WorkloadError.
    """

    series: int = 1000
    loaded_points: int = 1000
    seed: int = 0
    scan_share: float = 0.1
    most_scanned: int = 60
    value_size: int = 64
    batch: int = BLOCK

    def __post_init__(self) -> None:
        positive(
            series=self.series,
            loaded_points=self.loaded_points,
            most_scanned=self.most_scanned,
            value_size=self.value_size,
            batch=self.batch,
        )
        fraction(scan_share=self.scan_share)
        if self.series > _MOST_SERIES:
            raise WorkloadError(f"series {self.series}: must be at most {_MOST_SERIES}")
        stream(self.seed)

    @property
    def name(self) -> str:
        """See Workload."""
        return "time-series"

    @property
    def records(self) -> int:
        """See Workload."""
        return self.series * self.loaded_points

    @property
    def key_format(self) -> KeyFormat:
        """See Workload."""
        return SeriesKeys(self.series)

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Points come in the order of time, in every series."""
        return cut(
            (inserts(numbers, self.value_size) for numbers in strided(self.records, thread, threads)), self.batch
        )

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Without end. Raises WorkloadError when a thread has no series."""
        check_thread(thread, threads)
        if threads > self.series:
            raise WorkloadError(f"threads {threads}: must be at most {self.series}, the number of series")
        return cut(self._blocks(thread, threads), self.batch)

    def _blocks(self, thread: int, threads: int) -> Iterator[Batch]:
        random = stream(self.seed, thread, threads)
        own = len(range(thread, self.series, threads))
        done = 0  # points that this thread has inserted
        while True:
            scans = random.random(BLOCK) < self.scan_share
            before = done + np.cumsum(~scans, dtype=np.int64) - ~scans
            done = int(before[-1]) + int(not scans[-1])
            place = np.where(scans, random.integers(0, own, BLOCK), before % own)
            points = self._points(before, place, own)
            wanted = random.integers(1, self.most_scanned, BLOCK, endpoint=True)
            length = np.where(scans, np.minimum(wanted, points), 0)
            key = (points - length) * self.series + thread + place * threads
            op = np.where(scans, np.uint8(Op.SCAN), np.uint8(Op.INSERT))
            yield Batch(op, key, ~scans * np.int32(self.value_size), length.astype(np.int32))

    def _points(self, inserted: Int64s, place: Int64s, own: int) -> Int64s:
        """Points that series `place` of a thread's `own` has after the thread inserted `inserted`, in turn."""
        return self.loaded_points + (inserted + own - 1 - place) // own
