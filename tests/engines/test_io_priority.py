"""`io_priority` under real stores: their threads for flushes and compactions are lowered, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from keigo.lsm.threads import Job, job_of_comm
from tests.conftest import MakeWorld
from tests.engines.processes import OpenStore, Oracle

NONE = (psutil.IOPRIO_CLASS_NONE, 0)
LOWERED = {Job.FLUSH: (psutil.IOPRIO_CLASS_BE, 5), Job.COMPACTION: (psutil.IOPRIO_CLASS_BE, 7)}


def priorities(pid: int) -> dict[int, tuple[str, tuple[int, int]]]:
    """Thread id -> name and I/O priority of a process's threads."""
    found = {}
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        ioclass, value = psutil.Process(tid).ionice()
        found[tid] = Path(f"/proc/{tid}/comm").read_text().strip(), (int(ioclass), value)
    return found


@pytest.mark.parametrize("engine", ["rocksdb", "speedb"])
def test_pools_are_lowered(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(extra="io_priority: true\n")
    world.mount()
    store, oracle = open_store(engine, world.directory / "db", create=True), Oracle()
    for _ in range(3):
        oracle.put(store, range(4000))
        store.compact()
    oracle.check(store)
    found = priorities(store.pid)
    lowered = {tid: (name, priority) for tid, (name, priority) in found.items() if priority != NONE}
    jobs = {job_of_comm(name) for name, _ in lowered.values()}
    assert jobs == {Job.FLUSH, Job.COMPACTION}
    assert all(priority == LOWERED[job_of_comm(name)] for name, priority in lowered.values())
    assert found[store.pid][1] == NONE
    assert world.status()["io_priority"]["lowered"] == len(lowered)
    store.close()


def test_leveldb_s_one_thread_is_lowered(make_world: MakeWorld, open_store: OpenStore) -> None:
    """And not the one that opens the database, though it makes a table of the log that a crash left."""
    world = make_world(extra="io_priority: true\n")
    world.mount()
    path, oracle = world.directory / "db", Oracle()
    store = open_store("leveldb", path, create=True)
    oracle.put(store, range(100))
    store.kill()
    store = open_store("leveldb", path)
    assert {priority for _, priority in priorities(store.pid).values()} == {NONE}
    oracle.put(store, range(8000))
    store.compact()
    lowered = {tid: priority for tid, (_, priority) in priorities(store.pid).items() if priority != NONE}
    assert list(lowered.values()) == [LOWERED[Job.FLUSH]]
    assert store.pid not in lowered
    oracle.check(store)
    store.close()
