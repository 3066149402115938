"""A run on a terminal: its progress while it runs, and a summary of what it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from keigo.units import format_size
from workloads.engines.db_bench_output import BenchResult
from workloads.runner.result import Latency, NativeResult, Phase, Result

_LATE: Final = 0.1  # seconds: less is a thread that was not woken at once
_SHOWN: Final = ("50", "95", "99", "99.9", "100")


class ProgressWatcher:
    """A bar for each phase, with the throughput of the last ticks."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, note="", visible=False)
        self._seconds: float | None = None
        self._last = (0, 0.0)
        self._rate = 0.0

    def begin(self, what: str, operations: int | None, seconds: float | None) -> None:
        """See `benchmark.Watcher`."""
        self._seconds = seconds
        self._last, self._rate = (0, 0.0), 0.0
        total = seconds if seconds is not None else operations
        self._progress.reset(self._task, total=total, description=what, note="", visible=True)

    def tick(self, operations: int, elapsed: float) -> None:
        """See `benchmark.Watcher`."""
        before, at = self._last
        note = f"{operations:,} operations"
        if elapsed - at > 0:
            now = (operations - before) / (elapsed - at)
            self._rate = now if not self._rate else 0.5 * self._rate + 0.5 * now
            self._last = (operations, elapsed)
            note += f", {self._rate:,.0f}/s"
        done = elapsed if self._seconds is not None else operations
        self._progress.update(self._task, completed=done, note=note)


@contextmanager
def watching(console: Console) -> Iterator[ProgressWatcher]:
    """A watcher that shows on `console`, if it is a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressWatcher(progress)


def summary(result: Result) -> RenderableType:
    """What a user wants to know first: speed, latencies, and where the bytes went."""
    parts: list[RenderableType] = [_heading(result)]
    if result.phases:
        parts.append(_latencies(result))
    parts += [Text(_behind(phase), style="yellow") for phase in result.phases if phase.behind > _LATE]
    if any(phase.read_bytes for phase in result.phases):
        parts.append(_tiers(result))
    if result.verification is not None and not result.verification.failures:
        found = result.verification
        state = "verified" if found.complete else "verified until it ended"
        parts.append(
            Text(
                f"{state}: {found.reads:,} reads, {found.scans:,} scans, {found.final:,} keys at the end, "
                f"{found.reopened:,} after reopening"
            )
        )
    return Group(*parts)


def _heading(result: Result) -> Text:
    threads = result.settings["threads"]
    text = f"{result.workload} on {result.engine}, {threads} thread{'s' if threads != 1 else ''}, {result.directory}"
    where = f"Keigo, {result.mount.driver} driver, {result.mount.policy}" if result.mount else result.filesystem
    return Text(f"{text} ({where})" + (" INTERRUPTED" if result.interrupted else ""), style="bold")


def _latencies(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    table.add_column("operation")
    for heading in ("operations", "ops/s", "mean us", *(f"p{name}" if name != "100" else "max" for name in _SHOWN)):
        table.add_column(heading, justify="right")
    for phase in result.phases:
        if len(phase.latency) != 1:
            table.add_row(phase.name, "all", f"{phase.operations:,}", f"{phase.throughput:,.0f}")
        for op, latency in phase.latency.items():
            table.add_row(phase.name, op, *_row(phase, latency))
    return table


def _behind(phase: Phase) -> str:
    return f"{phase.name} ended {phase.behind:,.1f} s behind its times: operations due by then were not done"


def _row(phase: Phase, latency: Latency) -> Iterator[str]:
    yield f"{latency.count:,}"
    yield f"{latency.count / phase.seconds:,.0f}" if phase.seconds else "-"
    yield f"{latency.mean / 1000:,.1f}"
    for name in _SHOWN:
        yield f"{latency.percentiles[name] / 1000:,.1f}"


def result_line(result: BenchResult) -> str:
    """A benchmark of db_bench that is over."""
    return f"{result.name}: {result.ops_per_second:,.0f} operations/s, {result.micros_per_op:,.2f} us each"


def native_summary(result: NativeResult) -> RenderableType:
    """What a user wants to know first of a run of db_bench."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("benchmark")
    for heading in ("operations", "ops/s", "us each", "found", "p50", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right")
    for found in result.report.results:
        of = found.histograms[0] if found.histograms else None
        latencies = [] if of is None else [of.percentiles.get(name) for name in ("50", "99", "99.9")]
        table.add_row(
            found.name,
            f"{found.operations:,}",
            f"{found.ops_per_second:,.0f}",
            f"{found.micros_per_op:,.2f}",
            "" if found.found is None else f"{found.found[0]:,} of {found.found[1]:,}",
            *("" if value is None else f"{value:,.1f}" for value in latencies),
            *([] if of is None else [f"{of.most:,}"]),
        )
    moved = [
        Text(f"{tier}: read {format_size(read)}, written {format_size(result.written_bytes[tier])}")
        for tier, read in result.read_bytes.items()
    ]
    return Group(Text(f"db_bench, {result.directory}", style="bold"), table, *moved)


def _tiers(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    table.add_column("tier")
    for heading in ("read", "written"):
        table.add_column(heading, justify="right")
    for phase in result.phases:
        for tier, read in phase.read_bytes.items():
            table.add_row(phase.name, tier, format_size(read), format_size(phase.written_bytes[tier]))
    return table
