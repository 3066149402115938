"""Reads are counted by what the reading thread is for, on either driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import World

PAGE = 4096

READER = """
import ctypes, mmap, os, sys
ctypes.CDLL(None).prctl(15, sys.argv[2].encode(), 0, 0, 0)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
for n in range(int(sys.argv[3])):
    os.preadv(fd, [buffer], n * 4096)
"""


TWO_READERS = """
import ctypes, mmap, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)

def read(name, first, count):
    ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
    buffer = mmap.mmap(-1, 4096)
    for n in range(first, first + count):
        os.preadv(fd, [buffer], n * 4096)

threads = [threading.Thread(target=read, args=args) for args in ((b"rocksdb:low", 0, 20), (b"worker", 30, 30))]
for thread in threads:
    thread.start()
    thread.join()
"""


def read_as(name: str, path: Path, count: int) -> int:
    """Read so many pages in a thread of that name; returns its id."""
    reader = subprocess.Popen([sys.executable, "-c", READER, path, name, str(count)])
    assert reader.wait() == 0
    return reader.pid


def test_reads_are_counted_by_class_of_thread(mounted: World) -> None:
    """A thread that calls itself rocksdb:low reads as a compaction does; RocksDB names its own so."""
    path = mounted.directory / "000001.sst"
    path.write_bytes(b"x" * 16 * PAGE)
    for name, count in (("rocksdb:low", 5), ("rocksdb:high", 3), ("anything", 2)):
        read_as(name, path, count)
    (row,) = mounted.ls()
    assert row["reads"] == {
        "compaction": [5, 5 * PAGE],
        "flush": [3, 3 * PAGE],
        "foreground": [2, 2 * PAGE],
    }


def test_threads_of_one_process_are_told_apart(mounted: World) -> None:
    """The database's own threads share descriptors; each read counts for the thread that waits for it."""
    path = mounted.directory / "000001.sst"
    path.write_bytes(b"x" * 64 * PAGE)
    subprocess.run([sys.executable, "-c", TWO_READERS, path], check=True)
    (row,) = mounted.ls()
    assert row["reads"] == {"compaction": [20, 20 * PAGE], "foreground": [30, 30 * PAGE]}


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_the_class_of_a_thread_is_not_inherited_by_the_next_one_of_its_id(mounted: World) -> None:
    """Thread ids are used again: the kernel is told here which to give next."""
    path = mounted.directory / "000001.sst"
    path.write_bytes(b"x" * 16 * PAGE)
    last = Path("/proc/sys/kernel/ns_last_pid")
    before = last.read_text()
    first = read_as("rocksdb:low", path, 1)
    reads = 0
    again = -1
    try:
        while again != first:  # others start processes, too
            last.write_text(str(first - 1))
            again = read_as("anything", path, 1)
            reads += 1
            assert reads < 100
    finally:
        last.write_text(before)
    (row,) = mounted.ls()
    assert row["reads"] == {"compaction": [1, PAGE], "foreground": [reads, reads * PAGE]}
