"""RocksDB's universal compaction, played through from one full compaction to the next.

A tree of sorted runs, newest first; a flush adds one at level 0. When there are `trigger` of them or more, the picker
of RocksDB 7.8 (`db/compaction/compaction_picker_universal.cc`, with its default options) takes, in this order:

    all runs               where all but the oldest together have at least 2 times the bytes of the oldest
    some runs in a row     from the first run on that is followed by one of at most 1.01 times its size, each next
                           of at most 1.01 times the bytes taken before
    the newest few         so many that `trigger` runs remain, where there are more

A merged run goes to the level above that of the next older run, or to the last level.

Keys are written uniformly, so the union of runs with shares s of all keys has the share 1 - (1 - s1)(1 - s2)...; after
a full compaction there is one run of all keys again, so one such cycle is the steady state. One merge at a time: ours.

Where one compaction runs at a time, and all the time, `late` flushes wait until it ends. Measured on an emulated NVMe
device, 96 memtables and a trigger of 4: 7.4 and 8.8 bytes written for each byte flushed with several compactions at
once (here 10.2, none late), and 3.8 with one (here 3.9, 8 late, for writes stopped at 12 files).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final, NamedTuple

SIZE_RATIO: Final = 1.01
"""1 + RocksDB's size_ratio."""
SIZE_AMPLIFICATION: Final = 2.0
"""RocksDB's max_size_amplification_percent."""
MOST_FLUSHES: Final = 1 << 13
"""In all data: more are counted as if memtables were larger. 8192 take 0.15 s; 16384 write 6.0 bytes for each byte
ingested instead of 5.4, with a trigger of 16."""


class Run(NamedTuple):
    """A sorted run."""

    share: float
    """Of all keys."""
    level: int


@dataclass(frozen=True)
class Cycle:
    """What a cycle does, by level from 0. Bytes are shares of all data, traffic is per byte ingested."""

    mean: tuple[float, ...]
    """Time averages of the bytes."""
    peak: tuple[float, ...]
    """Highest bytes, with those of a merge that has ended and whose inputs are still there."""
    runs: tuple[float, ...]
    found: tuple[float, ...]
    """Share of all keys whose latest version lies there, averaged over time."""
    read: tuple[float, ...]
    written: tuple[float, ...]
    """Flushes included."""
    full: float
    """Bytes that full compactions write, per byte ingested."""


def pick(runs: list[Run], trigger: int) -> tuple[int, int] | None:
    """The runs [begin, end) to merge next, newest first; None where none are."""
    count = len(runs)
    if count < max(2, trigger):
        return None
    if sum(run.share for run in runs[:-1]) >= SIZE_AMPLIFICATION * runs[-1].share:
        return 0, count
    for begin in range(count - 1):
        taken, end = runs[begin].share, begin + 1
        while end < count and taken * SIZE_RATIO >= runs[end].share:
            taken += runs[end].share
            end += 1
        if end - begin > 1:
            return begin, end
    return (0, count - trigger + 1) if count > trigger else None


@functools.lru_cache(maxsize=64)
def cycle(flushes: float, trigger: int, levels: int, late: int = 1) -> Cycle:
    """One cycle of a tree whose data are `flushes` memtables, with levels 0 to `levels` - 1.

    `late`: flushes, at least 1, after which it looks whether to merge.
    """
    share = 1 / min(max(flushes, 1.0), MOST_FLUSHES)
    runs = [Run(1.0, levels - 1)]
    zero = [0.0] * levels
    tally = _Tally([*zero], [*zero], [*zero], [*zero], [*zero], [*zero])
    flushed = looks = 0
    full = 0.0
    while not full:
        runs[:0] = [Run(share, 0)] * late
        tally.written[0] += share * late
        flushed += late
        looks += 1
        while not full and (picked := pick(runs, trigger)) is not None:
            begin, end = picked
            full = tally.merge(runs, begin, end, levels)
        tally.look(runs)
    ingested = flushed * share
    return Cycle(
        mean=tuple(value / looks for value in tally.mean),
        peak=tuple(tally.peak),
        runs=tuple(value / looks for value in tally.runs),
        found=tuple(value / looks for value in tally.found),
        read=tuple(value / ingested for value in tally.read),
        written=tuple(value / ingested for value in tally.written),
        full=full / ingested,
    )


@dataclass
class _Tally:
    """Sums over a cycle, by level."""

    mean: list[float]
    peak: list[float]
    runs: list[float]
    found: list[float]
    read: list[float]
    written: list[float]

    def merge(self, runs: list[Run], begin: int, end: int, levels: int) -> float:
        """Merge in place; the share written if all were merged, else 0."""
        for run in runs[begin:end]:
            self.read[run.level] += run.share
        merged = 1 - math.prod(1 - run.share for run in runs[begin:end])
        level = levels - 1 if end == len(runs) else max(0, runs[end].level - 1)
        self.written[level] += merged
        before = self._bytes(runs)
        self.peak[level] = max(self.peak[level], before[level] + merged)
        everything = end - begin == len(runs)
        runs[begin:end] = [Run(merged, level)]
        return merged if everything else 0.0

    def look(self, runs: list[Run]) -> None:
        """Take the tree as it is after a flush and its merges into the averages."""
        unseen = 1.0
        for run in runs:
            self.mean[run.level] += run.share
            self.runs[run.level] += 1
            self.found[run.level] += unseen * run.share
            unseen *= 1 - run.share
        self.peak = [max(pair) for pair in zip(self.peak, self._bytes(runs), strict=True)]

    def _bytes(self, runs: list[Run]) -> list[float]:
        found = [0.0] * len(self.mean)
        for run in runs:
            found[run.level] += run.share
        return found
