"""Migration: changing the home of a file that nobody is writing.

    1  copy to `.keigo/incoming/` of the target, fsync, read back past the page cache, compare the checksum
    2  intent U (durable): "unlink the copies on the target"       a crash from here on undoes
    3  rename the copy to its names in the target's tree, fsync the directories
    4  intent R replaces U (durable): "unlink the names on the source"     a crash from here on redoes
    5  under the lock: catalog says target, open readers move there, unlink the source names
    6  fsync the source's directories, remove the intent

So at any moment the tree plus the intent say which copy is the file, and both have the same bytes: from step 2 to 6
the file is in `Volume.landing`, and whoever would change it waits. Until step 2 a change just cancels the copy.
A cancelled or failed migration leaves the file where it was.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import xxhash

from keigo import failpoints
from keigo.tiers.catalog import FileRecord
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, copy_attributes
from keigo.tiers.intents import Ident, Intent, Step, run, sync
from keigo.tiers.tier import Tier
from keigo.tiers.volume import CancelledError, Volume, space_of

_CHUNK: Final = 1 << 20
log = logging.getLogger(__name__)


class NotMovableError(Exception):
    """The file cannot migrate now; the text says why."""


class DamagedError(Exception):
    """A device gave back other bytes than were written to it; the text says which."""


@dataclass(slots=True)
class Pace:
    """Copy speed limit in bytes per second (None: none), shared by all migrations of a volume."""

    limit: int | None
    _due: float = 0.0

    def spend(self, size: int, stop: threading.Event) -> None:
        """Wait until `size` more bytes may be copied, or until `stop` is set."""
        if self.limit is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + size / self.limit
        stop.wait(max(0.0, self._due - now - 0.1))


@dataclass(slots=True)
class Copy:
    """A finished, durable, verified copy in `incoming` of the target."""

    name: bytes
    ident: Ident
    checksum: int
    space: int


def migrate(
    volume: Volume, file: int, target: Tier, reason: str, pace: Pace, copied: Callable[[int], None] = lambda _n: None
) -> int:
    """Move a file to tier `target`; returns its size in bytes. `copied` hears of each chunk.

    Raises NotMovableError, CancelledError (the file changed, was opened for writing or unlinked meanwhile),
    DamagedError, or OSError from either device; the file is then where it was.
    """
    with volume.lock:
        record, source, before = _begin(volume, file, target)
        stop = volume.cancelled[file] = threading.Event()
    landed = False
    copy_name = b"%d" % file
    try:
        copy = _copy(source, before, volume.tier_of(record), target, copy_name, pace, stop, copied)
        failpoints.hit("migrate.verified")
        with volume.lock:
            if stop.is_set():
                raise CancelledError
            record = volume.record(file)
            if record.checksum not in (None, copy.checksum):
                raise DamagedError(f"is damaged on tier {record.home}: not what it was when it last migrated")
            _check_links(record, before)
            volume.landing.add(file)
        landed = True
        return _land(volume, file, record, source, target, before, copy, reason)
    finally:
        with volume.lock:
            volume.cancelled.pop(file, None)
            if landed:
                volume.landing.discard(file)
            volume.idle.notify_all()
        try:
            os.unlink(copy_name, dir_fd=target.incoming.fd)
        except FileNotFoundError:
            pass


def _begin(volume: Volume, file: int, target: Tier) -> tuple[FileRecord, Fd, os.stat_result]:
    record = volume.record(file)
    if record.special:
        raise NotMovableError("is not a regular file")
    if not record.links:
        raise CancelledError
    if record.home == target.name:
        raise NotMovableError(f"is on {target.name} already")
    if file in volume.cancelled:
        raise NotMovableError("is being moved already")
    known = volume.open_files.get(file)
    if known is not None and known.writers:
        raise NotMovableError("is open for writing")
    if known is not None and known.pinned:
        raise NotMovableError("is open by passthrough since it was written")
    directory, name = volume.locate(file)
    source = Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
    before = os.fstat(source.fd)
    _check_links(record, before)
    if target.free() < before.st_size:
        raise OSError(errno.ENOSPC, f"tier {target.name} has no room")
    return record, source, before


def _check_links(record: FileRecord, status: os.stat_result) -> None:
    if status.st_nlink != len(record.links):
        raise NotMovableError(f"has {status.st_nlink} links on its tier and {len(record.links)} in the volume")


def _copy(
    source: Fd,
    status: os.stat_result,
    home: Tier,
    target: Tier,
    name: bytes,
    pace: Pace,
    stop: threading.Event,
    copied: Callable[[int], None],
) -> Copy:
    """Step 1. Raises CancelledError, DamagedError or OSError; the caller removes what it made in `incoming`."""
    how = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    new = Fd(os.open(name, how, 0o600, dir_fd=target.incoming.fd))
    sparse = status.st_blocks * 512 < status.st_size
    if sparse:
        os.ftruncate(new.fd, status.st_size)
    elif status.st_size:
        os.posix_fallocate(new.fd, 0, status.st_size)  # ENOSPC now rather than half-way, and one extent
    digest = xxhash.xxh3_64()
    offset = 0
    while offset < status.st_size:
        chunk = os.pread(source.fd, min(_CHUNK, status.st_size - offset), offset)
        if stop.is_set() or not chunk:
            raise CancelledError
        digest.update(chunk)
        home.traffic.reads.add(len(chunk))
        if not sparse or chunk.count(0) < len(chunk):
            _write_all(new, chunk, offset)
            target.traffic.writes.add(len(chunk))
        offset += len(chunk)
        copied(len(chunk))
        failpoints.hit("migrate.copying")
        pace.spend(len(chunk), stop)
    copy_attributes(source, new, status)
    os.fsync(new.fd)
    failpoints.hit("migrate.copied")
    # Clean pages dropped, so that reading back asks the device.
    os.posix_fadvise(new.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    back = checksum(new, stop)
    target.traffic.reads.add(status.st_size)
    made = os.fstat(new.fd)
    if made.st_size != status.st_size or back != digest.intdigest():
        raise DamagedError(f"the copy on tier {target.name} differs from what was written")
    return Copy(name, Ident.of(made), back, space_of(made))


def _write_all(fd: Fd, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd.fd, view, offset)
        view, offset = view[done:], offset + done


def checksum(fd: Fd, stop: threading.Event | None = None) -> int:
    """XXH3-64 of an open file's contents. Raises OSError, or CancelledError once `stop` is set."""
    digest = xxhash.xxh3_64()
    offset = 0
    while chunk := os.pread(fd.fd, _CHUNK, offset):
        if stop is not None and stop.is_set():
            raise CancelledError
        digest.update(chunk)
        offset += len(chunk)
    return digest.intdigest()


def _land(
    volume: Volume,
    file: int,
    record: FileRecord,
    source: Fd,
    target: Tier,
    before: os.stat_result,
    copy: Copy,
    reason: str,
) -> int:
    """Steps 2 to 6; the file is in `landing`."""
    was = volume.record(file)
    home = volume.tier_of(record)
    key = f"migrate-{file}"
    with volume.lock:
        now = os.fstat(source.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise CancelledError
        paths = [volume.path(*link) for link in record.links]
        directories = [volume.directories.make(directory, target) for directory, _ in record.links]
    what = f"move {shown(paths[0])} from {home.name} to {target.name}"
    undo = Intent(what, [Step(target.name, "unlink", path, copy.ident) for path in paths])
    redo = Intent(what, [Step(home.name, "unlink", path, Ident.of(now)) for path in paths])
    volume.intents.write(key, undo)
    failpoints.hit("migrate.intent-undo")
    try:
        first = None
        for fd, (_, name) in zip(directories, record.links, strict=True):
            if first is None:
                os.link(copy.name, name, src_dir_fd=target.incoming.fd, dst_dir_fd=fd.fd)
                os.unlink(copy.name, dir_fd=target.incoming.fd)
                first = (fd, name)
            else:
                os.link(first[1], name, src_dir_fd=first[0].fd, dst_dir_fd=fd.fd)
        failpoints.hit("migrate.landed")
        sync(undo.steps, volume.roots)
        failpoints.hit("migrate.landed-synced")
        volume.intents.write(key, redo)
        failpoints.hit("migrate.intent-redo")
        with volume.lock:
            _switch(volume, file, target, copy, reason)
    except BaseException:
        _undo(volume, key, undo)
        raise
    failpoints.hit("migrate.switched")
    with volume.lock:
        home.charge(-was.space, -1)
        target.charge(copy.space, 1)
    try:
        for step in redo.steps:
            run(step, volume.roots)
        failpoints.hit("migrate.unlinked")
        sync(redo.steps, volume.roots)
        volume.intents.remove(key)
    except OSError as error:  # the move is done; the intent stays, and the next mount removes the old copy
        log.error("%s: the old copy is still there: %s", what, error)
    failpoints.hit("migrate.done")
    return before.st_size


def _switch(volume: Volume, file: int, target: Tier, copy: Copy, reason: str) -> None:
    """Make the target the home, for the catalog and for open readers; on an error the source still is."""
    record = volume.record(file)  # as it is now: its level may have changed while it was copied
    old = msgspec.structs.replace(record)
    record.home, record.reason, record.checksum = target.name, reason, copy.checksum
    record.size, record.mtime_ns, record.space = copy.ident.size, copy.ident.mtime_ns, copy.space
    volume.catalog.put_file(file, record)
    known = volume.open_files.get(file)
    if known is not None:
        known.tier, known.size, known.space = target, record.size, record.space
    try:
        volume.reopen(file)
    except OSError:
        if known is not None:
            known.tier, known.size, known.space = volume.by_name[old.home], old.size, old.space
        volume.catalog.put_file(file, old)
        raise


def _undo(volume: Volume, key: str, undo: Intent) -> None:
    """Take the copies out of the target's tree again. An OSError here leaves the undo intent for the next mount."""
    volume.intents.write(key, undo)
    for step in undo.steps:
        run(step, volume.roots)
    sync(undo.steps, volume.roots)
    volume.intents.remove(key)
