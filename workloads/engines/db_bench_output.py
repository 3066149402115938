"""What `db_bench` prints, as plain data: results, histograms of latencies, statistics.

The format is that of `tools/db_bench_tool.cc` and `monitoring/histogram.cc` of RocksDB 7.8: no promise, hence read line
by line. A line that is not known is passed over, but one that begins as a result and cannot be read raises EngineError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from workloads.engines.protocol import EngineError
from workloads.engines.stats_text import StatsText, parse_stats

_NUMBER: Final = r"(-?(?:\d+(?:\.\d+)?|nan|inf))"
_RESULT: Final = re.compile(
    rf"(\w+) *: +{_NUMBER} micros/op {_NUMBER} ops/sec +{_NUMBER} seconds (\d+) operations;"
    rf"(?: +{_NUMBER} MB/s)?(?: \((.*)\))?\s*",
    re.ASCII,
)
_RESULT_BEGINS: Final = re.compile(r"\w+ *: .*micros/op")
_FOUND: Final = re.compile(r"(\d+) (?:of|in) (\d+) found")
_COUNTS: Final = re.compile(r"(\w+): ?(\d+)(?![\d.])", re.ASCII)
_HISTOGRAM: Final = re.compile(r"Microseconds per (\w+):")
_COUNT: Final = re.compile(rf"Count: (\d+) +Average: {_NUMBER} +StdDev: {_NUMBER}", re.ASCII)
_MIN: Final = re.compile(rf"Min: (\d+) +Median: {_NUMBER} +Max: (\d+)", re.ASCII)
_PERCENTILE: Final = re.compile(rf"P(\d+(?:\.\d+)?): {_NUMBER}", re.ASCII)
_BUCKET: Final = re.compile(r"[(\[] *(\d+), *(\d+) \] +(\d+) +[\d.]+% +[\d.]+%", re.ASCII)
_TICKER: Final = re.compile(r"(\S+) COUNT : (\d+)", re.ASCII)
_STATS_BEGIN: Final = re.compile(r"^(?=\*\* Compaction Stats \[default\] \*\*\nLevel )", re.MULTILINE)
_INTERVAL: Final = re.compile(r"\d+,(\d+)", re.ASCII)
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """Operations that took more than `above` and at most `up_to` microseconds; the first bucket includes `above`."""

    above: int
    up_to: int
    count: int


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Latencies of one kind of operation, in microseconds. Percentiles are interpolated within a bucket by db_bench."""

    operation: str
    """`read`, `write`, `seek`, `update`, ..."""
    count: int = 0
    average: float = 0.0
    deviation: float = 0.0
    least: int = 0
    median: float = 0.0
    most: int = 0
    percentiles: Mapping[str, float] = field(default_factory=dict)
    """`50`, `75`, `99`, `99.9`, `99.99` -> microseconds."""
    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One benchmark's line, and the histograms below it. All counts but `found` and `counts` are of all threads."""

    name: str
    micros_per_op: float
    """Of one thread."""
    ops_per_second: float
    seconds: float
    operations: int
    bytes_per_second: float | None
    """Bytes of keys and values, where the benchmark counts them."""
    found: tuple[int, int] | None
    """Keys found, and keys looked for, by the first thread; None for a benchmark that looks for none."""
    counts: Mapping[str, int]
    """Other counts that the first thread prints: `gets`, `puts` and `seek` of mixgraph, `updates`, ..."""
    histograms: tuple[LatencyHistogram, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that one run of `db_bench` printed."""

    results: tuple[BenchResult, ...]
    """In the order in which they ended; a benchmark that is repeated (`readrandom[X3]`) has several."""
    stats: tuple[StatsText, ...]
    """Of each `stats` among the benchmarks."""
    tickers: Mapping[str, int]
    """Counters of `--statistics`, over all benchmarks since the database was opened last."""
    timeline: tuple[int, ...] = ()
    """Operations in each second, where that was asked for."""


def parse_timeline(text: str) -> tuple[int, ...]:
    """Operations in each interval of a `--report_file`: a heading, `seconds,operations` lines. Raises EngineError."""
    heading, *lines = text.splitlines() or [""]
    rows = [_INTERVAL.fullmatch(line) for line in lines]
    if heading != "secs_elapsed,interval_qps" or not all(rows):
        raise EngineError(f"db_bench: a report file that cannot be read: {text[:200]!r}")
    return tuple(int(row[1]) for row in rows if row is not None)


def parse_result(line: str) -> BenchResult | None:
    """The result that a line holds, without histograms; None where it holds none. Raises EngineError: see above."""
    match = _RESULT.fullmatch(line)
    if match is None:
        if _RESULT_BEGINS.match(line):
            raise EngineError(f"db_bench: a result that cannot be read: {line.strip()[:200]!r}")
        return None
    name, micros, rate, seconds, operations, megabytes, note = match.groups()
    found = _FOUND.search(note or "")
    return BenchResult(
        name,
        float(micros),
        float(rate),
        float(seconds),
        int(operations),
        None if megabytes is None else float(megabytes) * _MIB,
        None if found is None else (int(found[1]), int(found[2])),
        {key.lower(): int(count) for key, count in _COUNTS.findall(note or "")},
    )


def parse(text: str) -> BenchReport:
    """Everything in the standard output of `db_bench`. Raises EngineError for a result that cannot be read."""
    lines = text.splitlines()
    begins = [number for number, line in enumerate(lines) if _RESULT_BEGINS.match(line)]
    results = []
    for first, after in pairwise([*begins, len(lines)]):
        result = parse_result(lines[first])
        if result is not None:
            results.append(replace(result, histograms=tuple(_histograms(lines[first + 1 : after]))))
    tickers = [match for line in lines if (match := _TICKER.fullmatch(line))]
    return BenchReport(
        tuple(results),
        tuple(parse_stats(part) for part in _STATS_BEGIN.split(text)[1:]),
        {match[1]: int(match[2]) for match in tickers},
    )


def _histograms(lines: list[str]) -> Iterator[LatencyHistogram]:
    current: LatencyHistogram | None = None
    for line in lines:
        if match := _HISTOGRAM.match(line):
            if current is not None:
                yield current
            current = LatencyHistogram(match[1])
        elif current is not None:
            current = _more(current, line)
    if current is not None:
        yield current


def _more(histogram: LatencyHistogram, line: str) -> LatencyHistogram:
    """The histogram with what one more line says of it."""
    if match := _BUCKET.match(line):
        bucket = Bucket(int(match[1]), int(match[2]), int(match[3]))
        return replace(histogram, buckets=(*histogram.buckets, bucket))
    if match := _COUNT.match(line):
        return replace(histogram, count=int(match[1]), average=float(match[2]), deviation=float(match[3]))
    if match := _MIN.match(line):
        return replace(histogram, least=int(match[1]), median=float(match[2]), most=int(match[3]))
    if line.startswith("Percentiles: "):
        percentiles = {name: float(value) for name, value in _PERCENTILE.findall(line)}
        return replace(histogram, percentiles=percentiles)
    return histogram
