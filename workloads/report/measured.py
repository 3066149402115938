"""What a report knows of a run. Times in seconds, sizes in bytes, latencies in microseconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workloads.operations import Floats, Int64s


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of one kind of operation: how many of which length."""

    values: Floats
    """Microseconds, rising; each stands for the latencies in one bucket."""
    counts: Int64s
    total: float
    """Sum of the latencies, microseconds."""

    @property
    def count(self) -> int:
        """Operations."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Microseconds; 0 where there are none."""
        return self.total / self.count if self.count else 0.0

    def at(self, percent: float) -> float | None:
        """The least latency that `percent` of the operations do not exceed; None where they are too few to tell."""
        if self.count * (1 - percent / 100) < 1:
            return None
        place = np.searchsorted(np.cumsum(self.counts), self.count * percent / 100 - 1e-9)
        return float(self.values[min(int(place), len(self.values) - 1)])


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that each of the tiers moved, over time: slice i ends at `ends[i]` seconds after the run began."""

    counted_by: str
    """Who counted, as the report says it: the block devices, or Keigo."""
    ends: tuple[float, ...]
    read: Mapping[str, tuple[int, ...]]
    """Tier, fast to slow -> bytes in each slice."""
    written: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one workload: its run phase, and the traffic of all of it."""

    operations: int
    seconds: float
    throughput: tuple[float, ...]
    """Operations per second, in each interval."""
    ends: tuple[float, ...]
    """When each interval ended, seconds after the phase began."""
    latencies: Mapping[str, Latency]
    """By operation, as the workload names it."""
    load_seconds: float | None = None
    cpu: Mapping[str, float] = field(default_factory=dict)
    """Whose -> seconds of CPU."""
    traffic: Traffic | None = None
    run_began: float = 0.0
    """When the phase began, on the traffic's clock."""
    corrected: bool = False
    """Latencies count from when an operation was due, so that a stall is not left out."""
    interrupted: bool = False

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Setup:
    """All runs of a workload on a setup, or why there are none."""

    name: str
    about: str
    runs: tuple[Measured, ...] = ()
    unable: str | None = None
    """Why it did not run, or not to its end; one line."""
    failed: bool = False
    """Whether it was tried and failed."""

    def median_run(self) -> Measured:
        """The run whose throughput is the median (the lower of two in the middle); there must be one."""
        return sorted(self.runs, key=lambda run: run.rate)[(len(self.runs) - 1) // 2]

    def median_of(self, figure: Callable[[Measured], float | None]) -> float | None:
        """The median of a figure over the runs that have it."""
        found = [value for run in self.runs if (value := figure(run)) is not None]
        return statistics.median(found) if found else None


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repetitions."""

    median: float
    least: float
    most: float
    count: int


@dataclass(frozen=True, slots=True)
class Section:
    """One workload on all setups."""

    name: str
    about: str
    setups: tuple[Setup, ...]
    base: str | None = None
    """The setup that the others are measured by."""
    repetitions: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Setup -> repetition -> operations per second."""

    @property
    def done(self) -> tuple[Setup, ...]:
        """The setups that ran."""
        return tuple(setup for setup in self.setups if setup.runs)

    def rate(self, name: str) -> Spread | None:
        """Operations per second of a setup."""
        return spread(list(self.repetitions.get(name, {}).values()))

    def ratio(self, name: str) -> Spread | None:
        """Of a setup to the base, within each repetition: a slow minute of the machine hits both sides.

        None where there is no base or no repetition of both.
        """
        if self.base is None:
            return None
        mine, others = self.repetitions.get(name, {}), self.repetitions.get(self.base, {})
        return spread([mine[at] / others[at] for at in mine if others.get(at)])


@dataclass(frozen=True, slots=True)
class Document:
    """All that a report shows."""

    title: str
    created: str
    sections: tuple[Section, ...]
    tiers: tuple[tuple[str, str], ...] = ()
    """Name and what it is, fast to slow."""
    machine: tuple[tuple[str, str], ...] = ()
    configuration: tuple[tuple[str, str], ...] = ()
    plan: str = ""
    """The plan's text."""
    notes: tuple[str, ...] = ()


def pooled(latencies: Iterable[Latency]) -> Latency:
    """All latencies of several runs together; there must be one."""
    every = list(latencies)
    values, place = np.unique(np.concatenate([each.values for each in every]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, place, np.concatenate([each.counts for each in every]))
    return Latency(values, counts, sum(each.total for each in every))


def spread(values: Sequence[float]) -> Spread | None:
    """Median, least and most; None for no values."""
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None
