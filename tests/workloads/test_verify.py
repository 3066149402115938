"""Honest engines pass, in whatever order things happen; every kind of lie is found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.engines import Opening, VirtualClock, Wrapped, run
from workloads.engines.null import DictEngine
from workloads.engines.protocol import Engine
from workloads.generators.ycsb import Ycsb
from workloads.operations import Batch, Op
from workloads.records import UserKeys, Values
from workloads.runner.drive import Driver, Limits, Loop, Operations, PlainLoop, Recorder
from workloads.verify import CheckedLoop, Oracle, VerificationError, adopt, check_all

KEYS = UserKeys()
RECORDS = 40


def batch_of(rows: list[tuple[Op, int, int, int]]) -> Batch:
    op, key, size, length = zip(*rows, strict=True)
    return Batch(np.array(op, np.uint8), np.array(key, np.int64), np.array(size, np.int32), np.array(length, np.int32))


def do(loop: Loop, rows: list[tuple[Op, int, int, int]]) -> None:
    """Do operations; ends as the loop does."""
    if rows:
        Driver(Operations(iter([batch_of(rows)])), loop, Limits()).drive(None, lambda *_: None, Recorder(0, 1 << 40))


def row(op: Op, key: int, size: int, length: int) -> tuple[Op, int, int, int]:
    return op, key, size if op in (Op.UPDATE, Op.INSERT, Op.RMW) else 0, length if op == Op.SCAN else 0


rows_of = st.lists(
    st.builds(row, st.sampled_from(Op), st.integers(0, RECORDS - 1), st.integers(1, 40), st.integers(1, 50))
)


@given(rows_of, rows_of, st.sampled_from([None, np.arange(0, RECORDS * 2, dtype=np.int64)]))
def test_an_honest_engine_passes(
    first: list[tuple[Op, int, int, int]], then: list[tuple[Op, int, int, int]], numbers: np.ndarray | None
) -> None:
    engine, oracle = DictEngine(), Oracle(KEYS, Values(1), numbers)
    loop = CheckedLoop(engine, oracle, VirtualClock())
    do(loop, [it for it in first if it[0] != Op.SCAN])
    oracle.settle()
    do(loop, then)
    checked, wrong = check_all(engine, oracle, lambda _: None)
    assert wrong == []
    writes = (Op.UPDATE, Op.INSERT, Op.RMW, Op.DELETE)
    every = [it for it in first if it[0] != Op.SCAN] + then
    assert checked == len({key for op, key, _, _ in every if op in writes})


@given(rows_of)
def test_what_an_earlier_run_left_is_adopted(rows: list[tuple[Op, int, int, int]]) -> None:
    """Values of 8 bytes and more say whose they are."""
    engine = DictEngine()
    rows = [(op, key, size + 8 if size else 0, length) for op, key, size, length in rows]
    do(PlainLoop(engine, KEYS, Values(1), VirtualClock()), rows)
    oracle = Oracle(KEYS, Values(1))
    adopt(engine, oracle, [])
    assert check_all(engine, oracle, lambda _: None)[1] == []
    do(CheckedLoop(engine, oracle, VirtualClock()), rows)
    assert check_all(engine, oracle, lambda _: None)[1] == []


def test_values_of_another_seed_are_not_adopted() -> None:
    engine = DictEngine()
    do(PlainLoop(engine, KEYS, Values(1), VirtualClock()), [(Op.INSERT, 3, 100, 0)])
    with pytest.raises(VerificationError, match="expected a value that an earlier run wrote"):
        adopt(engine, Oracle(KEYS, Values(2)), [])


def test_a_loaded_record_that_is_gone_is_not_adopted() -> None:
    engine = DictEngine()
    do(PlainLoop(engine, KEYS, Values(1), VirtualClock()), [(Op.INSERT, 3, 100, 0)])
    with pytest.raises(VerificationError, match=r"^lost: key user\d+ \(record 4\): expected what the load wrote"):
        adopt(engine, Oracle(KEYS, Values(1)), [batch_of([(Op.INSERT, 3, 100, 0), (Op.INSERT, 4, 100, 0)])])


@pytest.mark.parametrize("letter", ["a", "d", "e", "f"])
def test_threads_that_meet_on_few_records_pass(tmp_path: Path, letter: str) -> None:
    result = run(
        tmp_path, Ycsb(letter, 20, operations=4000, value_size=30, seed=2), threads=6, operations=4000, verify=True
    )
    assert result.error is None
    assert result.verification is not None
    assert result.verification.complete
    assert result.verification.final == result.verification.reopened >= 20
    counts = {op: latency.count for op, latency in result.phases[1].latency.items()}
    assert result.verification.reads == counts.get("read", 0) + counts.get("rmw", 0)
    assert result.verification.scans == counts.get("scan", 0)


class Yielding(Wrapped):
    """Lets another thread go first in the middle of each write."""

    def put(self, key: bytes, value: bytes) -> None:
        time.sleep(0)
        super().put(key, value)


def test_writers_of_one_record_take_turns(tmp_path: Path) -> None:
    """Or the one that began first could be the last to be done."""
    workload = Ycsb("a", 2, value_size=30)
    result = run(tmp_path, workload, Opening(Yielding), threads=6, operations=3000, verify=True)
    assert result.error is None


class Pausing(Wrapped):
    """Holds one read, once it has its value, until others have written the record `writes` times."""

    def __init__(self, inner: Engine, writes: int) -> None:
        super().__init__(inner)
        self._left = writes
        self._read = threading.Event()
        self._written = threading.Event()

    def get(self, key: bytes) -> bytes | None:
        found = super().get(key)
        self._read.set()
        assert self._written.wait(30)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        if self._left >= 0:
            assert self._left == 0 or self._read.wait(30)
        super().put(key, value)
        self._left -= 1
        if self._left == 0:
            self._written.set()


def test_a_read_may_see_what_was_current_at_any_moment_of_it() -> None:
    store, oracle = DictEngine(), Oracle(KEYS, Values(1))
    do(CheckedLoop(store, oracle, VirtualClock()), [(Op.INSERT, 1, 20, 0)])
    oracle.settle()
    engine = Pausing(store, writes=3)
    writer = threading.Thread(
        target=do, args=(CheckedLoop(engine, oracle, VirtualClock()), [(Op.UPDATE, 1, 20, 0)] * 3)
    )
    writer.start()
    do(CheckedLoop(engine, oracle, VirtualClock()), [(Op.READ, 1, 0, 0)])
    writer.join()


@dataclass
class Liar:
    """What a lying engine does; each method takes the honest answer."""

    got: Callable[[bytes | None], bytes | None] = lambda value: value
    scanned: Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]] = lambda pairs: pairs
    put: Callable[[bytes, bytes], tuple[bytes, bytes] | None] = lambda key, value: (key, value)
    after: int = 300
    """Calls of that kind before the first lie."""


class Lying(Wrapped):
    """Tells the truth `liar.after` times, and then what `liar` says, once."""

    def __init__(self, inner: Engine, liar: Liar) -> None:
        super().__init__(inner)
        self._liar = liar
        self._left = {"get": liar.after, "scan": liar.after, "put": liar.after}

    def _lies(self, call: str) -> bool:
        self._left[call] -= 1
        return self._left[call] == 0

    def get(self, key: bytes) -> bytes | None:
        value = super().get(key)
        return self._liar.got(value) if self._lies("get") else value

    def put(self, key: bytes, value: bytes) -> None:
        pair = self._liar.put(key, value) if self._lies("put") else (key, value)
        if pair is not None:
            super().put(*pair)

    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        pairs = super().scan(start, count)
        return self._liar.scanned(pairs) if len(pairs) > 2 and self._lies("scan") else pairs


def flipped(value: bytes, place: int = -1) -> bytes:
    changed = bytearray(value)
    changed[place] ^= 1
    return bytes(changed)


def of(value: bytes | None) -> bytes:
    assert value is not None
    return value


STRANGE = Values(1).value(999, 1 << 16, 100)
READ_LIES = {
    "nothing": (lambda _: None, "lost: key user"),
    "a flipped bit": (lambda value: flipped(of(value)), "wrong: key user"),
    "a flipped bit of the header": (lambda value: flipped(of(value), 1), "wrong: key user"),
    "a value cut short": (lambda value: of(value)[:-1], "wrong: key user"),
    "no bytes": (lambda _: b"", "wrong: key user"),
    "another record's value": (lambda _: STRANGE, "header says record 999"),
}
SCAN_LIES = {
    "a record less": (lambda pairs: pairs[:1] + pairs[2:], "lost: key user"),
    "the last one less": (lambda pairs: pairs[:-1], "lost: key user"),
    "the first one less": (lambda pairs: pairs[1:], "lost: key user"),
    "a record more": (lambda pairs: [*pairs[:-1], (pairs[-2][0] + b"0", STRANGE), pairs[-1]], "expected"),
    "a record twice": (lambda pairs: [pairs[0], *pairs[:-1]], "expected keys in order"),
    "another order": (lambda pairs: [pairs[1], pairs[0], *pairs[2:]], "expected keys in order"),
    "a key before its start": (lambda pairs: [(b"a", STRANGE), *pairs[1:]], "expected keys in order"),
    "values swapped": (
        lambda pairs: [(pairs[0][0], pairs[1][1]), (pairs[1][0], pairs[0][1]), *pairs[2:]],
        "wrong: key",
    ),
    "a flipped bit": (lambda pairs: [(pairs[0][0], flipped(pairs[0][1])), *pairs[1:]], "wrong: key"),
}
WRITE_LIES = {
    "a write lost": (lambda _key, _value: None, "key user"),
    "a bit flipped": (lambda key, value: (key, flipped(value)), "wrong: key user"),
    "a write of another record": (lambda key, value: (flipped(key), value), "expected"),
}


def found_in(directory: Path, letter: str, liar: Liar) -> str:
    workload = Ycsb(letter, 200, operations=1000, value_size=100, seed=1)
    opening = Opening(lambda store: Lying(store, liar))
    result = run(directory, workload, opening, operations=1000, verify=True)
    assert result.verification is not None
    assert not result.verification.complete
    assert result.error == f"verification failed: {result.verification.failures[0]}"
    assert "\n" not in result.error
    assert "expected" in result.error
    return result.error


@pytest.mark.parametrize("lie", READ_LIES)
def test_a_wrong_answer_to_a_read_is_found(tmp_path: Path, lie: str) -> None:
    got, told = READ_LIES[lie]
    assert told in found_in(tmp_path, "a", Liar(got=got))


@pytest.mark.parametrize("lie", SCAN_LIES)
def test_a_wrong_answer_to_a_scan_is_found(tmp_path: Path, lie: str) -> None:
    scanned, told = SCAN_LIES[lie]
    error = found_in(tmp_path, "e", Liar(scanned=scanned))
    assert "scan of " in error
    assert told in error


@pytest.mark.parametrize("lie", WRITE_LIES)
@pytest.mark.parametrize("after", [100, 200 + 479])
def test_a_wrong_write_is_found(tmp_path: Path, lie: str, after: int) -> None:
    """In the load; and the very last one, which nobody reads any more."""
    put, told = WRITE_LIES[lie]
    assert told in found_in(tmp_path, "a", Liar(put=put, after=after))


def test_an_old_value_is_found(tmp_path: Path) -> None:
    class Late(Wrapped):
        """Never writes a record a second time."""

        def put(self, key: bytes, value: bytes) -> None:
            if self.inner.get(key) is None:
                super().put(key, value)

    result = run(tmp_path, Ycsb("f", 50, value_size=100), Opening(Late), operations=500, verify=True)
    assert result.error is not None
    assert "expected write 2, got 100 bytes" in result.error
    assert "write 1 (modulo 65536)" in result.error


def test_what_comes_back_after_a_delete_is_found() -> None:
    class Keeping(Wrapped):
        def delete(self, key: bytes) -> None:
            pass

    engine, oracle = Keeping(DictEngine()), Oracle(KEYS, Values(1))
    loop = CheckedLoop(engine, oracle, VirtualClock())
    do(loop, [(Op.INSERT, 1, 20, 0)])
    oracle.settle()
    do(loop, [(Op.DELETE, 1, 0, 0)])
    with pytest.raises(VerificationError, match="expected no value, got 20 bytes"):
        do(loop, [(Op.READ, 1, 0, 0)])
    assert "expected no value" in check_all(engine, oracle, lambda _: None)[1][0]


@pytest.mark.parametrize("late", [False, True])
def test_what_a_scan_brings_back_after_a_delete_is_found(late: bool) -> None:
    """Also of a key that was first written when the load was over."""

    class Remembering(Wrapped):
        """Its scans find the deleted record, too."""

        def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
            return sorted([*super().scan(start, count), kept])[:count]

    store, oracle = DictEngine(), Oracle(KEYS, Values(1))
    loop = CheckedLoop(store, oracle, VirtualClock())
    if late:
        oracle.settle()
    do(loop, [(Op.INSERT, key, 20, 0) for key in range(5)])
    if not late:
        oracle.settle()
    (key,) = KEYS.keys(np.array([3], np.int64))
    kept = (key, of(store.get(key)))
    do(loop, [(Op.DELETE, 3, 0, 0)])
    do(loop, [(Op.SCAN, 3, 0, 5)])
    with pytest.raises(VerificationError, match=r"scan of 5 .* expected no value, got 20 bytes"):
        do(CheckedLoop(Remembering(store), oracle, VirtualClock()), [(Op.SCAN, 3, 0, 5)])


def test_a_late_record_behind_deleted_ones_is_missed() -> None:
    store, oracle = DictEngine(), Oracle(KEYS, Values(1))
    oracle.settle()
    loop = CheckedLoop(store, oracle, VirtualClock())
    do(loop, [(Op.INSERT, key, 20, 0) for key in range(9)])
    keys = dict(zip(KEYS.keys(np.arange(9)), range(9), strict=True))
    first, *others, last = sorted(keys)
    do(loop, [(Op.DELETE, keys[key], 0, 0) for key in others])
    store.delete(last)
    with pytest.raises(VerificationError, match=r"scan of 2 .*lost"):
        do(loop, [(Op.SCAN, keys[first], 0, 2)])


def test_what_nobody_reads_is_found_at_the_end(tmp_path: Path) -> None:
    """The workload reads none of what it inserts; one insert is lost."""
    from workloads.generators.timeseries import TimeSeries

    opening = Opening(lambda store: Lying(store, Liar(put=lambda _key, _value: None, after=500)))
    workload = TimeSeries(series=10, loaded_points=10, scan_share=0.0)
    result = run(tmp_path, workload, opening, operations=1000, verify=True)
    assert result.error is not None
    assert "lost: key " in result.error
    assert result.phases[1].operations == 1000


def test_what_is_lost_by_closing_is_found(tmp_path: Path) -> None:
    @dataclass
    class Forgetting(Opening):
        def __call__(self, *arguments: object, create: bool) -> Engine:
            if not create:
                self.store.delete(next(iter(self.store.scan(b"", 1)))[0])
            return super().__call__(*arguments, create=create)

    result = run(tmp_path, Ycsb("c", 50), Forgetting(), operations=50, verify=True)
    assert result.error is not None
    assert result.error.startswith("verification failed: lost: key user")
    assert result.error.endswith("(after closing and opening again)")
    assert result.verification is not None
    assert result.verification.final == 50


def test_a_key_that_nobody_wrote_is_found_at_the_end(tmp_path: Path) -> None:
    opening = Opening()
    opening.store.put(b"zzz", b"strange")
    result = run(tmp_path, Ycsb("c", 50), opening, operations=50, verify=True)
    assert result.error is not None
    assert "expected no such key, got b'zzz' with 7 bytes" in result.error


@pytest.fixture
def many() -> Iterator[tuple[DictEngine, Oracle]]:
    """More records than a page of the last check has."""
    engine, oracle = DictEngine(), Oracle(KEYS, Values(1))
    do(CheckedLoop(engine, oracle, VirtualClock()), [(Op.INSERT, key, 20, 0) for key in range(2500)])
    oracle.settle()
    yield engine, oracle
    engine.close()


def test_the_last_check_reads_all_pages(many: tuple[DictEngine, Oracle]) -> None:
    engine, oracle = many
    assert check_all(engine, oracle, lambda _: None) == (2500, [])
    place = engine.scan(b"", 2500)[1700][0]
    engine.put(place + b"0", b"strange")
    assert "expected no such key" in check_all(engine, oracle, lambda _: None)[1][0]
    engine.delete(place + b"0")
    for key, _ in engine.scan(b"", 50):
        engine.delete(key)
    assert len(check_all(engine, oracle, lambda _: None)[1]) == 10
