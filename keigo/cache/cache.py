"""What is cached, as readers and the volume see it.

A file that is opened for reading and whose home is slower than the cache gets its `Chunks`, which the handle keeps and
reads by; they outlive it while they are warm or cached. Contents are cached of closed files only: whoever opens one for
writing, cuts it or takes its last name ends its chunks first (`rewritten`), with `Volume.lock` held, so before any
byte changes (`shadows` has what becomes of their shadow).

Threads: `_lock` guards the tables and which shadow is behind which chunks. It is taken after `Volume.lock`, and nothing
is called under it but chunks' own methods and those of `Shadows` that take its lock, a leaf; no I/O is done under it.
The filler's thread alone makes, fills, punches and deletes shadows; readers look at doubtful chunks (`_verify`), and
writers make shadows void.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

from keigo import failpoints
from keigo.cache._chunks import Chunks
from keigo.cache.cached_file import CachedFile, Counts, attach_shadow, cached_size
from keigo.cache.recovery import recover
from keigo.cache.shadow import Shadow
from keigo.cache.shadows import Shadows
from keigo.cache.sources import home_of, source_tier
from keigo.cache.store import Store
from keigo.lsm.roles import IMMUTABLE
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_MOST_CHUNKS: Final = 1 << 24  # of a file: what has more, 256 GiB at least, is sparse and no table
SETTLED_NS: Final = 50_000_000
"""A file that changed later may change again and show the same time (a tick is 10 ms)."""


class Cache:
    """See the module's docstring."""

    def __init__(self, volume: Volume, tier: Tier, capacity: int, chunk: int) -> None:
        """`chunk`: bytes, a power of two. Raises OSError where the tier cannot hold a cache."""
        self.volume = volume
        self.tier = tier
        self.capacity = capacity
        self.shift = chunk.bit_length() - 1
        self.store = Store(tier, self.shift)
        self.shadows = Shadows(tier, self.store.directory)
        self._lock = threading.Lock()
        self._holes: list[tuple[CachedFile, Shadow, int]] = []
        """Chunks that turned out to be damaged, to be punched out."""
        self._gone = Counts()
        """Of files that are not in the table any more, what was not added to the cache's counts yet."""
        self.damaged = 0
        """Chunks that were not what they had been."""
        self._files = recover(volume, tier, self.store, self.shadows, capacity, self._verify)
        volume.hooks.rewritten = self.rewritten
        volume.hooks.moved = self.moved

    # --- readers and the volume; `Volume.lock` is held ---

    def chunks_for(self, file: int, size: int) -> Chunks | None:
        """The chunks that a handle of a file of `size` bytes is to read by; None: nothing of it is ever cached."""
        if not 0 < size <= _MOST_CHUNKS << self.shift or source_tier(self.volume, self.tier, file) is None:
            return None
        with self._lock:
            known = self._files.get(file)
            if known is None or known.chunks.size != size:
                if known is not None:
                    self._end(known)
                try:
                    known = self._files[file] = CachedFile(file, Chunks(size, self.shift))
                except MemoryError:  # a handle that reads at home is better than none
                    self._files.pop(file, None)
                    log.warning("no memory for the chunks of a file of %d bytes: it is not cached", size)
                    return None
            return known.chunks

    def rewritten(self, file: int) -> None:
        """A file's contents are about to change, or its last name is gone."""
        with self._lock:
            known = self._files.pop(file, None)
            shadow = None if known is None else known.shadow
            if known is not None:
                self._end(known)
        record = self.volume.catalog.file(file)
        if record is None or (known is None and record.role not in IMMUTABLE):
            return
        opened = self.volume.open_files.by_id.get(file)
        if opened is None or not opened.writers:
            self._make_void(file, shadow)

    def _make_void(self, file: int, last: Shadow | None) -> None:
        home = home_of(self.volume, file)
        if home is None:
            return
        try:
            self.shadows.make_void(home, last)
        except OSError as error:
            log.warning("cache: after a power loss there may be old bytes of %s: %s", self.volume.show(file), error)

    def _end(self, known: CachedFile) -> None:
        """`_lock` is held."""
        known.chunks.end()
        self._count_gone(known)
        self._doom(known)

    def _count_gone(self, known: CachedFile) -> None:
        """Keep the counts of a file that leaves the table. `_lock` is held."""
        now = _counts(known.chunks)
        self._gone += now - known.counted
        known.counted = now

    def _doom(self, known: CachedFile) -> None:
        """Let go of a file's shadow, whose chunks nobody reads any more. `_lock` is held."""
        if known.shadow is not None:
            self.shadows.ended(known.shadow)
            known.shadow = None

    def moved(self, file: int) -> None:
        """A file has another home or other names, with the same contents."""
        home = self.volume.tier_of(self.volume.record(file))
        with self._lock:
            known = self._files.get(file)
            if known is None:
                return
            known.rehomed = True
            if home.index <= self.tier.index:
                known.chunks.clear()
                self._doom(known)

    # --- chunks ---

    def _verify(self, cached: CachedFile, index: int) -> None:
        """Look at a doubtful chunk; a reader waits for it."""
        shadow = cached.shadow
        try:
            good = shadow is not None and shadow.check(index)
        except OSError as error:
            log.warning("cache: %s", error)
            good = False
        with self._lock:
            if shadow is None or cached.shadow is not shadow or not cached.chunks.is_doubtful(index):
                return
            if good:
                cached.chunks.fill(index)
                return
            cached.chunks.evict(index)
            self._holes.append((cached, shadow, index))
            self.damaged += 1

    def verify_some(self, most: int) -> int:
        """Look at doubtful chunks that no reader has asked for yet, `most` at most; returns how many there were."""
        done = 0
        for cached in self.files():
            if done >= most:
                break
            doubtful = cached.chunks.doubtful()
            if not any(doubtful):
                continue
            for index in bits(doubtful, cached.chunks.count)[: most - done]:
                self._verify(cached, index)
                done += 1
        return done

    # --- what users ask ---

    def takes(self, file: int) -> bool:
        """Whether a file may be cached, as it is now."""
        return source_tier(self.volume, self.tier, file) is not None

    def bytes_of(self, files: Sequence[int]) -> int:
        """Bytes of files."""
        records = (self.volume.catalog_file(file) for file in files)
        return sum(record.size for record in records if record is not None)

    def cached_bytes_of(self, files: Iterable[int]) -> int:
        """Bytes of files that are cached."""
        return sum(cached_size(known) for file in files if (known := self.known(file)) is not None)

    def drop_files(self, files: Iterable[int]) -> int:
        """Let go of all chunks of files, and of their heat; returns of how many files there were some."""
        return sum(self.drop(known, cool=True) for file in files if (known := self.known(file)) is not None)

    # --- the filler ---

    def files(self) -> list[CachedFile]:
        """All files of the table, now."""
        with self._lock:
            return list(self._files.values())

    def known(self, file: int) -> CachedFile | None:
        """A file of the table."""
        with self._lock:
            return self._files.get(file)

    def holds(self, cached: CachedFile) -> bool:
        """Whether a file is still the same."""
        with self._lock:
            return self._files.get(cached.file) is cached

    def install(self, cached: CachedFile, shadow: Shadow) -> bool:
        """Put a new shadow behind a file's chunks; False: the file is not the same any more."""
        with self.volume.lock, self._lock:
            if self._files.get(cached.file) is not cached or cached.shadow is not None:
                return False
            attach_shadow(cached.chunks, shadow)
            cached.shadow = shadow
            self.shadows.began()
            return True

    def fill(self, cached: CachedFile, shadow: Shadow, index: int) -> bool:
        """A chunk was written and sealed; False: its shadow is not this one any more."""
        with self._lock:
            return cached.shadow is shadow and cached.chunks.fill(index)

    def take_out(self, cached: CachedFile, index: int) -> Shadow | None:
        """Nobody is to read a chunk any more; the shadow, out of which it can be punched. None: it was not there."""
        with self._lock:
            if cached.shadow is None or not cached.chunks.evict(index):
                return None
            if cached.ghosts is None:
                cached.ghosts = bytearray(-(-cached.chunks.count // 8))
            cached.ghosts[index // 8] |= 1 << index % 8
            return cached.shadow

    def drop(self, cached: CachedFile, *, cool: bool = False) -> bool:
        """Let go of all chunks of a file, and of its heat with `cool`; whether there were any."""
        with self._lock:
            if cool:
                cached.chunks.set_heat(bytes(2 * cached.chunks.count))
            cached.chunks.clear()
            had = cached.shadow is not None
            self._doom(cached)
            return had

    def forget(self, cached: CachedFile) -> None:
        """Take a file out of the table that nobody has open, and that has neither heat nor shadow."""
        with self.volume.lock, self._lock:
            here = self._files.get(cached.file) is cached
            if here and cached.shadow is None and cached.file not in self.volume.open_files.by_id:
                self._count_gone(cached)
                del self._files[cached.file]

    def take_holes(self) -> list[tuple[CachedFile, Shadow, int]]:
        """Damaged chunks to be punched out."""
        with self._lock:
            found, self._holes = self._holes, []
            return found

    def take_counts(self, cached: CachedFile) -> Counts:
        """What was read of a file since last asked."""
        with self._lock:
            now = _counts(cached.chunks)
            more, cached.counted = now - cached.counted, now
            return more

    def take_gone(self) -> Counts:
        """What was read of files that are gone, and that nobody has asked for."""
        with self._lock:
            found, self._gone = self._gone, Counts()
            return found

    # --- the end ---

    def close(self) -> None:
        """Make all of it durable; no reader is left and the filler has ended. What cannot be is not said to be."""
        self.volume.hooks.rewritten = self.volume.hooks.moved = lambda _file: None
        shadows = []
        try:
            for cached, shadow, index in self.take_holes():
                if cached.shadow is shadow and not cached.chunks.is_present(index):
                    shadow.punch(index)
            clean = True
            for cached in self.files():
                self.refresh_head(cached, last=True)
                if cached.shadow is None:
                    continue
                cached.shadow.write_heat(cached.chunks.heat())
                clean = clean and not any(cached.chunks.doubtful())
                shadows.append(cached.shadow)
            for shadow in self.shadows.doomed():
                self.shadows.delete(shadow)
            failpoints.hit("cache.closing")
            if clean:
                self.store.close(shadows)
            failpoints.hit("cache.closed")
        except OSError as error:
            log.warning("cache: not known to be durable, and to be looked at again: %s", error)
        finally:
            with self._lock:  # the files of shadows are closed with the last reference
                self._files.clear()

    def refresh_head(self, cached: CachedFile, *, last: bool = False) -> None:
        """Have a shadow's head say what its file is now; later, where it has just changed, but `last`. Raises OSError.

        Where its contents were changed past us the shadow goes: what it has must not pass for the new ones.
        """
        moved, cached.rehomed = cached.rehomed, False
        with self.volume.lock:
            record = self.volume.catalog.file(cached.file)
            home = home_of(self.volume, cached.file)
            path = b"" if record is None or not record.links else self.volume.path(*record.links[0])
        shadow = cached.shadow
        if shadow is None or home is None or not path:
            return
        if home.is_changed(shadow.head.home, moved=moved):
            log.warning("cache: %s was changed past the mount; dropped", os.fsdecode(path))
            self.drop(cached)
        elif not last and time.time_ns() - home.ctime_ns < SETTLED_NS:
            cached.rehomed = True
        elif (shadow.head.home, shadow.head.path) != (home, path):
            shadow.head.home, shadow.head.path = home, path
            shadow.write_head()


def _counts(chunks: Chunks) -> Counts:
    return Counts(*chunks.counts())


def bits(bitmap: bytes, count: int) -> list[int]:
    """Numbers of the bits that are set."""
    return [index for index in range(count) if bitmap[index // 8] >> index % 8 & 1]
