"""bench-cache's own arithmetic: what other caches would do, ratios, going on after an interruption; small runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import bench_cache_hits as hits
import bench_cache_optimum as optimum
import bench_cache_results as results
import bench_cache_trace as trace
import numpy as np
import pytest
from bench_cache import main, number, target
from bench_cache_jobs import Bench, in_memory, native_records
from bench_cache_mounts import Sample, hit_ratio
from bench_cache_plan import (
    CHUNK,
    FAST,
    PARTS,
    REPEATED,
    SETUPS,
    SLOW,
    Part,
    Row,
    Sizes,
    Times,
    Todo,
    order,
    rows,
)
from bench_cache_results import NEVER, Done, Results, near, seconds_until, verdict
from bench_cache_runs import run, run_bare
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from keigo import mounts
from workloads.compare.hierarchy import TierPlan, prepared
from workloads.compare.tools import CompareError

HEAD = {"data": 1.0}
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
reads_of_pieces = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=14)


def numbers(values: Sequence[int]) -> optimum.Numbers:
    return np.array(values, np.int64)


def done(part: Part, setup: str, repetition: int = 0, error: str | None = None, **figures: float) -> Done:
    return Done(part, setup, repetition, "", 10.0, "", figures, {}, error)


def found_with(*runs: Done) -> Results:
    found = Results(results.FORMAT, HEAD)
    for each in runs:
        found.add(each)
    return found


# --- what other caches would do ---


def test_the_hottest_pieces_are_those_that_are_read_most() -> None:
    counts, sizes = numbers([1, 9, 0, 5]), numbers([10, 10, 10, 10])
    assert optimum.hottest(counts, sizes, 25) == {1, 3}
    assert optimum.hottest(counts, sizes, 1000) == {0, 1, 3}  # nothing is gained by what is never read


def test_the_hottest_files_are_those_that_are_read_most_for_their_size() -> None:
    counts, sizes = numbers([10, 6, 5]), numbers([100, 10, 10])
    assert optimum.hottest(counts, sizes, 105) == {1, 2}  # the first one does not fit beside them
    assert optimum.hottest(counts, sizes, 120) == {0, 1, 2}


@given(reads_of_pieces, st.integers(0, 5))
def test_no_static_choice_of_chunks_beats_the_hottest(reads: list[tuple[int, int]], room: int) -> None:
    first = numbers([piece for piece, _ in reads])
    counts = optimum.counts_of(first, first, 6)
    best = optimum.static_ratio(first, first, optimum.hottest(counts, np.ones(6, np.int64), room))
    others = [optimum.static_ratio(first, first, choice) for choice in combinations(range(6), min(room, 6))]
    assert best == pytest.approx(max(others))


@given(reads_of_pieces, st.sets(st.integers(0, 7)))
def test_a_read_is_a_hit_where_all_its_chunks_are_cached(reads: list[tuple[int, int]], cached: set[int]) -> None:
    first, last = numbers([piece for piece, _ in reads]), numbers([piece + more for piece, more in reads])
    expected = [set(range(piece, piece + more + 1)) <= cached for piece, more in reads]
    assert optimum.static_ratio(first, last, cached) == (np.mean(expected) if expected else 0.0)


@given(reads_of_pieces)
def test_counts_are_of_every_piece_of_a_read(reads: list[tuple[int, int]]) -> None:
    first, last = numbers([piece for piece, _ in reads]), numbers([piece + more for piece, more in reads])
    expected = [sum(piece <= number <= piece + more for piece, more in reads) for number in range(8)]
    assert optimum.counts_of(first, last, 8).tolist() == expected


def best_hits(trace: Sequence[int], room: int) -> int:
    """Of a cache that may keep any of what it has and what it reads: by trying all."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for piece in trace:
        following: dict[frozenset[int], int] = {}
        for state, count in states.items():
            whole = state | {piece}
            for kept in combinations(sorted(whole), min(room, len(whole))):
                key = frozenset(kept)
                following[key] = max(following.get(key, 0), count + (piece in state))
        states = following
    return max(states.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 4))
def test_belady_is_the_best_that_there_is(reads: list[int], room: int) -> None:
    ratio = optimum.belady_ratio(reads, reads, room)
    assert ratio == pytest.approx(best_hits(reads, room) / len(reads))


def test_belady_beats_lru_and_counts_from_where_it_is_told() -> None:
    reads = [0, 1, 2] * 5
    lru: OrderedDict[int, None] = OrderedDict()
    hits_of_lru = 0
    for piece in reads:
        hits_of_lru += piece in lru
        lru[piece] = None
        lru.move_to_end(piece)
        if len(lru) > 2:
            lru.popitem(last=False)
    assert hits_of_lru == 0
    assert optimum.belady_ratio(reads, reads, 2) > 0.5
    assert optimum.belady_ratio(reads, reads, 3, since=3) == 1.0
    assert optimum.belady_ratio(reads, reads, 3) == pytest.approx(12 / 15)
    assert optimum.belady_ratio([], [], 3) == 0.0


def test_a_read_of_several_chunks_is_one_miss() -> None:
    assert optimum.belady_ratio([0, 0, 0], [1, 1, 1], 2) == pytest.approx(2 / 3)


# --- traces ---


def reads_at(*reads: tuple[int, int, int, int]) -> trace.Reads:
    return np.array([(when, ino, offset, size, 5) for when, ino, offset, size in reads], trace.READ)


LAYOUT = trace.Layout(("000001.sst", "000002.sst"), numbers([2 * CHUNK + 100, CHUNK]), CHUNK)


def test_chunks_are_numbered_through_all_files() -> None:
    reads = reads_at(
        (1_000_000_000, 11, 0, 4096),
        (2_000_000_000, 22, CHUNK - 4096, 4096),
        (3_000_000_000, 11, CHUNK - 1, 2),
        (4_000_000_000, 33, 0, 4096),  # another file
        (5_000_000_000, 11, 2 * CHUNK, 4096),  # whole blocks, beyond the file's end
        (6_000_000_000, 22, CHUNK, 4096),  # all of it is
    )
    found = trace.touched(reads, {11: "000001.sst", 22: "000002.sst", 44: "000004.sst"}, LAYOUT)
    assert found.file.tolist() == [0, 1, 0, 0]
    assert found.first.tolist() == [0, 3, 0, 2]
    assert found.last.tolist() == [0, 3, 1, 2]
    assert found.when.tolist() == [1.0, 2.0, 3.0, 5.0]
    assert found.between(2.0, 5.0).file.tolist() == [1, 0]


@needs_cc
def test_a_trace_has_what_a_process_reads(tmp_path: Path) -> None:
    file, path = tmp_path / "000001.sst", tmp_path / "trace"
    file.write_bytes(bytes(2 * CHUNK + 100))
    reader = "import os,sys; fd = os.open(sys.argv[1], 0); os.pread(fd, 10, 70000); os.pread(fd, 4096, 131072)"
    with trace.traced(trace.build(tmp_path), path):
        subprocess.run([sys.executable, "-c", reader, file], check=True)
    assert "LD_PRELOAD" not in os.environ
    layout = trace.layout_of(tmp_path, CHUNK)
    found = trace.touched(trace.load(path), trace.inodes_of(tmp_path), layout)
    assert found.first.tolist() == found.last.tolist() == [1, 2]
    assert (found.took > 0).all()
    assert found.when[0] < found.when[1]


def test_other_caches_are_judged_by_the_reads_between_two_moments() -> None:
    reads = reads_at(*((second * 1_000_000_000, 22 if second > 10 else 11, 0, 4096) for second in range(1, 21)))
    found = trace.touched(reads, {11: "000001.sst", 22: "000002.sst"}, LAYOUT)
    reference = hits.Reference(LAYOUT, numbers([9, 0, 0, 5]), numbers([9, 5]))
    told = hits.compared(reference, CHUNK, found, 6.0, 16.0)
    assert (told["reads"], told["pieces"], told["places"]) == (10.0, 4.0, 1.0)
    assert told["static"] == 0.5
    assert told["hindsight"] == 0.5
    assert told["belady"] == 0.9  # warm as the window begins; the other chunk is missed once
    assert told["whole_files"] == 0.5  # of the second file: the first one does not fit


def test_hits_by_second_leave_out_what_is_not_whole() -> None:
    when = np.array([0.5, 1.1, 1.9, 3.2, 3.9])
    at, ratios = hits.ratios_by_second(when, np.array([True, True, False, True, True]), 1.0)
    assert (at, ratios) == ([1.5], [0.5])  # nothing was read in the second after it
    assert hits.ratios_by_second(np.array([]), np.array([], np.bool_), 0.0) == ([], [])


def samples(*counts: tuple[float, int, int]) -> list[Sample]:
    return [Sample(at, foreground, found, 0, 0, 0) for at, foreground, found in counts]


def test_the_hit_ratio_is_of_what_was_counted_in_between() -> None:
    counted = samples((0.0, 0, 0), (1.0, 100, 0), (2.0, 200, 60), (3.0, 300, 160), (9.0, 900, 160))
    assert hit_ratio(counted, 0.5, 3.5) == (0.8, 1.0, 3.0)
    with pytest.raises(CompareError, match="no reads"):
        hit_ratio(counted, 2.5, 3.5)


def test_a_sample_has_the_hits_of_the_foreground() -> None:
    facts = {"foreground_reads": 3_000_001, "hit_ratio": 1_234_567 / 3_000_001, "used": 1, "filled": 2, "evicted": 3}
    assert Sample.of(1.0, facts) == Sample(1.0, 3_000_001, 1_234_567, 1, 2, 3)
    assert Sample.of(1.0, facts | {"foreground_reads": 0, "hit_ratio": None}).hits == 0


# --- the table ---


def test_all_rows_of_the_table_are_of_setups_that_are_run() -> None:
    for row in rows():
        assert row.setup in SETUPS[row.part], row.title
        assert row.base is None or row.base in SETUPS[row.part], row.title


def test_the_targets_are_those_that_were_asked_for() -> None:
    targets = {(row.part, row.setup, row.base): target(row) for row in rows() if target(row)}
    assert targets == {
        ("full", "cache", "none"): "at least 18",
        ("full", "cache", "all-fast"): "at least 0.9",
        ("tenth", "cache", None): "at least 0.95",
        ("tenth", "no-blocks", None): "at least 0.95",
        ("restart", "clean", None): "at least 0.95",
        ("restart", "killed", None): "at least 0.95",
        ("scan", "cache", None): "at most 10",
        ("memory", "64MiB files", None): "at most 2",
        ("memory", "1GiB files", None): "at most 2",
        ("micro", "hit", None): "at most 0.3",
    }


def test_a_ratio_is_one_of_medians() -> None:
    row = Row("", "full", "rate", "cache", "none", least=3.0)
    runs = [done("full", "cache", n, rate=rate) for n, rate in enumerate([10.0, 90.0, 30.0])]
    runs += [done("full", "none", n, rate=rate) for n, rate in enumerate([10.0, 5.0])]
    told = verdict(found_with(*runs), row)
    assert (told.value, told.mine, told.theirs, told.runs) == (4.0, 30.0, 7.5, 2)
    assert (told.low, told.high) == (1.0, 18.0)
    assert told.met is True
    assert verdict(found_with(*runs), Row("", "full", "rate", "cache", "none", least=4.1)).met is False


def test_a_figure_is_a_median_and_may_be_too_large() -> None:
    found = found_with(*(done("micro", "hit", n, more_us=us) for n, us in enumerate([0.1, 0.5, 0.2])))
    assert verdict(found, Row("", "micro", "more_us", "hit", most=0.3)).met is True
    assert verdict(found, Row("", "micro", "more_us", "hit", most=0.1)).met is False
    assert verdict(found, Row("", "micro", "more_us", "hit")).met is None


def test_what_is_missing_is_said() -> None:
    row = Row("", "full", "rate", "cache", "none", least=3.0)
    told = verdict(found_with(done("full", "cache", rate=1.0), done("full", "none", error="no room")), row)
    assert (told.value, told.met, told.lacks) == (None, None, "none: no room")
    assert verdict(found_with(), row).lacks == "cache: not run"


def test_hits_are_back_when_they_stay() -> None:
    at = [number + 0.5 for number in range(10)]
    ratios = [0.9, 0.9, 0.1, 0.9, 0.8, 1.0, 0.9, 0.9, 0.9, 0.9]
    assert seconds_until(at, ratios, 1.0, 0.9) == 2.5  # not at 1.5, after which it was low again
    assert seconds_until(at, ratios, 0.0, 0.7) == 0.5
    assert seconds_until(at, ratios, 6.0, 0.9) == NEVER  # too little is known of it
    assert near(0.8) == pytest.approx(0.76)
    assert number(NEVER) == "never"


# --- going on ---


def test_every_setup_is_run_and_some_again() -> None:
    todos = list(order(PARTS, 3))
    assert len(set(todos)) == len(todos)
    for part in PARTS:
        for setup in SETUPS[part]:
            assert todos.count(Todo(part, setup)) == 1
            assert (Todo(part, setup, 2) in todos) == (part in REPEATED)
    assert [todo.repetition for todo in order(["tenth"], 2)] == [0] * 4 + [1] * 4
    firsts = [next(todo.setup for todo in todos if (todo.part, todo.repetition) == ("full", n)) for n in range(3)]
    assert len(set(firsts)) == 3  # none is always the first


def test_only_what_is_missing_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = results.load(path, HEAD)
    todos = list(order(PARTS, 1))
    for todo in todos[:5]:
        found.add(done(todo.part, todo.setup, todo.repetition, rate=1.0))
    found.add(done(todos[5].part, todos[5].setup, error="failed"))
    results.save(found, path)
    again = results.load(path, HEAD)
    assert again.missing(todos) == todos[5:]
    assert again.forget([todos[0].part]) == sum(todo.part == todos[0].part for todo in todos[:6])
    assert todos[0] in again.missing(todos)
    with pytest.raises(results.ResultsError, match="data"):
        results.load(path, {"data": 2.0})


def test_the_table_is_shown_without_a_run(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    shown = CliRunner().invoke(main, ["--json", str(path), "--table"])
    assert shown.exit_code == 0
    assert "at least 18" in shown.output
    assert "not run" in shown.output
    assert not path.exists()


def test_a_cache_of_a_share_of_the_data_is_smaller_than_all_of_it() -> None:
    sizes = Sizes(96 << 20)
    assert sizes.share(10) < sizes.share(4) < sizes.data < sizes.whole < sizes.device
    assert sizes.native.share(4) >= 100 << 20  # the least that RocksDB's read cache takes


def test_db_bench_can_ask_for_all_keys() -> None:
    sizes = Sizes(512 << 20)
    for what in SETUPS["native"]:
        records = native_records(sizes, what)
        assert len({number * 0x5BD1E995 % records for number in range(2000)}) == 2000
    assert native_records(sizes, "readrandom") * 1026 / sizes.data > 0.99


# --- small runs ---


@pytest.mark.parametrize("setup", SETUPS["memory"])
def test_memory_is_of_all_chunks(setup: str) -> None:
    told = run_bare(Todo("memory", setup), quick=True)
    assert told.error is None
    count = told.figures["chunks_of_file"]
    assert told.figures["per_file"] > count  # each has a number of its own, and that is more than a byte
    assert told.figures["beyond"] == pytest.approx((told.figures["per_file"] - 1024) / count)
    assert told.figures["plan_bytes_per_chunk"] > 1


def test_a_hit_is_measured_against_a_read_without_the_cache() -> None:
    told = run_bare(Todo("micro", "hit"), quick=True)
    assert told.error is None
    assert told.figures["hit_us"] > 0
    assert told.figures["more_us"] == pytest.approx(told.figures["served_us"] + told.figures["heat_us"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for name in (FAST, SLOW):
        (tmp_path / name).mkdir()
    tiers = [TierPlan(name, tmp_path / name, None) for name in (FAST, SLOW)]
    said: list[str] = []
    name = f"keigo-test-bench-cache-{os.getpid()}"
    with in_memory(name) as directory, prepared(tuple(tiers), None, tmp_path / "t.json", said.append) as hierarchy:
        yield Bench(hierarchy, directory, Sizes(4 << 20), Times(1.0), None)
    assert not Path("/dev/shm", name).exists()
    assert mounts.mounts_below(str(tmp_path)) == []
    assert [os.listdir(tmp_path / name) for name in (FAST, SLOW)] == [[], []]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and drops the page cache")
def test_all_is_served_from_a_cache_that_was_warmed_and_nothing_is_left(bench: Bench) -> None:
    told = run(bench, Todo("full", "cache"))
    assert told.error is None
    assert told.figures["rate"] > 0
    assert told.figures["hit_ratio_of_all"] > 0.99
    assert all(not os.listdir(tier.directory) for tier in bench.hierarchy.tiers)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and drops the page cache")
def test_a_run_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    (bench.hierarchy.slowest.directory / "db").write_bytes(b"in the way")
    told = run(bench, Todo("full", "none"))
    assert "db" in (told.error or "")
    assert all(not os.listdir(tier.directory) for tier in bench.hierarchy.tiers)
