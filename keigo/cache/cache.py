"""What is cached, as readers and the volume see it.

A file that is opened for reading and whose home is slower than the cache gets its `Chunks`, which the handle keeps and
reads by; they outlive it while they are warm or cached. Contents are cached of closed files only: whoever opens one for
writing, cuts it or takes its last name ends its chunks first (`rewritten`), with `Volume.lock` held, so before any
byte changes. The shadow is deleted later, by the filler; only where a file is written in place it is made void at once,
and durably: after a power loss such a file may look as it did before.

Threads: `_lock` guards the tables and which shadow is behind which chunks. It is taken after `Volume.lock`, and nothing
is called under it but chunks' own methods; no I/O is done under it. The filler's thread alone makes, fills, punches and
deletes shadows; readers look at doubtful chunks (`_verify`), and writers make shadows void.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from keigo import failpoints
from keigo.cache._chunks import Chunks
from keigo.cache.shadow import Home, Shadow, base_space, chunk_space
from keigo.cache.store import Store
from keigo.lsm.roles import IMMUTABLE
from keigo.tiers.catalog import ROOT
from keigo.tiers.descriptors import limit
from keigo.tiers.fds import open_direct
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_MOST_CHUNKS: Final = 1 << 24  # of a file: what has more, 256 GiB at least, is sparse and no table
_DESCRIPTORS: Final = 4  # of a shadow: its data and its map, and two in its file's chunks
SETTLED_NS: Final = 50_000_000
"""A file that changed later may change again and show the same time (a tick is 10 ms)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was read of cacheable files."""

    hits: int = 0
    """Reads that were served from the cache as a whole."""
    hit_bytes: int = 0
    misses: int = 0
    miss_bytes: int = 0
    foreground_hits: int = 0
    foreground: int = 0
    """Reads of the foreground."""
    errors: int = 0
    """Reads of the cache's device that failed, and were done at home."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        """All of them, in order."""
        return (
            self.hits, self.hit_bytes, self.misses, self.miss_bytes, self.foreground_hits, self.foreground, self.errors,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class CachedFile:
    """A file that readers have chunks of, or that has a shadow."""

    file: int
    chunks: Chunks
    shadow: Shadow | None = None
    ghosts: bytearray | None = None
    """A bit for each chunk that went out not long ago; None: no such chunks."""
    rehomed: bool = False
    """The head of the shadow does not say where the file is now."""
    counted: Counts = field(default_factory=Counts)
    """Of the chunks' counts, what was added to the cache's."""
    seconds: float = 0.0
    """Device time that hits have saved."""


class Cache:
    """See the module's docstring."""

    def __init__(self, volume: Volume, tier: Tier, capacity: int, chunk: int) -> None:
        """`chunk`: bytes, a power of two. Raises OSError where the tier cannot hold a cache."""
        self.volume = volume
        self.tier = tier
        self.capacity = capacity
        self.shift = chunk.bit_length() - 1
        self.store = Store(tier, self.shift)
        self._lock = threading.Lock()
        self._files: dict[int, CachedFile] = {}
        self._doomed: list[Shadow] = []
        """Shadows that nobody reads any more and that are still on the device."""
        self._undurable = True
        """Shadows were deleted, in this mount or the one before, that may be there again after a power loss."""
        self._holes: list[tuple[CachedFile, Shadow, int]] = []
        """Chunks that turned out to be damaged, to be punched out."""
        self._used = 0
        self.shadows = 0
        """Files that have one."""
        self.most_shadows = _most_shadows()
        self._gone = Counts()
        """Of files that are not in the table any more, what was not added to the cache's counts yet."""
        self.damaged = 0
        """Chunks that were not what they had been."""
        volume.hooks.rewritten = self.rewritten
        volume.hooks.moved = self.moved
        self._recover()

    # --- mount ---

    def _recover(self) -> None:
        """Take in the shadows that are of files which are still the same. Raises OSError."""
        found: dict[bytes, int] = {}

        def home_of(path: bytes) -> Home | None:
            file = self._file_at(path)
            if file is None or file in self._files or self._source_tier(file) is None:
                return None
            found[path] = file
            return self._home(file)

        for shadow in self.store.load(home_of):
            try:
                self._adopt(found[shadow.head.path], shadow)
            except Exception as error:  # noqa: BLE001  whatever is wrong with a copy, it can be done without
                log.warning("cache: shadow %s cannot be used: %s", shadow.name.decode(), error)
                cached = self._files.pop(found[shadow.head.path], None)
                if cached is not None:
                    cached.chunks.end()
                    self.shadows -= 1
                self._dispose(shadow)
        self._account()

    def _adopt(self, file: int, shadow: Shadow) -> None:
        """A shadow that was found: trusted after a clean end, else to be looked at chunk by chunk."""
        sums, heat = shadow.sums(), shadow.heat()
        there = [index for index, value in enumerate(sums) if value]
        space = base_space(shadow.size, self.shift)
        space += sum(chunk_space(shadow.size, self.shift, index) for index in there)
        if not there or self._used + space > self.capacity or self.shadows >= self.most_shadows:
            self._dispose(shadow)
            return
        cached = CachedFile(file, Chunks(shadow.size, self.shift), shadow)
        attach_shadow(cached.chunks, shadow)
        cached.chunks.set_heat(heat)
        self._files[file] = cached
        self.shadows += 1
        if not self.store.was_clean:
            cached.chunks.set_verify(lambda index: self._verify(cached, index))
            shadow.punch_others(there)  # a chunk may have been on its way in or out
        for index in there:
            if self.store.was_clean:
                cached.chunks.fill(index)
            else:
                cached.chunks.doubt(index)
        shadow.charged = space
        self._used += space

    def _dispose(self, shadow: Shadow) -> None:
        try:
            shadow.delete()
        except OSError as error:
            log.warning("cache: shadow %s cannot be deleted: %s", shadow.name.decode(), error)
            shadow.charged = shadow.space()
            self._used += shadow.charged
            self._doomed.append(shadow)

    def _file_at(self, path: bytes) -> int | None:
        """The file of a path in the volume."""
        directory = ROOT
        *above, name = path.split(b"/")
        with self.volume.lock:
            for part in above:
                entry = self.volume.catalog.entry(directory, part)
                if entry is None or entry.kind != "dir":
                    return None
                directory = entry.id
            entry = self.volume.catalog.entry(directory, name)
        return None if entry is None or entry.kind != "file" else entry.id

    def _source_tier(self, file: int) -> Tier | None:
        """The home of a file that may be cached; None: it may not. Takes `Volume.lock`."""
        with self.volume.lock:
            record = self.volume.catalog.file(file)
            if record is None or record.special or record.role not in IMMUTABLE or not record.links:
                return None
            home = self.volume.tier_of(record)
            known = self.volume.open_files.by_id.get(file)
            if home.index <= self.tier.index or (known is not None and known.writers):
                return None
            return home

    def _home(self, file: int) -> Home | None:
        """What a file is on its device, now; None where it is gone."""
        with self.volume.lock:
            try:
                return Home.of(self.volume.record(file).home, self.volume.stat_file(file))
            except OSError:
                return None

    # --- readers and the volume; `Volume.lock` is held ---

    def chunks_for(self, file: int, size: int) -> Chunks | None:
        """The chunks that a handle of a file of `size` bytes is to read by; None: nothing of it is ever cached."""
        if not 0 < size <= _MOST_CHUNKS << self.shift or self._source_tier(file) is None:
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
        """A file is about to be written in place. Its time may then not be durable when its bytes are (fdatasync)."""
        home = self._home(file)
        if home is None:
            return
        with self._lock:
            same = (home.tier, home.ino)
            old = [each for each in self._doomed if each is last or (each.head.home.tier, each.head.home.ino) == same]
            undurable, self._undurable = self._undurable, False
        try:
            for shadow in old:
                shadow.void()
            if undurable:
                os.fsync(self.store.directory.fd)
        except OSError as error:
            self._undurable = True
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
            self._doomed.append(known.shadow)
            known.shadow = None
            self.shadows -= 1

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
        return self._source_tier(file) is not None

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

    @property
    def used(self) -> int:
        """Bytes on the device, those of shadows that are to be deleted included."""
        return self._used

    def _account(self) -> None:
        self.tier.cached = self._used

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

    def charge(self, shadow: Shadow, size: int) -> None:
        """A shadow takes, or is about to take, `size` bytes more (negative: less)."""
        with self._lock:
            shadow.charged += size
            self._used += size
        self._account()

    def install(self, cached: CachedFile, shadow: Shadow) -> bool:
        """Put a new shadow behind a file's chunks; False: the file is not the same any more."""
        with self.volume.lock, self._lock:
            if self._files.get(cached.file) is not cached or cached.shadow is not None:
                return False
            attach_shadow(cached.chunks, shadow)
            cached.shadow = shadow
            self.shadows += 1
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

    def doomed(self) -> list[Shadow]:
        """Shadows to be deleted."""
        with self._lock:
            return list(self._doomed)

    def doom(self, shadow: Shadow) -> None:
        """A shadow is to be deleted that nobody has read."""
        with self._lock:
            self._doomed.append(shadow)

    def delete(self, shadow: Shadow) -> None:
        """Delete a doomed shadow. Raises OSError; it then stays doomed."""
        shadow.delete()
        with self._lock:
            self._undurable = True
            self._doomed.remove(shadow)
        self.charge(shadow, -shadow.charged)

    def postpone(self, shadow: Shadow) -> None:
        """A doomed shadow could not be deleted: the others come first."""
        with self._lock:
            self._doomed.remove(shadow)
            self._doomed.append(shadow)

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
            for shadow in self.doomed():
                self.delete(shadow)
            failpoints.hit("cache.closing")
            if clean:
                self.store.close(shadows)
            failpoints.hit("cache.closed")
        except OSError as error:
            log.warning("cache: not known to be durable, and to be looked at again: %s", error)

    def refresh_head(self, cached: CachedFile, *, last: bool = False) -> None:
        """Have a shadow's head say what its file is now; later, where it has just changed, but `last`. Raises OSError.

        Where its contents were changed past us the shadow goes: what it has must not pass for the new ones.
        """
        moved, cached.rehomed = cached.rehomed, False
        with self.volume.lock:
            record = self.volume.catalog.file(cached.file)
            home = self._home(cached.file)
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


def attach_shadow(chunks: Chunks, shadow: Shadow) -> None:
    """Let readers have a shadow. Raises OSError."""
    direct = open_direct(shadow.data)
    chunks.attach(shadow.data.fd, -1 if direct is None else direct.fd)


def _most_shadows() -> int:
    """How many files may have one: most descriptors are for the files that are open."""
    return limit() // 4 // _DESCRIPTORS


def _counts(chunks: Chunks) -> Counts:
    return Counts(*chunks.counts())


def bits(bitmap: bytes, count: int) -> list[int]:
    """Numbers of the bits that are set."""
    return [index for index in range(count) if bitmap[index // 8] >> index % 8 & 1]


def cached_size(cached: CachedFile) -> int:
    """Bytes of a file that are cached."""
    shadow = cached.shadow
    if shadow is None or not cached.chunks.cached:
        return 0
    size = cached.chunks.cached << shadow.shift
    last = shadow.count - 1
    if cached.chunks.is_present(last) or cached.chunks.is_doubtful(last):
        size -= (1 << shadow.shift) - shadow.length(last)
    return size


def source_of(volume: Volume, file: int) -> int:
    """A descriptor of a file's contents at its home. Raises OSError. `Volume.lock` is held."""
    directory, name = volume.locate(file)
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
