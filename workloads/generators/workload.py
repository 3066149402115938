"""What a workload is, and what all of them share: seeded streams, blocks, the records that a thread may touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from keigo.errors import KeigoError
from workloads.operations import Batch, Floats, Int64s, Op, UInt8s
from workloads.records import KeyFormat

# 64 KiB an array: it stays in the second-level cache, and numpy's cost per call is below 0.2 ns an operation.
BLOCK: Final = 8192


class WorkloadError(KeigoError):
    """A workload that cannot be made as asked; the text names the parameter and its value."""


class Workload(Protocol):
    """A seeded stream of operations for each of a number of threads.

    The same workload with the same seed and number of threads gives the same operations, whatever the batch size, in
    every process. Methods may be called from any thread; one iterator belongs to one thread.
    """

    @property
    def name(self) -> str:
        """As a report shows it."""

    @property
    def records(self) -> int:
        """Records that `load` inserts."""

    @property
    def key_format(self) -> KeyFormat:
        """How record numbers become keys."""

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """Insert the records that `run` counts on; all threads together insert each of them once."""

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """The operations of one thread, without end unless the workload says so. Every record that is read, updated or
        deleted was loaded, or inserted earlier by the same thread."""


def check_thread(thread: int, threads: int) -> None:
    """Raises WorkloadError unless 0 <= thread < threads."""
    if not 0 <= thread < threads:
        raise WorkloadError(f"thread {thread} of {threads}: must be from 0 to {threads - 1}")


def positive(**values: float) -> None:
    """Raises WorkloadError for the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise WorkloadError(f"{name.replace('_', ' ')} {value}: must be above 0")


def fraction(**values: float) -> None:
    """Raises WorkloadError for the first value that is not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise WorkloadError(f"{name.replace('_', ' ')} {value}: must be from 0 to 1")


def stream(seed: int, thread: int = 0, threads: int = 1) -> np.random.Generator:
    """The random numbers of one thread, independent of those of the others."""
    if seed < 0:
        raise WorkloadError(f"seed {seed}: must not be negative")
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=(thread, threads))))


def cut(blocks: Iterable[Batch], batch: int) -> Iterator[Batch]:
    """`blocks`, in batches of at most `batch` operations."""
    positive(batch=batch)
    for block in blocks:
        for start in range(0, len(block), batch):
            yield block.part(start, start + batch)


def inserts(numbers: Int64s, size: int) -> Batch:
    """A batch that inserts `numbers` with values of `size` bytes."""
    count = len(numbers)
    return Batch(
        np.full(count, Op.INSERT, np.uint8), numbers, np.full(count, size, np.int32), np.zeros(count, np.int32)
    )


def strided(records: int, thread: int, threads: int) -> Iterator[Int64s]:
    """The numbers thread, thread + threads, ... below `records`, in blocks, as a shared counter deals them out."""
    check_thread(thread, threads)
    for start in range(thread, records, BLOCK * threads):
        yield np.arange(start, min(records, start + BLOCK * threads), threads, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of operations; they are divided by their sum. Raises WorkloadError unless all are >= 0 and one above."""

    shares: Sequence[tuple[Op, float]]

    def __post_init__(self) -> None:
        for op, share in self.shares:
            if not 0 <= share < float("inf"):
                raise WorkloadError(f"share of {op.name.lower()} {share}: must not be negative")
        if not sum(share for _, share in self.shares) > 0:
            raise WorkloadError("shares of operations: one must be above 0")

    @property
    def of(self) -> dict[Op, float]:
        """The share of each operation, from 0 to 1."""
        total = sum(share for _, share in self.shares)
        return {op: share / total for op, share in self.shares if share > 0}

    def draw(self, random: np.random.Generator, count: int) -> UInt8s:
        """`count` operations."""
        shares = self.of
        codes = np.array(list(shares), np.uint8)
        if len(codes) == 1:
            return np.full(count, codes[0], np.uint8)
        edges: Floats = np.cumsum(list(shares.values()))[:-1]
        drawn = random.random(count)
        chosen = np.zeros(count, np.uint8)
        for edge in edges:
            chosen += drawn >= edge
        return codes[chosen]


@dataclass(frozen=True, slots=True)
class View:
    """The records that one thread knows to exist, by age: those loaded, then those it inserted.

    Thread i of n inserts the record numbers records + i, records + i + n, ... An *index* counts within the view: the
    newest record is the last.
    """

    records: int
    thread: int
    threads: int

    def number(self, index: Int64s) -> Int64s:
        """Record numbers of indices."""
        own = self.records + self.thread + (index - self.records) * self.threads
        return np.where(index < self.records, index, own)

    def index(self, number: Int64s) -> Int64s:
        """Indices of record numbers; -1 for those that other threads insert."""
        since = number - (self.records + self.thread)
        own = np.where((since >= 0) & (since % self.threads == 0), self.records + since // self.threads, np.int64(-1))
        return np.where(number < self.records, number, own)
