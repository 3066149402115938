"""Facebook's mixgraph: a social graph's store, as modelled from traces of ZippyDB and UDB.

Source: "Characterizing, Modeling, and Benchmarking RocksDB Key-Value Workloads at Facebook" (Cao et al., FAST 2020)
and the `mixgraph` benchmark of db_bench, whose published parameters are the defaults. Key ranges have a hotness that
follows two exponentials; the keys of a range, a power law; value sizes and scan lengths, a generalized Pareto
distribution; the rate of queries, on request, a sine.

db_bench draws one random number for an operation and takes type, key and size from it, so that they depend on each
other; here they are drawn apart, as the paper models them. db_bench also ignores the key ranges unless
key_dist_a and _b are set, so its "Prefix_random" is uniform; here it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np

from workloads.generators.workload import (
    BLOCK,
    Mix,
    WorkloadError,
    check_thread,
    cut,
    inserts,
    positive,
    stream,
    strided,
)
from workloads.operations import Batch, Floats, Int64s, Op
from workloads.records import KeyFormat, UserKeys, fnv64

_LEAST_VALUE: Final = 10  # db_bench's
_LOAD_VALUE: Final = 43  # of the fillrandom that comes before the published commands


@dataclass(frozen=True, slots=True)
class Pareto:
    """Generalized Pareto: density (1/sigma) (1 + k (x - theta) / sigma)^-(1/k + 1)."""

    k: float
    sigma: float
    theta: float = 0.0

    def draw(self, random: np.random.Generator, count: int) -> Floats:
        """`count` of them, rounded up to whole numbers, as floats: with k > 1 some are beyond any integer."""
        tail = 1 - random.random(count)  # above 0
        spread = -np.log(tail) if self.k == 0 else (tail**-self.k - 1) / self.k
        return np.ceil(self.theta + self.sigma * spread)


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """Hotness of `count` key ranges of equal size: a exp(b x) + c exp(d x) for x = 1..count, dealt out at random."""

    count: int
    a: float
    b: float
    c: float
    d: float

    def hotness(self) -> Floats:
        """The share of operations of each range, by x: float64[count], sum 1."""
        x = np.arange(1, self.count + 1, dtype=np.float64)
        weight = self.a * np.exp(self.b * x) + self.c * np.exp(self.d * x)
        weight[weight < 1e-16] = 0  # as db_bench
        if not (np.isfinite(weight).all() and weight.sum() > 0):
            raise WorkloadError(
                f"key ranges a={self.a} b={self.b} c={self.c} d={self.d}: no range has a hotness above 0"
            )
        return np.asarray(weight / weight.sum())


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Hotness of keys: the share of operations on the x hottest keys is a x^b."""

    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Sine:
    """Queries per second at second t, of all threads: a sin(b t + c) + d, taken anew every `interval` seconds."""

    a: float = 1000.0
    b: float = 0.000073
    c: float = 0.0
    d: float = 4500.0
    interval: float = 5.0

    def times(self) -> _Clock:
        """A clock that starts at 0. Raises WorkloadError when the rate would not stay above 0."""
        positive(interval=self.interval)
        if not self.d > abs(self.a):
            raise WorkloadError(f"sine d {self.d}: must be above |a| = {abs(self.a)}, or the rate falls to 0")
        return _Clock(self)


class _Clock:
    """When the operations of a sine rate are due; asked with rising numbers."""

    def __init__(self, sine: Sine) -> None:
        self._sine = sine
        self._start = 0  # intervals gone by
        self._done = 0.0  # operations due in them

    def at(self, number: Int64s) -> Floats:
        """Seconds at which operations `number` (rising) are due."""
        last = float(number[-1])
        sine = self._sine
        steps = self._start + np.arange(int((last - self._done) / ((sine.d - abs(sine.a)) * sine.interval)) + 2)
        rate = sine.a * np.sin(sine.b * steps * sine.interval + sine.c) + sine.d
        done = self._done + np.concatenate([[0.0], np.cumsum(rate * sine.interval)])
        place = np.searchsorted(done, number, side="right") - 1
        at = steps[place] * sine.interval + (number - done[place]) / rate[place]
        self._start += int(place[-1])
        self._done = float(done[place[-1]])
        return np.asarray(at)


_MIX: Final = Mix([(Op.READ, 0.83), (Op.UPDATE, 0.14), (Op.SCAN, 0.03)])
_RANGES: Final = KeyRanges(30, 14.18, -2.917, 0.0164, -0.08082)
_POWER: Final = PowerLaw(0.002312, 0.3467)

VARIANTS: Final[Mapping[str, tuple[KeyRanges | None, PowerLaw | None]]] = MappingProxyType(
    {
        "all_random": (None, None),
        "all_dist": (None, _POWER),
        "prefix_random": (_RANGES, None),
        "prefix_dist": (_RANGES, _POWER),
    }
)
"""The four commands that the paper compares; `prefix_dist` is its model of ZippyDB."""


@dataclass(frozen=True)
class Mixgraph:
    """The mixgraph workload on `records` ordered keys of 48 bytes, as published.

    variant: one of VARIANTS, how keys are chosen. mix: get, put and seek, as READ, UPDATE and SCAN; a scan reads 1
    record or more. sine: if given, operations carry the time at which they are due. Raises WorkloadError.
    """

    records: int
    seed: int = 0
    variant: str = "prefix_dist"
    mix: Mix = _MIX
    value: Pareto = Pareto(0.2615, 25.45)
    most_value: int = 1024
    scan: Pareto = Pareto(2.517, 14.236)
    most_scanned: int = 10_000
    sine: Sine | None = None
    key_format: KeyFormat = field(default_factory=lambda: UserKeys("ordered", 48))
    batch: int = BLOCK

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise WorkloadError(f"variant {self.variant!r}: must be one of {', '.join(VARIANTS)}")
        positive(records=self.records, most_value=self.most_value, most_scanned=self.most_scanned, batch=self.batch)
        if self.records > 1 << 31:
            raise WorkloadError(f"records {self.records}: must be at most {1 << 31}")
        ranges = VARIANTS[self.variant][0]
        if ranges is not None and self.records < ranges.count:
            raise WorkloadError(f"records {self.records}: must be at least {ranges.count}, the number of key ranges")
        stream(self.seed)
        if self.sine is not None:
            self.sine.times()

    @property
    def name(self) -> str:
        """See Workload."""
        return f"mixgraph-{self.variant.replace('_', '-')}"

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Keys come in a scattered order, each once, with values of 43 bytes as in the published load."""
        return cut(
            (inserts(self._scatter(it), _LOAD_VALUE) for it in strided(self.records, thread, threads)), self.batch
        )

    def _scatter(self, numbers: Int64s) -> Int64s:
        step = max(1, round(self.records * 0.618))
        while math.gcd(step, self.records) != 1:
            step += 1
        return numbers * step % self.records  # below 2^62, as records are at most 2^31

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Without end."""
        check_thread(thread, threads)
        return cut(self._blocks(thread, threads), self.batch)

    def _blocks(self, thread: int, threads: int) -> Iterator[Batch]:
        random = stream(self.seed, thread, threads)
        clock = None if self.sine is None else self.sine.times()
        done = 0
        while True:
            op = self.mix.draw(random, BLOCK)
            key = self.keys(random, BLOCK)
            size, length = np.zeros(BLOCK, np.int32), np.zeros(BLOCK, np.int32)
            writes, scans = op == Op.UPDATE, op == Op.SCAN
            size[writes] = self._sizes(random, int(writes.sum()))
            length[scans] = np.maximum(np.fmod(self.scan.draw(random, int(scans.sum())), self.most_scanned), 1)
            number = (np.arange(done, done + BLOCK, dtype=np.int64)) * threads + thread
            done += BLOCK
            yield Batch(op, key, size, length, None if clock is None else clock.at(number))

    def _sizes(self, random: np.random.Generator, count: int) -> Floats:
        drawn = self.value.draw(random, count)
        most = min(self.most_value, (1 << 31) - 1)
        return np.maximum(np.where(drawn > most, np.fmod(drawn, most), drawn), min(_LEAST_VALUE, most))

    @cached_property
    def _ranges(self) -> tuple[Int64s, Floats]:
        """First keys of the ranges, and one past the last: int64[ranges + 1]; summed hotness: float64[ranges]."""
        ranges = VARIANTS[self.variant][0]
        if ranges is None:
            return np.array([0, self.records], np.int64), np.ones(1)
        dealt = stream(self.seed, 0, 0).permutation(ranges.hotness())
        return np.arange(ranges.count + 1, dtype=np.int64) * self.records // ranges.count, np.cumsum(dealt)

    def keys(self, random: np.random.Generator, count: int) -> Int64s:
        """`count` record numbers."""
        starts, hotness = self._ranges
        place = np.searchsorted(hotness, random.random(count) * hotness[-1], side="right")
        first, room = starts[place], starts[place + 1] - starts[place]
        power = VARIANTS[self.variant][1]
        if power is None:
            return np.asarray(first + (random.random(count) * room).astype(np.int64))
        rank = np.ceil((random.random(count) / power.a) ** (1 / power.b))
        return np.asarray(first + fnv64(rank.astype(np.int64)) % room)
