"""Background threads of a database get a lower I/O priority than those for which somebody waits.

A thread that makes tables is looked at when it creates a file, which is where every flush and every compaction passes:
ioprio_set(2) from outside gives it a level of the best-effort class. Never the idle class: beside a busy foreground it
may get nothing at all, and a flush that gets nothing stops all writers. Lowered are threads that bear a job's name, and
LevelDB's nameless one; a thread that has a priority already got it from its user, and keeps it.

The priority counts where the thread's own system call moves the bytes: in passthrough with direct I/O. What the daemon
does for a thread (reads of closed tables, fsync), and what is written back later, has none of it.

Threads: any may call. `_lock` guards the table and is a leaf.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

import psutil

from keigo.lsm.threads import Job

log = logging.getLogger(__name__)

LEVELS: Final = {Job.FLUSH: 5, Job.COMPACTION: 7}
"""Levels of the best-effort class, 0 to 7; a thread that has none set counts as 4. BFQ gives bandwidth by 8 - level."""

_MOST: Final = 256  # threads remembered before those that have ended are looked for


@dataclass(frozen=True, slots=True)
class _Thread:
    thread: psutil.Process
    """psutil tells by the time of its start whether an id still stands for the same thread."""
    level: int | None
    """What it was given; None: it was left as it is."""


class IoPriority:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, _Thread] = {}
        self._refused = 0

    def seen(self, tid: int, job: Job) -> None:
        """A thread creates a file, for a job that its name tells. The first time decides."""
        level = LEVELS.get(job)
        if level is None or tid <= 0:
            return
        with self._lock:
            known = self._threads.get(tid)
            if known is None or not known.thread.is_running():
                self._lower(tid, level)

    def told(self, tid: int, job: Job | None) -> None:
        """A nameless thread makes tables; None: it is none of the kind after all, and gets back what it had.

        LevelDB has one such thread for flushes and compactions: it is lowered as if for flushes.
        """
        if job is not None:
            self.seen(tid, Job.FLUSH)
            return
        with self._lock:
            known = self._threads.pop(tid, None)
            if known is not None:
                self._restore(known)

    def _lower(self, tid: int, level: int) -> None:
        self._threads.pop(tid, None)
        if len(self._threads) >= _MOST:
            self._threads = {other: known for other, known in self._threads.items() if known.thread.is_running()}
        try:
            thread = psutil.Process(tid)
            free = thread.ionice().ioclass == psutil.IOPRIO_CLASS_NONE
            self._threads[tid] = _Thread(thread, None)  # before the call, whose failure is for good
            if free:
                thread.ionice(psutil.IOPRIO_CLASS_BE, level)
                self._threads[tid] = _Thread(thread, level)
        except psutil.NoSuchProcess:
            self._threads.pop(tid, None)
        except (psutil.AccessDenied, OSError) as error:
            self._refused += 1
            if self._refused == 1:
                log.warning("io_priority: thread %d keeps its own, and so may others: %s", tid, _why(error))

    @staticmethod
    def _restore(known: _Thread) -> None:
        """Give a thread back what it had, unless somebody has set its priority since."""
        if known.level is None:
            return
        try:
            if known.thread.is_running() and tuple(known.thread.ionice()) == (psutil.IOPRIO_CLASS_BE, known.level):
                known.thread.ionice(psutil.IOPRIO_CLASS_NONE)
        except psutil.NoSuchProcess:
            return
        except (psutil.AccessDenied, OSError) as error:
            log.warning("io_priority: thread %d stays low: %s", known.thread.pid, _why(error))

    def restore(self) -> None:
        """Give all threads back what they had."""
        with self._lock:
            for known in self._threads.values():
                self._restore(known)
            self._threads.clear()

    def facts(self) -> dict[str, int]:
        """For `status`: how many living threads were lowered, and how many could not be."""
        with self._lock:
            lowered = sum(known.level is not None and known.thread.is_running() for known in self._threads.values())
            return {"lowered": lowered, "refused": self._refused}


def _why(error: psutil.AccessDenied | OSError) -> str:
    denied = isinstance(error, psutil.AccessDenied)
    return "another user's, which takes CAP_SYS_NICE" if denied else str(error)
