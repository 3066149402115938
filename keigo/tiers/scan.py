"""Reconcile the catalog with the trees, which are the truth.

One walk over all tiers at once, directory by directory. What it finds it sets right in the catalog; with
`apply` also in the trees: identical copies of a file become one, and of two that differ one is served and the
other put aside in `.keigo/lost/`, for nobody but the user can tell which is right.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final, Literal

from keigo.lsm.roles import DATABASE_MARKERS, IMMUTABLE, role_of
from keigo.tiers import guard
from keigo.tiers.catalog import ROOT, Entry, FileRecord
from keigo.tiers.copying import checksum
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, open_dir
from keigo.tiers.tier import LOST_FOUND, STATE, Tier, space_of
from keigo.tiers.volume import Volume

LOST: Final = b"lost"
_CHUNK: Final = 1 << 20

Problem = Literal["missing", "duplicate", "orphan", "size", "checksum", "conflict", "unguarded", "leftover"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement between trees and catalog."""

    problem: Problem
    path: bytes
    detail: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class _Place:
    tier: Tier
    directory: Fd
    status: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def reconcile(volume: Volume, *, apply: bool) -> list[Finding]:
    """Make the catalog agree with the trees and count what each tier holds; the volume is not yet in use."""
    with volume.lock:
        return _Scan(volume, apply=apply).run()


def guard_databases(volume: Volume) -> None:
    """Guard every database of an open volume that has no guard. Raises OSError. The lock is held."""
    for directory in [ROOT, *volume.catalog.directories()]:
        markers = (role_of(name) in DATABASE_MARKERS for name, _ in volume.names(directory))
        if directory not in volume.guards.guarded and any(markers):
            volume.guards.put(directory)


class _Scan:
    """The state of one walk."""

    def __init__(self, volume: Volume, *, apply: bool) -> None:
        self.volume = volume
        self.catalog = volume.catalog
        self.apply = apply
        self.believe = volume.catalog.was_clean
        self.findings: list[Finding] = []
        self.directories: set[int] = {ROOT}
        self.files: set[int] = set()
        self.linked: dict[tuple[int, int], int] = {}
        self.databases: set[int] = set()

    def run(self) -> list[Finding]:
        waiting = [ROOT]
        while waiting:
            waiting.extend(self.directory(waiting.pop()))
        for gone in [file for file, _ in self.catalog.files() if file not in self.files]:
            self.catalog.drop_file(gone)
        for gone in [directory for directory in self.catalog.directories() if directory not in self.directories]:
            for name, _ in self.catalog.names(gone):
                self.catalog.drop_entry(gone, name)
            self.catalog.drop_dir(gone)
        self.guard()
        return self.findings

    def report(self, problem: Problem, path: bytes, detail: str, *, repaired: bool) -> None:
        self.findings.append(Finding(problem, path, detail, repaired))

    def guard(self) -> None:
        volume = self.volume
        if volume.guards.needed:
            for directory in sorted(self.databases - volume.guards.guarded):
                if self.apply:
                    volume.guards.put(directory)
                elsewhere = any(tier is not volume.primary for tier, _ in volume.directories.mirrors(directory))
                if self.believe and elsewhere:
                    self.report("unguarded", volume.path(directory), "database without a guard", repaired=self.apply)
        elif self.apply and len(volume.tiers) == 1:
            volume.guards.remove_all()

    def directory(self, directory: int) -> list[int]:
        """Reconcile one directory; returns the ids of those in it."""
        known = dict(self.catalog.names(directory))
        subdirectories = []
        for name, places in self.merge(directory).items():
            if any(place.is_dir for place in places):
                subdirectories.append(self.found_directory(directory, name, places, known.pop(name, None)))
            else:
                self.found_file(directory, name, places, known.pop(name, None))
        for name, entry in known.items():
            if self.believe and entry.kind == "file":
                record = self.catalog.file(entry.id)
                home = "?" if record is None else record.home
                detail = f"was on tier {home} when the volume was closed"
                self.report("missing", self.volume.path(directory, name), detail, repaired=False)
            self.catalog.drop_entry(directory, name)
        return subdirectories

    def merge(self, directory: int) -> dict[bytes, list[_Place]]:
        """All names in a directory's mirrors, without what is ours."""
        merged: dict[bytes, list[_Place]] = {}
        for tier, fd in self.volume.directories.mirrors(directory):
            with os.scandir(fd.fd) as found:
                for item in found:
                    name = os.fsencode(item.name)
                    if directory == ROOT and (name == STATE or (name == LOST_FOUND and not tier.in_place)):
                        continue
                    if name == guard.LOCK and tier.in_place and guard.is_guard(fd):
                        self.volume.guards.guarded.add(directory)
                        self.databases.add(directory)
                        continue
                    merged.setdefault(name, []).append(_Place(tier, fd, item.stat(follow_symlinks=False)))
                    if role_of(name) in DATABASE_MARKERS and item.is_file(follow_symlinks=False):
                        self.databases.add(directory)
        return merged

    def found_directory(self, directory: int, name: bytes, places: list[_Place], entry: Entry | None) -> int:
        volume = self.volume
        for place in places:
            if not place.is_dir:
                self.put_aside(directory, name, place, "conflict", "a file where another tier has a directory")
        if not any(place.is_dir and place.tier is volume.primary for place in places) and self.apply:
            mirror = next(place.status for place in places if place.is_dir)
            parent = volume.directories.make(directory, volume.primary)
            os.mkdir(name, stat.S_IMODE(mirror.st_mode), dir_fd=parent.fd)
            os.fsync(parent.fd)
        if entry is None or entry.kind != "dir" or entry.id in self.directories:
            entry = Entry("dir", self.catalog.new_id())
            self.catalog.put_entry(directory, name, entry)
        if self.catalog.parent(entry.id) != (directory, name):
            self.catalog.put_dir(entry.id, directory, name)
        self.directories.add(entry.id)
        return entry.id

    def found_file(self, directory: int, name: bytes, places: list[_Place], entry: Entry | None) -> None:
        record = None if entry is None or entry.kind == "dir" else self.catalog.file(entry.id)
        place = places[0] if len(places) == 1 else self.choose(directory, name, places, record)
        status = place.status
        inode = (place.tier.index, status.st_ino)
        special = not stat.S_ISREG(status.st_mode)
        if status.st_nlink > 1 and inode in self.linked:
            file = self.linked[inode]
            linked = self.catalog.file(file)
            assert linked is not None  # noqa: S101
            linked.links.append((directory, name))
            self.catalog.put_file(file, linked)
        else:
            if entry is None or record is None or entry.id in self.files:
                if self.believe and entry is None:
                    detail = f"on tier {place.tier.name}, unknown to the catalog"
                    self.report("orphan", self.volume.path(directory, name), detail, repaired=self.apply)
                file, record = self.catalog.new_id(), FileRecord(place.tier.name, [], created=status.st_mtime)
            else:
                file = entry.id
            self.update(file, record, place, directory, name)
            place.tier.charge(0 if special else space_of(status), 0 if special else 1)
            if status.st_nlink > 1:
                self.linked[inode] = file
        self.files.add(file)
        kept = Entry("special" if special else "file", file)
        if entry != kept:
            self.catalog.put_entry(directory, name, kept)

    def update(self, file: int, record: FileRecord, place: _Place, directory: int, name: bytes) -> None:
        """Write a file's record where it says something else than the tree."""
        status = place.status
        size = 0 if not stat.S_ISREG(status.st_mode) else status.st_size
        if record.home != place.tier.name:
            record.home, record.reason = place.tier.name, "found here"
        elif self.believe and record.links and not record.special and record.size != size:
            detail = f"{size} bytes on tier {record.home}, {record.size} in the catalog"
            damaged = record.checksum is not None and role_of(name) in IMMUTABLE
            self.report("size", self.volume.path(directory, name), detail, repaired=self.apply and not damaged)
        changed = (record.size, record.mtime_ns) != (size, status.st_mtime_ns)
        # An SST that somebody changed while the volume was closed is still to be what it was when it migrated.
        if changed and not (self.believe and role_of(name) in IMMUTABLE):
            record.checksum = None
        record.size, record.mtime_ns = size, status.st_mtime_ns
        record.space = space_of(status) if stat.S_ISREG(status.st_mode) else 0
        record.special = not stat.S_ISREG(status.st_mode)
        record.links = [(directory, name)]
        if not record.special:
            record.role = role_of(name)
        if self.catalog.file(file) != record:
            self.catalog.put_file(file, record)

    def choose(self, directory: int, name: bytes, places: list[_Place], record: FileRecord | None) -> _Place:
        """Of several copies of a file without an intent, keep one.

        The one with the checksum that is known, else the catalog's, else the one last modified.
        """

        def worth(place: _Place) -> tuple[bool, bool, int]:
            home = record is not None and record.home == place.tier.name
            return self.is_as_it_was(name, place, record), home, place.status.st_mtime_ns

        kept = max(places, key=worth)
        for place in places:
            if place is kept:
                continue
            if identical(kept, place, name):
                if self.apply:
                    os.unlink(name, dir_fd=place.directory.fd)
                    os.fsync(place.directory.fd)
                detail = f"on tiers {kept.tier.name} and {place.tier.name}, identical; kept on {kept.tier.name}"
                self.report("duplicate", self.volume.path(directory, name), detail, repaired=self.apply)
            else:
                detail = f"tiers {kept.tier.name} and {place.tier.name} differ; {kept.tier.name}'s is served"
                self.put_aside(directory, name, place, "duplicate", detail)
        return kept

    @staticmethod
    def is_as_it_was(name: bytes, place: _Place, record: FileRecord | None) -> bool:
        """Whether a copy has the checksum that the file had when it migrated."""
        if record is None or record.checksum is None or not stat.S_ISREG(place.status.st_mode):
            return False
        file = Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory.fd))
        return checksum(file) == record.checksum

    def put_aside(self, directory: int, name: bytes, place: _Place, problem: Problem, detail: str) -> None:
        """Move what cannot be shown to `.keigo/lost/` of its tier, durably."""
        path = self.volume.path(directory, name)
        if self.apply:
            state = place.tier.state
            try:
                os.mkdir(LOST, 0o700, dir_fd=state.fd)
                os.fsync(state.fd)
            except FileExistsError:
                pass
            lost = open_dir(LOST, state.fd)
            aside = b"%d-%s" % (self.catalog.new_id(), name[-200:])
            os.rename(name, aside, src_dir_fd=place.directory.fd, dst_dir_fd=lost.fd)
            os.fsync(lost.fd)
            os.fsync(place.directory.fd)
            detail += f"; put aside as .keigo/lost/{shown(aside)} of tier {place.tier.name}"
        self.report(problem, path, detail, repaired=False)


def identical(one: _Place, other: _Place, name: bytes) -> bool:
    """Whether two copies have the same type, size and bytes."""
    if stat.S_IFMT(one.status.st_mode) != stat.S_IFMT(other.status.st_mode):
        return False
    if stat.S_ISLNK(one.status.st_mode):
        return os.readlink(name, dir_fd=one.directory.fd) == os.readlink(name, dir_fd=other.directory.fd)
    if not stat.S_ISREG(one.status.st_mode) or one.status.st_size != other.status.st_size:
        return False
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    first, second = (Fd(os.open(name, how, dir_fd=place.directory.fd)) for place in (one, other))
    while chunk := os.read(first.fd, _CHUNK):
        if _read_exactly(second, len(chunk)) != chunk:
            return False
    return True


def _read_exactly(fd: Fd, size: int) -> bytes:
    parts = []
    while size and (part := os.read(fd.fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
