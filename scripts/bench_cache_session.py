"""One run of bench-cache: what it is to do, the pieces that all parts are made of, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench_cache_jobs import Bench, Heard, job
from bench_cache_mounts import Mounted, mounted
from bench_cache_plan import Todo

from workloads.compare.job import Settings
from workloads.runner.result import Phase

INTERVAL: Final = 0.5
"""Seconds between counts of operations."""
SEED: Final = 1
_SETTLING_SEED: Final = 100
_NOTED: Final = ("used", "chunks", "filled_bytes", "evicted", "damaged", "errors", "foreground_reads")


class Session:
    """What it found is in `figures` and `series`; see `bench_cache_results.Done`."""

    def __init__(self, bench: Bench, todo: Todo) -> None:
        self.bench = bench
        self.todo = todo
        self.sizes, self.times = bench.sizes, bench.times
        self.figures: dict[str, float] = {}
        self.series: dict[str, list[float]] = {}

    @contextmanager
    def mounted(self, cache: int | None, database: str = "ycsb") -> Iterator[Mounted]:
        """A volume with a database on the slow tier. Raises KeigoError."""
        with mounted(self.bench.hierarchy, self.bench.database(database), self.bench.profile, cache) as volume:
            yield volume

    def settings(self, warm_up: float, seconds: float | None = None) -> Settings:
        """Of a run limited by time."""
        seed = SEED + self.todo.repetition
        return Settings(seconds=seconds or self.times.seconds, warm_up=warm_up, interval=INTERVAL, seed=seed)

    def measure(
        self,
        directory: Path,
        workload: str,
        settings: Settings,
        *,
        direct: bool = True,
        blocks: bool = True,
        heard: Heard = lambda _event: None,
    ) -> Phase:
        """Run a workload, and note its rate; see `job`. Raises KeigoError."""
        phase = job(self.bench, directory, workload, settings, direct=direct, blocks=blocks, heard=heard)
        self.figures["rate"] = phase.throughput
        self.series["operations"] = counts_of(phase)
        for op, latency in phase.latency.items():
            self.figures |= {f"{op}_p50_us": latency.percentiles["50"] / 1e3}
            self.figures |= {f"{op}_p99_us": latency.percentiles["99"] / 1e3}
        return phase

    def settle(self, volume: Mounted, workload: str, seconds: float, *, rounds: int = 1, blocks: bool = True) -> None:
        """Have the cache filled by reads that do not count. Raises KeigoError."""
        for number in range(rounds):
            seed = _SETTLING_SEED * (number + 1) + self.todo.repetition
            job(self.bench, volume.directory, workload, Settings(seconds=seconds, seed=seed), blocks=blocks)
            if not number:
                self.figures["filled_beside"] = volume.status()["filled"] / seconds
            volume.rest()

    def note_cache(self, volume: Mounted) -> None:
        """Note what the cache says at the end. Raises KeigoError."""
        facts = volume.status()
        self.figures |= {name: float(facts[name]) for name in _NOTED}
        if facts["hit_ratio"] is not None:
            self.figures["hit_ratio_of_all"] = float(facts["hit_ratio"])


def counts_of(phase: Phase) -> list[float]:
    """Operations of any kind in each interval."""
    return [float(sum(column)) for column in zip(*phase.per_interval.values(), strict=True)]
