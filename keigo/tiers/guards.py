"""Which databases are guarded, and where their LOCK files are. What a guard is on its tier is told by `guard`.

Every database on the in-place tier needs one before any file of it can be elsewhere.

Threads: the caller holds `Volume.lock`, which guards `guarded`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

import msgspec

from keigo.lsm.roles import DATABASE_MARKERS, Role
from keigo.tiers import guard
from keigo.tiers.catalog import Catalog, Entry, FileRecord
from keigo.tiers.directories import Directories, fail, shown
from keigo.tiers.evacuation import Evacuation
from keigo.tiers.fds import lstat_or_none
from keigo.tiers.tier import Tier


class Guards:
    """See the module's docstring."""

    def __init__(
        self,
        primary: Tier,
        by_name: Mapping[str, Tier],
        evacuation: Evacuation,
        catalog: Catalog,
        directories: Directories,
        *,
        record: Callable[[int], FileRecord],
        rehomed: Callable[[int, Tier], None],
    ) -> None:
        """`record` gives the record of a file; `rehomed` is told of one that has come to a tier."""
        self._primary = primary
        self._by_name = by_name
        self._evacuation = evacuation
        self._catalog = catalog
        self._directories = directories
        self._record = record
        self._rehomed = rehomed
        self.guarded: set[int] = set()
        """Directories that have a guard."""

    @property
    def needed(self) -> bool:
        """Whether databases on the in-place tier need a guard."""
        evacuation = self._evacuation
        return self._primary.in_place and not evacuation.draining and len(evacuation.staying) > 1

    @property
    def lock_tier(self) -> Tier:
        """The tier that has the LOCKs beside guards: the fastest that stays and is not the primary one."""
        return next(tier for tier in self._evacuation.staying if tier is not self._primary)

    def mark(self, directory: int, role: Role) -> None:
        """Before a file of a role comes to a directory: guard it if that makes it a database. Raises OSError."""
        if role in DATABASE_MARKERS and self.needed and directory not in self.guarded:
            self.put(directory)

    def put(self, directory: int) -> None:
        """Guard a database's directory on the in-place tier, moving its LOCK to another tier. Raises OSError."""
        entry = self._catalog.entry(directory, guard.LOCK)
        if entry is not None and entry.kind != "file":
            where = shown(self._directories.path(directory, guard.LOCK))
            raise OSError(errno.EBUSY, "is no file and stands where the guard must", where)
        if entry is not None and self._record(entry.id).home == self._primary.name:
            file = self._lock_of_its_own(directory, entry.id)
            record = self._record(file)
            other = self._copy_lock(directory)
            guard.put(self._primary, self._directories.at(directory, self._primary))
            self._primary.charge(-record.space, -1)
            other.charge(record.space, 1)
            record.home, record.reason = other.name, "beside the guard in the data directory"
            self._catalog.put_file(file, record)
            self.guarded.add(directory)
            self._rehomed(file, other)
            return
        guard.put(self._primary, self._directories.at(directory, self._primary))
        self.guarded.add(directory)

    def _lock_of_its_own(self, directory: int, file: int) -> int:
        """The id of a directory's LOCK, which may be a link to another's (`cp -al`) and then becomes a file."""
        record = self._record(file)
        if len(record.links) == 1:
            return file
        own = msgspec.structs.replace(record, links=[(directory, guard.LOCK)], role=Role.LOCK)
        record.links.remove((directory, guard.LOCK))
        self._catalog.put_file(file, record)
        new = self._catalog.new_id()
        self._catalog.put_file(new, own)
        self._catalog.put_entry(directory, guard.LOCK, Entry("file", new))
        self._primary.charge(own.space, 1)
        return new

    def _copy_lock(self, directory: int) -> Tier:
        """Copy a LOCK file from the primary tier to the one that has them, durably; returns that."""
        other = self.lock_tier
        target = self._directories.make(directory, other)
        source = self._directories.at(directory, self._primary)
        if lstat_or_none(guard.LOCK, target.fd) is not None:
            os.unlink(guard.LOCK, dir_fd=target.fd)
        guard.copy_lock(source, target, guard.LOCK)
        os.fsync(target.fd)
        return other

    def refuse(self, directory: int, name: bytes) -> None:
        """Raise EBUSY where a name on the primary tier is the guard's."""
        if name == guard.LOCK and directory in self.guarded:
            raise fail(errno.EBUSY, name)

    def remove(self, directory: int) -> None:
        """Take away the guard, if there is one, of a directory that has no LOCK. Raises OSError."""
        if directory in self.guarded:
            guard.remove(self._primary, self._directories.at(directory, self._primary), None)
            self.guarded.discard(directory)

    def remove_all(self) -> None:
        """Take every guard away and put the databases' LOCK files in place. All other files must be in place.

        Raises OSError.
        """
        for directory in sorted(self.guarded):
            entry = self._catalog.entry(directory, guard.LOCK)
            if entry is None or entry.kind != "file":
                self.remove(directory)
            else:
                self._put_in_place(directory, entry.id)

    def _put_in_place(self, directory: int, file: int) -> None:
        """Have a directory's LOCK take the place of its guard."""
        record = self._record(file)
        other = self._by_name[record.home]
        elsewhere = self._directories.at(directory, other)
        guard.remove(self._primary, self._directories.at(directory, self._primary), elsewhere)
        self.guarded.discard(directory)
        other.charge(-record.space, -1)
        self._primary.charge(record.space, 1)
        record.home, record.reason = self._primary.name, "drained"
        self._catalog.put_file(file, record)
        self._rehomed(file, self._primary)
        os.unlink(guard.LOCK, dir_fd=elsewhere.fd)
