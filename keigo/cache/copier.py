"""Copying chunks into the cache, as fast as `pace` and the budget let it: foreground reads go first.

Of the filler's thread alone.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from keigo import failpoints
from keigo.cache.cache import SETTLED_NS, Cache
from keigo.cache.cached_file import CachedFile
from keigo.cache.progress import PATIENCE, Failures, Progress
from keigo.cache.room import Room
from keigo.cache.shadow import Home, Shadow, base_space, chunk_space
from keigo.cache.sources import source_of
from keigo.placement.budget import Budget, budget
from keigo.tiers.fds import Fd
from keigo.tiers.pace import OthersUse, Pace, Stage
from keigo.tiers.tier import Tier
from keigo.tiers.uncached import ALIGNMENT, Buffer, Uncached
from keigo.tiers.writers import Writers

RUN: Final = 64
"""Chunks of a file that are copied before anything else is looked at."""


class PausedError(Exception):
    """Nothing is to be copied now."""


class _HomeError(Exception):
    """A file cannot be read at its home: its shadow is none the worse for that."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file's contents at its home."""

    contents: Fd
    home: Home
    cached: CachedFile
    path: bytes
    tier: Tier


class Copier:
    """See the module's docstring."""

    def __init__(
        self,
        cache: Cache,
        limit: int | None,
        progress: Progress,
        failures: Failures,
        room: Room,
        stop: threading.Event,
    ) -> None:
        """`limit`: bytes per second that are copied at most; None: no limit. `stop` ends a copy."""
        self._cache = cache
        self._volume = cache.volume
        self._progress = progress
        self._failures = failures
        self._room = room
        self._stop = stop
        self._pace = Pace(limit)
        self._others = OthersUse([os.fstat(tier.root.fd).st_dev for tier in self._volume.tiers], self._pace)
        self._buffer = Buffer(1 << cache.shift)
        self._stage: tuple[Tier, Tier] | None = None
        self._writers = Writers()
        self._unsettled = False
        """The file that was looked at last may be cached in a moment."""

    def begin(self) -> None:
        """Copies follow."""
        self._pace.begin(self._budget)

    def _budget(self, stage: Stage) -> Budget:
        """What a copy may do now. Raises PausedError where that is nothing."""
        placing = self._volume.placing
        legs = self._others.legs(stage, placing.models, placing.loads, time.monotonic())
        found = budget(legs, placing.pressure)
        if found.paused is not None:
            raise PausedError(found.paused)
        return found

    # --- files ---

    def admit(
        self,
        file: int,
        numbers: Sequence[int],
        out: deque[tuple[int, int]],
        told: Callable[[int], None] = lambda _size: None,
    ) -> bool:
        """Copy chunks of a file, in their order; False where there was no room for all. Raises PausedError.

        What is in `out` makes room; `told` hears the bytes of each chunk.
        """
        source = self._open(file)
        if source is None and self._unsettled and not self._stop.wait(SETTLED_NS / 1e9):
            source = self._open(file)
        if source is None or not numbers:
            return True
        cached = source.cached
        try:
            shadow = cached.shadow
            if shadow is not None and source.home.is_changed(shadow.head.home, moved=cached.rehomed):
                self._failures.failed(cached, "was changed past the mount")
                return True
            if shadow is None:
                if not self._has_room_to_begin(source, numbers[0], out):
                    return False
                shadow = self._begin(source)
                if shadow is None:
                    return True
            return self._copy_all(source, shadow, numbers, out, told)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._failures.failed(cached, str(error.strerror or error), full=full)
            return not self._failures.is_resting

    def _open(self, file: int) -> _Source | None:
        """A file's contents at its home, if it may be cached now."""
        self._unsettled = False
        with self._volume.lock:
            record = self._volume.catalog.file(file)
            if record is None or not record.links:
                return None
            try:
                contents = Fd(source_of(self._volume, file))
            except OSError as error:
                self._progress.note(f"{self._volume.show(file)}: {error.strerror}")
                return None
            status, tier = os.fstat(contents.fd), self._volume.tier_of(record)
            if self._cache.chunks_for(file, status.st_size) is None:
                return None
            cached = self._cache.known(file)
            self._unsettled = 0 <= time.time_ns() - status.st_ctime_ns < SETTLED_NS
            if cached is None or self._unsettled or self._writers.has(contents, tier):
                return None
            path = self._volume.path(*record.links[0])
            return _Source(contents, Home.of(tier.name, status), cached, path, tier)

    def _has_room_to_begin(self, source: _Source, first: int, out: deque[tuple[int, int]]) -> bool:
        """Whether there may be one more shadow, with its first chunk."""
        shadows, shift, size = self._cache.shadows, self._cache.shift, source.home.size
        if shadows.count >= shadows.most:
            return False
        return self._room.make(base_space(size, shift) + chunk_space(size, shift, first), out, source.cached)

    def _begin(self, source: _Source) -> Shadow | None:
        """Make a shadow for a file; None where the file is not the same any more. Raises OSError."""
        shadow = self._cache.store.create(source.path, source.home)
        self._cache.shadows.charge(shadow, base_space(source.home.size, self._cache.shift))
        failpoints.hit("cache.created")
        installed = False
        try:
            installed = self._cache.install(source.cached, shadow)
        finally:
            if not installed:
                self._cache.shadows.doom(shadow)
        return shadow if installed else None

    # --- chunks ---

    def _copy_all(
        self,
        source: _Source,
        shadow: Shadow,
        numbers: Sequence[int],
        out: deque[tuple[int, int]],
        told: Callable[[int], None],
    ) -> bool:
        """Copy chunks that are not there; False where there was no room for all. Raises OSError, PausedError."""
        cached = source.cached
        self._set_stage(source.tier)
        reads, writes = Uncached(source.contents, os.O_RDONLY), Uncached(shadow.data, os.O_WRONLY)
        unreadable = 0
        for index in numbers:
            if cached.chunks.is_present(index) or cached.chunks.is_doubtful(index):
                continue
            space = chunk_space(source.home.size, self._cache.shift, index)
            if not self._room.make(space, out, cached):
                return False
            if cached.shadow is not shadow:  # it went meanwhile, and its room with it
                return True
            try:
                if not self._copy(cached, shadow, reads, writes, index, space):
                    return True
            except _HomeError as error:
                self._progress.note(f"{self._volume.show(cached.file)}: {error}")
                self._failures.refuse(cached.file)
                unreadable += 1
                if unreadable == PATIENCE:
                    return True
                continue
            told(shadow.length(index))
            self._failures.copied()
        return True

    def _copy(
        self, cached: CachedFile, shadow: Shadow, reads: Uncached, writes: Uncached, index: int, space: int
    ) -> bool:
        """Copy one chunk, piece by piece; False where it is not wanted any more. Raises OSError, PausedError."""
        start, length = index << shadow.shift, shadow.length(index)
        self._cache.shadows.charge(shadow, space)
        sealed = False
        try:
            done = 0
            while done < length:
                size = min(self._pace.next(self._stop), -(-(length - done) // ALIGNMENT) * ALIGNMENT)
                if self._stop.is_set() or not self._cache.holds(cached):
                    return False
                got, reading = self._read(reads, size, done, start + done)
                if got < min(size, length - done):
                    raise OSError(errno.EIO, "is shorter than it was")
                whole = -(-got // ALIGNMENT) * ALIGNMENT
                self._buffer.view[done + got : done + whole] = bytes(whole - got)
                began = self._cache.tier.traffic.writes.begin()
                try:
                    writes.write(self._buffer.view[done : done + whole], start + done)
                finally:
                    self._cache.tier.traffic.writes.end(began, whole)
                self._pace.moved(got, reading, (time.monotonic_ns() - began) / 1e9)
                done += got
            failpoints.hit("cache.written")
            shadow.seal(index, self._buffer.view[:length])
            failpoints.hit("cache.sealed")
            sealed = self._cache.fill(cached, shadow, index)
        finally:
            if not sealed and cached.shadow is shadow:  # else its room goes with its shadow
                self._room.punch(cached, shadow, index)
        self._progress.filled += 1
        self._progress.filled_bytes += length
        self._progress.speed = self._pace.speed
        return True

    def _read(self, reads: Uncached, size: int, at: int, offset: int) -> tuple[int, float]:
        """Read into the buffer: (how many bytes, seconds). Raises _HomeError."""
        assert self._stage is not None  # noqa: S101
        flow = self._stage[0].traffic.reads
        got = 0
        began = flow.begin()
        try:
            got = reads.read(self._buffer.view[at : at + size], offset)
        except OSError as error:
            raise _HomeError(str(error.strerror)) from error
        finally:
            flow.end(began, got)
        return got, (time.monotonic_ns() - began) / 1e9

    def _set_stage(self, home: Tier) -> None:
        if self._stage != (home, self._cache.tier):
            self._stage = home, self._cache.tier
            self._pace.stage(((home, "read"), (self._cache.tier, "write")))
