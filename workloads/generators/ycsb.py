"""YCSB's core workloads, A to F, as YCSB defines them.

Source: YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010), `workloads/workload[a-f]` and
`CoreWorkload`. Two things differ. A record is one value of `value_size` bytes instead of ten fields of 100, and an
update writes the whole value, as YCSB does with `writeallfields=true`; and a thread reads only what was loaded or
what it inserted itself (see `workloads.generators`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np

from workloads.generators.distributions import (
    THETA,
    Distribution,
    Exponential,
    Hotspot,
    Latest,
    ScrambledZipfian,
    Sequential,
    Uniform,
)
from workloads.generators.workload import (
    BLOCK,
    Mix,
    View,
    WorkloadError,
    check_thread,
    cut,
    inserts,
    positive,
    stream,
    strided,
)
from workloads.operations import Batch, Op
from workloads.records import KeyFormat, UserKeys

MOST_SCANNED: Final = 100
"""Workload E's `maxscanlength`."""


@dataclass(frozen=True, slots=True)
class Core:
    """One of the core workloads: its mix and which records it asks for."""

    mix: Mix
    distribution: str


CORE: Final[Mapping[str, Core]] = MappingProxyType(
    {
        "a": Core(Mix([(Op.READ, 0.5), (Op.UPDATE, 0.5)]), "zipfian"),
        "b": Core(Mix([(Op.READ, 0.95), (Op.UPDATE, 0.05)]), "zipfian"),
        "c": Core(Mix([(Op.READ, 1.0)]), "zipfian"),
        "d": Core(Mix([(Op.READ, 0.95), (Op.INSERT, 0.05)]), "latest"),
        "e": Core(Mix([(Op.SCAN, 0.95), (Op.INSERT, 0.05)]), "zipfian"),
        "f": Core(Mix([(Op.READ, 0.5), (Op.RMW, 0.5)]), "zipfian"),
    }
)
"""The core workloads by letter: update heavy, read mostly, read only, read latest, short ranges, read-modify-write."""

_DISTRIBUTIONS: Final[Mapping[str, Callable[[Ycsb, View], Distribution]]] = MappingProxyType(
    {
        "zipfian": lambda of, view: ScrambledZipfian(of.space, view, of.theta),
        "latest": lambda of, _: Latest(of.theta),
        "uniform": lambda of, _: Uniform(of.records),
        "hotspot": lambda of, _: Hotspot(of.records),
        "exponential": lambda of, _: Exponential(of.records),
        "sequential": lambda of, view: Sequential(of.records, view.thread, view.threads),
    }
)

DISTRIBUTIONS: Final = tuple(_DISTRIBUTIONS)
"""Names that `Ycsb.distribution` may have."""


@dataclass(frozen=True)
class Ycsb:
    """A core workload; `distribution` and `mix`, where given, take the place of its own.

    records: loaded, numbered from 0. operations: how many all threads together are expected to do; it decides how far
    the key space of the zipfian distribution reaches beyond `records` (twice the expected inserts, as in YCSB), not
    when `run` ends: `run` never does. key_format: "hashed" keys, YCSB's default, or "ordered" ones. batch: the most
    operations of one `Batch`. Raises WorkloadError.
    """

    workload: str
    records: int
    operations: int = 0
    seed: int = 0
    value_size: int = 1000
    distribution: str | None = None
    mix: Mix | None = None
    theta: float = THETA
    most_scanned: int = MOST_SCANNED
    key_format: KeyFormat = field(default_factory=UserKeys)
    batch: int = BLOCK

    def __post_init__(self) -> None:
        if self.workload not in CORE:
            raise WorkloadError(f"workload {self.workload!r}: must be one of {', '.join(CORE)}")
        if self.requests not in _DISTRIBUTIONS:
            raise WorkloadError(f"distribution {self.requests!r}: must be one of {', '.join(DISTRIBUTIONS)}")
        positive(records=self.records, value_size=self.value_size, most_scanned=self.most_scanned, batch=self.batch)
        stream(self.seed)
        _DISTRIBUTIONS[self.requests](self, View(self.records, 0, 1))

    @property
    def name(self) -> str:
        """See Workload."""
        return f"ycsb-{self.workload}"

    @property
    def requests(self) -> str:
        """The name of the distribution in use."""
        return self.distribution or CORE[self.workload].distribution

    @property
    def operation_mix(self) -> Mix:
        """The mix in use."""
        return self.mix or CORE[self.workload].mix

    @property
    def space(self) -> int:
        """Record numbers over which the zipfian distribution scatters what is hot."""
        return self.records + int(self.operations * self.operation_mix.of.get(Op.INSERT, 0.0) * 2)

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Inserts go up the record numbers, so in hashed order of keys."""
        return cut(
            (inserts(numbers, self.value_size) for numbers in strided(self.records, thread, threads)), self.batch
        )

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Without end."""
        check_thread(thread, threads)
        return cut(self._blocks(View(self.records, thread, threads)), self.batch)

    def _blocks(self, view: View) -> Iterator[Batch]:
        random = stream(self.seed, view.thread, view.threads)
        requests = _DISTRIBUTIONS[self.requests](self, view)
        mix = self.operation_mix
        visible = self.records
        while True:
            op = mix.draw(random, BLOCK)
            is_insert = op == Op.INSERT
            after = visible + np.cumsum(is_insert, dtype=np.int64)
            before = after - is_insert
            visible = int(after[-1])
            # An insert takes the next index; the draw it has no use for keeps the stream simple.
            index = np.where(is_insert, before, requests.draw(random, before))
            is_scan = op == Op.SCAN
            length = np.zeros(BLOCK, np.int32)
            scans = int(is_scan.sum())
            if scans:
                length[is_scan] = random.integers(1, self.most_scanned, scans, dtype=np.int32, endpoint=True)
            writes = is_insert | (op == Op.UPDATE) | (op == Op.RMW)
            yield Batch(op, view.number(index), writes * np.int32(self.value_size), length)
