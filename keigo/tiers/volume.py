"""A volume: the union of its tiers' trees, as operations on (directory id, name) and file ids.

Every regular file is whole on one tier, its home, under the same path as in the mount. Directories exist on the
primary tier (the one in place, else the slowest), which owns their attributes, and are mirrored on another tier when
the first file there needs them.

Threads: every public method takes `lock`. It is not held while data is copied or synced, except for the small syncs
that creating a mirror, a guard or an intent needs; these happen once per directory, database or cross-tier rename.
A migration that puts its copy into the tree works without the lock and marks the file in `landing` meanwhile; whoever
would change that file's names, contents or attributes waits on `idle` until it is done.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from keigo import clock
from keigo.decisions import decided
from keigo.lsm.database import Belief
from keigo.lsm.roles import DATABASE_MARKERS, Role, role_of
from keigo.placement.policy import Choice, Context, NoRoom, Policy, fallback_order
from keigo.tiers import guard, orphans
from keigo.tiers.catalog import ROOT, Catalog, Entry, FileRecord
from keigo.tiers.directories import Directories, fail, shown
from keigo.tiers.fds import O_DIR, Fd, lstat_or_none, open_regular
from keigo.tiers.intents import IntentLog
from keigo.tiers.pins import Pins
from keigo.tiers.placing import Placing
from keigo.tiers.tier import LOST_FOUND, STATE, Tier
from keigo.tiers.writers import Writers

log = logging.getLogger(__name__)

_KEEP_FLAGS: Final = os.O_SYNC | os.O_DSYNC
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


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


class CancelledError(Exception):
    """A migration was overtaken by a change of its file."""


class Volume:
    """An open volume. See the module's docstring."""

    def __init__(
        self, name: str, tiers: Sequence[Tier], catalog: Catalog, intents: IntentLog, policy: Policy, pins: Pins
    ) -> None:
        self.name = name
        self.tiers = tuple(tiers)
        self.by_name: Mapping[str, Tier] = {tier.name: tier for tier in tiers}
        self.roots: Mapping[str, Fd] = {tier.name: tier.root for tier in tiers}
        self.primary = next((tier for tier in tiers if tier.in_place), self.tiers[-1])
        self.catalog = catalog
        self.intents = intents
        self.pins = pins
        self.lock = threading.RLock()
        self.idle = threading.Condition(self.lock)
        self.landing: set[int] = set()
        self.cancelled: dict[int, threading.Event] = {}
        """File ids that are being copied -> event that stops the copy."""
        self.open_files: dict[int, OpenFile] = {}
        self.orphans: dict[int, FileRecord] = {}
        """Files without a name that are still open."""
        self.bypassed: set[int] = set()
        """Files that the kernel writes past us, until their last writer has closed them."""
        self.sheltering = False
        """Whether files that are open get a name of ours when they lose their last: there may be a next daemon."""
        self.sheltered: set[int] = set()
        """Files that have one."""
        self.guarded: set[int] = set()
        self.draining = False
        self.leaving: Tier | None = None
        """A tier that is being taken out of the volume: no file comes to it any more. Set by `leave`."""
        self.reopen: Callable[[int], None] = lambda _file: None
        """Called, under the lock, when a file's home has changed: open handles are to be moved there."""
        self.file_closed: Callable[[], None] = lambda: None
        """Called when a writer closed a file or a tier's room changed: there may be something to migrate."""
        self.rewritten: Callable[[int], None] = lambda _file: None
        """Called, under the lock, when a file was opened to be written (and its writer not yet counted) or was cut,
        before anybody hears of it, and when it has lost its last name (and is out of the catalog): what is known of its
        contents does not hold any more."""
        self.moved: Callable[[int], None] = lambda _file: None
        """Called, under the lock, when a file has migrated, or has got or lost a name and has others."""
        self.doomed: Callable[[], frozenset[int]] = frozenset
        """Asked, without locks, for the files that running compactions read."""
        self.writers = Writers()
        """The mover's, which makes one migration at a time."""
        self.directories = Directories(catalog, tiers)
        self.placing = Placing(
            self.tiers,
            policy,
            pins,
            catalog,
            lock=self.lock,
            path=self.directories.path,
            is_written=self._is_written,
            is_movable=self._is_movable,
        )

    # --- directories ---

    @property
    def guards(self) -> bool:
        """Whether databases on the in-place tier need a guard."""
        return self.primary.in_place and len(self.staying) > 1 and not self.draining

    @property
    def staying(self) -> list[Tier]:
        """The tiers but for one that leaves; the primary one is always among them."""
        return [tier for tier in self.tiers if tier is not self.leaving]

    def leave(self, tier: Tier | None) -> None:
        """From now on let no file come to a tier that is not the primary one; None: let them again.

        Where the primary alone is left, new databases get no guard meanwhile. Who ends it sets them.
        """
        with self.lock:
            self.leaving = tier
            self.placing.leaving = None if tier is None else tier.index

    def path(self, directory: int, name: bytes = b"") -> bytes:
        """Path of a name in the volume, without a leading slash."""
        with self.lock:
            return self.directories.path(directory, name)

    def stat_dir(self, directory: int) -> os.stat_result:
        """Attributes of a directory."""
        with self.lock:
            opened = self.directories.at(directory, self.primary)
            return os.fstat(opened.fd)

    def dir_times(self, directory: int) -> tuple[int, int]:
        """When a directory's names, and its attributes, last changed on any tier: mtime and ctime in nanoseconds.

        A file made on a fast tier is no change of the primary's directory. Stamping that one too would make the next
        fsync of the directory wait for the slowest device.
        """
        with self.lock:
            found = [os.fstat(mirror.fd) for _, mirror in self.directories.mirrors(directory)]
        return max(status.st_mtime_ns for status in found), max(status.st_ctime_ns for status in found)

    def hidden_dirs(self, directory: int) -> int:
        """How many of our own directories the primary tier's directory holds, which its link count includes."""
        return (directory in self.guarded) + (directory == ROOT)

    # --- names ---

    def reserved(self, directory: int, name: bytes) -> bool:
        """Whether a name is ours, or the file system's of a tier that is not in place, and not to be seen."""
        return directory == ROOT and (name == STATE or (name == LOST_FOUND and not self.primary.in_place))

    def lookup(self, directory: int, name: bytes) -> Entry | None:
        """What a name stands for."""
        with self.lock:
            return self.catalog.entry(directory, name)

    def settled(self, directory: int, name: bytes) -> Entry | None:
        """Like `lookup`, after waiting for a migration of the file that is just landing. The lock is held."""
        while True:
            entry = self.catalog.entry(directory, name)
            if entry is None or entry.id not in self.landing:
                return entry
            self.idle.wait()

    def names(self, directory: int) -> list[tuple[bytes, Entry]]:
        """All names in a directory."""
        with self.lock:
            return self.catalog.names(directory)

    def _refuse_new(self, directory: int, name: bytes) -> None:
        if self.reserved(directory, name):
            raise fail(errno.EPERM, name)
        if directory != ROOT and self.catalog.parent(directory) is None:
            raise fail(errno.ENOENT, name)
        if self.catalog.entry(directory, name) is not None:
            raise fail(errno.EEXIST, name)

    def mkdir(self, directory: int, name: bytes, mode: int, uid: int, gid: int) -> int:
        """Make a directory; returns its id."""
        with self.lock:
            self._refuse_new(directory, name)
            self.refuse_guarded(directory, name)
            parent = self.directories.at(directory, self.primary)
            os.mkdir(name, mode & 0o7777, dir_fd=parent.fd)
            made = Fd(os.open(name, O_DIR, dir_fd=parent.fd))
            _own(made.fd, os.fstat(parent.fd), mode, uid, gid, is_dir=True)
            new = self.catalog.new_id()
            self.catalog.put_dir(new, directory, name)
            self.catalog.put_entry(directory, name, Entry("dir", new))
            return new

    def rmdir(self, directory: int, name: bytes) -> None:
        """Remove an empty directory, its guard with it, from every tier."""
        with self.lock:
            entry = self.catalog.entry(directory, name)
            if entry is None or self.reserved(directory, name):
                raise fail(errno.ENOENT, name)
            if entry.kind != "dir":
                raise fail(errno.ENOTDIR, name)
            if not self.catalog.empty(entry.id):
                raise fail(errno.ENOTEMPTY, name)
            self.remove_empty(directory, name, entry.id)

    def remove_empty(self, directory: int, name: bytes, removed: int) -> None:
        """Remove a directory known to be empty. The primary's goes last: until then it exists. The lock is held."""
        if removed in self.guarded:
            guard.remove(self.primary, self.directories.at(removed, self.primary), None)
            self.guarded.discard(removed)
        self.directories.forget(removed)
        ordered = sorted(self.directories.mirrors(directory), key=lambda mirror: mirror[0] is self.primary)
        for _, parent in ordered:
            try:
                os.rmdir(name, dir_fd=parent.fd)
            except FileNotFoundError:
                pass
        self.catalog.drop_dir(removed)
        self.catalog.drop_entry(directory, name)

    # --- placement ---

    def tier_of(self, record: FileRecord) -> Tier:
        """A file's home."""
        return self.by_name[record.home]

    def _choose(self, context: Context, size: int) -> Choice:
        if self.draining:
            return Choice(self.primary.index, "draining: new files go to the in-place tier")
        if self.leaving is not None and len(self.staying) == 1:
            return Choice(self.primary.index, f"{self.leaving.name} is being removed: no other tier is left")
        try:
            return self.placing.choose(context, size)
        except NoRoom:
            if self.leaving is None:
                raise fail(errno.ENOSPC, context.path) from None
        log.warning("tier %s is not removed: no other has room for new files", self.leaving.name)
        self.leave(None)
        return self._choose(context, size)

    def _beside_guard(self) -> Choice:
        """For a LOCK whose place on the primary tier the guard has, be it drained or another tier be removed."""
        others = [tier for tier in self.tiers if tier is not self.primary]
        other = next((tier for tier in others if tier is not self.leaving), others[0])
        return Choice(other.index, "beside the guard in the data directory")

    def _is_written(self, file: int) -> bool:
        """Whether a file is open for writing."""
        known = self.open_files.get(file)
        return known is not None and known.writers > 0

    def _is_held(self, file: int) -> bool:
        """Whether a file is open in a way that keeps it on its tier."""
        known = self.open_files.get(file)
        return known is not None and (known.writers > 0 or known.pinned > 0)

    def _is_movable(self, file: int) -> bool:
        """Whether a file could migrate now. Asked without the lock, so the answer may be old."""
        return not self._is_held(file) and file not in self.cancelled

    def wait_released(self, files: Collection[int], timeout: float) -> None:
        """Wait until no open handle keeps one of these files on its tier, at most `timeout` seconds."""
        with self.lock:
            self.idle.wait_for(lambda: not any(map(self._is_held, files)), timeout)

    def has_room(self) -> bool:
        """Whether any tier has bytes left, reserves included."""
        return any(tier.free() > 0 for tier in self.tiers)

    # --- files ---

    def record(self, file: int) -> FileRecord:
        """A file's record, also when it has no name any more. ENOENT where it is gone."""
        found = self.catalog.file(file) or self.orphans.get(file)
        if found is None:
            raise fail(errno.ENOENT)
        return found

    def locate(self, file: int) -> tuple[Fd, bytes]:
        """(directory descriptor on the home tier, name) of a file. ENOENT where it has no name. The lock is held."""
        record = self.record(file)
        if not record.links:
            raise fail(errno.ENOENT)
        directory, name = record.links[0]
        return self.directories.at(directory, self.tier_of(record)), name

    def stat_file(self, file: int) -> os.stat_result:
        """Attributes of a file that has a name."""
        with self.lock:
            directory, name = self.locate(file)
            return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)

    def create(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, flags: int, tid: int, belief: Belief
    ) -> tuple[int, Fd]:
        """Create a regular file where the policy wants it, or on the next tier that has room, and open it.

        `belief` is what it is for, as far as is known, and `tid` the thread that creates it.

        Returns (file id, descriptor open for reading and writing); the caller ends with `close_file`.
        """
        with self.lock:
            self._refuse_new(directory, name)
            role = role_of(name)
            self._guard_marker(directory, role)
            context, size = self.placing.context(directory, name, role, belief, tid)
            beside_guard = role is Role.LOCK and directory in self.guarded
            choice = self._beside_guard() if beside_guard else self._choose(context, size)
            tier, fd, reason = self._create_on(choice, directory, name, mode, uid, gid, flags)
            new = self.catalog.new_id()
            self.open_files[new] = OpenFile(tier, writers=1, promised=size)
            tier.charge(0, 1)
            tier.promise(size)
            record = FileRecord(
                tier.name,
                [(directory, name)],
                role=role,
                level=belief.level,
                created_level=belief.level,
                created=clock.now(),
                reason=reason,
                family=belief.family,
            )
            if choice.costs is not None:
                record.costs = [(cost.write, cost.read, cost.room) for cost in choice.costs]
            self.catalog.put_file(new, record)
            self.catalog.put_entry(directory, name, Entry("file", new))
            self.placing.created(new, tier.index, context)
            decided(
                "create",
                path=shown(context.path),
                role=role.value,
                level=belief.level,
                family=belief.family,
                job=belief.job.value,
                thread=tid,
                size=size,
                tier=tier.name,
                reason=reason,
            )
            return new, fd

    def _create_on(
        self, choice: Choice, directory: int, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[Tier, Fd, str]:
        reason = choice.reason
        chosen = self.tiers[choice.tier]
        order = [self.tiers[index] for index in fallback_order(choice.tier, len(self.tiers))]
        order = [tier for tier in order if tier is chosen or tier is not self.leaving]
        if self.draining:
            order = [chosen]
        for tier in order:
            try:
                parent = self.directories.make(directory, tier)
                how = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | flags & _KEEP_FLAGS
                try:
                    fd = Fd(os.open(name, how, 0o600, dir_fd=parent.fd))
                except FileExistsError:  # what a failed migration could not remove, perhaps
                    self.intents.finish(self.roots)
                    fd = Fd(os.open(name, how, 0o600, dir_fd=parent.fd))
            except OSError as error:
                tier.health.failed(error)
                # Not after EIO: the name may be there all the same, and would come back beside the file.
                if error.errno not in (*_FULL, errno.EROFS) or tier is order[-1]:
                    raise
                log.warning("%s: tier %s: %s, trying the next", shown(name), tier.name, error.strerror)
                what = "had no space left" if error.errno in _FULL else f"failed: {error.strerror}"
                reason = f"{choice.reason}; {tier.name} {what}"
                continue
            try:
                _own(fd.fd, self.stat_dir(directory), mode, uid, gid, is_dir=False)
            except OSError:
                os.unlink(name, dir_fd=parent.fd)  # nobody would know of it, and a next create meet it
                raise
            return tier, fd, reason
        raise fail(errno.ENOSPC, name)

    def make_special(self, directory: int, name: bytes, make: Callable[[int], None], uid: int, gid: int) -> int:
        """Make a symbolic link, FIFO or socket on the primary tier by `make(directory fd)`; returns its id."""
        with self.lock:
            self._refuse_new(directory, name)
            self.refuse_guarded(directory, name)
            parent = self.directories.at(directory, self.primary)
            make(parent.fd)
            above = os.fstat(parent.fd)
            owner = above.st_gid if above.st_mode & stat.S_ISGID else gid
            os.chown(name, uid, owner, dir_fd=parent.fd, follow_symlinks=False)
            new = self.catalog.new_id()
            self.catalog.put_entry(directory, name, Entry("special", new))
            record = FileRecord(self.primary.name, [(directory, name)], created=clock.now(), special=True)
            record.reason = "not a regular file"
            self.catalog.put_file(new, record)
            return new

    def open_file(self, file: int, flags: int) -> Fd:
        """Open a file at its home; the caller ends with `close_file`. Opening for writing ends a migration of it."""
        write = flags & os.O_ACCMODE != os.O_RDONLY
        with self.lock:
            if write or flags & os.O_TRUNC:
                self.touch(file)
            directory, name = self.locate(file)
            keep = flags & (os.O_ACCMODE | os.O_TRUNC | _KEEP_FLAGS)
            fd = open_regular(name, keep, directory.fd)
            self.opened(file, write=write)
            if flags & os.O_TRUNC:
                self.resized(file, os.fstat(fd.fd))
            return fd

    def open_again(self, file: int, flags: int) -> Fd:
        """Open a file that an earlier daemon of this mount had open; the caller ends with `close_file`."""
        with self.lock:
            orphan = self.orphans.get(file)
            if orphan is None:
                return self.open_file(file, flags)
            opened = orphans.open_orphan(self.tier_of(orphan), file, flags)
            self.opened(file, write=flags & os.O_ACCMODE != os.O_RDONLY)
            return opened

    def opened(self, file: int, *, write: bool) -> None:
        """Count an open handle."""
        with self.lock:
            known = self.open_files.get(file)
            if known is None:
                record = self.record(file)
                tier = self.tier_of(record)
                known = self.open_files[file] = OpenFile(tier, size=record.size, space=record.space)
            if write:
                self.rewritten(file)
                known.writers += 1
                if known.writers == 1:
                    self.placing.writing(file, known.tier.index, self.record(file).role)
            else:
                known.readers += 1

    def pin_open(self, file: int, count: int) -> None:
        """Count handles through which the kernel reaches an open file past us (negative: no longer)."""
        with self.lock:
            known = self.open_files[file]
            known.pinned += count
            if count > 0 and known.writers:
                self.bypassed.add(file)
            if known.pinned == 0:
                self.idle.notify_all()

    def close_file(self, file: int, fd: Fd, *, write: bool) -> None:
        """End what `open_file`, `create` or `opened` began; `fd` is still open on the file."""
        with self.lock:
            known = self.open_files[file]
            if write:
                known.writers -= 1
                if known.writers == 0:
                    self._settle_size(file, known, os.fstat(fd.fd))
                    self.idle.notify_all()
            else:
                known.readers -= 1
            if known.writers == 0 and known.readers == 0:
                del self.open_files[file]
                self.unshelter(file, known.tier)
                orphan = self.orphans.pop(file, None)
                if orphan is not None:
                    self.tier_of(orphan).charge(-orphan.space, -1)
        if write:
            self.file_closed()

    def _settle_size(self, file: int, known: OpenFile, status: os.stat_result) -> None:
        record = self.record(file)
        tier = self.tier_of(record)
        space = space_of(status)
        self._written(file, known, space)
        self.bypassed.discard(file)
        tier.charge(space - known.space)
        tier.promise(-known.promised)
        self.placing.written(file, known.tier.index, space - record.space)
        known.size, known.space, known.promised = status.st_size, space, 0
        known.revision += 1
        # Whoever had it open may have set the old time again: neither size nor time tells that nothing was written.
        record.checksum = None
        record.size, record.space, record.mtime_ns = status.st_size, space, status.st_mtime_ns
        if record.links:
            self.catalog.put_file(file, record)
        else:
            self.orphans[file] = record

    def grow(self, file: int, offset: int, end: int) -> None:
        """Charge a write of bytes `offset` to `end`, before it is done. ENOSPC when every tier is at its capacity.

        A tier may exceed its own capacity while the volume has room: an open file cannot move, and its device
        may well have space. Never waits: it takes only the tier's own lock.
        """
        known = self.open_files[file]
        if end <= known.size:
            return
        more = end - max(known.size, offset)  # a hole costs nothing
        tier = known.tier
        if tier.used + more > tier.capacity and not self.has_room():
            raise fail(errno.ENOSPC)
        covered = min(known.promised, more)
        known.promised -= covered
        known.size = end
        known.space += more
        tier.promise(-covered)
        tier.charge(more)

    def measure(self, file: int, status: os.stat_result) -> int:
        """Charge what an open file has grown to, where its writes do not pass `grow`; returns by how many bytes."""
        with self.lock:
            known = self.open_files[file]
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
        """Count what the kernel wrote past us, as far as the file grew by it. The lock is held."""
        if file in self.bypassed and space > known.space:
            known.tier.traffic.writes.add(space - known.space)

    def resized(self, file: int, status: os.stat_result) -> None:
        """Note a file's size and space after a truncation or an allocation."""
        with self.lock:
            self.rewritten(file)
            record = self.record(file)
            known = self.open_files.get(file)
            space = space_of(status)
            self.tier_of(record).charge(space - (record.space if known is None else known.space))
            if known is not None:
                known.size, known.space = status.st_size, space
                known.revision += 1
            record.size, record.space, record.checksum = status.st_size, space, None
            record.mtime_ns = status.st_mtime_ns
            if record.links:
                self.catalog.put_file(file, record)
            else:
                self.orphans[file] = record

    def touch(self, file: int) -> None:
        """Before a file's contents, attributes or links change: stop a copy of it, or wait until it has landed.

        The lock is held, and released while waiting.
        """
        stop = self.cancelled.get(file)
        if stop is not None and file not in self.landing:
            stop.set()
        while file in self.landing:
            self.idle.wait()

    def link(self, file: int, directory: int, name: bytes) -> None:
        """Give a file another name, on its home tier."""
        with self.lock:
            self.touch(file)
            self._refuse_new(directory, name)
            record = self.record(file)
            if not record.special:
                self._guard_marker(directory, role_of(name))
            if record.home == self.primary.name:
                self.refuse_guarded(directory, name)
            source, old = self.locate(file)
            parent = self.directories.make(directory, self.tier_of(record))
            os.link(old, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            record.links.append((directory, name))
            self.catalog.put_file(file, record)
            self.moved(file)
            self.catalog.put_entry(directory, name, Entry("special" if record.special else "file", file))

    def unlink(self, directory: int, name: bytes) -> Fd | None:
        """Remove a name. Returns a descriptor whose closing frees the file's blocks.

        ext4 takes up to tens of ms to free a large file; the caller lets go of the descriptor outside the lock.
        """
        with self.lock:
            entry = self.settled(directory, name)
            if entry is None or self.reserved(directory, name):
                raise fail(errno.ENOENT, name)
            if entry.kind == "dir":
                raise fail(errno.EISDIR, name)
            self.touch(entry.id)
            parent = self.directories.at(directory, self.tier_of(self.record(entry.id)))
            last = Fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd))
            self.shelter(entry.id, parent, name)
            os.unlink(name, dir_fd=parent.fd)
            self.catalog.drop_entry(directory, name)
            self.unlinked(entry.id, directory, name)
        self.file_closed()
        return last

    def unlinked(self, file: int, directory: int, name: bytes) -> None:
        """Note that a name of a file is gone from its tier. The lock is held."""
        record = self.record(file)
        record.links.remove((directory, name))
        if record.links:
            self.catalog.put_file(file, record)
            self.moved(file)
            return
        self.catalog.drop_file(file)
        self.rewritten(file)
        if file in self.open_files:
            self.orphans[file] = record
        elif not record.special:
            self.tier_of(record).charge(-record.space, -1)

    def shelter(self, file: int, parent: Fd, name: bytes) -> None:
        """Before a file loses a name: if it is open and this is its last one, give it one of ours. The lock is held."""
        if not self.sheltering or file not in self.open_files or len(self.record(file).links) > 1:
            return
        try:
            orphans.keep(self.tier_of(self.record(file)), parent, name, file)
        except OSError as error:  # the name must go all the same: a full device is to be emptied by it
            log.warning("%s: open, and would not outlive this daemon: %s", shown(name), error.strerror)
        else:
            self.sheltered.add(file)

    def unshelter(self, file: int, tier: Tier) -> None:
        """Nobody has a file open any more. The lock is held."""
        if file not in self.sheltered:
            return
        self.sheltered.discard(file)
        try:
            orphans.drop(tier, file)
        except OSError as error:  # the next mount empties the directory
            log.error("a removed file keeps its room on tier %s: %s", tier.name, error.strerror)

    def renamed(self, file: int, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        """Note that a file's name changed within its tier. The lock is held."""
        record = self.record(file)
        record.links[record.links.index(old)] = new
        if not record.special:
            record.role = role_of(new[1])
        self.catalog.put_file(file, record)
        self.moved(file)

    def sync_dir(self, directory: int) -> None:
        """fsync a directory on every tier that mirrors it. Raises OSError; takes the lock only to find them."""
        with self.lock:
            mirrors = self.directories.mirrors(directory)
        for tier, fd in mirrors:
            try:
                os.fsync(fd.fd)
            except OSError as error:
                tier.health.failed(error)
                raise

    # --- guards ---

    def _guard_marker(self, directory: int, role: Role) -> None:
        if role in DATABASE_MARKERS and self.guards and directory not in self.guarded:
            self.put_guard(directory)

    def put_guard(self, directory: int) -> None:
        """Guard a database's directory on the in-place tier, moving its LOCK to another tier. The lock is held."""
        entry = self.catalog.entry(directory, guard.LOCK)
        if entry is not None and entry.kind != "file":
            raise OSError(
                errno.EBUSY, "is no file and stands where the guard must", shown(self.path(directory, guard.LOCK))
            )
        if entry is not None and self.record(entry.id).home == self.primary.name:
            file = self._lock_of_its_own(directory, entry.id)
            record = self.record(file)
            other = self._copy_lock(directory)
            guard.put(self.primary, self.directories.at(directory, self.primary))
            self.primary.charge(-record.space, -1)
            other.charge(record.space, 1)
            record.home, record.reason = other.name, "beside the guard in the data directory"
            self.catalog.put_file(file, record)
            self.guarded.add(directory)
            self.reopen(file)
            return
        guard.put(self.primary, self.directories.at(directory, self.primary))
        self.guarded.add(directory)

    def _lock_of_its_own(self, directory: int, file: int) -> int:
        """The id of a directory's LOCK, which may be a link to another's (`cp -al`) and then becomes a file."""
        record = self.record(file)
        if len(record.links) == 1:
            return file
        own = msgspec.structs.replace(record, links=[(directory, guard.LOCK)], role=Role.LOCK)
        record.links.remove((directory, guard.LOCK))
        self.catalog.put_file(file, record)
        new = self.catalog.new_id()
        self.catalog.put_file(new, own)
        self.catalog.put_entry(directory, guard.LOCK, Entry("file", new))
        self.primary.charge(own.space, 1)
        return new

    def refuse_guarded(self, directory: int, name: bytes) -> None:
        """Raise EBUSY where a name on the primary tier is the guard's. The lock is held."""
        if name == guard.LOCK and directory in self.guarded:
            raise fail(errno.EBUSY, name)

    def _copy_lock(self, directory: int) -> Tier:
        """Copy a LOCK file from the primary tier to the fastest other one, durably; returns that."""
        other = next(tier for tier in self.staying if tier is not self.primary)
        target = self.directories.make(directory, other)
        source = self.directories.at(directory, self.primary)
        if lstat_or_none(guard.LOCK, target.fd) is not None:
            os.unlink(guard.LOCK, dir_fd=target.fd)
        guard.copy_lock(source, target, guard.LOCK)
        os.fsync(target.fd)
        return other

    def remove_guards(self) -> None:
        """Take every guard away and put the databases' LOCK files in place. All other files must be in place."""
        with self.lock:
            for directory in sorted(self.guarded):
                entry = self.catalog.entry(directory, guard.LOCK)
                here = self.directories.at(directory, self.primary)
                if entry is None or entry.kind != "file":
                    guard.remove(self.primary, here, None)
                    self.guarded.discard(directory)
                    continue
                record = self.record(entry.id)
                other = self.tier_of(record)
                elsewhere = self.directories.at(directory, other)
                guard.remove(self.primary, here, elsewhere)
                self.guarded.discard(directory)
                other.charge(-record.space, -1)
                self.primary.charge(record.space, 1)
                record.home, record.reason = self.primary.name, "drained"
                self.catalog.put_file(entry.id, record)
                self.reopen(entry.id)
                os.unlink(guard.LOCK, dir_fd=elsewhere.fd)

    # --- views ---

    def catalog_file(self, file: int) -> FileRecord | None:
        """A file's record, or None."""
        with self.lock:
            return self.catalog.file(file)

    def set_level(self, file: int, level: int | None, family: str) -> bool:
        """Note where the database has a file; whether that changes its level."""
        with self.lock:
            record = self.catalog.file(file)
            if record is None or (record.level, record.family) == (level, family):
                return False
            changed = record.level != level
            record.level, record.family = level, family
            self.catalog.put_file(file, record)
            return changed

    def keep(self, file: int, home: str) -> None:
        """Let a file stay on a tier whatever the policy wants, if it is there."""
        with self.lock:
            record = self.catalog.file(file)
            if record is not None and record.home == home:
                record.kept = True
                self.catalog.put_file(file, record)

    def show(self, file: int) -> str:
        """A file's path for people."""
        with self.lock:
            record = self.catalog.file(file)
            return "(gone)" if record is None else shown(self.path(*record.links[0]))

    def flush(self) -> None:
        """Commit the catalog's pending changes. Raises lmdb.Error."""
        with self.lock:
            self.catalog.flush()

    def commit(self) -> None:
        """Commit the catalog's pending changes before somebody hears of them: a daemon may die, and another go on."""
        with self.lock:
            self.catalog.try_flush()

    def close(self) -> None:
        """Close the catalog and the tiers. No handle may be open and no migration under way."""
        with self.lock:
            self.intents.finish(self.roots)
            self.placing.store_heat()
            self.directories.clear()
            self.catalog.close()
            for tier in self.tiers:
                tier.close()

    def close_tables(self) -> None:
        """Close the catalog without a last word and forget all directory descriptors."""
        with self.lock:
            self.directories.clear()
            self.catalog.abandon()


def space_of(status: os.stat_result) -> int:
    """Bytes that a file is charged for: holes cost nothing, and blocks set aside beyond its end do not last."""
    return min(status.st_size, status.st_blocks * 512)


def _own(fd: int, parent: os.stat_result, mode: int, uid: int, gid: int, *, is_dir: bool) -> None:
    """Give a new object its owner and mode: the caller's, and a setgid directory's group, as on ext4."""
    if parent.st_mode & stat.S_ISGID:
        gid = parent.st_gid
        if is_dir:
            mode |= stat.S_ISGID
    if (uid, gid) != (os.geteuid(), os.getegid()) or parent.st_mode & stat.S_ISGID:
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode & 0o7777)
