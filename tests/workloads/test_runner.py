"""What the runner measures, with engines and clocks of the tests' own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.engines import Failing, Opening, Slow, VirtualClock, run
from workloads.engines.null import DictEngine
from workloads.generators.workload import inserts
from workloads.generators.ycsb import Ycsb
from workloads.operations import Batch, Op
from workloads.records import UserKeys, Values
from workloads.runner.drive import Loop, Operations, PlainLoop
from workloads.runner.histogram import Histogram, bucket_of, middle_of
from workloads.runner.isolation import IsolationError, drop_page_cache, memory_hierarchy, memory_limit
from workloads.runner.phase import Measured, PhaseRun, PhaseSpec
from workloads.runner.place import (
    MARKER,
    TABLES,
    Marker,
    PlaceError,
    check_tables,
    claim_tables,
    read_marker,
    remove_database,
    write_marker,
)
from workloads.runner.result import ResultError, decode, encode
from workloads.verify import CheckedLoop, Oracle

PERCENT = (0, 1, 25, 50, 90, 99, 99.9, 100)
latencies = st.lists(st.integers(0, 1 << 40) | st.integers(0, 5000), min_size=1, max_size=300)


def exact(values: list[int], percent: float) -> int:
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@given(latencies)
def test_percentiles_are_off_by_less_than_a_thousandth(values: list[int]) -> None:
    histogram = Histogram()
    histogram.record(np.array(values))
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    for percent in PERCENT:
        assert histogram.percentile(percent) == pytest.approx(exact(values, percent), rel=0.001, abs=0)
    assert histogram.percentile(0) == min(values)
    assert histogram.percentile(100) == max(values)


@given(st.lists(latencies, max_size=4))
def test_histograms_merge_to_that_of_all_values(parts: list[list[int]]) -> None:
    merged, whole = Histogram(), Histogram()
    for part in parts:
        one = Histogram()
        one.record(np.array(part))
        merged.merge(one)
        whole.record(np.array(part))
    assert (merged.counts == whole.counts).all()
    assert (merged.count, merged.total, merged.least, merged.most) == (
        whole.count,
        whole.total,
        whole.least,
        whole.most,
    )


@given(st.lists(st.integers(0, (1 << 63) - 1), min_size=1))
def test_buckets_rise_with_their_values(values: list[int]) -> None:
    ordered = np.array(sorted(values), np.int64)
    buckets = bucket_of(ordered)
    assert (np.diff(buckets) >= 0).all()
    assert np.abs(middle_of(buckets) / ordered.clip(1) - (ordered > 0)).max() <= 0.001


def test_an_empty_histogram() -> None:
    assert (Histogram().percentile(99), Histogram().mean) == (0, 0.0)


def batches(sizes: list[int], paced: bool) -> list[Batch]:
    found, first = [], 0
    for size in sizes:
        one = inserts(np.arange(first, first + size), 10)
        found.append(Batch(one.op, one.key, one.size, one.length, one.key / 2 if paced else None))
        first += size
    return found


@given(
    st.lists(st.integers(0, 9), max_size=8),
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=30),
    st.booleans(),
)
def test_no_operation_is_lost_or_done_twice(sizes: list[int], takes: list[tuple[int, int]], paced: bool) -> None:
    operations = Operations(iter(batches(sizes, paced)))
    done: list[int] = []
    for most, fate in takes:
        batch = operations.take(most)
        if batch is None:
            break
        assert 1 <= len(batch) <= most
        assert paced == (batch.at is not None)
        ended = min(fate, len(batch))
        done += batch.key[:ended].tolist()
        if ended < len(batch):
            operations.give_back(batch, ended)
    while (batch := operations.take(5)) is not None:
        done += batch.key.tolist()
    assert done == list(range(sum(sizes)))


def test_large_values_are_not_all_made_at_once() -> None:
    """512 of 4 MiB would be 2 GiB."""
    clock, sizes = VirtualClock(), []

    class Noting(PlainLoop):
        def do(self, batch: Batch, *rest: Any) -> None:
            sizes.append(int(batch.size.sum()))
            super().do(batch, *rest)

    batches = inserts(np.arange(20), 4 << 20)
    loop = Noting(Slow(clock), UserKeys(), Values(), clock)
    found = PhaseRun(PhaseSpec([iter([batches])]), [loop], clock).run(lambda: None, lambda: None)
    assert found.operations == 20
    assert max(sizes) <= 8 << 20


def measured(spec: PhaseSpec, engine: Slow, clock: VirtualClock) -> Measured:
    loop = PlainLoop(engine, UserKeys(), Values(), clock)
    return PhaseRun(spec, [loop] * len(spec.batches), clock).run(lambda: None, lambda: None)


READS = Ycsb("c", 100)


def test_an_open_loop_counts_what_waits_behind_a_stall() -> None:
    """1000 operations a second; the 500th takes a second, and those due meanwhile are late by what is left of it."""
    clock = VirtualClock()
    found = measured(PhaseSpec([READS.run()], 2000, rate=1000), Slow(clock, stalls=500), clock)
    latency, service = found.latency[Op.READ], found.service[Op.READ]
    assert latency.most == service.most == 1_000_000_000
    assert service.percentile(99.9) == 100_000
    # The backlog of a second shrinks by 0.9 ms with each operation of 0.1 ms: 1111 operations are late.
    late = [max(100_000, 1_000_000_000 - 900_000 * place) for place in range(1500)]
    expected = [100_000] * 500 + late
    for percent in PERCENT:
        assert latency.percentile(percent) == pytest.approx(exact(expected, percent), rel=0.001)
    assert found.behind == 0
    assert found.operations == 2000


def test_a_closed_loop_counts_the_stall_once() -> None:
    clock = VirtualClock()
    found = measured(PhaseSpec([READS.run()], 2000), Slow(clock, stalls=500), clock)
    assert found.service == {}
    assert found.latency[Op.READ].percentile(99.9) == 100_000
    assert found.latency[Op.READ].most == 1_000_000_000
    assert found.seconds == pytest.approx(1 + 1999 * 100e-6)


def test_an_open_loop_that_cannot_keep_up_says_how_far_behind_it_is() -> None:
    clock = VirtualClock()
    found = measured(PhaseSpec([READS.run()], 1000, rate=20_000), Slow(clock), clock)
    assert found.behind == pytest.approx(999 * (100e-6 - 50e-6))


def paced(*at: float) -> Batch:
    nothing = np.zeros(len(at), np.int32)
    return Batch(np.zeros(len(at), np.uint8), np.arange(len(at), dtype=np.int64), nothing, nothing, np.array(at))


def test_an_open_loop_ends_with_its_time_and_not_with_its_next_operation() -> None:
    clock = VirtualClock()
    found = measured(PhaseSpec([iter([paced(0.0, 0.5, 3600.0)])], seconds=2.5), Slow(clock), clock)
    assert found.operations == 2
    assert found.seconds == pytest.approx(2.5)
    assert found.per_interval == {Op.READ: [2, 0, 0]}
    assert clock.now() == pytest.approx(1_000_000_000 + 2_500_000_000)


@pytest.mark.parametrize("checked", [False, True])
def test_a_moment_that_passes_before_the_wait_begins(checked: bool) -> None:
    """As when another thread takes the GIL between a look at the clock and the wait for what it said."""

    class Jumping(VirtualClock):
        def now(self) -> int:
            self.nanoseconds += 400_000_000
            return super().now()

        def wait(self, seconds: float) -> bool:
            assert seconds >= 0
            return super().wait(seconds)

    clock = Jumping()
    oracle = Oracle(UserKeys(), Values())
    loop: Loop = (
        CheckedLoop(DictEngine(), oracle, clock) if checked else PlainLoop(DictEngine(), UserKeys(), Values(), clock)
    )
    found = PhaseRun(PhaseSpec([iter([paced(*np.arange(40) * 1.3)])]), [loop], clock).run(lambda: None, lambda: None)
    assert found.error is None
    assert found.operations == 40


def test_operations_are_due_when_the_workload_says() -> None:
    clock = VirtualClock()
    op, key = np.zeros(3, np.uint8), np.arange(3, dtype=np.int64)
    nothing = np.zeros(3, np.int32)
    one = Batch(op, key, nothing, nothing, np.array([0.0, 0.5, 0.5]))
    found = measured(PhaseSpec([iter([one])]), Slow(clock), clock)
    assert found.seconds == pytest.approx(0.5002)
    assert found.latency[Op.READ].most == 200_000


def test_the_warm_up_is_not_counted() -> None:
    clock = VirtualClock()
    slow = Slow(clock, stalls=3)
    found = measured(PhaseSpec([READS.run()], 100, warm_up=0.5), slow, clock)
    assert found.operations == 100
    assert found.latency[Op.READ].most == 100_000
    assert slow.calls == 104


def test_a_time_limit() -> None:
    clock = VirtualClock()
    found = measured(PhaseSpec([READS.run()], seconds=2.0, interval=0.5), Slow(clock), clock)
    assert found.operations == 20_000
    assert found.per_interval == {Op.READ: [4999, 5000, 5000, 5000, 1]}


def test_all_threads_together_do_what_was_asked_for(tmp_path: Path) -> None:
    result = run(tmp_path, Ycsb("a", 1000, value_size=50), threads=3, operations=5000, interval=0.01)
    load, phase = result.phases
    assert (load.name, load.operations, list(load.latency)) == ("load", 1000, ["insert"])
    assert (phase.name, phase.operations, phase.missing) == ("run", 5000, 0)
    assert set(phase.latency) == {"read", "update"}
    assert sum(latency.count for latency in phase.latency.values()) == 5000
    assert sum(sum(counts) for counts in phase.per_interval.values()) == 5000
    assert phase.value_bytes == 50 * phase.latency["update"].count
    assert phase.throughput == pytest.approx(5000 / phase.seconds)
    assert phase.samples.seconds == sorted(phase.samples.seconds)
    assert result.error is None


def test_an_error_of_the_engine_ends_the_run_with_what_was_measured(tmp_path: Path) -> None:
    opening = Opening(lambda store: Failing(store, 700))
    result = run(tmp_path, Ycsb("c", 100), opening, threads=1, operations=5000)
    assert result.error == "wrapped /db: IO error: no such sector"
    assert result.phases[1].operations == result.phases[1].latency["read"].count == 699
    assert result.verification is None


def test_an_error_of_one_thread_ends_the_others(tmp_path: Path) -> None:
    opening = Opening(lambda store: Failing(store, 700))
    result = run(tmp_path, Ycsb("c", 100), opening, threads=3)
    assert result.error == "wrapped /db: IO error: no such sector"
    assert result.phases[1].operations >= 699


def test_a_result_survives_its_json(tmp_path: Path) -> None:
    result = run(tmp_path, Ycsb("e", 200), operations=300, verify=True, rate=1e6)
    assert decode(encode(result), "r.json") == result
    assert set(result.phases[1].service) == {"insert", "scan"}
    for latency in result.phases[1].latency.values():
        assert sum(latency.counts) == latency.count
        assert latency.percentiles["0"] == latency.least <= latency.percentiles["50"] <= latency.most


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"format": 1}'])
def test_what_is_no_result_is_told_in_one_line(text: bytes) -> None:
    with pytest.raises(ResultError, match=r"^r\.json: not a result of keigo bench") as caught:
        decode(text, "r.json")
    assert "\n" not in str(caught.value)


def test_the_result_of_another_version_is_refused(tmp_path: Path) -> None:
    text = encode(run(tmp_path, READS, operations=10))
    with pytest.raises(ResultError, match="format 2 is not known"):
        decode(text.replace(b'"format":1', b'"format":2'), "r.json")


MINE = Marker("rocksdb", "ycsb-a", 10, 0, 1.0, "", True)


def test_an_empty_or_new_directory_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert read_marker(tmp_path) is None
    assert read_marker(tmp_path / "new") is None


def test_a_directory_with_anything_else_may_not(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("MANIFEST-000001\n")
    with pytest.raises(PlaceError, match="holds 'CURRENT' and no keigo-bench.json"):
        read_marker(tmp_path)
    (tmp_path / MARKER).write_text("{}")
    with pytest.raises(PlaceError, match="not written by keigo bench"):
        read_marker(tmp_path)
    with pytest.raises(PlaceError, match="Not a directory"):
        read_marker(tmp_path / MARKER)


def test_only_a_databases_files_are_removed(tmp_path: Path) -> None:
    write_marker(tmp_path / "d", MINE)
    for name in ("000001.sst", "CURRENT", "LOG", "rocksdict-config.json"):
        (tmp_path / "d" / name).touch()
    note = tmp_path / "d" / "note.txt"
    note.touch()
    with pytest.raises(PlaceError, match=r"note\.txt: is not of a database"):
        remove_database(tmp_path / "d")
    assert (tmp_path / "d" / "000001.sst").exists()
    note.unlink()
    remove_database(tmp_path / "d")
    assert [path.name for path in (tmp_path / "d").iterdir()] == [MARKER]
    assert read_marker(tmp_path / "d") == MINE


def test_a_database_in_use_is_not_removed(tmp_path: Path) -> None:
    write_marker(tmp_path, MINE)
    with (
        open(tmp_path / "000001.log", "w"),
        subprocess.Popen(["sleep", "60"], stdin=open(tmp_path / "000001.log")) as holder,
    ):
        try:
            with pytest.raises(PlaceError, match=rf"sleep \(pid {holder.pid}\) has .*000001\.log open"):
                remove_database(tmp_path)
        finally:
            holder.kill()
    assert (tmp_path / "000001.log").exists()


def test_tables_go_only_where_they_cannot_harm_others(tmp_path: Path) -> None:
    """RocksDB removes what it does not know from its `db_paths` when it opens."""
    ours, users, fast = tmp_path / "ours", tmp_path / "users", tmp_path / "fast"
    users.mkdir()
    (users / "000009.sst").touch()
    write_marker(ours, MINE)
    check_tables(ours, [str(fast), str(ours)])
    with pytest.raises(PlaceError, match=r"users: holds '000009\.sst': --db-path takes a new or empty directory"):
        check_tables(ours, [str(fast), str(users)])
    with pytest.raises(PlaceError, match="users: holds"):
        remove_database(ours, (str(users),))
    claim_tables(ours, [str(fast), str(ours)])
    (fast / "000001.sst").touch()
    check_tables(ours, [str(fast)])
    with pytest.raises(PlaceError, match="fast: holds"):
        check_tables(tmp_path / "others", [str(fast)])
    with open(fast / "000001.sst") as table, subprocess.Popen(["sleep", "60"], stdin=table) as holder:
        try:
            with pytest.raises(PlaceError, match="open"):
                remove_database(ours, (str(fast),))
        finally:
            holder.kill()
    remove_database(ours, (str(fast),))
    assert [path.name for path in fast.iterdir()] == [TABLES]
    assert (users / "000009.sst").exists()


def test_a_run_needs_what_the_load_left(tmp_path: Path) -> None:
    opening = Opening()
    with pytest.raises(PlaceError, match="nothing is loaded here"):
        run(tmp_path, READS, opening, load=False, operations=10)
    run(tmp_path, READS, opening, run=False)
    assert run(tmp_path, READS, opening, load=False, operations=10).phases[0].missing == 0
    for other in (Ycsb("c", 101), Ycsb("c", 100, key_format=UserKeys("ordered"))):
        with pytest.raises(PlaceError, match="was loaded with"):
            run(tmp_path, other, opening, load=False, operations=10)


def test_a_second_load_begins_anew(tmp_path: Path) -> None:
    for _ in range(2):
        run(tmp_path, READS, operations=10)
        (tmp_path / "000009.sst").touch()
    run(tmp_path, READS, operations=10)
    assert not (tmp_path / "000009.sst").exists()


def test_the_page_cache_can_be_dropped() -> None:
    drop_page_cache()


READER = """
import sys
sys.stdin.readline()
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(1 << 20):
        pass
print("read", flush=True)
sys.stdin.readline()
"""


def test_a_memory_limit_holds_the_page_cache_of_a_process(tmp_path: Path) -> None:
    """With the memory controller of either version of cgroups; a machine without it says so."""
    try:
        hierarchy = memory_hierarchy()
    except IsolationError as error:
        assert "has no memory controller" in str(error)
        return
    limit = 32 << 20
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(os.urandom(4 * limit))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = hierarchy.group_of(child.pid)
        with memory_limit(limit, [child.pid]):
            group = hierarchy.group_of(child.pid)
            assert group != before
            assert (group / hierarchy.limit).read_text() == f"{limit}\n"
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "read\n"
            (peak,) = [group / name for name in ("memory.peak", "memory.max_usage_in_bytes") if (group / name).exists()]
            assert limit / 2 < int(peak.read_text()) <= limit
        assert hierarchy.group_of(child.pid) == before
        assert not group.exists()
        child.stdin.write("end\n")


def test_machines_without_a_memory_controller_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="has no memory controller"):
        memory_hierarchy(tmp_path)


def test_a_workload_that_ends_ends_the_run(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("time,op,key,size\n0,read,5,\n0.001,insert,9,20\n0.002,delete,9,\n")
    from workloads.generators.trace import Trace

    workload = Trace(str(trace))
    result = run(tmp_path / "d", workload, numbers=np.unique(workload.columns.key), deletes=True, verify=True)
    assert result.error is None
    assert {op: found.count for op, found in result.phases[1].latency.items()} == {"read": 1, "insert": 1, "delete": 1}
