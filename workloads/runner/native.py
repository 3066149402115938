"""`db_bench` in a directory that may be used, with what `benchmark` also tells of: CPU, and bytes per tier."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from keigo import __version__
from workloads.engines.db_bench import DbBench, DbBenchInterrupted, run
from workloads.engines.db_bench_output import BenchResult
from workloads.engines.options import asked_for
from workloads.runner.benchmark import plain
from workloads.runner.meters import Meters, Sampler, machine
from workloads.runner.place import MARKER, Marker, PlaceError, read_marker, remove_database, write_marker
from workloads.runner.result import FORMAT, NativeResult

_ENGINE = "db_bench"


def run_db_bench(
    bench: DbBench, *, use_existing: bool, on_result: Callable[[BenchResult], None] | None = None
) -> NativeResult:
    """Run it: in an empty directory, in place of what an earlier run of ours left there, or on the database that an
    earlier run of db_bench left. Ctrl-C (KeyboardInterrupt) ends it; what was over by then is in the result.

    Raises PlaceError, and what `db_bench.run` raises.
    """
    directory = Path(bench.path)
    marker = read_marker(directory)
    if use_existing and (marker is None or marker.engine != _ENGINE):
        raise PlaceError(f"{directory}: no earlier run of db_bench has left a database here")
    meters = Meters(directory)
    if marker is not None and not use_existing:
        remove_database(directory, daemon=meters.daemon_pid)
        (directory / MARKER).unlink()  # db_bench takes a directory that is empty, or a database
    began, before = datetime.now(UTC), os.times()
    sampler = Sampler(meters)
    sampler.sample()
    interrupted = False
    try:
        report = run(bench, on_result)
    except DbBenchInterrupted as error:
        report, interrupted = error.report, True
    finally:
        if directory.is_dir():
            # Its values and keys are db_bench's own, which nothing of ours reads.
            work = ",".join(bench.benchmarks)
            write_marker(directory, Marker(_ENGINE, work, bench.num, bench.seed, 1.0, "", loaded=True))
    sampler.sample()
    samples, after = sampler.samples(), os.times()
    return NativeResult(
        format=FORMAT,
        keigo=__version__,
        began=began.isoformat(timespec="seconds"),
        directory=str(directory.absolute()),
        filesystem=meters.filesystem,
        options={name: plain(getattr(bench.options, name)) for name in asked_for(bench.options)},
        benchmarks=list(bench.benchmarks),
        machine=machine(),
        mount=meters.mount,
        report=report,
        seconds=samples.seconds[-1],
        database_cpu=after.children_user + after.children_system - before.children_user - before.children_system,
        daemon_cpu=samples.daemon_cpu[-1] if samples.daemon_cpu else None,
        read_bytes={tier: column[-1] for tier, column in samples.read_bytes.items()},
        written_bytes={tier: column[-1] for tier, column in samples.written_bytes.items()},
        interrupted=interrupted,
    )
