"""Directories are opened, read, made durable, and closed.

Any thread may call. `Volume.lock` is taken here, for one entry at a time while a directory is read.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

import xxhash

from fusefs.attributes import Attributes
from fusefs.errnos import of_node
from fusefs.handles import DirectoryHandle, Handles
from fusefs.nodes import Nodes
from keigo.tiers.catalog import ROOT, Entry
from keigo.tiers.descriptors import is_among_last, leave_some
from keigo.tiers.directories import fail
from keigo.tiers.orphans import removed_directory
from keigo.tiers.volume import Volume

_DOTS: Final = 2  # "." and "..", the first names of every directory


class DirectoryHandles:
    """See the module's docstring."""

    def __init__(self, volume: Volume, handles: Handles, nodes: Nodes) -> None:
        self._volume = volume
        self._handles = handles
        self._nodes = nodes

    @of_node
    def opendir(self, node: int) -> int:
        """Open a directory; returns a handle."""
        with self._volume.lock:
            if self._nodes.entry(node).kind != "dir":
                raise fail(errno.ENOTDIR)
            opened = DirectoryHandle(node, self._nodes.object_of(node))
            if is_among_last(opened.file.fd):  # most directories are open already
                leave_some(opened.file.fd)
            number = self._handles.new_number()
            self._handles.directories[number] = opened
            return number

    def readdir(self, handle: int, offset: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """(name, attributes, offset of the next) from `offset` on; 0 reads the directory anew."""
        opened = self._handles.directories[handle]
        if offset == 0:
            with self._volume.lock:
                if not self._nodes.is_directory(opened.node):
                    return  # removed: not even the dots are left
                opened.names = self._listed(opened.node)
        for number in range(bisect_right(opened.names, offset, key=itemgetter(0)), len(opened.names)):
            following, name, entry = opened.names[number]
            with self._volume.lock:
                # The kernel believes what it is told here for as long as a lookup, so it must be true now: since the
                # directory was read the name may have gone, or stand for another file.
                now = self._volume.lookup(opened.node, name) if number >= _DOTS else entry
                if now is None:
                    continue
                try:
                    attributes = self._nodes.attributes(now)
                except FileNotFoundError:
                    continue  # lost from its tier: the kernel would take the error for the end of the directory
            yield name, attributes, following

    def _listed(self, node: int) -> list[tuple[int, bytes, Entry]]:
        """(offset of the next, name, entry), by offset. The lock is held."""
        above = self._volume.catalog.parent(node)
        found = [(1, b".", Entry("dir", node)), (_DOTS, b"..", Entry("dir", above[0] if above else ROOT))]
        names = sorted((xxhash.xxh3_64_intdigest(name) >> 2, name, entry) for name, entry in self._volume.names(node))
        for offset, name, entry in names:
            found.append((max(offset, found[-1][0] + 1), name, entry))
        return found

    def restore(self, number: int, node: int) -> None:
        """Open a directory again that an earlier daemon had open by this number, and read it anew. Raises OSError."""
        with self._volume.lock:
            if self._nodes.is_directory(node):
                opened = DirectoryHandle(node, self._nodes.object_of(node))
                opened.names = self._listed(node)
            else:
                opened = DirectoryHandle(node, removed_directory(self._volume.primary))
            self._handles.directories[number] = opened

    def releasedir(self, handle: int, *, reuse: bool = True) -> None:
        """Close a directory. Without `reuse` its number waits for `Handles.reuse`."""
        with self._volume.lock:
            del self._handles.directories[handle]
            if reuse:
                self._handles.reuse(handle)

    def fsyncdir(self, handle: int) -> None:
        """Make a directory's names durable, on every tier that has some."""
        node = self._handles.directories[handle].node
        with self._volume.lock:
            if not self._nodes.is_directory(node):
                return  # removed: it has none
        self._volume.sync_dir(node)
