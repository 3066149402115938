"""The time until compactions are over, and runs that go on with what an earlier one left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from workloads.compare.job import DB_BENCH, Job, Settings, runner_plan
from workloads.compare.native import run_native
from workloads.engines.db_bench import DbBench
from workloads.engines.db_bench_settled import Event, events_of, run_settled
from workloads.engines.options import EngineOptions, OptionError
from workloads.engines.protocol import EngineError
from workloads.runner.benchmark import Benchmark, Silent
from workloads.runner.place import PlaceError

real = pytest.mark.skipif(shutil.which("db_bench") is None, reason="db_bench (Debian: rocksdb-tools) is not installed")
SMALL = EngineOptions(write_buffer=64 << 10, file_size=64 << 10, level_base=256 << 10, compression="none")
OPTIONS = {"write_buffer": 64 << 10, "file_size": 64 << 10, "level_base": 256 << 10, "compression": "none"}


def line(moment: int, job: int, event: str, more: str = "") -> str:
    stamp = (
        f'2026/01/01-00:00:00.0 7f EVENT_LOG_v1 {{"time_micros": {moment}, "job": {job}, "event": "{event}"{more}}}\n'
    )
    return "2026/01/01-00:00:00.0 7f [db/db_impl.cc:1] something else\n" + stamp


def test_the_log_tells_what_runs_and_what_has_ended() -> None:
    text = line(1_000_000, 2, "flush_started", ', "total_data_size": 500')
    assert events_of(text) == (1, [])
    text += line(2_000_000, 2, "flush_finished") + line(2_500_000, 3, "compaction_started")
    assert events_of(text) == (1, [Event(2.0, "flush", 500)])
    text += line(4_000_000, 3, "compaction_finished", ', "total_output_size": 700')
    assert events_of(text) == (0, [Event(2.0, "flush", 500), Event(4.0, "compaction", 700)])
    # The store is writing a line of the log when it is read.
    assert events_of(text + line(5_000_000, 4, "compaction_started")[:-20]) == events_of(text)


@real
def test_writes_and_the_compactions_that_they_make(tmp_path: Path) -> None:
    bench = DbBench(str(tmp_path / "db"), ("fillrandom",), 5000, SMALL, value_size=200, threads=2)
    found = run_settled(bench)
    (result,) = found.report.results
    assert (result.name, result.operations) == ("fillrandom", 10_000)
    assert found.seconds == pytest.approx(result.seconds, abs=1e-3)
    assert found.settle_seconds >= 0
    assert found.write_amplification > 1
    log = (tmp_path / "db/LOG").read_text()
    running, events = events_of(log)
    assert running == 0
    assert {event.name for event in events} == {"flush", "compaction"}
    # More on what there is now: the database was not destroyed, and is not open any more.
    again = run_settled(replace(bench, benchmarks=("overwrite",)))
    assert [result.name for result in again.report.results] == ["overwrite"]


@real
def test_a_benchmark_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"db_bench .*: ended early"):
        run_settled(DbBench(str(tmp_path / "db"), ("fillnothing",), 10, SMALL))
    with pytest.raises(OptionError, match="max_open_files"):
        run_settled(DbBench(str(tmp_path / "other"), ("fillrandom",), 10, replace(SMALL, max_open_files=3)))


def native(
    directory: Path, settings: Settings, given: dict[str, object], *, load: bool = True, settle: bool = False
) -> Job:
    parameters = {"records": 3000, "value_size": 100, **given}
    return Job(str(directory), DB_BENCH, OPTIONS, [], DB_BENCH, parameters, settings, load=load, settle=settle)


@real
def test_db_bench_writes_more_than_there_are_records_and_settles(tmp_path: Path) -> None:
    settings = Settings(threads=2, operations=12_000)
    job = native(tmp_path / "db", settings, {"benchmark": "fillrandom"}, settle=True)
    (phase,) = run_native(job, Silent()).phases
    assert phase.name == "run"
    assert phase.operations == 12_000
    assert phase.settle_seconds is not None
    assert phase.per_interval == {"fillrandom": [12_000]}
    assert phase.latency["write"].count == 12_000


@real
def test_db_bench_goes_on_with_a_share_of_reads(tmp_path: Path) -> None:
    mixed: dict[str, object] = {"benchmark": "readrandomwriterandom", "load": "fillrandom", "read_percent": 90}
    load, phase = run_native(native(tmp_path / "db", Settings(operations=4000), mixed), Silent()).phases
    assert load.settle_seconds is not None
    assert phase.settle_seconds is None
    result = run_native(native(tmp_path / "db", Settings(operations=8000, threads=2), mixed, load=False), Silent())
    (phase,) = result.phases
    assert phase.latency["read"].count == pytest.approx(0.9 * phase.operations, rel=0.02)


def ours(directory: Path, *, load: bool = True, run: bool = True, settle: bool = False) -> Job:
    parameters = {"records": 2000, "value_size": 200}
    settings = Settings(operations=3000)
    return Job(
        str(directory), "rocksdb", OPTIONS, [], "ycsb-a", parameters, settings, load=load, run=run, settle=settle
    )


@pytest.mark.parametrize("settle", [False, True])
def test_a_run_may_be_settled_as_a_load_always_is(tmp_path: Path, *, settle: bool) -> None:
    load, run = Benchmark(runner_plan(ours(tmp_path / "db", settle=settle))).run().phases
    assert load.settle_seconds is not None
    assert (run.settle_seconds is not None) == settle


def test_a_load_and_runs_may_be_jobs_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="nothing is loaded"):
        Benchmark(runner_plan(ours(tmp_path / "db", load=False)))
    loaded = Benchmark(runner_plan(ours(tmp_path / "db", run=False))).run()
    assert [(phase.name, phase.operations) for phase in loaded.phases] == [("load", 2000)]
    for _ in range(2):
        found = Benchmark(runner_plan(ours(tmp_path / "db", load=False))).run()
        assert [(phase.name, phase.operations, phase.missing) for phase in found.phases] == [("run", 3000, 0)]
