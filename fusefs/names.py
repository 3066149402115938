"""Names in directories: looked up, made, removed, and moved.

Any thread may call. `Volume.lock` is taken here; no lock is held while the observer is told.
"""

from __future__ import annotations

import errno
import os
import stat

from fusefs.attributes import Attributes, Caller
from fusefs.errnos import check_name
from fusefs.file_handles import FileHandles
from fusefs.nodes import Nodes
from keigo.lsm.roles import IMMUTABLE, role_of
from keigo.tiers.directories import fail
from keigo.tiers.observer import TELLING, Observer
from keigo.tiers.rename import rename
from keigo.tiers.volume import Volume


class Names:
    """See the module's docstring."""

    def __init__(self, volume: Volume, nodes: Nodes, files: FileHandles, observer: Observer) -> None:
        self._volume = volume
        self._nodes = nodes
        self._files = files
        self._observer = observer

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Attributes of a name in a directory."""
        check_name(name)
        if self._volume.reserved(parent, name):
            raise fail(errno.ENOENT, name)
        with self._volume.lock:
            entry = self._volume.lookup(parent, name)
            if entry is None:
                raise fail(errno.ENOENT, name)
            return self._nodes.attributes(entry)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a directory."""
        check_name(name)
        with self._volume.lock:
            return self._nodes.getattr(self._volume.mkdir(parent, name, mode, caller.uid, caller.gid))

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        with self._volume.lock:
            entry = self._volume.lookup(parent, name)
            self._volume.rmdir(parent, name)
        if entry is not None:
            self._observer.removed(entry.id)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of a file."""
        self._volume.unlink(parent, name)
        if role_of(name) in TELLING:
            self._observer.named(parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        check_name(name)
        with self._volume.lock:
            made = self._volume.make_special(
                parent, name, lambda fd: os.symlink(target, name, dir_fd=fd), caller.uid, caller.gid
            )
            return self._nodes.getattr(made)

    def mknod(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a FIFO, a socket or an empty regular file; EPERM for devices."""
        check_name(name)
        if stat.S_ISREG(mode):
            attributes, handle = self._files.create(parent, name, mode, os.O_WRONLY | os.O_EXCL, caller)
            self._files.release(handle)
            return attributes
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise fail(errno.EPERM, name)
        with self._volume.lock:
            made = self._volume.make_special(
                parent, name, lambda fd: os.mknod(name, mode, dir_fd=fd), caller.uid, caller.gid
            )
            return self._nodes.getattr(made)

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int) -> None:
        """Rename; `flags` as in renameat2(2)."""
        check_name(new)
        # The descriptors are let go of here, without the lock: that frees a replaced file's blocks.
        rename(self._volume, (old_parent, old), (new_parent, new), flags)
        for parent, name in ((old_parent, old), (new_parent, new)):
            self._renamed(parent, name)

    def _renamed(self, parent: int, name: bytes) -> None:
        """Tell of a name that stands for something else now."""
        role = role_of(name)
        if role in TELLING:
            self._observer.named(parent, name)
        elif role in IMMUTABLE:
            self._observer.appeared(parent, name)

    def link(self, node: int, parent: int, name: bytes) -> Attributes:
        """Give a file another name."""
        check_name(name)
        with self._volume.lock:
            self._volume.link(node, parent, name)
            attributes = self._nodes.getattr(node)
        self._renamed(parent, name)
        return attributes
