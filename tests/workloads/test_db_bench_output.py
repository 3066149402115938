"""db_bench: its command line, what is made of its output, its end. What its figures are is never a matter here."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.errors import KeigoError
from workloads.engines.db_bench import MIXGRAPH, DbBench, run
from workloads.engines.db_bench_output import BenchResult, parse, parse_result, parse_timeline
from workloads.engines.options import DbPath, EngineOptions, OptionError
from workloads.engines.protocol import EngineError
from workloads.engines.readback import read_options
from workloads.engines.stats_text import LevelLine, StatsText, parse_stats

RECORDED = Path(__file__).parent.parent / "data/workloads/db_bench"
TEXTS = {path.stem: path.read_text() for path in sorted(RECORDED.glob("*.txt"))}
real = pytest.mark.skipif(shutil.which("db_bench") is None, reason="db_bench (Debian: rocksdb-tools) is not installed")


# ---- what was recorded


@pytest.mark.parametrize("name", TEXTS)
def test_every_result_is_found(name: str) -> None:
    lines = [line.split()[0] for line in TEXTS[name].splitlines() if "micros/op" in line]
    report = parse(TEXTS[name])
    assert [result.name for result in report.results] == lines != []


@pytest.mark.parametrize("name", TEXTS)
def test_figures_agree_with_each_other(name: str) -> None:
    for result in parse(TEXTS[name]).results:
        for histogram in result.histograms:
            assert histogram.count == sum(bucket.count for bucket in histogram.buckets)
            assert histogram.least <= histogram.median <= histogram.most
            assert list(histogram.percentiles) == ["50", "75", "99", "99.9", "99.99"]
            assert list(histogram.percentiles.values()) == sorted(histogram.percentiles.values())
            assert all(bucket.above < bucket.up_to for bucket in histogram.buckets)
        if result.seconds > 0.05 and result.operations > 1:  # three decimals of the one, none of the rate are printed
            assert math.isclose(result.ops_per_second, result.operations / result.seconds, rel_tol=0.02)


def test_counts() -> None:
    found = {result.name: result for result in parse(TEXTS["mixed"]).results}
    counts = found["mixgraph"].counts
    assert sorted(counts) == ["gets", "puts", "seek"]
    assert sum(counts.values()) == found["mixgraph"].operations == 5000
    assert {h.operation: h.count for h in found["mixgraph"].histograms} == {
        "read": counts["gets"],
        "write": counts["puts"],
        "seek": counts["seek"],
    }
    assert found["readrandomwriterandom"].counts.items() >= {("reads", 4500), ("writes", 500), ("total", 5000)}
    updates = parse(TEXTS["histograms"]).results[-1]
    assert (updates.name, updates.counts["updates"]) == ("updaterandom", 5000)


def test_repeated_benchmarks_are_results_of_their_own() -> None:
    names = [result.name for result in parse(TEXTS["repeated"]).results]
    assert names == ["fillseq", "readrandom", "readrandom", "readrandom"]
    assert {result.found for result in parse(TEXTS["repeated"]).results[1:]} == {(5000, 5000)}


def test_statistics() -> None:
    tickers = parse(TEXTS["statistics"]).tickers
    assert tickers["rocksdb.number.keys.written"] == 5000
    assert "rocksdb.stall.micros" in tickers
    assert parse(TEXTS["plain"]).tickers == {}


def test_stats() -> None:
    first, second = parse(TEXTS["stats"]).stats
    assert {level.level for level in first.levels} <= {0, 1}
    assert first.stall_micros is not None
    assert second.stall_micros is not None
    assert second.stall_micros >= first.stall_micros
    assert second.write_amplification is not None
    assert second.write_amplification >= 1


def test_a_stats_text_of_old() -> None:
    text = """
** Compaction Stats [default] **
Level    Files   Size     Score Read(GB)  Rn(GB) Rnp1(GB) Write(GB) Wnew(GB) Moved(GB) W-Amp Rd(MB/s) Wr(MB/s) Comp(sec)
----------------------------------------------------------------------------------------------------------------------
  L0      3/1   291.58 KB   0.8      0.0     0.0      0.0       0.0      0.0       0.0   1.0      0.0     19.6      0.05
  L6     12/0    1.50 GB    0.0      0.0     0.0      0.0       0.0      0.0       0.0   1.0     57.9     40.5      0.02
 Sum     15/0    1.50 GB    0.0      0.0     0.0      0.0       0.0      0.0       0.0  11.7     14.7     24.9      0.07
Cumulative stall: 01:02:3.018 H:M:S, 16.8 percent
Interval stall: 00:00:0.018 H:M:S, 16.8 percent
"""
    levels = (LevelLine(0, 3, 1, 298578), LevelLine(6, 12, 0, 3 << 29))
    assert parse_stats(text) == StatsText(levels, 11.7, 3_723_018_000)
    assert parse_stats("") == StatsText((), None, None)


# ---- foreign bytes


@given(st.text())
def test_any_text(text: str) -> None:
    try:
        parse(text)
    except EngineError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_damaged_output(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 200))
    junk = data.draw(st.text(st.sampled_from("0123456789.:()[]%|-/ \n\x00naifspoec\u0663"), max_size=20))
    try:
        report = parse(text[:start] + junk + text[start + length :])
    except EngineError:
        return
    assert len(report.results) <= len(parse(text).results) + 1


numbers = st.floats(0, 1e9).map(lambda value: round(value, 3))


@given(
    st.from_regex(r"[a-z]{1,12}", fullmatch=True), numbers, st.integers(0, 1 << 40), numbers, st.integers(0, 1 << 40),
    st.none() | st.integers(0, 10_000), st.none() | st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)),
)  # fmt: skip
def test_results_as_db_bench_prints_them(
    name: str, micros: float, rate: int, seconds: float, count: int, mib: int | None, found: tuple[int, int] | None
) -> None:
    speed = "" if mib is None else f"{mib:6.1f} MB/s"
    note = "" if found is None else f"({found[0]} of {found[1]} found)"
    line = f"{name:<12} : {micros:11.3f} micros/op {rate} ops/sec {seconds:.3f} seconds {count} operations;"
    line += " " + speed if speed else ""
    line += " " + note if note else ""
    wanted = BenchResult(name, micros, rate, seconds, count, None if mib is None else mib * 1048576.0, found, {})
    assert parse_result(line) == wanted


@pytest.mark.parametrize("line", ["readrandom : x micros/op", "a : 1 micros/op 2 ops/sec 3 seconds", "b: micros/op"])
def test_a_result_that_cannot_be_read_is_no_silence(line: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        parse(f"something\n{line}\n")


def test_timelines() -> None:
    assert parse_timeline("secs_elapsed,interval_qps\n1,10\n2,0\n") == (10, 0)
    assert parse_timeline("secs_elapsed,interval_qps\n") == ()
    for text in ("", "1,2\n", "secs_elapsed,interval_qps\n1;2\n"):
        with pytest.raises(EngineError, match="report file"):
            parse_timeline(text)


# ---- real runs

ALL = EngineOptions(
    write_buffer=1 << 18,
    file_size=1 << 19,
    background_jobs=3,
    subcompactions=2,
    block_cache=3 << 20,
    bloom_bits=7,
    direct_reads=True,
    direct_writes=True,
    compression="lz4",
    max_open_files=50,
    compaction_style="leveled",
    growth_factor=4,
    level_base=1 << 20,
    level0_slowdown=9,
    level0_stop=11,
    dynamic_levels=True,
)


@real
def test_options_are_in_effect(tmp_path: Path) -> None:
    heard: list[str] = []
    bench = DbBench(str(tmp_path / "db"), ("fillrandom", "readrandom"), 3000, ALL, threads=2, reads=100, value_size=200)
    report = run(bench, lambda result: heard.append(result.name))
    assert heard == [result.name for result in report.results] == ["fillrandom", "readrandom"]
    assert [result.operations for result in report.results] == [6000, 200]
    stored = read_options(bench.path)
    assert stored["filter_policy"] == "bloomfilter:7:false"
    assert stored["compression"] == "kLZ4Compression"
    assert "capacity : 3145728" in (tmp_path / "db/LOG").read_text()


@real
@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(
            compaction_style="universal", block_cache=0, bloom_bits=0, max_open_files=-1, dynamic_levels=False
        ),
        EngineOptions(compression="bz2", wal=False),
        EngineOptions(compression="zstd", sync=True),
    ],
)
def test_other_options(options: EngineOptions, tmp_path: Path) -> None:
    bench = DbBench(str(tmp_path / "db"), ("fillrandom", "stats"), 500, options, statistics=True)
    report = run(bench)
    assert bool(report.tickers["rocksdb.wal.bytes"]) == options.wal
    assert (report.tickers["rocksdb.wal.synced"] >= 500) == options.sync


@real
def test_an_option_that_is_changed_behind_our_back(tmp_path: Path) -> None:
    bench = DbBench(str(tmp_path / "db"), ("fillrandom",), 100, EngineOptions(max_open_files=3))
    with pytest.raises(OptionError, match=r"db_bench does not run with max_open_files 3: max_open_files=20"):
        run(bench)


@pytest.mark.parametrize(
    ("bench", "words"),
    [
        (DbBench("d", ("fillrandom",), 1, EngineOptions(db_paths=(DbPath("a", 1),))), "cannot set db_paths"),
        (DbBench("d", (), 1), "no benchmark"),
        (DbBench("d", ("fillrandom,--db=/",), 1), "not the name of a benchmark"),
        (DbBench("d", ("fillrandom",), 0), "num 0 is less than 1"),
        (DbBench("d", ("fillrandom",), 1, threads=0), "threads 0"),
        (DbBench("d", ("fillrandom",), 1, extra={"db": "/"}), "db is set by"),
        (DbBench("d", ("fillrandom", "readrandom"), 1, timeline=True), "one benchmark only"),
    ],
)
def test_what_it_cannot_do(bench: DbBench, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        bench.command()


@real
def test_a_database_is_never_destroyed(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    run(DbBench(path, ("fillseq",), 1000))
    with pytest.raises(EngineError, match="holds a database, and fillrandom begins with a new one"):
        run(DbBench(path, ("fillrandom",), 1000))
    (result,) = run(DbBench(path, ("readrandom",), 1000)).results
    assert result.found == (1000, 1000)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/000001.log").touch()
    with pytest.raises(EngineError, match="neither empty nor a database"):
        run(DbBench(str(tmp_path / "letters"), ("fillrandom",), 10))
    assert (tmp_path / "letters/000001.log").exists()


@real
def test_mixgraph_and_its_timeline(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    run(DbBench(path, ("fillrandom",), 2000, key_size=48))
    bench = DbBench(path, ("mixgraph",), 2000, key_size=48, duration=2, extra=MIXGRAPH, timeline=True)
    report = run(bench)
    (result,) = report.results
    assert sum(result.counts.values()) == result.operations
    assert 0 < sum(report.timeline) <= result.operations


@real
def test_errors_in_its_output(tmp_path: Path) -> None:
    path = tmp_path / "db"
    none = EngineOptions(compression="none")
    run(DbBench(str(path), ("fillrandom", "compact"), 20_000, none))
    (table,) = path.glob("*.sst")
    with table.open("r+b") as file:
        file.seek(300_000)
        file.write(b"x" * 50)
    for benchmark in ("readrandom", "verifychecksum"):
        with pytest.raises(EngineError, match=r"db_bench .*: Corruption: block checksum mismatch"):
            run(DbBench(str(path), (benchmark,), 20_000, none))
    with pytest.raises(EngineError, match="unknown benchmark 'nosuch'"):
        run(DbBench(str(path), ("nosuch",), 10))
    with pytest.raises(EngineError, match="ERROR: unknown command line flag 'nosuch'"):
        run(DbBench(str(path), ("readrandom",), 10, extra={"nosuch": "1"}))
    with pytest.raises(EngineError, match="open error: IO error: No such file or directory"):
        run(DbBench("/proc/nosuch", ("readrandom",), 10))


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KeigoError, match="not installed"):
        run(DbBench(str(tmp_path / "db"), ("fillrandom",), 10))


INTERRUPTED = """
import sys
from workloads.engines.db_bench import DbBench, DbBenchInterrupted, run
try:
    run(DbBench(sys.argv[1], ("fillrandom", "readrandom"), 1000, reads=1 << 40),
        lambda result: print(result.name, flush=True))
except DbBenchInterrupted as interrupted:
    print("interrupted after", *(result.name for result in interrupted.report.results))
"""


@real
def test_ctrl_c(tmp_path: Path) -> None:
    """What was measured is told, and db_bench is gone."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "db")]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        children: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "fillrandom\n"
            children = psutil.Process(process.pid).children()
            assert [os.getpgid(child.pid) for child in children] == [child.pid for child in children] != []
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "interrupted after fillrandom\n"
            assert process.wait(60) == 0
            assert not any(child.is_running() for child in children)
        finally:
            process.kill()
            end(children)


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


@real
def test_it_ends_with_its_caller(tmp_path: Path) -> None:
    children: list[psutil.Process] = []

    def fail(_: BenchResult) -> None:
        children.extend(psutil.Process().children())
        raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            run(DbBench(str(tmp_path / "db"), ("fillrandom", "readrandom"), 1000, reads=1 << 40), fail)
        assert children
        assert not any(child.is_running() for child in children)
    finally:
        end(children)
