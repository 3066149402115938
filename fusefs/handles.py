"""What is open: the tables' rows of `namespace.py`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keigo.lsm.roles import Role
from keigo.tiers.catalog import Entry
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
