"""What a benchmark run found, as plain data; `encode` and `decode` are its JSON.

Sizes are bytes and times seconds, but latencies, which are nanoseconds. Counts of a phase are of what was measured:
without its warm-up.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from keigo.errors import KeigoError
from workloads.engines.db_bench_output import BenchReport
from workloads.runner.histogram import Histogram

FORMAT: Final = 1
PERCENTILES: Final = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0)


class ResultError(KeigoError):
    """A result file that cannot be read or written; the text names it."""


class Latency(msgspec.Struct, frozen=True):
    """Latencies of one kind of operation, in nanoseconds, each to 0.05%; `mean`, `least` and `most` are exact."""

    count: int
    mean: float
    least: int
    most: int
    percentiles: dict[str, int]
    """`"99.9"` -> nanoseconds; the keys are those of PERCENTILES, without needless zeros."""
    values: list[int]
    """Middles of the histogram's buckets that are not empty, ascending."""
    counts: list[int]
    """How many latencies are in each of them."""


class Samples(msgspec.Struct, frozen=True):
    """What was read now and then, as columns; all count up from the beginning of the phase, `used` but."""

    seconds: list[float]
    database_cpu: list[float]
    """CPU seconds of the process that has the database open: the engine's threads, and the runner's own."""
    daemon_cpu: list[float]
    """CPU seconds of Keigo's daemon; empty where the directory is on no Keigo mount."""
    read_bytes: dict[str, list[int]]
    """Tier -> bytes read from it; empty where the directory is on no Keigo mount."""
    written_bytes: dict[str, list[int]]
    used: dict[str, list[int]]
    """Tier -> bytes of the files on it."""


class Level(msgspec.Struct, frozen=True):
    """A level of the tree."""

    level: int
    files: int
    bytes: int


class Phase(msgspec.Struct, frozen=True):
    """A load or a run."""

    name: str
    """`load` or `run`."""
    seconds: float
    operations: int
    throughput: float
    """Operations per second."""
    missing: int
    """Reads that found nothing."""
    scanned: int
    """Records that scans returned."""
    value_bytes: int
    """Bytes of values written."""
    latency: dict[str, Latency]
    """`read`, `update`, `insert`, `scan`, `rmw`, `delete` -> from the moment when the operation was due (open loop), or
    began."""
    service: dict[str, Latency]
    """Open loop only: from the moment when the operation began."""
    behind: float
    """Open loop only: how late the latest of the last operations of the threads began."""
    interval: float
    per_interval: dict[str, list[int]]
    """Operations that ended in each `interval` seconds."""
    samples: Samples
    database_cpu: float
    daemon_cpu: float | None
    read_bytes: dict[str, int]
    """Tier -> bytes, the time in which the tree settles included. The daemon counts what is on no block device of its
    own once a second, and a device's figures are of everybody who uses it."""
    written_bytes: dict[str, int]
    settle_seconds: float | None
    """How long the compactions took after the last operation; None where they were not waited for."""
    levels: list[Level]
    """Of the tree, at the end."""
    stall_seconds: float | None
    """For which the engine slowed writes down or stopped them; None where it does not tell."""


class Verification(msgspec.Struct, frozen=True):
    """What was checked against what was written."""

    reads: int
    scans: int
    scanned: int
    final: int
    """Keys checked at the end, each by a read and in a scan of everything."""
    reopened: int
    """The same after closing and opening the database."""
    failures: list[str]
    """What was wrong, a line each, at most ten; the run failed unless it is empty."""
    complete: bool
    """Whether all was checked: false where the run ended early."""


class Mount(msgspec.Struct, frozen=True):
    """The Keigo mount that the directory is on."""

    volume: str
    path: str
    driver: str
    policy: str
    tiers: list[str]


class Machine(msgspec.Struct, frozen=True):
    """Where it ran."""

    cpu: str
    cpus: int
    memory: int
    kernel: str
    python: str


class Result(msgspec.Struct, frozen=True):
    """Everything of one run."""

    format: int
    keigo: str
    began: str
    """ISO 8601, UTC."""
    directory: str
    filesystem: str
    """Type of the file system that the directory is on."""
    engine: str
    options: dict[str, Any]
    """Engine options that were asked for."""
    workload: str
    parameters: dict[str, Any]
    settings: dict[str, Any]
    """Threads, limits, rate, memory limit: the runner's own."""
    machine: Machine
    mount: Mount | None
    phases: list[Phase]
    verification: Verification | None
    interrupted: bool
    error: str | None
    """The line with which the run failed."""


class NativeResult(msgspec.Struct, frozen=True):
    """Everything of one run of `db_bench`."""

    format: int
    keigo: str
    began: str
    directory: str
    filesystem: str
    options: dict[str, Any]
    benchmarks: list[str]
    machine: Machine
    mount: Mount | None
    report: BenchReport
    seconds: float
    database_cpu: float
    """CPU seconds of the db_bench process."""
    daemon_cpu: float | None
    read_bytes: dict[str, int]
    """Tier -> bytes."""
    written_bytes: dict[str, int]
    interrupted: bool


def latency_of(histogram: Histogram) -> Latency:
    """What is told of a histogram."""
    values, counts = histogram.buckets()
    return Latency(
        histogram.count,
        histogram.mean,
        histogram.least,
        histogram.most,
        {f"{percent:g}": histogram.percentile(percent) for percent in PERCENTILES},
        values.tolist(),
        counts.tolist(),
    )


def encode(result: Result | NativeResult) -> bytes:
    """JSON."""
    return msgspec.json.encode(result)


def decode(text: bytes, source: str) -> Result:
    """The result that a file holds. Raises ResultError, which names `source`, for anything else."""
    try:
        found = msgspec.json.decode(text, type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{source}: not a result of keigo bench: {error}") from error
    if found.format != FORMAT:
        raise ResultError(f"{source}: format {found.format} is not known to this version, which writes {FORMAT}")
    return found
