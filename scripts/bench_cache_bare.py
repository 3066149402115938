"""What is measured in a process of its own, without a mount: `python bench_cache_bare.py WHAT ...` prints JSON.

memory FILES SIZE   what the cache has in memory of so many files of SIZE bytes, with a shadow and all chunks cached
micro ROUNDS        what the cache's logic adds to a read that it serves
scan DIR            read all of a database that another process has open, and say when
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Final

import numpy as np

from keigo.cache._chunks import Chunks
from keigo.cache.cached_file import CachedFile, attach_shadow
from keigo.cache.plan import Candidate, plan
from keigo.cache.shadow import Home, Shadow
from keigo.tiers.fds import Fd

_SHIFT: Final = 16
_READ: Final = 4096
_CALLS: Final = 20_000


def _resident() -> int:
    """Bytes of this process's memory that are its own."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/smaps_rollup has no Anonymous")


def memory(files: int, size: int) -> dict[str, float]:
    """Bytes per chunk beyond 1 KiB a file: of a process that has so many cached files, less the same without."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY:
        files = min(files, most // 6)  # each has four open, and there is a quarter more
    count = -(-size >> _SHIFT)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        directory = Fd(os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        # What the process has free is given back, but for pieces; the first ones take most of these.
        table = {number: _cached(directory, number, size) for number in range(files // 4)}
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident()
        for number in range(files // 4, files + files // 4):
            table[number] = _cached(directory, number, size)
        took = _resident() - before
        for cached in table.values():
            cached.ghosts = bytearray(-(-count // 8))
        with_ghosts = took + (_resident() - before - took) * files / len(table)
        chunks = files * count
        of_plan = _plan_bytes(min(files, 1_000_000 // count + 1), count)
        return {
            "beyond": (took - 1024 * files) / chunks,
            "beyond_with_ghosts": (with_ghosts - 1024 * files) / chunks,
            "per_file": took / files,
            "chunks_of_file": count,
            "plan_bytes_per_chunk": of_plan,
        }


def _cached(directory: Fd, number: int, size: int) -> CachedFile:
    """A file all of whose chunks are warm and cached, as far as memory is concerned."""
    home = Home("slow", number + 1, size, 1, 1)
    shadow = Shadow.create(directory, b"%d" % number, b"database/%06d.sst" % number, home, _SHIFT)
    cached = CachedFile(number, Chunks(size, _SHIFT), shadow)
    attach_shadow(cached.chunks, shadow)
    count = cached.chunks.count
    cached.chunks.set_heat(b"\1\0" * count)
    for index in range(count):
        cached.chunks.fill(index)
    return cached


def _plan_bytes(files: int, count: int) -> float:
    """What a plan takes for a moment, per chunk."""
    heat, random = np.ones(count, np.uint16), np.random.default_rng(0)
    candidates = [
        Candidate(number, heat, random.random(count) < 0.25, np.zeros(count, np.bool_), 1e-3, 1e-3, 1e6)
        for number in range(files)
    ]
    tracemalloc.start()
    plan(candidates, 0, 512, 0.0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / (files * count)


def micro(rounds: int) -> dict[str, float]:
    """Microseconds that a read of 4 KiB takes which the cache serves, and one of a file of which nothing is cached.

    Both files are alike, in memory. Counting heat is measured apart, against a call that returns at once.
    """
    size, hit, plain, warm, idle, bare = 1 << 22, *(list[float]() for _ in range(5))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        paths = [Path(base, name) for name in ("home", "shadow")]
        for path in paths:
            path.write_bytes(os.urandom(size))
        home, shadow = (os.open(path, os.O_RDONLY) for path in paths)
        cached, empty = Chunks(size, _SHIFT), Chunks(size, _SHIFT)
        cached.attach(shadow, -1)
        for index in range(cached.count):
            cached.fill(index)
        places = np.random.default_rng(0).integers(0, size // _READ, _CALLS).tolist()
        offsets = [place * _READ for place in places]
        if cached.read(home, _READ, 0)[1] != _READ or empty.read(home, _READ, 0)[1] != 0:
            raise SystemExit("what should be cached is not, or the other way round")
        for number in range(rounds):
            pair = [(hit, cached), (plain, empty)]
            for into, chunks in pair if number % 2 else reversed(pair):
                read = chunks.read
                began = time.perf_counter()
                for offset in offsets:
                    read(home, _READ, offset)
                into.append((time.perf_counter() - began) / _CALLS * 1e6)
            began = time.perf_counter()
            for offset in offsets:
                os.pread(home, _READ, offset)
            bare.append((time.perf_counter() - began) / _CALLS * 1e6)
            note = cached.warm
            for into, got in ((warm, _READ), (idle, 0)):
                began = time.perf_counter()
                for offset in offsets:
                    note(offset, got, got)
                into.append((time.perf_counter() - began) / _CALLS * 1e6)
        os.close(home)
        os.close(shadow)
    # What disturbs a round only makes it slower: the least of some, and how far the middle is from it.
    served, counted = min(hit) - min(plain), min(warm) - min(idle)
    return {
        "more_us": served + counted,
        "served_us": served,
        "heat_us": counted,
        "hit_us": min(hit),
        "plain_us": min(plain),
        "os_pread_us": min(bare),
        "more_us_median": statistics.median(hit) - statistics.median(plain) + statistics.median(warm)
        - statistics.median(idle),
    }  # fmt: skip


def scan(directory: str) -> dict[str, float]:
    """Read all records in order, past the page cache."""
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.set_use_direct_reads(True)
    access = rocksdict.AccessType.read_only(False)
    database = rocksdict.Rdict(directory, options, {"default": options}, access)
    began, records, size = time.monotonic(), 0, 0
    cursor = database.iter()
    cursor.seek_to_first()
    while cursor.valid():
        records += 1
        size += len(cursor.value())
        cursor.next()
    cursor.status()
    ended = time.monotonic()
    database.close()
    return {"began": began, "ended": ended, "records": records, "bytes": size}


def main() -> None:
    """See the module's docstring."""
    what, *given = sys.argv[1:]
    if what == "scan":
        found = scan(given[0])
    else:
        found = memory(int(given[0]), int(given[1])) if what == "memory" else micro(int(given[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
