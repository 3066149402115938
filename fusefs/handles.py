"""What is open: a table of files and one of directories, by the numbers that the kernel knows.

`Volume.lock` guards the tables. Only to find a handle by its number no lock is needed.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from keigo.lsm.roles import Role
from keigo.tiers.catalog import Entry
from keigo.tiers.directories import fail
from keigo.tiers.fds import Fd

if TYPE_CHECKING:
    from keigo.cache._chunks import Chunks


class Handle:
    """An open file. When it migrates, another file comes behind the same descriptors (dup2).

    So a read under way ends on the old file, the next one is on the new, and nobody waits for anybody.
    """

    __slots__ = ("chunks", "direct", "doubtful", "file", "flags", "node", "number", "owed", "role")

    def __init__(self, number: int, node: int, file: Fd, flags: int, role: Role) -> None:
        self.number = number
        self.node = node
        self.file = file
        self.direct: Fd | None = None
        """A second descriptor with O_DIRECT, where a driver asked for one."""
        self.chunks: Chunks | None = None
        """Which parts of the file are cached; None: none ever through this handle, as things are."""
        self.doubtful = False
        """Whether an fsync of an earlier daemon's may have failed and nobody have heard of it."""
        self.owed = False
        """Whether it surely failed: the earlier daemon asked, heard of an error, and the kernel tells it but once."""
        self.flags = flags
        self.role = role
        """What the file was when it was opened."""

    @property
    def writes(self) -> bool:
        """Whether it may write."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class DirectoryHandle:
    """An open directory: its names as they were when it was last read from the start."""

    __slots__ = ("file", "names", "node")

    def __init__(self, node: int, file: Fd) -> None:
        self.node = node
        self.file = file
        """On the primary tier; for when the directory is removed while it is open."""
        self.names: list[tuple[int, bytes, Entry]] = []
        """(offset of the next, name, entry), by offset. It comes of the name: the next daemon has the same."""


class Handles:
    """See the module's docstring. Whoever calls holds the lock; `is_open` needs none."""

    def __init__(self) -> None:
        self.files: dict[int, Handle] = {}
        self.by_node: dict[int, set[Handle]] = {}
        """Only nodes with an open file."""
        self.directories: dict[int, DirectoryHandle] = {}
        self._numbers = itertools.count(1)
        self._free: list[int] = []

    def new_number(self) -> int:
        """A number that nothing is open by. Numbers are used again: the data path has a table of them."""
        return self._free.pop() if self._free else next(self._numbers)

    def reuse(self, number: int) -> None:
        """Nobody will ever again mean what had this number."""
        self._free.append(number)

    def restore_numbers(self, used: Collection[int]) -> None:
        """Hand out none of these: an earlier daemon has."""
        highest = max(used, default=0)
        self._numbers = itertools.count(highest + 1)
        self._free = sorted(set(range(1, highest + 1)) - set(used), reverse=True)

    def put(self, handle: Handle) -> None:
        """A file was opened."""
        self.files[handle.number] = handle
        self.by_node.setdefault(handle.node, set()).add(handle)

    def drop(self, number: int) -> Handle:
        """A file is closed; its number waits for `reuse`."""
        opened = self.files.pop(number)
        handles = self.by_node[opened.node]
        handles.discard(opened)
        if not handles:
            del self.by_node[opened.node]
        return opened

    def is_open(self, number: int) -> bool:
        """Whether a file or directory is open by this number."""
        return number in self.files or number in self.directories

    def any_of(self, node: int) -> Handle:
        """A handle of a file. Raises OSError ENOENT where it has none."""
        found = next(iter(self.by_node.get(node, ())), None)
        if found is None:
            raise fail(errno.ENOENT)
        return found

    def directory_of(self, node: int) -> Fd | None:
        """A descriptor of a directory, be it removed, if it is open."""
        return next((opened.file for opened in self.directories.values() if opened.node == node), None)
