"""Migration: changing the home of a file that nobody is writing.

    1  copy to `.keigo/incoming/` of the target, fsync, read back past the page cache, compare the checksum (`copying`)
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
from typing import Final

import msgspec

from keigo import clock, failpoints
from keigo.tiers.catalog import FileRecord
from keigo.tiers.copying import CancelledError, Copy, DamagedError, copy
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, lstat_or_none
from keigo.tiers.intents import Ident, Intent, Step, run, sync
from keigo.tiers.pace import Pace
from keigo.tiers.tier import Tier, space_of
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_LET_GO: Final = 0.5  # seconds


class NotMovableError(Exception):
    """The file cannot migrate now; the text says why."""


class ForeignLinksError(NotMovableError):
    """The file has links that the volume does not know: it cannot migrate until somebody removes them."""


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
    # From now on: who creates a file meanwhile, or plans, must not count on the same room.
    target.charge(space_of(before))
    landed = moved = False
    copy_name = b"%d" % file
    try:
        _await_writers(volume, source, volume.tier_of(record), stop)
        made = copy(source, before, volume.tier_of(record), target, copy_name, pace, stop, copied)
        failpoints.hit("migrate.verified")
        with volume.lock:
            if stop.is_set():
                raise CancelledError
            record = volume.record(file)
            if record.checksum not in (None, made.checksum):
                raise DamagedError(f"is damaged on tier {record.home}: not what it was when it last migrated")
            _check_links(record, before)
            volume.landing.add(file)
        landed = True
        _land(volume, file, record, source, target, before, made, reason)
        moved = True
    finally:
        if not moved:
            target.charge(-space_of(before))
        with volume.lock:
            volume.cancelled.pop(file, None)
            if landed:
                volume.landing.discard(file)
            volume.idle.notify_all()
        try:
            os.unlink(copy_name, dir_fd=target.incoming.fd)
        except FileNotFoundError:
            pass
    return before.st_size


def _begin(volume: Volume, file: int, target: Tier) -> tuple[FileRecord, Fd, os.stat_result]:
    record = volume.record(file)
    if record.special:
        raise NotMovableError("is not a regular file")
    if not record.links:
        raise CancelledError
    if record.home == target.name:
        raise NotMovableError(f"is on {target.name} already")
    if target is volume.evacuation.leaving:
        raise NotMovableError(f"tier {target.name} is being removed")
    if file in volume.cancelled:
        raise NotMovableError("is being moved already")
    known = volume.open_files.by_id.get(file)
    if known is not None and known.writers:
        raise NotMovableError("is open for writing")
    if known is not None and known.pinned:
        raise NotMovableError("is open by passthrough since it was written")
    directory, name = volume.locate(file)
    source = Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
    before = os.fstat(source.fd)
    _check_links(record, before)
    volume.intents.finish(volume.roots, _key(file))
    for above, link in record.links:
        mirror = volume.directories.find(above, target)
        if mirror is not None and lstat_or_none(link, mirror.fd) is not None:
            raise OSError(errno.EEXIST, f"tier {target.name} has another file of that name, unknown to the volume")
    if target.free() < before.st_size:
        raise OSError(errno.ENOSPC, f"tier {target.name} has no room")
    return record, source, before


def _await_writers(volume: Volume, source: Fd, home: Tier, stop: threading.Event) -> None:
    """Refuse a file that a mapping can still write past us: what it writes would stay behind. Raises NotMovableError.

    The kernel lets go of a passthrough file some moments after it has sent the RELEASE, and tells nobody when.
    """
    until = time.monotonic() + _LET_GO
    while volume.writers.has(source, home):
        if stop.is_set():
            raise CancelledError
        if time.monotonic() > until:
            raise NotMovableError("can still be written: a process has it mapped")
        stop.wait(0.005)


def _key(file: int) -> str:
    return f"migrate-{file}"


def _check_links(record: FileRecord, status: os.stat_result) -> None:
    if status.st_nlink != len(record.links):
        raise ForeignLinksError(f"has {status.st_nlink} links on its tier and {len(record.links)} in the volume")


def _land(
    volume: Volume,
    file: int,
    record: FileRecord,
    source: Fd,
    target: Tier,
    before: os.stat_result,
    made: Copy,
    reason: str,
) -> None:
    """Steps 2 to 6; the file is in `landing`, and charged to the target as it was before."""
    was = volume.record(file)
    home = volume.tier_of(record)
    key = _key(file)
    with volume.lock:
        now = os.fstat(source.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise CancelledError
        if target is volume.evacuation.leaving:
            raise CancelledError  # it was not when the copy began
        paths = [volume.path(*link) for link in record.links]
        directories = [volume.directories.make(directory, target) for directory, _ in record.links]
    what = f"move {shown(paths[0])} from {home.name} to {target.name}"
    undo = Intent(what, [Step(target.name, "unlink", path, made.ident) for path in paths])
    redo = Intent(what, [Step(home.name, "unlink", path, Ident.of(now)) for path in paths])
    volume.intents.begin(key, undo)
    failpoints.hit("migrate.intent-undo")
    try:
        first = None
        for fd, (_, name) in zip(directories, record.links, strict=True):
            if first is None:
                os.link(made.name, name, src_dir_fd=target.incoming.fd, dst_dir_fd=fd.fd)
                os.unlink(made.name, dir_fd=target.incoming.fd)
                first = (fd, name)
            else:
                os.link(first[1], name, src_dir_fd=first[0].fd, dst_dir_fd=fd.fd)
        failpoints.hit("migrate.landed")
        sync(undo.steps, volume.roots)
        failpoints.hit("migrate.landed-synced")
        volume.intents.write(key, redo)
        failpoints.hit("migrate.intent-redo")
        with volume.lock:
            _switch(volume, file, target, made, reason)
    except BaseException:
        _undo(volume, key, undo)
        raise
    failpoints.hit("migrate.switched")
    with volume.lock:
        home.charge(-was.space, -1)
        target.charge(made.space - space_of(before), 1)
    try:
        for step in redo.steps:
            run(step, volume.roots)
        failpoints.hit("migrate.unlinked")
        sync(redo.steps, volume.roots)
        volume.intents.remove(key)
    except OSError as error:  # the move is done; the intent stays until the old copy can be removed
        log.error("%s: the old copy is still there: %s", what, error)
        with volume.lock:
            volume.intents.leave(key, redo, durable=True)
    failpoints.hit("migrate.done")


def _switch(volume: Volume, file: int, target: Tier, made: Copy, reason: str) -> None:
    """Make the target the home, for the catalog and for open readers; on an error the source still is."""
    record = volume.record(file)  # as it is now: its level may have changed while it was copied
    old = msgspec.structs.replace(record)
    record.home, record.reason, record.checksum = target.name, reason, made.checksum
    record.size, record.mtime_ns, record.space = made.ident.size, made.ident.mtime_ns, made.space
    record.moved = clock.now()
    volume.catalog.put_file(file, record)
    known = volume.open_files.by_id.get(file)
    if known is not None:
        known.tier, known.size, known.space = target, record.size, record.space
    try:
        volume.hooks.reopen(file)
    except OSError:
        if known is not None:
            known.tier, known.size, known.space = volume.by_name[old.home], old.size, old.space
        volume.catalog.put_file(file, old)
        raise
    volume.hooks.moved(file)


def _undo(volume: Volume, key: str, undo: Intent) -> None:
    """Take the copies out of the target's tree again. Raises OSError; it is then tried again before the file moves.

    Where the redo intent may have been written the undo intent is to be durable first: it must not be that a crash
    removes the source when the copies are gone.
    """
    with volume.lock:
        volume.intents.leave(key, undo, durable=False)
        volume.intents.leave(key, undo, durable=volume.intents.holds(key, undo))
        volume.intents.finish(volume.roots, key)
