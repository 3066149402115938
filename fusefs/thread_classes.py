"""Which class each reading thread of a database is in, for the data path's counts.

A thread is classed by its name, once, or by what it was seen to do (`told`: LevelDB's has no name); the data path
remembers the answer. Thread ids are used again, so a remembered class must not outlive its thread: a pidfd of the
thread (Linux 6.9) tells of its end, and then the class is forgotten. The kernel hands ids out in a circle, so the
moment between the two is never enough for an id to come round.

Threads: `class_of` and `told` are called by any worker; `_watch` is the one thread that waits for ends. `_lock` guards
what it watches, and `_told`.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from typing import Final

from keigo.lsm.threads import Job, job_of_thread
from keigo.tiers.descriptors import share

CLASSES: Final = {Job.UNKNOWN: 0, Job.FOREGROUND: 1, Job.FLUSH: 2, Job.COMPACTION: 3}
"""Job -> the number that the data path counts it by."""

_PIDFD_THREAD: Final = os.O_EXCL  # pidfd_open(2): of a thread, not of its process
_MOST: Final = 4096  # threads watched at once, at most: each costs a descriptor


class ThreadClasses:
    """See the module's docstring. `forget(tid)` is called when a thread has ended."""

    def __init__(self, forget: Callable[[int], None]) -> None:
        self._forget = forget
        self._most = share(8, _MOST)
        self._lock = threading.Lock()
        self._watched: dict[int, int] = {}
        """pidfd -> tid."""
        self._tids: set[int] = set()
        self._told: dict[int, Job] = {}
        """Of threads that are watched: what they work at, whatever they are called."""
        self._poll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._watch, name="keigo-threads", daemon=True)
        self._thread.start()

    def class_of(self, tid: int) -> int:
        """The class of a running thread, which is watched from now on where it can be."""
        self._begin(tid)
        with self._lock:
            told = self._told.get(tid)
        return CLASSES[job_of_thread(tid) if told is None else told]

    def told(self, tid: int, job: Job | None) -> None:
        """A thread works at a job that its name does not tell; None: at nothing of the kind any more."""
        self._begin(tid)
        with self._lock:
            if self._told.get(tid) is job or tid not in self._tids:
                return
            if job is None:
                del self._told[tid]
            else:
                self._told[tid] = job
        self._forget(tid)

    def _begin(self, tid: int) -> None:
        with self._lock:
            if tid <= 0 or len(self._watched) >= self._most or tid in self._tids:
                return
            try:
                fd = os.pidfd_open(tid, _PIDFD_THREAD)
            except OSError as error:
                # ESRCH: it has ended; EINVAL: an older kernel; EMFILE: the class then expires with time alone.
                if error.errno not in (errno.ESRCH, errno.EINVAL, errno.EMFILE, errno.ENFILE):
                    raise
                return
            self._watched[fd] = tid
            self._tids.add(tid)
            self._poll.register(fd, select.EPOLLIN)

    def _watch(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._stop:
                    return
                with self._lock:
                    tid = self._watched.pop(fd)
                    self._tids.discard(tid)
                    self._told.pop(tid, None)
                    self._poll.unregister(fd)
                    os.close(fd)
                self._forget(tid)

    def close(self) -> None:
        """End the watch."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._poll.close()
        os.close(self._stop)
        for fd in self._watched:
            os.close(fd)
        self._watched.clear()
