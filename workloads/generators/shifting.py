"""A hot spot that moves while the mix turns from writing to reading and back: what a static placement cannot follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from workloads.records import KeyFormat, UserKeys


@dataclass(frozen=True)
class ShiftingHotspot:
    """Phases without end: in each, `hot_operations` of the operations touch one window of `hot_records` of the records.

    Windows do not overlap, and all are used before one comes again. Phase p takes `write_shares[p % len]` as its
    share of updates, the others are reads: by default from write-heavy to read-heavy and back. A phase has
    `phase_operations` of all threads together, each thread doing its part. Keys are ordered, so that the hot window
    is a few files and not all of them a little. Raises WorkloadError.
    """

    records: int
    seed: int = 0
    phase_operations: int = 1_000_000
    hot_records: float = 0.05
    hot_operations: float = 0.9
    write_shares: Sequence[float] = (0.9, 0.5, 0.1, 0.5)
    value_size: int = 1000
    key_format: KeyFormat = field(default_factory=lambda: UserKeys("ordered"))
    batch: int = BLOCK

    def __post_init__(self) -> None:
        positive(
            records=self.records,
            phase_operations=self.phase_operations,
            hot_records=self.hot_records,
            value_size=self.value_size,
            batch=self.batch,
        )
        fraction(hot_records=self.hot_records, hot_operations=self.hot_operations)
        if not self.write_shares:
            raise WorkloadError("write shares: there must be one or more")
        for share in self.write_shares:
            fraction(write_share=share)
        stream(self.seed)

    @property
    def name(self) -> str:
        """See Workload."""
        return "shifting-hotspot"

    @property
    def window(self) -> int:
        """Records of the hot set."""
        return max(1, int(self.records * self.hot_records))

    def hot_start(self, phase: Int64s) -> Int64s:
        """The first record of the hot set in each phase."""
        slots = self.records // self.window
        step = max(1, round(slots * 0.618))
        while math.gcd(step, slots) != 1:
            step += 1
        return (phase % slots * step + self.seed % slots) % slots * self.window

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload."""
        return cut(
            (inserts(numbers, self.value_size) for numbers in strided(self.records, thread, threads)), self.batch
        )

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Without end."""
        check_thread(thread, threads)
        return cut(self._blocks(thread, threads), self.batch)

    def _blocks(self, thread: int, threads: int) -> Iterator[Batch]:
        random = stream(self.seed, thread, threads)
        shares = np.asarray(self.write_shares, dtype=np.float64)
        done = 0
        while True:
            number = np.arange(done, done + BLOCK, dtype=np.int64) * threads + thread
            done += BLOCK
            phase = number // self.phase_operations
            writes = random.random(BLOCK) < shares[phase % len(shares)]
            hot = random.random(BLOCK) < self.hot_operations
            inside = self.hot_start(phase) + random.integers(0, self.window, BLOCK)
            key = np.where(hot, inside, random.integers(0, self.records, BLOCK))
            op = np.where(writes, np.uint8(Op.UPDATE), np.uint8(Op.READ))
            yield Batch(op, key, writes * np.int32(self.value_size), np.zeros(BLOCK, np.int32))
