"""What users ask to have in the cache: files as a whole. It goes first, as far as there is room, and is not judged.

Threads: the filler's condition guards the queue. Requests come from any thread; the filler's own carries them out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from keigo.cache.cache import Cache
from keigo.cache.copier import RUN, Copier
from keigo.cache.progress import Failures, Progress


@dataclass(slots=True)
class Warm:
    """Files that a user wants in the cache as a whole."""

    files: deque[int]
    done: Callable[[str | None], None]
    """Hears None at the end, or why it ended early; in the filler's thread."""
    told: Callable[[int], None] = lambda _size: None
    """Hears the bytes of each chunk that was copied."""
    at: int = 0
    """Chunk of the first of the files that is next."""


class Warming:
    """See the module's docstring."""

    def __init__(
        self,
        cache: Cache,
        progress: Progress,
        failures: Failures,
        copier: Copier,
        wake: threading.Condition,
        stop: threading.Event,
    ) -> None:
        """`wake` wakes the filler; once `stop` is set nothing is begun any more."""
        self._cache = cache
        self._progress = progress
        self._failures = failures
        self._copier = copier
        self._wake = wake
        self._stop = stop
        self._queue: deque[Warm] = deque()

    @property
    def is_asked(self) -> bool:
        """Whether there is something to do. The condition is held."""
        return bool(self._queue)

    def submit(self, warm: Warm) -> None:
        """Copy files as a whole."""
        with self._wake:
            if not self._stop.is_set():
                self._queue.append(warm)
                self._wake.notify_all()
                return
        warm.done("the volume is being closed")

    def give_up(self, why: str) -> None:
        """Carry out none of what is left."""
        with self._wake:
            given_up = list(self._queue)
            self._queue.clear()
        for warm in given_up:
            warm.done(why)

    def files_left(self) -> int:
        """Files of the request that is being carried out."""
        return len(self._queue[0].files) if self._queue else 0

    def carry_out(self, most: float) -> bool:
        """Go on for about `most` seconds; whether some is left, as after PausedError."""
        deadline = time.monotonic() + most
        while True:
            with self._wake:
                warm = self._queue[0] if self._queue else None
            if warm is None or self._stop.is_set():
                return False
            why: str | None = None
            while warm.files and why is None and not self._stop.is_set():
                if time.monotonic() > deadline:
                    return True
                self._progress.warming = len(warm.files)
                numbers = range(warm.at, min(warm.at + RUN, self._chunks_of(warm.files[0])))
                if self._failures.is_resting:
                    why = self._why_resting()
                elif not self._copier.admit(warm.files[0], numbers, deque(), warm.told):
                    why = self._why_not()
                elif len(numbers) == RUN:
                    warm.at += RUN
                else:
                    warm.files.popleft()
                    warm.at = 0
            if self._stop.is_set():
                return False
            with self._wake:
                self._queue.popleft()
            warm.done(why)

    def _why_resting(self) -> str:
        return self._progress.last_error or "the cache rests after failures"

    def _why_not(self) -> str:
        """Why there was no room for all of a file."""
        if self._failures.is_resting:
            return self._why_resting()
        shadows = self._cache.shadows
        if shadows.count >= shadows.most:
            return f"it has {shadows.count} files, as many as the limit of open files allows"
        return "the cache is full"

    def _chunks_of(self, file: int) -> int:
        cached = self._cache.known(file)
        if cached is not None:
            return cached.chunks.count
        record = self._cache.volume.catalog_file(file)
        return 0 if record is None else -(-record.size >> self._cache.shift)
