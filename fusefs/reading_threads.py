"""Who reads, for a driver that is not told: the thread of the process that waits in a read of this file.

While a READ is being answered the reader waits in its system call, which /proc/TID/syscall shows (proc(5)): number and
arguments. A thread named for compactions that waits in a read of this very file, at an offset that such a READ can be
for, is taken for the reader; where there is none, the reader is of the foreground. So two that read the same part of
a file at once are mistaken for one another, and a read by page fault counts as foreground.

One thread at a time (the driver's loop).
"""

from __future__ import annotations

import os
import re
import time
from typing import Final

from keigo.lsm.threads import Job, job_of_thread

# x86-64 and aarch64 number them differently; read(2) says no offset.
_POSITIONED: Final = {"x86_64": {17, 295, 327}, "aarch64": {67, 69, 286}}
_PLAIN: Final = {"x86_64": {0, 19}, "aarch64": {63, 65}}
_READAHEAD: Final = 1 << 20  # a READ may be for what follows, so far at most
_KNOWN_FOR: Final = 1.0  # seconds for which a process's threads are not listed anew
_MOST: Final = 256  # processes remembered


class ReadingThreads:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._pools: dict[int, tuple[float, list[tuple[int, Job]]]] = {}
        machine = os.uname().machine
        self._positioned = _POSITIONED.get(machine, set())
        self._plain = _PLAIN.get(machine, set())

    def job_of_reader(self, process: int | None, node: int, offset: int, size: int) -> Job:
        """What the thread of a process works at that reads `size` bytes of a node from `offset` on."""
        if process is None or not self._plain:
            return Job.UNKNOWN
        for tid, job in self._pool(process):
            if self._reads(tid, node, offset, size) and job_of_thread(tid) is job:  # ids are used again
                return job
        return Job.FOREGROUND

    def _pool(self, process: int) -> list[tuple[int, Job]]:
        """A process's threads that are named for a job."""
        now = time.monotonic()
        known = self._pools.get(process)
        if known is not None and now - known[0] < _KNOWN_FOR:
            return known[1]
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{process}/task")]
        except OSError:
            threads = []
        jobs = ((tid, job_of_thread(tid)) for tid in threads)
        found: list[tuple[int, Job]] = [(tid, job) for tid, job in jobs if job in (Job.FLUSH, Job.COMPACTION)]
        if len(self._pools) >= _MOST:
            self._pools.clear()
        self._pools[process] = now, found
        return found

    def _reads(self, tid: int, node: int, offset: int, size: int) -> bool:
        try:
            with open(f"/proc/{tid}/syscall") as file:
                words = file.read().split()
            if len(words) < 7 or not words[0].isdigit():  # it runs
                return False
            call, fd, count, position = (int(word, 0) for word in (words[0], words[1], words[3], words[4]))
            if call in self._positioned:
                if not position - size < offset <= position + max(count, 4096) + _READAHEAD:
                    return False
            elif call not in self._plain:
                return False
            with open(f"/proc/{tid}/fdinfo/{fd}") as file:
                found = re.search(r"^ino:\s*(\d+)", file.read(), re.MULTILINE)
            return found is not None and int(found[1]) == node
        except OSError:
            return False
