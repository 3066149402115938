"""A volume: the union of its tiers' trees, as operations on (directory id, name) and file ids.

Every regular file is whole on one tier, its home, under the same path as in the mount. Directories exist on the
primary tier (the one in place, else the slowest), which owns their attributes, and are mirrored on another tier when
the first file there needs them.

Here are names and what stands behind them. What is a concern of its own has a module of its own: open files
(`open_files`, `orphans`), guards, what is evacuated; and, as functions of a volume, how files are made (`creation`),
renamed and migrated.

Threads: every public method takes `lock`, of the parts, too, or says that the caller holds it. It is not held while
data is copied or synced, except for the small syncs that creating a mirror, a guard or an intent needs; these happen
once per directory, database or cross-tier rename. A migration that puts its copy into the tree works without the lock
and marks the file in `landing` meanwhile; whoever would change that file's names, contents or attributes waits on
`idle` until it is done.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence

from keigo import clock
from keigo.lsm.roles import role_of
from keigo.placement.policy import Policy
from keigo.tiers.catalog import ROOT, Catalog, Entry, FileRecord
from keigo.tiers.directories import Directories, fail, shown
from keigo.tiers.evacuation import Evacuation
from keigo.tiers.fds import KEEP_FLAGS, O_DIR, Fd, open_regular, own
from keigo.tiers.guards import Guards
from keigo.tiers.hooks import Hooks
from keigo.tiers.intents import IntentLog
from keigo.tiers.open_files import OpenFiles
from keigo.tiers.orphans import Orphans, open_orphan
from keigo.tiers.pins import Pins
from keigo.tiers.placing import Placing
from keigo.tiers.tier import LOST_FOUND, STATE, Tier
from keigo.tiers.writers import Writers


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
        self.hooks = Hooks()
        self.evacuation = Evacuation(tiers)
        self.writers = Writers()
        """The mover's, which makes one migration at a time."""
        self.directories = Directories(catalog, tiers)
        self.guards = Guards(
            self.primary,
            self.by_name,
            self.evacuation,
            catalog,
            self.directories,
            record=self.record,
            rehomed=self.rehomed,
        )
        self.placing = Placing(
            self.tiers,
            policy,
            pins,
            catalog,
            self.evacuation,
            lock=self.lock,
            path=self.directories.path,
            is_written=self._is_written,
            is_movable=self._is_movable,
        )
        self.orphans = Orphans(self.by_name)
        self.open_files = OpenFiles(
            self.by_name,
            catalog,
            self.orphans,
            self.placing,
            self.hooks,
            lock=self.lock,
            idle=self.idle,
            record=self.record,
        )

    def _is_written(self, file: int) -> bool:
        """Whether a file is open for writing."""
        known = self.open_files.by_id.get(file)
        return known is not None and known.writers > 0

    def _is_movable(self, file: int) -> bool:
        """Whether a file could migrate now. Asked without the lock, so the answer may be old."""
        return not self.open_files.is_held(file) and file not in self.cancelled

    # --- directories ---

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
        return (directory in self.guards.guarded) + (directory == ROOT)

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

    def refuse_new(self, directory: int, name: bytes) -> None:
        """Raise OSError where no new name may come. The lock is held."""
        if self.reserved(directory, name):
            raise fail(errno.EPERM, name)
        if directory != ROOT and self.catalog.parent(directory) is None:
            raise fail(errno.ENOENT, name)
        if self.catalog.entry(directory, name) is not None:
            raise fail(errno.EEXIST, name)

    def mkdir(self, directory: int, name: bytes, mode: int, uid: int, gid: int) -> int:
        """Make a directory; returns its id."""
        with self.lock:
            self.refuse_new(directory, name)
            self.guards.refuse(directory, name)
            parent = self.directories.at(directory, self.primary)
            os.mkdir(name, mode & 0o7777, dir_fd=parent.fd)
            made = Fd(os.open(name, O_DIR, dir_fd=parent.fd))
            own(made.fd, os.fstat(parent.fd), mode, uid, gid, is_dir=True)
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
        self.guards.remove(removed)
        self.directories.forget(removed)
        ordered = sorted(self.directories.mirrors(directory), key=lambda mirror: mirror[0] is self.primary)
        for _, parent in ordered:
            try:
                os.rmdir(name, dir_fd=parent.fd)
            except FileNotFoundError:
                pass
        self.catalog.drop_dir(removed)
        self.catalog.drop_entry(directory, name)

    # --- files ---

    def tier_of(self, record: FileRecord) -> Tier:
        """A file's home."""
        return self.by_name[record.home]

    def rehomed(self, file: int, tier: Tier) -> None:
        """A file whose record is of another tier now: whoever has it open has it there. Raises OSError."""
        self.open_files.rehome(file, tier)
        self.hooks.reopen(file)

    def record(self, file: int) -> FileRecord:
        """A file's record, also when it has no name any more. ENOENT where it is gone."""
        found = self.catalog.file(file) or self.orphans.records.get(file)
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

    def make_special(self, directory: int, name: bytes, make: Callable[[int], None], uid: int, gid: int) -> int:
        """Make a symbolic link, FIFO or socket on the primary tier by `make(directory fd)`; returns its id."""
        with self.lock:
            self.refuse_new(directory, name)
            self.guards.refuse(directory, name)
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
        """Open a file at its home; the caller ends with `OpenFiles.close`. A migration of it ends, if it may write."""
        write = flags & os.O_ACCMODE != os.O_RDONLY
        with self.lock:
            if write or flags & os.O_TRUNC:
                self.touch(file)
            directory, name = self.locate(file)
            keep = flags & (os.O_ACCMODE | os.O_TRUNC | KEEP_FLAGS)
            fd = open_regular(name, keep, directory.fd)
            self.open_files.opened(file, write=write)
            if flags & os.O_TRUNC:
                self.open_files.resized(file, os.fstat(fd.fd))
            return fd

    def open_again(self, file: int, flags: int) -> Fd:
        """Open a file that an earlier daemon of this mount had open; the caller ends with `OpenFiles.close`."""
        with self.lock:
            orphan, writes = self.orphans.records.get(file), flags & os.O_ACCMODE != os.O_RDONLY
            if orphan is None:
                opened = self.open_file(file, flags)
                if writes:
                    self.open_files.promise_again(file)
                return opened
            opened = open_orphan(self.tier_of(orphan), file, flags)
            self.open_files.opened(file, write=writes)
            return opened

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
            self.refuse_new(directory, name)
            record = self.record(file)
            if not record.special:
                self.guards.mark(directory, role_of(name))
            if record.home == self.primary.name:
                self.guards.refuse(directory, name)
            source, old = self.locate(file)
            parent = self.directories.make(directory, self.tier_of(record))
            os.link(old, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            record.links.append((directory, name))
            self.catalog.put_file(file, record)
            self.hooks.moved(file)
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
        self.hooks.file_closed()
        return last

    def unlinked(self, file: int, directory: int, name: bytes) -> None:
        """Note that a name of a file is gone from its tier. The lock is held."""
        record = self.record(file)
        record.links.remove((directory, name))
        if record.links:
            self.catalog.put_file(file, record)
            self.hooks.moved(file)
            return
        self.catalog.drop_file(file)
        self.hooks.rewritten(file)
        if file in self.open_files.by_id:
            self.orphans.records[file] = record
        elif not record.special:
            self.tier_of(record).charge(-record.space, -1)

    def shelter(self, file: int, parent: Fd, name: bytes) -> None:
        """Before a file loses a name: if it is open and this is its last one, the file stays. The lock is held."""
        if self.orphans.sheltering and file in self.open_files.by_id:
            record = self.record(file)
            if len(record.links) == 1:
                self.orphans.shelter(file, self.tier_of(record), parent, name)

    def renamed(self, file: int, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        """Note that a file's name changed within its tier. The lock is held."""
        record = self.record(file)
        record.links[record.links.index(old)] = new
        if not record.special:
            record.role = role_of(new[1])
        self.catalog.put_file(file, record)
        self.hooks.moved(file)

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
