"""Databases that are not LSM stores, beside one or alone: LMDB, which maps its file, and SQLite, with a WAL that it
maps to share it between processes, and with a rollback journal. Two processes write at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from tests.conftest import MakeWorld, World
from tests.engines.conftest import Run
from tests.engines.processes import OpenStore, Oracle
from tests.engines.volumes import assert_nothing_left

ROWS = 80

LMDB_WRITER = """
import sys, lmdb
path, who, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
env = lmdb.open(path, map_size=64 << 20, writemap="writemap" in sys.argv)
for number in range(rows):
    with env.begin(write=True) as txn:
        txn.put(b"%s-%06d" % (who.encode(), number), b"%d" % number * 300)
        count = int(txn.get(b"count", b"0"))
        txn.put(b"count", b"%d" % (count + 1))
    with env.begin() as txn:
        assert txn.get(b"%s-%06d" % (who.encode(), number)) == b"%d" % number * 300
    if number == 0:
        print("writing", flush=True)
        sys.stdin.readline()
env.close()
"""

SQLITE_WRITER = """
import sqlite3, sys
path, who, rows, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
assert db.execute("PRAGMA journal_mode").fetchone() == (mode,)
db.execute("PRAGMA mmap_size=1048576")
for number in range(rows):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO entry VALUES (?, ?, ?)", (who, number, bytes([number % 256]) * 300))
    db.execute("UPDATE total SET count = count + 1")
    db.execute("COMMIT")
    if number == 0:
        print("writing", flush=True)
        sys.stdin.readline()
db.close()
"""


def write_from_two_processes(start: Run, program: str, path: Path, *more: str) -> None:
    """Both have the database open, and have written, before either goes on."""
    writers = [
        start(
            sys.executable,
            "-c",
            program,
            path,
            who,
            str(ROWS),
            *more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for who in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    assert [writer.wait(120) for writer in writers] == [0, 0]


def check_lmdb(path: Path, rounds: int) -> None:
    with lmdb.open(str(path), map_size=64 << 20, max_readers=8) as env, env.begin() as txn:
        found = {bytes(key): bytes(value) for key, value in txn.cursor()}
    assert int(found.pop(b"count")) == 2 * ROWS * rounds
    assert found == {
        b"%s-%06d" % (who, number): b"%d" % number * 300 for who in (b"one", b"two") for number in range(ROWS)
    }


@pytest.mark.parametrize("how", ["copy-on-write", "writemap"])
def test_lmdb(how: str, mounted: World, start: Run) -> None:
    path = mounted.directory / "env"
    write_from_two_processes(start, LMDB_WRITER, path, how)
    check_lmdb(path, 1)
    mounted.umount()
    mounted.mount()
    check_lmdb(path, 1)
    write_from_two_processes(start, LMDB_WRITER, path, how)
    check_lmdb(path, 2)
    mounted.keigo("drain", mounted.directory)
    mounted.umount()
    assert_nothing_left(mounted)
    check_lmdb(path, 2)


def check_sqlite(path: Path, rounds: int) -> None:
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count FROM total").fetchall() == [(2 * ROWS * rounds,)]
        rows = db.execute("SELECT who, number, data FROM entry ORDER BY who, number").fetchall()
    finally:
        db.close()
    wanted = [(who, number, bytes([number % 256]) * 300) for who in ("one", "two") for number in range(ROWS)]
    assert rows == sorted(wanted * rounds)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite(mode: str, mounted: World, start: Run) -> None:
    path = mounted.directory / "data.db"
    db = sqlite3.connect(path)
    # One changes the mode before others come: SQLite does not wait for another's locks while it changes.
    assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    db.executescript(
        "CREATE TABLE entry (who TEXT, number INTEGER, data BLOB);"
        "CREATE TABLE total (count INTEGER); INSERT INTO total VALUES (0);"
    )
    db.close()
    write_from_two_processes(start, SQLITE_WRITER, path, mode)
    check_sqlite(path, 1)
    mounted.umount()
    mounted.mount()
    check_sqlite(path, 1)
    write_from_two_processes(start, SQLITE_WRITER, path, mode)
    check_sqlite(path, 2)
    mounted.keigo("drain", mounted.directory)
    mounted.umount()
    assert_nothing_left(mounted)
    check_sqlite(path, 2)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_writer_killed(mode: str, mounted: World, start: Run) -> None:
    """A transaction that never ended is rolled back, by the journal or by the WAL, also after a new mount."""
    path = mounted.directory / "data.db"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.executescript("CREATE TABLE entry (data BLOB); INSERT INTO entry VALUES ('kept');")
    db.close()
    # A cache of one page makes SQLite write into the database, or the WAL, before the end of the transaction.
    program = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("BEGIN")
db.execute("UPDATE entry SET data = 'lost'")
for number in range(200):
    db.execute("INSERT INTO entry VALUES (?)", (bytes(3000),))
print("writing", flush=True)
sys.stdin.readline()
"""
    writer = start(sys.executable, "-c", program, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    assert any(file.name != "data.db" for file in mounted.directory.iterdir())
    writer.kill()
    writer.wait()
    mounted.umount()
    mounted.mount()
    db = sqlite3.connect(path)
    try:
        assert db.execute("SELECT data FROM entry").fetchall() == [("kept",)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        db.close()


def test_beside_an_lsm_store(make_world: MakeWorld, open_store: OpenStore, start: Run) -> None:
    """While an LSM store fills the tiers and its files migrate."""
    world = make_world({"fast": "2MiB", "mid": "2MiB"})
    world.mount()
    path = world.directory / "data.db"
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode=wal").fetchone() == ("wal",)
    db.executescript(
        "CREATE TABLE entry (who TEXT, number INTEGER, data BLOB);"
        "CREATE TABLE total (count INTEGER); INSERT INTO total VALUES (0);"
    )
    db.close()
    oracle = Oracle()
    with open_store("rocksdb", world.directory / "db", create=True) as store:
        oracle.put(store, range(6000))
        write_from_two_processes(start, SQLITE_WRITER, path, "wal")
        oracle.put(store, range(3000, 12_000))
        oracle.check(store)
    check_sqlite(path, 1)
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    check_sqlite(path, 1)
