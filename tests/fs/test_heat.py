"""Heat: what the foreground reads from a file's device, and nobody else, on either driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from keigo.control import ask
from tests.conftest import World
from tests.fs.support import Area, opened, until

PAGE = 4096
PAGES = 64

READER = """
import ctypes, mmap, os, sys
ctypes.CDLL(None).prctl(15, sys.argv[2].encode(), 0, 0, 0)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
for n in range(int(sys.argv[3])):
    os.preadv(fd, [buffer], n % 64 * 4096)
if len(sys.argv) > 4:
    print("done", flush=True)
    sys.stdin.read()
"""


LEVELDB = """
import os, plyvel, sys
options = {"write_buffer_size": 1 << 18, "max_file_size": 1 << 20, "compression": None}
for turn in range(2):  # the second time there is a log to recover, by the thread that reads in the end
    db = plyvel.DB(sys.argv[1], create_if_missing=True, **options)
    for n in range(6000):
        db.put(os.urandom(8), os.urandom(1000))
    if turn == 0:
        db.close()
db.compact_range()
print("written", flush=True)
for _ in sys.stdin:
    for n in range(400):
        next(db.iterator(start=os.urandom(8)), None)
    print("read", flush=True)
"""


def read_as(name: str, path: Path, count: int) -> None:
    """Read so many pages past the page cache, in a thread of that name."""
    subprocess.run([sys.executable, "-c", READER, path, name, str(count)], check=True)


def heat(world: World, path: Path) -> float:
    """Reads per second, decayed."""
    name = path.relative_to(world.directory).as_posix()
    (row,) = [row for row in ask(world.volume, "ls") if row["name"] == name]
    return float(row["heat"])


def make(path: Path) -> Path:
    path.write_bytes(b"x" * PAGES * PAGE)
    return path


def test_what_is_read_is_hot_and_nothing_else(area: Area) -> None:
    read, other = (make(area.path / f"00000{number}.sst") for number in (1, 2))
    assert heat(area.world, read) == 0
    read_as("anything", read, 2000)
    until(lambda: heat(area.world, read) > 10)
    first = heat(area.world, read)
    read_as("anything", read, 4000)
    until(lambda: heat(area.world, read) > 2 * first)
    assert heat(area.world, other) == 0


@pytest.mark.parametrize("thread", ["rocksdb:low", "rocksdb:high"])
def test_what_the_store_itself_reads_does_not_heat(area: Area, thread: str) -> None:
    """The reads of compactions are told apart from others, which come later and are seen."""
    path, other = (make(area.path / f"00000{number}.sst") for number in (1, 2))

    def reads() -> int:
        (row,) = [row for row in ask(area.world.volume, "ls") if row["name"] == f"{area.name}/{path.name}"]
        return sum(count for count, _ in row["reads"].values())

    with opened(path, os.O_RDONLY):  # the kernel does not forget a file that is open, and the driver not its reads
        read_as(thread, path, 300)
        read_as("anything", other, 300)
        until(lambda: heat(area.world, other) > 0)
        until(lambda: reads() == 300)
        assert heat(area.world, path) == 0


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_leveldb_s_own_reads_do_not_heat(mounted: World) -> None:
    """Its background thread has no name of its own. (pyfuse3 is not told who reads a mapping, as LevelDB does.)"""
    path = mounted.directory / "db"
    command = [sys.executable, "-c", LEVELDB, str(path)]

    def reads() -> dict[str, int]:
        found = Counter[str]()
        for row in ask(mounted.volume, "ls"):
            for kind, (count, _) in row["reads"].items():
                found[kind] += count if row["role"] == "sst" else 0
        return found

    def hot() -> list[str]:
        """Tables that have heat; CURRENT and MANIFEST are read in the foreground when the store opens."""
        return [row["name"] for row in ask(mounted.volume, "ls") if row["role"] == "sst" and row["heat"]]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as store:
        assert store.stdout is not None
        assert store.stdin is not None
        assert store.stdout.readline() == "written\n"
        written = reads()
        assert written["compaction"] > 0
        assert written["foreground"] == 0
        assert hot() == []

        def read_again() -> None:
            """A compaction that is still under way takes tables away that were read, and their heat with them."""
            assert store.stdout is not None
            assert store.stdin is not None
            store.stdin.write("\n")
            store.stdin.flush()
            assert store.stdout.readline() == "read\n"

        def seen() -> bool:
            read_again()
            return reads()["foreground"] > 0 and len(hot()) > 0

        until(seen)
        store.stdin.close()
    assert store.returncode == 0


def test_reads_of_handles_that_stay_open_count(area: Area) -> None:
    path = make(area.path / "000001.sst")
    command = [sys.executable, "-c", READER, str(path), "anything", "500", "stay"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"done\n"
        until(lambda: heat(area.world, path) > 3)
        assert reader.stdin is not None
        reader.stdin.close()


def test_each_read_counts_once(area: Area) -> None:
    """By however many handles, at whatever time. Of a young file, n reads in T seconds are n / (10 + T) a second."""
    path = make(area.path / "000001.sst")
    for _ in range(5):
        read_as("anything", path, 100)

    def reads() -> float:
        (row,) = [row for row in ask(area.world.volume, "ls") if row["name"] == f"{area.name}/{path.name}"]
        return float(row["heat"] * (10 + time.time() - row["created"]))

    until(lambda: reads() > 400)
    assert reads() < 700


def test_a_restart_keeps_heat(mounted: World) -> None:
    read, other = (make(mounted.directory / f"00000{number}.sst") for number in (1, 2))
    read_as("anything", read, 3000)
    until(lambda: heat(mounted, read) > 20)
    before = heat(mounted, read)
    mounted.umount()
    mounted.mount()
    # It cools meanwhile, by half a minute; and the last reads may be counted only now.
    assert before / 8 < heat(mounted, read) < 3000
    assert heat(mounted, other) == 0


def test_reads_just_before_the_end_are_not_lost(mounted: World) -> None:
    read = make(mounted.directory / "000001.sst")
    read_as("anything", read, 3000)
    mounted.umount()
    mounted.mount()
    assert heat(mounted, read) > 3


def test_status_shows_what_placement_knows(mounted: World) -> None:
    def placement() -> dict[str, Any]:
        found: dict[str, Any] = ask(mounted.volume, "status")["placement"]
        return found

    assert placement() == {
        "policy": "levels",
        "prices": [0.0, 0.0, 0.0],
        "pressure": {"level0": 0.0, "stalled": False},
        "profiled": [],
    }
