"""Threads that take requests from /dev/fuse and answer them: as many as wait for devices, and a few more.

`_lock` guards the set of workers and is a leaf. Workers, and all other threads, must not take the signals that are the
main thread's: whoever starts one has them blocked.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Final

from fusefs import _datapath

log = logging.getLogger(__name__)

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""The main thread's."""
_WAITING: Final = 16  # workers that wait for requests, at most
_MOST: Final = 512  # workers in all: as many requests may hang on a device before other devices are held up


class Workers:
    """See the module's docstring."""

    def __init__(self, device: int, answer: Callable[[bytes], None]) -> None:
        self._device = device
        self._answer = answer
        self._ended = threading.Event()
        self._starved = os.eventfd(0, os.EFD_CLOEXEC)
        self._workers: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self, again: Iterable[bytes]) -> None:
        """Begin to answer, also these requests, which an earlier daemon left. The caller has signals blocked."""
        _datapath.set_starved(self._starved)
        for _ in range(_WAITING):
            self._add()
        # In threads of their own: any of them may have to wait for a device.
        for raw in again:
            threading.Thread(target=self._answer, args=(raw,), name="keigo-again", daemon=True).start()

    def run(self) -> None:
        """Add workers whenever all are busy, until the unmount and the last answer."""
        while not self._ended.is_set():
            os.read(self._starved, 8)
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            self._add()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with self._lock:
            left = list(self._workers)
        for worker in left:
            worker.join()

    def _add(self) -> None:
        """Start a worker, unless there are enough."""
        with self._lock:
            if len(self._workers) >= _MOST:
                return
            worker = threading.Thread(target=self._work, name="keigo-fuse", daemon=True)
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError as error:  # the system's limit of threads
            log.warning("%s", error)
            with self._lock:
                self._workers.discard(worker)

    def _work(self) -> None:
        device, answer = self._device, self._answer
        try:
            while raw := _datapath.next(device, _WAITING):
                answer(raw)
        except MemoryError:  # others go on; when they are all busy another one is started
            log.warning("no memory for another worker")
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.error("/dev/fuse: %s", error)
            self._ended.set()
            os.eventfd_write(self._starved, 1)
        with self._lock:
            self._workers.discard(threading.current_thread())
