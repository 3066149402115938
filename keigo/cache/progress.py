"""What the cache's filler has done, and what it leaves alone after failures: bookkeeping of the filler's thread.

Whatever goes wrong on the cache's device costs the shadow that it happened to, and after some times in a row a rest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from keigo import clock
from keigo.cache.cache import Cache
from keigo.cache.cached_file import CachedFile, Counts

log = logging.getLogger(__name__)

REST: Final = 30.0
"""Seconds for which a file, or all, is left alone after a failure."""
PATIENCE: Final = 3
"""Failures in a row until all is left alone."""


@dataclass(slots=True)
class Progress:
    """What the filler has done since the mount; read without a lock, for status only."""

    filled: int = 0
    """Chunks."""
    filled_bytes: int = 0
    evicted: int = 0
    """Chunks that made room."""
    waiting: int = 0
    """Chunks of the plan that are not copied yet."""
    warming: int = 0
    """Files that a user wants and that are not copied yet."""
    speed: float = 0.0
    paused: str | None = None
    errors: int = 0
    last_error: str | None = None
    saved: float = 0.0
    """Seconds of the devices' time that hits have saved."""
    counts: Counts = field(default_factory=Counts)
    recent_hits: float = 0.0
    """Foreground reads served from the cache, decayed."""
    recent: float = 0.0
    """Foreground reads, decayed."""

    def note(self, what: str) -> None:
        """Count an error."""
        self.errors += 1
        if self.last_error != what:
            log.warning("cache: %s", what)
        self.last_error = what


class Failures:
    """Which files, or whether all, are left alone. The filler's thread's own."""

    def __init__(self, cache: Cache, progress: Progress) -> None:
        self._cache = cache
        self._progress = progress
        self._refused: dict[int, float] = {}
        """Files that are left alone -> until when."""
        self._resting = 0.0
        self._in_a_row = 0
        self.limit = cache.capacity
        """Bytes that may be cached, as far as is known: fewer than the capacity when the device was full."""

    @property
    def is_resting(self) -> bool:
        """Whether all is left alone."""
        return clock.now() < self._resting

    def is_refused(self, file: int) -> bool:
        """Whether a file is left alone."""
        return file in self._refused

    def try_again(self) -> None:
        """Take note of what was left alone long enough, and try whether a full device has room."""
        now = clock.now()
        self.limit = self._cache.capacity
        self._refused = {file: until for file, until in self._refused.items() if until > now}

    def refuse(self, file: int) -> None:
        """Leave a file alone for a while."""
        self._refused[file] = clock.now() + REST

    def copied(self) -> None:
        """A chunk was copied: what failed before was not in a row."""
        self._in_a_row = 0

    def failed(self, cached: CachedFile, what: str, *, full: bool = False) -> None:
        """Something went wrong with a shadow: it goes, unless only the device is full."""
        self._progress.note(f"{self._cache.volume.show(cached.file)}: {what}")
        if full:
            self.limit = self._cache.shadows.used
        else:
            self._cache.drop(cached)
            self.refuse(cached.file)
        self._in_a_row += 1
        if full or self._in_a_row >= PATIENCE:
            self._resting = clock.now() + REST
