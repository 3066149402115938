"""One benchmark of `db_bench` as a run: loaded by another of its benchmarks, the page cache dropped in between, and
told in the same form as any other run."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from keigo import __version__
from workloads.compare.job import DB_BENCH, Job
from workloads.engines.db_bench import MIXGRAPH, DbBench, run
from workloads.engines.db_bench_output import BenchReport, LatencyHistogram
from workloads.engines.db_bench_settled import run_settled
from workloads.engines.options import EngineOptions
from workloads.runner.benchmark import Watcher
from workloads.runner.isolation import drop_page_cache, memory_limit
from workloads.runner.meters import Meters, Sampler, machine
from workloads.runner.result import FORMAT, Latency, Phase, Result

_PIECES: Final = 16
"""A bucket's latencies are spread evenly over it, as db_bench does for its percentiles."""
_WRITES_ONLY: Final = ("fill", "overwrite")


def run_native(job: Job, watcher: Watcher) -> Result:
    """Run it. Raises OptionError and EngineError; Ctrl-C raises KeyboardInterrupt, and nothing is told of it then."""
    began, settings, directory = datetime.now(UTC), job.settings, Path(job.directory)
    meters = Meters(directory)
    pids = [os.getpid()] + ([] if meters.daemon_pid is None else [meters.daemon_pid])
    phases = []
    with nullcontext() if settings.memory is None else memory_limit(settings.memory, pids):
        load = job.parameters.get("load")
        if load is not None and job.load:
            watcher.begin("load", job.parameters["records"], None)
            phases.append(_phase("load", _bench(job, load), meters, settle=True))
        if settings.drop_caches:
            drop_page_cache()
        if job.run:
            watcher.begin("run", settings.operations, settings.seconds)
            phases.append(_phase("run", _bench(job, job.parameters["benchmark"]), meters, settle=job.settle))
    return Result(
        format=FORMAT,
        keigo=__version__,
        began=began.isoformat(timespec="seconds"),
        directory=str(directory.absolute()),
        filesystem=meters.filesystem,
        engine=DB_BENCH,
        options=dict(job.options),
        workload=job.parameters["benchmark"],
        parameters=dict(job.parameters),
        settings={"threads": settings.threads, "seconds": settings.seconds, "operations": settings.operations},
        machine=machine(),
        mount=meters.mount,
        phases=phases,
        verification=None,
        interrupted=False,
        error=None,
    )


def _bench(job: Job, benchmark: str) -> DbBench:
    settings, given = job.settings, job.parameters
    is_run = given["benchmark"] == benchmark
    sizes: dict[str, Any] = {name: given[name] for name in ("key_size", "value_size") if name in given}
    each = None if settings.operations is None or not is_run else max(1, settings.operations // settings.threads)
    extra = dict(MIXGRAPH) if benchmark == "mixgraph" else {}
    if each is not None and benchmark.startswith(_WRITES_ONLY):
        extra["writes"] = str(each)
    if "read_percent" in given and benchmark == "readrandomwriterandom":
        extra["readwritepercent"] = str(given["read_percent"])
    return DbBench(
        job.directory,
        (benchmark,),
        given["records"],
        EngineOptions(**job.options),
        reads=each,
        threads=settings.threads if is_run else 1,
        duration=int(settings.seconds or 0) if is_run else 0,
        seed=settings.seed + 1,  # db_bench takes 0 for any seed
        histogram=True,
        timeline=is_run,
        extra=extra,
        **sizes,
    )


def _phase(name: str, bench: DbBench, meters: Meters, *, settle: bool) -> Phase:
    sampler, before = Sampler(meters), os.times()
    sampler.sample()
    settled = run_settled(replace(bench, timeline=False)) if settle else None
    report = run(bench) if settled is None else settled.report
    sampler.sample()
    after, samples, found = os.times(), sampler.samples(), report.results[0]
    return Phase(
        name=name,
        seconds=found.seconds,
        operations=found.operations,
        throughput=found.ops_per_second,
        missing=0 if found.found is None else found.found[1] - found.found[0],
        scanned=0,
        value_bytes=0,
        latency={histogram.operation: spread_out(histogram) for histogram in found.histograms if histogram.count},
        service={},
        behind=0.0,
        interval=1.0 if settled is None else found.seconds,
        per_interval={found.name: _timeline(report)},
        samples=samples,
        database_cpu=after.children_user + after.children_system - before.children_user - before.children_system,
        daemon_cpu=samples.daemon_cpu[-1] if samples.daemon_cpu else None,
        read_bytes={tier: column[-1] for tier, column in samples.read_bytes.items()},
        written_bytes={tier: column[-1] for tier, column in samples.written_bytes.items()},
        settle_seconds=None if settled is None else settled.settle_seconds,
        levels=[],
        stall_seconds=None,
    )


def _timeline(report: BenchReport) -> list[int]:
    """Operations in each second; what was done after the last that db_bench wrote goes to one more."""
    counts = list(report.timeline)
    rest = report.results[0].operations - sum(counts)
    return [*counts, rest] if rest > 0 else counts


def spread_out(found: LatencyHistogram) -> Latency:
    """In nanoseconds, from db_bench's microseconds."""
    values: list[int] = []
    counts: list[int] = []
    for bucket in found.buckets:
        above, up_to = max(bucket.above, found.least), min(bucket.up_to, found.most)
        pieces = min(_PIECES, bucket.count)
        for piece in range(pieces):
            place = above + (up_to - above) * (piece + 0.5) / pieces
            values.append(round(place * 1e3))
            counts.append(bucket.count // pieces + (piece < bucket.count % pieces))
    percentiles = {name: round(value * 1e3) for name, value in found.percentiles.items()}
    return Latency(found.count, found.average * 1e3, found.least * 1000, found.most * 1000, percentiles, values, counts)
