"""Every engine does what a dict does, and says so where it cannot."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.workloads.engine_support import ROOT, SMALL, fill, keeping, key, on_disk, rocks, small, value
from workloads.engines import ON_DISK, OPEN, open_engine
from workloads.engines.options import EngineOptions
from workloads.engines.protocol import Engine, EngineError

# ---- against a dict


class AgainstDict(RuleBasedStateMachine):
    """Random operations, each compared with those of a dict; opened again now and then."""

    name = ""
    keys = st.integers(0, 30).map(key) | st.binary(min_size=1, max_size=3)
    values = st.binary(max_size=40) | st.integers(0, 9).map(lambda number: b"%d" % number * 5000)

    @initialize()
    def begin(self) -> None:
        self.base = tempfile.mkdtemp(prefix="keigo-test-")
        self.pairs: dict[bytes, bytes] = {}
        self.engine = open_engine(self.name, self.base, small(self.name), create=True)

    @rule(one=keys, written=values)
    def put(self, one: bytes, written: bytes) -> None:
        self.engine.put(one, written)
        self.pairs[one] = written

    @rule(one=keys)
    def delete(self, one: bytes) -> None:
        self.engine.delete(one)
        self.pairs.pop(one, None)

    @rule(batch=st.lists(st.tuples(keys, st.none() | values), max_size=5))
    def write(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        self.engine.write(iter(batch))
        for one, written in batch:
            if written is None:
                self.pairs.pop(one, None)
            else:
                self.pairs[one] = written

    @rule(one=keys)
    def get(self, one: bytes) -> None:
        assert self.engine.get(one) == self.pairs.get(one)

    @rule(start=keys | st.just(b""), count=st.integers(0, 20))
    def scan(self, start: bytes, count: int) -> None:
        wanted = sorted(pair for pair in self.pairs.items() if pair[0] >= start)[:count]
        assert self.engine.scan(start, count) == wanted

    @rule()
    def flush(self) -> None:
        self.engine.flush()

    @rule()
    def sync(self) -> None:
        self.engine.sync()

    @rule()
    def wait(self) -> None:
        self.engine.wait_for_compactions()

    @rule()
    def reopen(self) -> None:
        if self.name in ON_DISK:
            self.engine.close()
            self.engine = open_engine(self.name, self.base, small(self.name), create=False)

    @invariant()
    def nothing_else_is_there(self) -> None:
        assert len(self.engine.scan(b"", 100)) == len(self.pairs)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.base)


@keeping
def test_agrees_with_a_dict(name: str) -> None:
    machine = type(f"AgainstDict_{name}", (AgainstDict,), {"name": name})
    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=30))


@keeping
def test_scans_are_in_order_of_bytes(name: str, tmp_path: Path) -> None:
    keys = [b"\x00", b"\x00\x00", b"a", b"aa", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
    with closing(open_engine(name, str(tmp_path / "db"), create=True)) as engine:
        engine.write((one, one) for one in reversed(keys))
        assert [one for one, _ in engine.scan(b"", 100)] == keys
        assert [one for one, _ in engine.scan(b"ab", 2)] == [b"b", b"\x7f"]
        assert engine.scan(b"\xff\xff\x00", 1) == []


@keeping
def test_a_batch_that_ends_in_an_error_writes_nothing(name: str, tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        raise ZeroDivisionError

    with closing(open_engine(name, str(tmp_path / "db"), create=True)) as engine:
        with pytest.raises(ZeroDivisionError):
            engine.write(broken())
        assert engine.scan(b"", 10) == []
        engine.write([(b"a", b"1"), (b"a", None), (b"b", b"2"), (b"b", b"3")])
        assert engine.scan(b"", 10) == [(b"b", b"3")]


@keeping
def test_threads(name: str, tmp_path: Path) -> None:
    count, threads = 2000, 4
    failed: list[BaseException] = []
    with closing(open_engine(name, str(tmp_path / "db"), small(name), create=True)) as engine:

        def work(index: int) -> None:
            try:
                for number in range(index, count, threads):
                    engine.put(key(number), key(number) * 20)
                    assert engine.get(key(number)) == key(number) * 20
                    found = engine.scan(key(number), 3)
                    assert found[0] == (key(number), key(number) * 20)
                    assert found == sorted(found)
                    if number % 500 == index:
                        engine.flush()
                        engine.stats()
            except BaseException as error:  # noqa: BLE001 - told below
                failed.append(error)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failed
        assert [one for one, _ in engine.scan(b"", count + 1)] == [key(number) for number in range(count)]


def test_null_keeps_nothing(tmp_path: Path) -> None:
    engine = open_engine("null", str(tmp_path / "db"), create=True)
    engine.put(b"a", b"1")
    engine.write([(b"b", b"2")])
    assert (engine.get(b"a"), engine.scan(b"", 10), engine.stats().bytes) == (None, [], 0)
    engine.close()
    assert list(tmp_path.iterdir()) == []


# ---- flushes, compactions, statistics


@on_disk
def test_flush_and_wait(name: str, tmp_path: Path) -> None:
    with closing(open_engine(name, str(tmp_path / "db"), SMALL, create=True)) as engine:
        assert engine.stats().levels == ()
        engine.put(b"a", b"1")
        engine.flush()
        assert [level.files for level in engine.stats().levels] == [1]
        pairs = fill(engine, 5000)
        engine.wait_for_compactions()
        rest = engine.stats()
        assert rest.levels[0].level > 0 or rest.levels[0].files < 4
        assert len(rest.levels) > 1 or rest.levels[0].level > 0, "something was compacted"
        raw = sum(len(one) + len(written) for one, written in pairs.items())
        assert rest.bytes == sum(level.bytes for level in rest.levels)
        assert raw < rest.bytes < 1.2 * raw
        tables = [path for path in (tmp_path / "db").iterdir() if path.suffix in (".sst", ".ldb")]
        assert sum(path.stat().st_size for path in tables) >= rest.bytes
        assert (rest.stall_micros is None) == (name == "leveldb")
        engine.wait_for_compactions()
        assert engine.stats().levels == rest.levels


@rocks
def test_stalls_are_told(name: str, tmp_path: Path) -> None:
    """Tiny memtables and one background job: sooner or later a write waits."""
    options = EngineOptions(write_buffer=64 << 10, file_size=64 << 10, background_jobs=1, compression="none")
    with closing(open_engine(name, str(tmp_path / "db"), options, create=True)) as engine:
        assert engine.stats().stall_micros == 0
        for _ in range(50):
            fill(engine, 2000)
            if engine.stats().stall_micros:
                break
        assert (engine.stats().stall_micros or 0) > 0


# ---- errors


@on_disk
def test_not_there_and_in_use(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a/b")
    with pytest.raises(EngineError, match=f"^{name} {path}: .*(does not exist|No such file)"):
        open_engine(name, path, create=False)
    with closing(open_engine(name, path, create=True)), pytest.raises(EngineError, match=f"^{name} {path}: .*[Ll]ock"):
        open_engine(name, path, create=True)
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=f"^{name} {tmp_path}/file: File exists"):
        open_engine(name, str(tmp_path / "file"), create=True)


@on_disk
def test_binding_not_installed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = {"rocksdb": "rocksdict", "speedb": "speedict", "leveldb": "plyvel"}[name]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=f"^{name}: the Python package {package} cannot be imported"):
        open_engine(name, str(tmp_path / "db"), create=True)


def test_no_such_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"^pebble: not an engine; there are {', '.join(OPEN)}$"):
        open_engine("pebble", str(tmp_path / "db"), create=True)


@on_disk
def test_a_damaged_block_is_an_error_to_every_reader(name: str, tmp_path: Path) -> None:
    """A scan must not end there as if there were no more."""
    path = tmp_path / "db"
    options = EngineOptions(compression="none", write_buffer=4 << 20)
    with closing(open_engine(name, str(path), options, create=True)) as engine:
        for number in range(3000):
            engine.put(key(number), value(number))
        engine.flush()
    (table,) = [found for found in path.iterdir() if found.suffix in (".sst", ".ldb")]
    with table.open("r+b") as file:
        file.seek(600_000)
        file.write(b"x" * 50)
    readers: list[Callable[[Engine], object]] = [
        lambda engine: engine.scan(b"", 3000),
        lambda engine: [engine.get(key(number)) for number in range(3000)],
    ]
    with closing(open_engine(name, str(path), options, create=False)) as engine:
        assert len(engine.scan(b"", 1000)) == 1000
        for read in readers:
            with pytest.raises(EngineError, match=f"^{name} {path}: Corruption: "):
                read(engine)


@on_disk
def test_no_space(name: str, tiny: Path) -> None:
    """The write says it, and so does waiting for a compaction that cannot be. In a process of its own: it may abort.

    RocksDB may wait in the write, for ever: then it is ended from outside, and that says it.
    """
    program = """
import json, os, sys
from pathlib import Path
from workloads.engines import open_engine
from workloads.engines.options import EngineOptions
from workloads.engines.protocol import EngineError
from workloads.runner.stuck import ended_when_stuck
name, path = sys.argv[1:]
options = EngineOptions(write_buffer=256 << 10, compression="none")
with ended_when_stuck(f"{name} {path}", [Path(path)], 3):
    engine, said = open_engine(name, path, options, create=True), []
    try:
        for number in range(20_000):
            engine.put(b"%d" % number, os.urandom(400))
    except EngineError as error:
        said.append(str(error))
    try:
        engine.wait_for_compactions()
    except EngineError as error:
        said.append(str(error))
    print(json.dumps(said), flush=True)
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, name, str(tiny / "db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if name == "rocksdb" and done.returncode == -signal.SIGKILL:
        (said,) = done.stderr.splitlines()
        assert said.startswith(f"Error: rocksdb {tiny}/db: stuck in a call")
        assert "of 3.0 MiB free. On a full device" in said
        return
    assert done.returncode == 0, done.stderr
    for said in (two := json.loads(done.stdout)):
        assert said.startswith(f"{name} {tiny}/db: ")
        assert "\n" not in said
    assert len(two) == 2


@on_disk
def test_no_space_for_a_compaction(name: str, tiny: Path) -> None:
    """Some tables have room, their merger has not: whoever waits for it hears of that, and does not wait for ever."""
    program = """
import os, sys
from workloads.engines import open_engine
from workloads.engines.options import EngineOptions
from workloads.engines.protocol import EngineError
engine = open_engine(sys.argv[1], sys.argv[2], EngineOptions(compression="none"), create=True)
parts, size = (6, 800) if sys.argv[1] == "leveldb" else (4, 1000)  # the first two go to its levels 2 and 1
for part in range(parts):
    if part:
        engine.flush()
    for number in range(size):
        engine.put(b"%06d" % (number * parts + part), os.urandom(400))
try:
    engine.wait_for_compactions()
except EngineError as error:
    print(error, flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", program, name, str(tiny / "db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name} {tiny}/db: "), done.stdout
    assert done.stdout.count("\n") == 1
