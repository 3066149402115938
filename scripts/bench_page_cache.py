"""What a compaction of cold data leaves of a hot file in the page cache, bare and through a mount.

A database with all its data in level 0 is compacted by db_bench while another process reads a hot file at random; both
are in a memory cgroup, whose limit holds the hot file and as much again. As root, DIR new or empty, on a device that is
slow beside memory (`scripts/testbed up --devices nvme` has one):

    python scripts/bench_page_cache.py /var/tmp/tb/nvme/cache

Prints for each way: the hot file's share in memory before and after, its reads, which of them missed (longer than
0.5 ms), how long the compaction took, and what is in memory of its inputs while it runs and of its outputs at its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE

MIB = 1 << 20
HOT, LIMIT = 96, 256  # MiB
RATE = 4000  # reads a second, at most
MISS = 0.0005  # seconds
KEIGO = [sys.executable, "-m", "keigo"]
DB_BENCH = "--num=400000 --value_size=1000 --compression_type=none --disable_auto_compactions=1 --cache_size=1048576"
FILL = (
    "--benchmarks=fillrandom --write_buffer_size=8388608 --disable_wal=1 --level0_stop_writes_trigger=9999"
    " --level0_slowdown_writes_trigger=9999"
)
DIRECT = "--use_direct_io_for_flush_and_compaction=1"
COMPACT = "--benchmarks=compact --use_existing_db=1"


class _CacheStat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def cached(paths: list[Path]) -> int:
    """MiB of files in the page cache, by cachestat(2), Linux 6.5. Raises OSError."""
    libc, found, pages, whole = ctypes.CDLL(None, use_errno=True), _CacheStat(), 0, (ctypes.c_uint64 * 2)(0, 0)
    for path in paths:
        with suppress(FileNotFoundError), path.open("rb") as file:  # an input goes when its compaction ends
            if libc.syscall(451, file.fileno(), ctypes.byref(whole), ctypes.byref(found), 0) != 0:
                raise OSError(ctypes.get_errno(), "cachestat")
            pages += found.cache
    return pages * 4096 // MIB


def read_hot(path: Path) -> None:
    """The reader's process: reads until standard input ends, then says (reads, misses, p99 in us)."""
    size, fd, took = path.stat().st_size, os.open(path, os.O_RDONLY), []
    for begin in range(0, size, MIB):
        os.pread(fd, MIB, begin)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for begin in range(0, size, 4096):
        os.pread(fd, 4096, begin)
    print("warm", flush=True)
    os.set_blocking(0, False)
    due = time.perf_counter()
    while sys.stdin.buffer.raw.read(1) is None:  # type: ignore[union-attr]
        began = time.perf_counter()
        os.pread(fd, 4096, random.randrange(size // 4096) * 4096)
        took.append(time.perf_counter() - began)
        due = max(due + 1 / RATE, began - 0.1)
        time.sleep(max(0.0, due - time.perf_counter()))
    took.sort()
    print(json.dumps([len(took), sum(one > MISS for one in took), took[len(took) * 99 // 100] * 1e6]))


@contextmanager
def cgroup() -> Iterator[str]:
    """A memory cgroup, of either version; its list of processes."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / "keigo-bench-page-cache"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text(str(LIMIT * MIB))
        yield str(group / "cgroup.procs")
    finally:
        group.rmdir()


def inside(procs: str, *command: str) -> list[str]:
    """A command that runs in the cgroup."""
    return ["sh", "-c", 'echo $$ > "$0"; exec "$@"', procs, *command]


def measure(where: Path, procs: str, flags: str, tier: Path | None) -> None:
    """One run in a directory that holds `hot` and `cold`; `tier`: where a second look at the files' pages is had."""
    hot, cold = where / "hot/000009.sst", where / "cold"
    inputs = sorted(cold.glob("*.sst"))
    this = [sys.executable, __file__, "--read", str(hot)]
    compact = ["db_bench", f"--db={cold}", *f"{COMPACT} {DB_BENCH} {flags}".split()]
    with ExitStack() as stack:
        reader = stack.enter_context(subprocess.Popen(inside(procs, *this), stdin=PIPE, stdout=PIPE, text=True))
        stack.callback(reader.kill)
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdout.readline()
        before, began, middle = cached([hot]), time.monotonic(), 0
        compaction = stack.enter_context(subprocess.Popen(inside(procs, *compact), stdout=DEVNULL, stderr=DEVNULL))
        stack.callback(compaction.kill)
        while compaction.poll() is None:
            time.sleep(0.5)
            middle = max(middle, cached(inputs))
        took, after = time.monotonic() - began, cached([hot])
        reader.stdin.close()
        reads, misses, p99 = json.loads(reader.stdout.readline())
    outputs = sorted(set(cold.glob("*.sst")) - set(inputs))
    below = "" if tier is None else f"{cached([tier / 'cold' / path.name for path in outputs])} below"
    print(
        f"{flags or 'buffered'}: hot {before} -> {after} MiB, {reads / took:.0f} reads/s, {misses / reads:.2%} missed, "
        f"p99 {p99:.0f} us; compaction {took:.0f} s; inputs <= {middle} MiB, outputs {cached(outputs)} {below}",
        flush=True,
    )


def main() -> None:
    """Measure each way, in turn, `python bench_page_cache.py DIR [TURNS]`."""
    if sys.argv[1] == "--read":
        read_hot(Path(sys.argv[2]))
        return
    base, turns = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    base.mkdir(exist_ok=True)
    data, config, stock = base / "db", base / "devices.yaml", Path("/dev/shm/keigo-bench-page-cache")
    config.write_text("volume: bench-page-cache\ntiers:\n  - {name: only, in_place: true}\n")
    subprocess.run(["db_bench", f"--db={stock}", *f"{FILL} {DB_BENCH}".split()], check=True, capture_output=True)
    try:
        with cgroup() as procs:
            for mount, flags in [(mount, flags) for _ in range(turns) for flags in ("", DIRECT) for mount in (0, 1)]:
                shutil.rmtree(data, ignore_errors=True)
                (data / "hot").mkdir(parents=True)
                (data / "hot/000009.sst").write_bytes(os.urandom(HOT * MIB))
                shutil.copytree(stock, data / "cold")
                subprocess.run(["sync"], check=True)
                Path("/proc/sys/vm/drop_caches").write_text("3")
                print("mount" if mount else "bare", end=" ", flush=True)
                tier = os.open(data, os.O_RDONLY)  # leads below the mount
                if mount:
                    subprocess.run([*KEIGO, "mount", str(data), "-d", str(config)], check=True, capture_output=True)
                try:
                    measure(data, procs, flags, Path(f"/proc/self/fd/{tier}") if mount else None)
                finally:
                    if mount:
                        subprocess.run([*KEIGO, "umount", str(data)], check=True, capture_output=True)
                    os.close(tier)
    finally:
        shutil.rmtree(stock)


if __name__ == "__main__":
    main()
