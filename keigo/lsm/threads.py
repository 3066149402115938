"""What a thread of an LSM store is doing, by the name that it gave itself.

RocksDB names the threads of its pools `rocksdb:high`, `rocksdb:low` and `rocksdb:bottom`, Speedb the same
with `speedb:` (util/threadpool_imp.cc in both); subcompaction threads inherit the name. Some old releases
append the thread's number (`rocksdb:low3`), still older ones name all pools alike (`rocksdb:bg0`: unknown).
Flushes run in the low pool, and count as compactions here, in the rare database that has no thread in the
high one.

LevelDB and Pebble name no threads. LevelDB's single background thread bears its creator's name, as any
foreground thread does, and /proc shows nothing else that tells them apart. So FOREGROUND means no more than
"of no pool": right for whoever writes a WAL, no hint at all for whoever writes an SST.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import Final


class Job(StrEnum):
    """What a thread works at."""

    FLUSH = "flush"
    COMPACTION = "compaction"
    FOREGROUND = "foreground"
    UNKNOWN = "unknown"


# The kernel keeps 15 characters of a name; the longest here, `rocksdb:bottom`, has 14.
_POOL: Final = re.compile(r"(?:rocksdb|speedb):([a-z]*)[0-9]*")
_JOBS: Final = {"high": Job.FLUSH, "low": Job.COMPACTION, "bottom": Job.COMPACTION}


def job_of_comm(comm: str) -> Job:
    """The job of a thread whose /proc/TID/comm is `comm`, without the newline.

    UNKNOWN for no name at all, and for a RocksDB or Speedb pool that does several jobs.
    """
    pool = _POOL.fullmatch(comm)
    if pool is not None:
        return _JOBS.get(pool[1], Job.UNKNOWN)
    return Job.FOREGROUND if comm else Job.UNKNOWN


def job_of_thread(tid: int) -> Job:
    """The job of a running thread; UNKNOWN where it is gone, or not of this PID namespace (`tid` <= 0)."""
    if tid <= 0:
        return Job.UNKNOWN
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as comm:
            return job_of_comm(comm.read().removesuffix("\n"))
    except OSError:
        return Job.UNKNOWN


def has_thread(tid: int) -> bool:
    """Whether there is a process or thread of this id, in our PID namespace."""
    return os.path.exists(f"/proc/{tid}/comm")


def process_of_thread(tid: int) -> int | None:
    """The process of a running thread; None where it is gone."""
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as status:
            return next((int(line[5:]) for line in status if line.startswith("Tgid:")), None)
    except OSError:
        return None
