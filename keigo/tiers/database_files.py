"""Reads what one database writes about itself: its MANIFEST, info log and options, on their tiers, as they grow.

A file is followed by its id and read from where it was read last. A MANIFEST that cannot be parsed is logged, once,
and followed no further until CURRENT names another. Of an info log only what comes from now on matters, or the last
part of it: a job of long ago does not run any more.

No lock of its own: `Observer` guards each object with `DatabaseFiles.lock`, which comes before `Volume.lock`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from keigo.lsm.database import Database, Truth
from keigo.lsm.manifest import ManifestError
from keigo.lsm.options import Options, OptionsError, parse_options
from keigo.lsm.roles import Role, file_number, role_of
from keigo.tiers.fds import Fd
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_CHUNK: Final = 1 << 20
_LOG_BEHIND: Final = 4 << 20  # bytes of an info log that are worth catching up with
_LONGEST_NAME: Final = 4096  # bytes of a CURRENT
_LONGEST_OPTIONS: Final = 1 << 24  # RocksDB writes about 10 KiB for each column family


class _Followed:
    """A file that grows, and how far it was read."""

    __slots__ = ("fd", "file", "position")

    def __init__(self, file: int) -> None:
        self.file = file
        self.position = 0
        self.fd: Fd | None = None


class DatabaseFiles:
    """See the module's docstring. All but `directory` is guarded by `lock`.

    The last truth must also be the last to be written to the catalog, so `correcting` is held over that; it comes
    before `lock`.
    """

    def __init__(self, volume: Volume, directory: int) -> None:
        self.volume = volume
        self.directory = directory
        self.correcting = threading.Lock()
        self.lock = threading.Lock()
        self.database = Database()
        self.process: int | None = None
        """The process that has the database open, as far as it was seen to create its info log."""
        self.truths: list[Truth] = []
        """What is to be set right in the catalog."""
        self.changed = True
        """Whether names in the directory, or contents of CURRENT, may differ from what was last seen."""
        self.cpu = 0.0
        """Seconds of CPU that following it has taken."""
        self.broken = False
        """Whether we failed, by a fault of our own."""
        self.failed: str | None = None
        """Why its MANIFEST cannot be read."""
        self._manifest: _Followed | None = None
        self._log: _Followed | None = None
        self._options: int | None = None
        self._options_to_read: int | None = None
        self._new_log = False
        self._closed = False

    def close(self) -> None:
        """Read nothing any more, and have no file open."""
        self._closed = True
        self._manifest = self._log = None

    def log_created(self, process: int | None) -> None:
        """A process begins an info log, as each does that opens a database."""
        self._new_log = True
        if process != self.process:
            self.process = process
            self.database.reopened()

    def truncated(self, file: int, size: int) -> None:
        """A file ends at `size` now: what was read of it beyond that means nothing any more."""
        if self._manifest is not None and self._manifest.file == file and self._manifest.position > size:
            self._manifest = None
        elif self._log is not None and self._log.file == file and self._log.position > size:
            self._log = None
        self.contents_changed(file)

    def contents_changed(self, file: int) -> None:
        """A file may say something else than when it was read."""
        self.changed = True
        if file == self._options:
            self._options = None

    def read_some(self) -> bool:
        """Read a chunk of each file; whether there may be more."""
        if self._closed:
            return False
        if self.changed:
            self._look()
        more = self._follow(self._manifest, self._read_manifest)
        if not more:
            self.truths += self.database.take_truths()
        return self._follow_log() or more

    def read_options(self) -> tuple[int, Options | None] | None:
        """Options that were not read yet, parsed: (file, None where that failed). Takes no part of the state: it takes
        too long to hold the lock over."""
        file = self._options_to_read
        if file is None:
            return None
        try:
            return file, parse_options(self._contents(file, _LONGEST_OPTIONS))
        except OptionsError as error:
            log.warning("%s: %s; defaults are assumed", self.volume.show(file), error)
            return file, None

    def set_options(self, file: int, options: Options | None) -> None:
        """Take what `read_options` gave."""
        if file == self._options_to_read:
            self._options_to_read = None
            self.database.options = options

    # --- which files ---

    def _look(self) -> None:
        self.changed = False
        by_role: dict[Role, list[bytes]] = {}
        with self.volume.lock:
            names = [name for name, entry in self.volume.catalog.names(self.directory) if entry.kind == "file"]
        for name in names:
            by_role.setdefault(role_of(name), []).append(name)
        self._look_for_log(by_role.get(Role.INFOLOG, ()))
        self._look_for_manifest(by_role)
        newest = max(by_role.get(Role.OPTIONS, ()), key=lambda name: file_number(name) or 0, default=None)
        options = None if newest is None else self._file(newest)
        if options != self._options:
            self._options = self._options_to_read = options

    def _look_for_log(self, names: Collection[bytes]) -> None:
        file = self._file(b"LOG") if b"LOG" in names else None
        if self._log is not None and self._log.file == file:
            return
        while self._follow_log():
            pass  # the last lines of the old one
        self._log = None if file is None else _Followed(file)
        self.database.new_log()
        if self._log is not None and not self._new_log:
            self._skip(self._log)
        self._new_log = False

    def _look_for_manifest(self, by_role: Mapping[Role, list[bytes]]) -> None:
        manifest = self._current(by_role)
        if self._manifest is not None and self._manifest.file == manifest:
            return
        self._manifest = None if manifest is None else _Followed(manifest)
        self.failed = None
        self.database.new_manifest()

    def _current(self, by_role: Mapping[Role, list[bytes]]) -> int | None:
        """The MANIFEST in use: what CURRENT names or, in newer Pebble, the newest marker; else the newest there is."""
        manifests = [name for name in by_role.get(Role.MANIFEST, ()) if name.startswith(b"MANIFEST-")]
        current = by_role.get(Role.CURRENT, [])
        named: bytes | None = None
        if b"CURRENT" in current:
            named = self._contents(self._file(b"CURRENT"), _LONGEST_NAME).removesuffix(b"\n")
        markers = [name.split(b".", 3) for name in current if name.startswith(b"marker.manifest.")]
        if markers:
            named = max(markers, key=lambda parts: int(parts[2]))[3]
        if named not in manifests:
            named = max(manifests, key=lambda name: file_number(name) or 0, default=None)
        return None if named is None else self._file(named)

    def _file(self, name: bytes) -> int | None:
        entry = self.volume.lookup(self.directory, name)
        return entry.id if entry is not None and entry.kind == "file" else None

    # --- their contents ---

    def _contents(self, file: int | None, most: int) -> bytes:
        """A small file, whole; nothing where it is gone or cannot be read."""
        fd = None if file is None else self._open(file)
        return b"" if fd is None else _read(fd, most, 0)

    def _open(self, file: int) -> Fd | None:
        try:
            with self.volume.lock:
                directory, name = self.volume.locate(file)
                return Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: %s", self.volume.show(file), error.strerror)
            return None

    def _size(self, followed: _Followed) -> int | None:
        """Open it, if need be, and return its size; None where it is gone."""
        if followed.fd is not None:
            status = os.fstat(followed.fd.fd)
            if status.st_nlink:
                return status.st_size
        followed.fd = self._open(followed.file)  # it was moved to another tier, or is gone
        return None if followed.fd is None else os.fstat(followed.fd.fd).st_size

    def _skip(self, followed: _Followed) -> None:
        """Go on near the end of an info log."""
        size = self._size(followed) or 0
        if size > followed.position + _CHUNK:
            followed.position = size - _CHUNK
            self.database.new_log()

    def _follow_log(self) -> bool:
        if self._log is None:
            return False
        size = self._size(self._log)
        if size is not None and size > self._log.position + _LOG_BEHIND:
            self._skip(self._log)
        return self._follow(self._log, lambda data: self.database.read_log(data, time.monotonic()))

    def _follow(self, followed: _Followed | None, read: Callable[[bytes], None]) -> bool:
        """Read a chunk of what a file has grown by; whether there may be more."""
        if followed is None or (followed is self._manifest and self.failed is not None):
            return False
        size = self._size(followed)
        if size is None or followed.fd is None:
            return False
        if size < followed.position:
            self.truncated(followed.file, size)
            return True
        data = _read(followed.fd, _CHUNK, followed.position)
        if not data:
            return False
        before = followed.position
        followed.position += len(data)
        read(data)
        return len(data) == _CHUNK and followed.position > before

    def _read_manifest(self, data: bytes) -> None:
        followed = self._manifest
        if followed is None:
            return
        try:
            self.database.read_manifest(data, time.monotonic())
        except ManifestError as error:
            self.failed = str(error)
            followed.fd = None
            log.warning("%s: %s; its levels are not followed", self.volume.show(followed.file), error)
            return
        # What was preallocated is zeros until it is written: the reader says from where it wants to read again.
        followed.position = self.database.manifest.position


def _read(fd: Fd, size: int, offset: int) -> bytes:
    try:
        return os.pread(fd.fd, size, offset)
    except OSError as error:
        log.warning("cannot read what a database tells of itself: %s", error.strerror)
        return b""
