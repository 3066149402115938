"""Which files are open, how far they have grown, and what room their tiers have promised to their writers.

Threads: `Volume.lock` guards all of it, and every method but `grow` takes it or says that the caller holds it. `grow`
is called for each write, under the kernel's lock of the inode; it takes only the tier's own lock and never waits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from keigo.tiers.catalog import Catalog, FileRecord
from keigo.tiers.directories import fail
from keigo.tiers.fds import Fd
from keigo.tiers.hooks import Hooks
from keigo.tiers.orphans import Orphans
from keigo.tiers.placing import Placing
from keigo.tiers.tier import Tier, space_of


@dataclass(slots=True)
class OpenFile:
    """Open handles of one file. `size`, `space` and `promised` change under the kernel's lock of the inode."""

    tier: Tier
    """Its home, which does not change while it has writers (but for a LOCK, which has no size)."""
    readers: int = 0
    writers: int = 0
    pinned: int = 0
    """Handles through which the kernel reaches the file past us: it cannot be moved under them."""
    size: int = 0
    """Where the file ends, as far as writes tell."""
    space: int = 0
    """Bytes that are charged to the tier."""
    promised: int = 0
    """Bytes set aside on the tier for what the writers will still add."""
    revision: int = 0
    """How often `size` and `space` were taken from a stat: one that was made before the last time is out of date."""


class OpenFiles:
    """See the module's docstring."""

    def __init__(
        self,
        by_name: Mapping[str, Tier],
        catalog: Catalog,
        orphans: Orphans,
        placing: Placing,
        hooks: Hooks,
        *,
        lock: threading.RLock,
        idle: threading.Condition,
        record: Callable[[int], FileRecord],
    ) -> None:
        """`lock` and `idle` are `Volume`'s; `record` gives the record of a file, also of an orphan."""
        self._by_name = by_name
        self._catalog = catalog
        self._orphans = orphans
        self._placing = placing
        self._hooks = hooks
        self._lock = lock
        self._idle = idle
        self._record = record
        self.by_id: dict[int, OpenFile] = {}
        self.bypassed: set[int] = set()
        """Files that the kernel writes past us, until their last writer has closed them."""

    def is_held(self, file: int) -> bool:
        """Whether a file is open in a way that keeps it on its tier. Without the lock, the answer may be old."""
        known = self.by_id.get(file)
        return known is not None and (known.writers > 0 or known.pinned > 0)

    def wait_released(self, files: Collection[int], timeout: float) -> None:
        """Wait until no open handle keeps one of these files on its tier, at most `timeout` seconds."""
        with self._lock:
            self._idle.wait_for(lambda: not any(map(self.is_held, files)), timeout)

    # --- handles ---

    def created(self, file: int, tier: Tier, size: int) -> None:
        """Count the writer of a new file on a tier, and set room aside for `size` bytes. The lock is held."""
        self.by_id[file] = OpenFile(tier, writers=1, promised=size)
        tier.charge(0, 1)
        tier.promise(size)

    def opened(self, file: int, *, write: bool) -> None:
        """Count an open handle."""
        with self._lock:
            known = self.by_id.get(file)
            if known is None:
                record = self._record(file)
                known = self.by_id[file] = OpenFile(self._by_name[record.home], size=record.size, space=record.space)
            if write:
                self._hooks.rewritten(file)
                known.writers += 1
                if known.writers == 1:
                    self._placing.writing(file, known.tier.index, self._record(file).role)
            else:
                known.readers += 1

    def promise_again(self, file: int) -> None:
        """Set room aside for what an earlier daemon's writer will probably still add. The lock is held."""
        known = self.by_id[file]
        if not known.promised:
            known.promised = max(0, self._placing.expected_of(self._record(file)) - known.space)
            known.tier.promise(known.promised)

    def rehome(self, file: int, tier: Tier) -> None:
        """A LOCK that may have writers is on another tier now; the lock is held."""
        known = self.by_id.get(file)
        if known is not None:
            known.tier.promise(-known.promised)
            tier.promise(known.promised)
            known.tier = tier

    def pin(self, file: int, count: int) -> None:
        """Count handles through which the kernel reaches an open file past us (negative: no longer)."""
        with self._lock:
            known = self.by_id[file]
            known.pinned += count
            if count > 0 and known.writers:
                self.bypassed.add(file)
            if known.pinned == 0:
                self._idle.notify_all()

    def close(self, file: int, fd: Fd, *, write: bool) -> None:
        """End what `created` or `opened` began; `fd` is still open on the file."""
        with self._lock:
            known = self.by_id[file]
            if write:
                known.writers -= 1
                if known.writers == 0:
                    self._settle_size(file, known, os.fstat(fd.fd))
                    self._idle.notify_all()
            else:
                known.readers -= 1
            if known.writers == 0 and known.readers == 0:
                del self.by_id[file]
                self._orphans.let_go(file, known.tier)
        if write:
            self._hooks.file_closed()

    def _settle_size(self, file: int, known: OpenFile, status: os.stat_result) -> None:
        record = self._record(file)
        space = space_of(status)
        self._written(file, known, space)
        self.bypassed.discard(file)
        tier = self._by_name[record.home]
        tier.charge(space - known.space)
        tier.promise(-known.promised)
        self._placing.written(file, known.tier.index, space - record.space)
        known.promised = 0
        self._note(file, known, record, status, space)

    # --- growth ---

    def grow(self, file: int, offset: int, end: int) -> None:
        """Charge a write of bytes `offset` to `end`, before it is done. ENOSPC when every tier is at its capacity.

        A tier may exceed its own capacity while the volume has room: an open file cannot move, and its device
        may well have space.
        """
        known = self.by_id[file]
        if end <= known.size:
            return
        more = end - max(known.size, offset)  # a hole costs nothing
        tier = known.tier
        if tier.used + more > tier.capacity and not any(other.free() > 0 for other in self._by_name.values()):
            raise fail(errno.ENOSPC)
        covered = min(known.promised, more)
        known.promised -= covered
        known.size = end
        known.space += more
        tier.promise(-covered)
        tier.charge(more)

    def measure(self, file: int, status: os.stat_result) -> int:
        """Charge what an open file has grown to, where its writes do not pass `grow`; returns by how many bytes."""
        with self._lock:
            known = self.by_id[file]
            space = space_of(status)
            self._written(file, known, space)
            more = space - known.space
            covered = max(0, min(known.promised, more))
            known.promised -= covered
            known.size, known.space = status.st_size, space
            known.revision += 1
            known.tier.promise(-covered)
            known.tier.charge(more)
            return more

    def _written(self, file: int, known: OpenFile, space: int) -> None:
        """Count what the kernel wrote past us, as far as the file grew by it."""
        if file in self.bypassed and space > known.space:
            known.tier.traffic.writes.add(space - known.space)

    def resized(self, file: int, status: os.stat_result) -> None:
        """Note the size and space of a file, which may be closed, after a truncation or an allocation."""
        with self._lock:
            self._hooks.rewritten(file)
            record = self._record(file)
            known = self.by_id.get(file)
            space = space_of(status)
            self._by_name[record.home].charge(space - (record.space if known is None else known.space))
            self._note(file, known, record, status, space)

    def _note(self, file: int, known: OpenFile | None, record: FileRecord, status: os.stat_result, space: int) -> None:
        """Take a file's size and space from a stat, for its handles and for whoever asks when it is closed."""
        if known is not None:
            known.size, known.space = status.st_size, space
            known.revision += 1
        # Whoever had it open may have set the old time again: neither size nor time tells that nothing was written.
        record.checksum = None
        record.size, record.space, record.mtime_ns = status.st_size, space, status.st_mtime_ns
        if record.links:  # else it is an orphan's, and no other is kept
            self._catalog.put_file(file, record)
