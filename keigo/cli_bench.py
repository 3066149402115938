"""`keigo bench`: workloads against a database, on any directory. numpy is imported by the commands that need it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from keigo.cli_common import Number, console, directory_argument, errors, plain_errors
from keigo.errors import KeigoError
from keigo.units import parse_size

if TYPE_CHECKING:
    from workloads.engines.options import EngineOptions
    from workloads.generators.workload import Workload
    from workloads.runner.benchmark import Plan
    from workloads.runner.result import NativeResult, Result

ENGINES: Final = ("rocksdb", "leveldb", "speedb")
COMPRESSIONS: Final = ("none", "snappy", "zlib", "bz2", "lz4", "lz4hc", "zstd")
INTERRUPTED: Final = 130

_F = TypeVar("_F", bound=Callable[..., object])
Values = Mapping[str, Any]


def size(value: str | int) -> int:
    """A size as an option's value."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def value_size(value: str | int) -> int:
    """The size of a value as an option's value; what the engines' bindings and `operations.Batch` can hold."""
    found = size(value)
    if not 1 <= found < 1 << 31:
        raise click.BadParameter(f"{value} is not from 1 to {(1 << 31) - 1} bytes")
    return found


def _db_path(value: str) -> tuple[str, int]:
    path, _, most = value.rpartition(":")
    if not path:
        raise click.BadParameter(f"{value!r} must be PATH:SIZE")
    return path, size(most)


_COUNT: Final = click.IntRange(1, 1 << 62)
_THREADS: Final = click.IntRange(1, 1024)
_SEED: Final = click.IntRange(0, (1 << 63) - 1)
_SECONDS: Final = Number(min=0, min_open=True, max=1e9)
_RATE: Final = Number(min=0.001, max=1e9)

_ENGINE_OPTIONS: Final = (
    click.option("--engine", type=click.Choice(ENGINES), default="rocksdb", show_default=True),
    click.option("--write-buffer", type=size, help="Size of a memtable."),
    click.option("--file-size", type=size, help="Size of a table file."),
    click.option("--background-jobs", type=int, help="Flushes and compactions at once."),
    click.option("--subcompactions", type=int, help="Threads of one compaction."),
    click.option("--block-cache", type=size, help="Size of the block cache; 0 for none."),
    click.option("--bloom-bits", type=int, help="Bits per key of the bloom filters."),
    click.option("--direct-reads", is_flag=True, help="Read tables with O_DIRECT."),
    click.option("--direct-writes", is_flag=True, help="Flush and compact with O_DIRECT."),
    click.option("--compression", type=click.Choice(COMPRESSIONS)),
    click.option("--max-open-files", type=int),
    click.option("--sync", is_flag=True, help="Each write is on the device before it returns."),
    click.option("--wal/--no-wal", default=True, show_default=True, help="Write to a log first."),
    click.option("--compaction-style", type=click.Choice(["leveled", "universal"])),
    click.option("--growth-factor", type=int, help="Each level is so many times the one above."),
    click.option("--level-base", type=size, help="Size of level 1."),
    click.option("--level0-slowdown", type=int, help="Files of level 0 at which writers are slowed down."),
    click.option("--level0-stop", type=int, help="Files of level 0 at which writers are stopped."),
    click.option("--dynamic-levels/--no-dynamic-levels", default=None, help="Level sizes follow the last level's."),
    click.option(
        "--db-path", "db_paths", type=_db_path, multiple=True, metavar="PATH:SIZE", help="A directory for tables."
    ),
)
_JSON: Final = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here."
)
_RUN_OPTIONS: Final = (
    click.option("--threads", type=_THREADS, default=1, show_default=True),
    click.option("--operations", type=_COUNT, help="How many, all threads together, after the warm-up."),
    click.option("--seconds", type=_SECONDS, help="How long, after the warm-up."),
    click.option("--warm-up", type=Number(min=0, max=1e9), default=0.0, help="Seconds that come first, uncounted."),
    click.option("--rate", type=_RATE, help="Operations per second, each due at its time (open loop)."),
    click.option("--load-only", is_flag=True, help="Load the records, and keep the database for a --run-only."),
    click.option("--run-only", is_flag=True, help="On the database that a run before this has left."),
    click.option("--verify", is_flag=True, help="Check every answer, and every key in the end; slower."),
    click.option("--seed", type=_SEED, default=0, show_default=True),
    click.option(
        "--compression-ratio",
        type=Number(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="What values can be compressed to.",
    ),
    click.option("--drop-caches", is_flag=True, help="Reopen, and drop the page cache, before the run (root)."),
    click.option("--memory", type=size, help="Limit of database and daemon together, page cache included (cgroup)."),
    click.option(
        "--interval",
        type=Number(min=0.01, max=1e9),
        default=1.0,
        show_default=True,
        help="Seconds between two figures.",
    ),
    _JSON,
)
_RECORDS: Final = click.option("--records", type=_COUNT, default=100_000, show_default=True)


def _options(options: tuple[Callable[[_F], _F], ...]) -> Callable[[_F], _F]:
    return lambda command: reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.group()
def bench() -> None:
    """Run a workload on a database in any directory, mounted or not, and measure it."""


@bench.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--workload", "letter", type=click.Choice(list("abcdef")), required=True)
@_RECORDS
@click.option("--value-size", type=value_size, default=1000, show_default=True)
@click.option("--distribution", help="Instead of the workload's own: zipfian, latest, uniform, hotspot, ...")
@click.option("--ordered", is_flag=True, help="Keys in the order of record numbers instead of hashed ones.")
@_options(_RUN_OPTIONS)
@_options(_ENGINE_OPTIONS)
@plain_errors
def ycsb(directory: Path, letter: str, records: int, **values: Any) -> None:  # noqa: ANN401
    """YCSB's core workloads: a (half updates), b (5% updates), c (reads), d (latest), e (scans), f (rmw)."""
    from workloads.generators.ycsb import Ycsb
    from workloads.records import UserKeys

    workload = Ycsb(
        letter,
        records,
        operations=values["operations"] or (0 if values["seconds"] else records),
        seed=values["seed"],
        value_size=values["value_size"],
        distribution=values["distribution"],
        key_format=UserKeys("ordered" if values["ordered"] else "hashed"),
    )
    _run(directory, workload, values, operations=records)


@bench.group()
def run() -> None:
    """Other workloads than YCSB's."""


@run.command()
@directory_argument
@_RECORDS
@click.option("--variant", default="prefix_dist", show_default=True, help="How keys are chosen.")
@click.option("--sine", is_flag=True, help="Operations are due at the paper's sine rate (open loop).")
@_options(_RUN_OPTIONS)
@_options(_ENGINE_OPTIONS)
@plain_errors
def mixgraph(directory: Path, records: int, variant: str, sine: bool, **values: Any) -> None:  # noqa: ANN401
    """Facebook's mixgraph: gets, puts and seeks as in a social graph's store (Cao et al., FAST'20)."""
    from workloads.generators.mixgraph import Mixgraph, Sine

    workload = Mixgraph(records, values["seed"], variant, sine=Sine() if sine else None)
    _run(directory, workload, values, operations=records)


@run.command()
@directory_argument
@_RECORDS
@click.option("--value-size", type=value_size, default=1000, show_default=True)
@click.option("--phase-operations", type=_COUNT, default=1_000_000, show_default=True, help="Until the hot set moves.")
@click.option("--hot-records", type=float, default=0.05, show_default=True, help="Share of the records.")
@click.option("--hot-operations", type=float, default=0.9, show_default=True, help="Share of operations on them.")
@_options(_RUN_OPTIONS)
@_options(_ENGINE_OPTIONS)
@plain_errors
def shifting(directory: Path, records: int, **values: Any) -> None:  # noqa: ANN401
    """A hot set that moves, while the mix turns from writing to reading and back."""
    from workloads.generators.shifting import ShiftingHotspot

    names = ("seed", "value_size", "phase_operations", "hot_records", "hot_operations")
    _run(directory, ShiftingHotspot(records, **{name: values[name] for name in names}), values, operations=records)


@run.command()
@directory_argument
@click.option("--series", type=_COUNT, default=1000, show_default=True)
@click.option("--points", type=_COUNT, default=1000, show_default=True, help="Of each series, loaded.")
@click.option("--value-size", type=value_size, default=64, show_default=True)
@click.option("--scan-share", type=float, default=0.1, show_default=True, help="Share of operations that read.")
@_options(_RUN_OPTIONS)
@_options(_ENGINE_OPTIONS)
@plain_errors
def timeseries(directory: Path, series: int, points: int, **values: Any) -> None:  # noqa: ANN401
    """Ingest of time series, and reads of their latest points."""
    from workloads.generators.timeseries import TimeSeries

    names = ("seed", "value_size", "scan_share")
    workload = TimeSeries(series, points, **{name: values[name] for name in names})
    _run(directory, workload, values, operations=workload.records)


@run.command()
@click.argument("file", type=click.Path(path_type=Path))
@directory_argument
@click.option(
    "--value-size", type=value_size, default=1000, show_default=True, help="Of records the trace never writes."
)
@click.option("--unpaced", is_flag=True, help="As fast as it goes, not at the trace's times.")
@_options(_RUN_OPTIONS)
@_options(_ENGINE_OPTIONS)
@plain_errors
def trace(file: Path, directory: Path, unpaced: bool, **values: Any) -> None:  # noqa: ANN401
    """Replay a trace: CSV, plain or gzip, or Parquet, with the columns time, op, key and size."""
    import numpy as np

    from workloads.generators.trace import Trace

    workload = Trace(str(file), values["value_size"], paced=not unpaced)
    numbers = np.unique(workload.columns.key)
    _run(directory, workload, values, operations=None, numbers=numbers, deletes=True)


@bench.command("db-bench")
@directory_argument
@click.option("--benchmarks", required=True, help="fillrandom,readrandom,... in this order; see db_bench --help.")
@click.option("--num", type=_COUNT, default=1_000_000, show_default=True, help="Keys.")
@click.option("--reads", type=_COUNT, help="Of each thread.")
@click.option("--threads", type=_COUNT, default=1, show_default=True)
@click.option("--seconds", type=_COUNT, help="Of each benchmark that is random.")
@click.option("--key-size", type=_COUNT, default=16, show_default=True)
@click.option("--value-size", type=value_size, default=100, show_default=True)
@click.option("--seed", type=_COUNT, default=1, show_default=True)
@click.option("--use-existing", is_flag=True, help="Use the database that an earlier db-bench left in DIR.")
@click.option("--flag", "flags", multiple=True, metavar="NAME=VALUE", help="A further flag of db_bench.")
@_JSON
@_options(_ENGINE_OPTIONS[1:])
@plain_errors
def db_bench(directory: Path, json_file: Path | None, use_existing: bool, **values: Any) -> None:  # noqa: ANN401
    """RocksDB's own benchmark program: native speed, real threads."""
    from workloads.engines.db_bench import MIXGRAPH, DbBench
    from workloads.runner.native import run_db_bench
    from workloads.runner.show import native_summary, result_line

    benchmarks = tuple(values["benchmarks"].split(","))
    given = [flag.partition("=") for flag in values["flags"]]
    work = DbBench(
        str(directory),
        benchmarks,
        duration=values["seconds"] or 0,
        options=_engine_options(values),
        histogram=True,
        extra={**(MIXGRAPH if "mixgraph" in benchmarks else {}), **{name: value for name, _, value in given}},
        **{name: values[name] for name in ("num", "reads", "threads", "key_size", "value_size", "seed")},
    )
    if json_file is not None:
        _writable(json_file)
    with sigterm_as_ctrl_c():
        result = run_db_bench(
            work,
            use_existing=use_existing,
            on_result=lambda found: errors.print(result_line(found)) if errors.is_terminal else None,
        )
    if json_file is not None:
        _write(json_file, result)
    console.print(native_summary(result))
    if result.interrupted:
        _exit_interrupted()


def _engine_options(values: Values) -> EngineOptions:
    from workloads.engines.options import OPTION_NAMES, DbPath, EngineOptions

    given = {name: values[name] for name in OPTION_NAMES}
    return EngineOptions(**{**given, "db_paths": tuple(DbPath(*place) for place in given["db_paths"])})


def _run(directory: Path, workload: Workload, values: Values, *, operations: int | None, **more: Any) -> None:  # noqa: ANN401
    """Run `workload`, by default `operations` of it, then show and write what was found, and exit with its status."""
    from workloads.runner.benchmark import Plan

    if values["load_only"] and values["run_only"]:
        raise click.UsageError("--load-only and --run-only: only one of them")
    names = ("engine", "threads", "seconds", "warm_up", "rate", "interval", "seed", "compression_ratio")
    plan = Plan(
        directory=directory,
        workload=workload,
        options=_engine_options(values),
        operations=values["operations"] or (None if values["seconds"] else operations),
        load=not values["run_only"],
        run=not values["load_only"],
        **{name: values[name] for name in (*names, "verify", "drop_caches", "memory")},
        **more,
    )
    finish(_measure(plan, values["json_file"]), values["json_file"])


def _measure(plan: Plan, json_file: Path | None) -> Result:
    from workloads.runner.benchmark import Benchmark
    from workloads.runner.show import watching
    from workloads.runner.stuck import STUCK_SECONDS, ended_when_stuck

    if json_file is not None:
        _writable(json_file)
    places = [plan.directory, *(Path(place.path) for place in plan.options.db_paths)]
    kept = ended_when_stuck(f"{plan.engine} {plan.directory}", places, STUCK_SECONDS)
    with sigterm_as_ctrl_c(), kept, watching(errors) as watcher:
        return Benchmark(plan, watcher).run()


def _writable(path: Path) -> None:
    """Raises KeigoError now rather than after an hour's run."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise KeigoError(f"{path}: {error.strerror}") from error


def _write(path: Path, result: Result | NativeResult) -> None:
    from workloads.runner.result import encode

    try:
        path.write_bytes(encode(result) + b"\n")
    except OSError as error:
        raise KeigoError(f"{path}: {error.strerror}") from error


def _exit_interrupted() -> NoReturn:
    errors.print("interrupted: this is what was measured until then")
    sys.exit(INTERRUPTED)


def finish(result: Result, json_file: Path | None) -> None:
    """Show a result, write it, and exit unless all went well."""
    from workloads.runner.show import summary

    try:
        if json_file is not None:
            _write(json_file, result)
    finally:
        console.print(summary(result))
    if result.error is not None:
        raise KeigoError(result.error)
    if result.interrupted:
        _exit_interrupted()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, and so does SIGINT, which a shell has its background jobs ignore."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
