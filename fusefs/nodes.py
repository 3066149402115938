"""What is known of a node, open or not: its kind, its attributes, plain and extended.

A node id is the id of a directory or file in the volume's catalog; hard links share one. The kernel's lookup counts
need not be tracked: nothing here is kept per node.

Any thread may call. `Volume.lock` is taken here, and must be held already where a docstring says so.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace

from fusefs.attributes import Attributes, Changes, attributes_of
from fusefs.errnos import of_node
from fusefs.handles import Handles
from keigo.tiers.catalog import ROOT, Entry
from keigo.tiers.directories import fail
from keigo.tiers.fds import Fd, magic_link, open_regular, set_times
from keigo.tiers.observer import TELLING, Observer
from keigo.tiers.volume import Volume


class Nodes:
    """See the module's docstring."""

    def __init__(self, volume: Volume, handles: Handles, observer: Observer) -> None:
        self._volume = volume
        self._handles = handles
        self._observer = observer

    @of_node
    def getattr(self, node: int) -> Attributes:
        """Attributes of a node."""
        with self._volume.lock:
            return self.attributes(self.entry(node))

    def entry(self, node: int) -> Entry:
        """What a name of a node stands for, also where it has none any more. The lock is held."""
        if self.is_directory(node) or self._handles.directory_of(node) is not None:
            return Entry("dir", node)
        return Entry("special" if self._volume.record(node).special else "file", node)

    def is_directory(self, node: int) -> bool:
        """Whether a node is a directory that was not removed. The lock is held."""
        return node == ROOT or self._volume.catalog.parent(node) is not None

    def attributes(self, entry: Entry) -> Attributes:
        """Attributes of what a name stands for. The lock is held."""
        node = entry.id
        if entry.kind == "dir":
            if not self.is_directory(node):
                removed = self.object_of(node)
                return attributes_of(node, os.fstat(removed.fd), 0)
            status = self._volume.stat_dir(node)
            mtime, ctime = self._volume.dir_times(node)
            attributes = attributes_of(node, status, status.st_nlink - self._volume.hidden_dirs(node))
            return replace(attributes, mtime_ns=mtime, ctime_ns=ctime)
        if node in self._volume.orphans.records:
            file = self._handles.any_of(node).file
            status = os.fstat(file.fd)
            return attributes_of(node, status, status.st_nlink - (node in self._volume.orphans.sheltered))
        status = self._volume.stat_file(node)
        return attributes_of(node, status, status.st_nlink)

    def object_of(self, node: int) -> Fd:
        """A descriptor of a node, at least O_PATH. The lock is held."""
        entry = self.entry(node)
        if entry.kind == "dir":
            if self.is_directory(node):
                return self._volume.directories.at(node, self._volume.primary)
            removed = self._handles.directory_of(node)
            if removed is None:
                raise fail(errno.ENOENT)
            return removed
        if node in self._volume.orphans.records:
            return self._handles.any_of(node).file
        directory, name = self._volume.locate(node)
        return Fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))

    @of_node
    def setattr(self, node: int, changes: Changes, handle: int | None = None) -> Attributes:
        """Change attributes and return all of them."""
        with self._volume.lock:
            self._volume.touch(node)
            if changes.size is not None:
                self._truncate(node, changes.size, handle)
            at = self.object_of(node)
            path = magic_link(at.fd)
            if changes.kill_privileges:
                self._kill_privileges(at)
            if changes.uid is not None or changes.gid is not None:
                os.chown(
                    path,
                    -1 if changes.uid is None else changes.uid,
                    -1 if changes.gid is None else changes.gid,
                )
            if changes.mode is not None:
                os.chmod(path, stat.S_IMODE(changes.mode))
            if changes.atime_ns is not None or changes.mtime_ns is not None:
                for fd in self._stamped(node, at):
                    set_times(fd.fd, changes.atime_ns, changes.mtime_ns)
            attributes = self.getattr(node)
            tells = changes.size is not None and self._volume.record(node).role in TELLING
        if tells:
            self._observer.truncated(node, attributes.size)
        return attributes

    def _stamped(self, node: int, at: Fd) -> list[Fd]:
        """The objects that carry a node's times: a directory's mirrors all do. The lock is held."""
        if not self.is_directory(node):
            return [at]
        return [mirror for _, mirror in self._volume.directories.mirrors(node)]

    @staticmethod
    def _kill_privileges(at: Fd) -> None:
        mode = stat.S_IMODE(os.fstat(at.fd).st_mode)
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            os.chmod(magic_link(at.fd), kept)

    def _truncate(self, node: int, size: int, handle: int | None) -> None:
        opened = None if handle is None else self._handles.files.get(handle)
        if opened is None or not opened.writes:
            opened = next((known for known in self._handles.by_node.get(node, ()) if known.writes), None)
        if opened is not None:
            file = opened.file
        else:
            directory, name = self._volume.locate(node)
            file = open_regular(name, os.O_WRONLY, directory.fd)
        count_writes(self._volume, node, file)
        os.ftruncate(file.fd, size)
        self._volume.open_files.resized(node, os.fstat(file.fd))

    @of_node
    def readlink(self, node: int) -> bytes:
        """Target of a symbolic link."""
        with self._volume.lock:
            directory, name = self._volume.locate(node)
            return os.readlink(name, dir_fd=directory.fd)

    @of_node
    def getxattr(self, node: int, name: bytes) -> bytes:
        """Value of a user.* attribute; ENODATA for all others, which cannot be set."""
        if not name.startswith(b"user."):
            raise fail(errno.ENODATA, name)
        with self._volume.lock:
            at = self.object_of(node)
            return os.getxattr(magic_link(at.fd), name)

    @of_node
    def setxattr(self, node: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a user.* attribute; EOPNOTSUPP for all others."""
        if not name.startswith(b"user."):
            raise fail(errno.EOPNOTSUPP, name)
        with self._volume.lock:
            self._volume.touch(node)
            at = self.object_of(node)
            os.setxattr(magic_link(at.fd), name, value, flags)

    @of_node
    def listxattr(self, node: int) -> list[bytes]:
        """Names of the user.* attributes."""
        with self._volume.lock:
            at = self.object_of(node)
            names = os.listxattr(magic_link(at.fd))
        return [os.fsencode(name) for name in names if name.startswith("user.")]

    @of_node
    def removexattr(self, node: int, name: bytes) -> None:
        """Remove a user.* attribute."""
        if not name.startswith(b"user."):
            raise fail(errno.EOPNOTSUPP, name)
        with self._volume.lock:
            self._volume.touch(node)
            at = self.object_of(node)
            os.removexattr(magic_link(at.fd), name)


def count_writes(volume: Volume, node: int, file: Fd) -> None:
    """Before a file's size changes otherwise than by writes: count those that the kernel has done past us."""
    with volume.lock:
        if node in volume.open_files.bypassed:
            volume.open_files.measure(node, os.fstat(file.fd))
