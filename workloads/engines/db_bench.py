"""RocksDB's own benchmark program as a subprocess: what the engine does at native speed, with real threads.

`db_bench` destroys the database it finds unless it is told to use it. Here it is told so unless the directory is empty,
and a benchmark that begins with a new database (fillrandom, fillseq, fillsync, ...) is refused where there is one.
It looks at what `Get` and `Put` say, but not at what an iterator does: a damaged block ends `readseq` early and makes
`seekrandom` find less, without an error. Add `verifychecksum` to the benchmarks where that matters.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Final

from workloads.engines.db_bench_output import BenchReport, BenchResult, parse, parse_result, parse_timeline
from workloads.engines.options import EngineOptions, OptionError
from workloads.engines.protocol import EngineError
from workloads.engines.readback import check_in_effect

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\[[XW0-9-]+\])?", re.ASCII | re.IGNORECASE)
_OVERWRITES: Final = re.compile(r"fill(?!seek)|bulkload", re.ASCII)
_STATUS: Final = re.compile(
    r"\b(Corruption|IO error|Invalid argument|Not implemented|Operation aborted|Resource busy|Shutdown in progress"
    r"|Result incomplete|ERROR|error|failed): "
)
_TERM_SECONDS: Final = 10

_FLAGS: Final = {
    "write_buffer": "write_buffer_size",
    "file_size": "target_file_size_base",
    "background_jobs": "max_background_jobs",
    "subcompactions": "subcompactions",
    "block_cache": "cache_size",
    "bloom_bits": "bloom_bits",
    "direct_reads": "use_direct_reads",
    "direct_writes": "use_direct_io_for_flush_and_compaction",
    "compression": "compression_type",
    "max_open_files": "open_files",
    "sync": "sync",
    "growth_factor": "max_bytes_for_level_multiplier",
    "level_base": "max_bytes_for_level_base",
    "level0_slowdown": "level0_slowdown_writes_trigger",
    "level0_stop": "level0_stop_writes_trigger",
    "dynamic_levels": "level_compaction_dynamic_level_bytes",
}

MIXGRAPH: Final[Mapping[str, str]] = {
    "key_dist_a": "0.002312",
    "key_dist_b": "0.3467",
    "keyrange_dist_a": "14.18",
    "keyrange_dist_b": "-2.917",
    "keyrange_dist_c": "0.0164",
    "keyrange_dist_d": "-0.08082",
    "keyrange_num": "30",
    "value_k": "0.2615",
    "value_sigma": "25.45",
    "iter_k": "2.517",
    "iter_sigma": "14.236",
    "mix_get_ratio": "0.83",
    "mix_put_ratio": "0.14",
    "mix_seek_ratio": "0.03",
}
"""Flags of the `mixgraph` benchmark: the Prefix_dist model of Cao et al., "Characterizing, Modeling, and Benchmarking
RocksDB Key-Value Workloads at Facebook", FAST'20. Its keys are 48 bytes."""


class DbBenchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `report` has the benchmarks that were over by then."""

    def __init__(self, report: BenchReport) -> None:
        super().__init__()
        self.report = report


@dataclass(frozen=True, slots=True)
class DbBench:
    """One run: what to do, on which database, with which options."""

    path: str
    """The database's directory; made where there is none."""
    benchmarks: tuple[str, ...]
    """In this order: fillrandom, fillsync, overwrite, readrandom, seekrandom, readwhilewriting, mixgraph, stats, ..."""
    num: int
    """Keys; and operations of each thread where `reads` and `duration` do not say otherwise."""
    options: EngineOptions = field(default_factory=EngineOptions)
    reads: int | None = None
    """Operations of each thread of a benchmark that reads."""
    threads: int = 1
    duration: int = 0
    """Seconds for each benchmark that is random; 0: as many operations as told."""
    key_size: int = 16
    value_size: int = 100
    seed: int = 1
    histogram: bool = False
    statistics: bool = False
    timeline: bool = False
    """Count the operations of each second; for one benchmark only, for each writes the same file anew."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further flags of db_bench, without dashes; see `MIXGRAPH`."""

    def command(self, report_file: str = "") -> list[str]:
        """The command line; the timeline goes to `report_file`. Raises OptionError for what db_bench cannot do."""
        flags = {
            "db": self.path,
            "use_existing_db": "1" if _holds_database(self.path) else "0",
            "benchmarks": ",".join(self.benchmarks),
            "num": str(self.num),
            "threads": str(self.threads),
            "duration": str(self.duration),
            "key_size": str(self.key_size),
            "value_size": str(self.value_size),
            "seed": str(self.seed),
            "histogram": _flag(self.histogram),
            "statistics": _flag(self.statistics),
            **({} if self.reads is None else {"reads": str(self.reads)}),
            **({"report_interval_seconds": "1", "report_file": report_file} if self.timeline else {}),
            **_option_flags(self.options),
        }
        _check(self, flags)
        return ["db_bench", *(f"--{name}={value}" for name, value in {**flags, **self.extra}.items())]


def _flag(value: object) -> str:
    return str(int(value) if isinstance(value, bool) else value)


def _option_flags(options: EngineOptions) -> dict[str, str]:
    if options.db_paths:
        raise OptionError(f"db_bench cannot set db_paths (to {len(options.db_paths)} of them): it has no such flag")
    found = {flag: _flag(value) for name, flag in _FLAGS.items() if (value := getattr(options, name)) is not None}
    found["disable_wal"] = _flag(not options.wal)
    if options.compression == "bz2":
        found["compression_type"] = "bzip2"
    if options.compaction_style is not None:
        found["compaction_style"] = {"leveled": "0", "universal": "1"}[options.compaction_style]
    return found


def _check(bench: DbBench, flags: Mapping[str, str]) -> None:
    for name in bench.benchmarks:
        if not _NAME.fullmatch(name):
            raise OptionError(f"db_bench: {name!r} is not the name of a benchmark")
        if flags["use_existing_db"] == "1" and _OVERWRITES.match(name):
            raise EngineError(f"db_bench {bench.path}: holds a database, and {name} begins with a new one")
    if not bench.benchmarks:
        raise OptionError("db_bench: no benchmark is named")
    if bench.timeline and len(bench.benchmarks) > 1:
        raise OptionError("db_bench: timeline is for one benchmark only")
    for name, value, least in (
        ("num", bench.num, 1),
        ("threads", bench.threads, 1),
        ("duration", bench.duration, 0),
        ("key_size", bench.key_size, 1),
        ("value_size", bench.value_size, 0),
        ("reads", 0 if bench.reads is None else bench.reads, 0),
    ):
        if value < least:
            raise OptionError(f"db_bench: {name} {value} is less than {least}")
    for name in bench.extra:
        if name in flags:
            raise OptionError(f"db_bench: {name} is set by an option of its own")


def _holds_database(path: str) -> bool:
    """Raises EngineError for a directory with other files: db_bench would destroy what looks like a database's."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EngineError(f"db_bench {path}: {error.strerror}") from error
    if names and "CURRENT" not in names:
        raise EngineError(f"db_bench {path}: neither empty nor a database")
    return bool(names)


def run(bench: DbBench, on_result: Callable[[BenchResult], None] | None = None) -> BenchReport:
    """Run it to its end; `on_result` hears of each benchmark, without its histograms, when it is over.

    Raises OptionError where an option cannot be set or was not in effect, EngineError where db_bench is not installed,
    fails, or tells of an error, DbBenchInterrupted on Ctrl-C. The process is gone on return, whatever happens.
    """
    lines: list[str] = []
    with (
        tempfile.NamedTemporaryFile(mode="r", prefix="db_bench-") as timeline,
        tempfile.TemporaryFile(mode="w+", errors="replace") as complaints,
    ):
        try:
            with _started(bench.command(timeline.name), complaints) as process:
                for line in process.stdout or ():
                    lines.append(line)
                    if on_result is not None and (result := parse_result(line.rstrip("\n"))) is not None:
                        on_result(result)
                code = process.wait()
        except KeyboardInterrupt:
            raise DbBenchInterrupted(_report(lines, timeline)) from None
        complaints.seek(0)
        _raise_complaint(bench.path, code, complaints.read(), lines)
        check_in_effect("db_bench", bench.path, bench.options)
        return _report(lines, timeline)


def _report(lines: list[str], timeline: IO[str]) -> BenchReport:
    """What was printed so far; `timeline` may be empty or end in half a line."""
    counted = timeline.read()
    report = parse("".join(lines))
    return replace(report, timeline=parse_timeline(counted[: counted.rfind("\n") + 1])) if counted else report


@contextmanager
def _started(command: list[str], complaints: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """db_bench in a process group of its own, so that Ctrl-C reaches it through us only; ended at the end."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace", start_new_session=True
        )
    except FileNotFoundError as error:
        raise EngineError("db_bench is not installed (Debian: rocksdb-tools)") from error
    except OSError as error:
        raise EngineError(f"db_bench cannot be started: {error.strerror}") from error
    try:
        yield process
    finally:
        _end(process)
        if process.stdout is not None:
            process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(_TERM_SECONDS)
        except subprocess.TimeoutExpired:
            continue  # a write to a file system that does not answer: SIGKILL, and if need be leave it behind


def _raise_complaint(path: str, code: int, complaints: str, lines: list[str]) -> None:
    """Raises EngineError for what db_bench says of an error, also where it exits with 0."""
    said = [line.strip() for line in [*re.split(r"[\r\n]", complaints), *lines] if _STATUS.search(line)]
    said = [line for line in said if not line.startswith("rocksdb.")]
    if said:
        raise EngineError(f"db_bench {path}: {said[0][:300]}")
    if code:
        last = [line.strip() for line in re.split(r"[\r\n]", complaints) if line.strip()]
        how = f"ended by signal {-code}" if code < 0 else f"exit {code}"
        raise EngineError(f"db_bench {path}: {how}" + (f": {last[-1][:300]}" if last else ""))
