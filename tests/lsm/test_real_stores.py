"""What the stores installed here really name their files and threads.

Each runs in a process of its own: RocksDB's threads outlive their database and the test.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from keigo.lsm.roles import IMMUTABLE, Role, file_number, role_of
from keigo.lsm.threads import Job, job_of_comm

# Prints {"names": [...], "comms": [...]} as seen in the database argv[1] and in the process that has it
# open. Names come from inotify, so that those which live for a moment are seen too.
PRELUDE = """
import ctypes, glob, json, os, sys
path = sys.argv[1]
os.makedirs(path)
libc = ctypes.CDLL(None, use_errno=True)
IN_CREATE, IN_MOVED_TO = 0x100, 0x80
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, os.fsencode(path), IN_CREATE | IN_MOVED_TO) >= 0
names, comms = set(), set()

def look():
    try:
        data = os.read(watch, 1 << 20)
    except BlockingIOError:
        data = b""
    while data:
        size = int.from_bytes(data[12:16], sys.byteorder)
        names.add(os.fsdecode(data[16 : 16 + size].rstrip(bytes(1))))
        data = data[16 + size :]
    for comm in glob.glob("/proc/self/task/*/comm"):
        try:
            comms.add(open(comm).read().removesuffix(chr(10)))
        except OSError:
            pass

def report():
    look()
    print(json.dumps({"names": sorted(names), "comms": sorted(comms)}))
"""

ROCKSDB = """
import {module} as store
options = store.Options(raw_mode=True)
options.create_if_missing(True)
options.set_write_buffer_size(1 << 16)
options.set_level_zero_file_num_compaction_trigger(2)
if hasattr(options, "set_enable_blob_files"):
    options.set_enable_blob_files(True)
for log_dir in (None, path + ".logs"):
    if log_dir is not None:
        options.set_db_log_dir(log_dir)
    db = store.Rdict(path, options)
    for i in range(20000):
        db[b"%d" % (i * 7919 % 5000)] = b"x" * 100
        if i % 1000 == 0:
            look()
    db.flush()
    db.compact_range(None, None)
    look()
    db.close()
report()
"""

LEVELDB = """
import plyvel
for _ in range(2):
    db = plyvel.DB(path, create_if_missing=True, write_buffer_size=1 << 16)
    for i in range(20000):
        db.put(b"%d" % (i * 7919 % 5000), b"x" * 100)
        if i % 1000 == 0:
            look()
    db.compact_range()
    look()
    db.close()
report()
"""


def observe(program: str, path: Path) -> tuple[dict[Role, set[bytes]], set[str]]:
    """(names by role, thread names) of a store at work."""
    ran = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(path)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    return by_role(os.fsencode(name) for name in seen["names"]), set(seen["comms"])


def by_role(names: Iterable[bytes]) -> dict[Role, set[bytes]]:
    found: dict[Role, set[bytes]] = {}
    for name in names:
        found.setdefault(role_of(name), set()).add(name)
    return found


def check_numbers(names: dict[Role, set[bytes]]) -> None:
    for role in (*IMMUTABLE, Role.WAL, Role.MANIFEST, Role.OPTIONS):
        assert all(file_number(name) is not None for name in names.get(role, ()))


@pytest.mark.parametrize(("module", "prefix"), [("rocksdict", "rocksdb:"), ("speedict", "speedb:")])
def test_rocksdb_and_speedb(module: str, prefix: str, tmp_path: Path) -> None:
    names, comms = observe(ROCKSDB.format(module=module), tmp_path / "db")
    # The Python bindings keep a file of their own in the directory.
    assert names.pop(Role.OTHER, set()) <= {f"{module}-config.json".encode()}
    wanted = {
        Role.WAL,
        Role.SST,
        Role.MANIFEST,
        Role.CURRENT,
        Role.OPTIONS,
        Role.INFOLOG,
        Role.LOCK,
        Role.IDENTITY,
        Role.TEMPORARY,
    }
    assert set(names) == wanted | ({Role.BLOB} if module == "rocksdict" else set())
    check_numbers(names)
    logs = by_role(os.fsencode(path.name) for path in tmp_path.joinpath("db.logs").iterdir())
    assert set(logs) == {Role.INFOLOG}
    jobs = {job_of_comm(comm) for comm in comms if comm.startswith(prefix)}
    assert {Job.FLUSH, Job.COMPACTION} <= jobs
    assert {job_of_comm(comm) for comm in comms if not comm.startswith(prefix)} == {Job.FOREGROUND}


def test_leveldb(tmp_path: Path) -> None:
    names, comms = observe(LEVELDB, tmp_path / "db")
    assert set(names) == {
        Role.WAL,
        Role.SST,
        Role.MANIFEST,
        Role.CURRENT,
        Role.INFOLOG,
        Role.LOCK,
        Role.TEMPORARY,
    }
    check_numbers(names)
    assert {job_of_comm(comm) for comm in comms} == {Job.FOREGROUND}


@pytest.mark.skipif(shutil.which("db_bench") is None, reason="db_bench (Debian: rocksdb-tools) is not installed")
def test_db_bench_and_its_backup(tmp_path: Path) -> None:
    subprocess.run(
        [
            "db_bench",
            "--benchmarks=fillrandom,overwrite,backup",
            "--num=20000",
            "--write_buffer_size=262144",
            f"--db={tmp_path}/db",
            f"--backup_dir={tmp_path}/backup",
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    names = by_role(os.fsencode(path.name) for path in (tmp_path / "db").iterdir() if path.is_file())
    assert Role.OTHER not in names
    check_numbers(names)
    shared = by_role(os.fsencode(path.name) for path in (tmp_path / "backup/shared_checksum").iterdir())
    assert set(shared) == {Role.SST}
    check_numbers(shared)
    assert all(b"_" in name for name in shared[Role.SST])
