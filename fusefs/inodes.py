"""What the kernel knows of nodes: how often each was looked up, and in which mode its open handles are.

All concurrent opens of an inode must agree: passthrough with one backing id, or mediated. `Inode.lock` guards an
inode's mode, counts and handles; it is taken before `Volume.lock`, never inside it. The lock of the table guards the
table and the lookups. No other is taken while it is held.
"""

from __future__ import annotations

import threading
from typing import Final

from fusefs import _datapath, abi
from fusefs.attributes import ROOT_ID, Attributes
from fusefs.driver import CACHE_TIMEOUT
from fusefs.messages import pack_attributes, timeout
from fusefs.thread_classes import CLASSES

_EVER: Final = 1 << 62  # lookups of an inode that is never to be forgotten
_RELEASE_WAIT: Final = 1.0  # seconds to wait for a RELEASE that must be on its way; 2 us to 1 ms on idle processors


class Inode:
    """What the kernel knows of a node, and in which mode its open handles are."""

    __slots__ = (
        "backing",
        "changed",
        "duplicated",
        "handles",
        "lock",
        "lookups",
        "mediated",
        "passthrough",
        "reads",
        "stale",
    )

    def __init__(self, lookups: int = 0) -> None:
        self.lookups = lookups
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.backing: int | None = None
        """Backing id while there are passthrough opens."""
        self.passthrough = 0
        self.mediated = 0
        self.handles: dict[int, tuple[bool, bool]] = {}
        """Handle -> (is passthrough, writes)."""
        self.duplicated: set[int] = set()
        """Handles whose RELEASE was waited for in vain: only one of several descriptors had been closed."""
        self.reads = [(0, 0)] * len(CLASSES)
        """(reads, bytes) by class, of handles that were released."""
        self.stale = False
        """Passthrough went past the inode's pages since they were last dropped: the next open must drop them."""

    def await_release(self) -> None:
        """While every writer has been closed and only its RELEASE is missing, wait for it. The lock is held.

        A reader that opens a file right after its writer closed it may be heard before the writer's RELEASE, which the
        kernel sends without waiting. It would be pinned to passthrough, and the file to its tier, until its last close.
        """

        def closing() -> bool:
            writers = {handle for handle, (_, writes) in self.handles.items() if writes}
            alone = writers.isdisjoint(self.duplicated)
            return bool(writers) and alone and all(_datapath.flushed(handle) for handle in writers)

        if self.passthrough and closing() and not self.changed.wait_for(lambda: not closing(), _RELEASE_WAIT):
            self.duplicated = {handle for handle, (_, writes) in self.handles.items() if writes}


class Inodes:
    """See the module's docstring."""

    def __init__(self, adopted: int = 0) -> None:
        """Ids below `adopted` the kernel may know from an earlier daemon."""
        self._adopted = adopted
        self._lock = threading.Lock()
        self._inodes = {ROOT_ID: Inode(_EVER)}

    def get(self, node: int) -> Inode:
        """What is known of a node, from now on if it was not before."""
        with self._lock:
            return self._known(node)

    def _known(self, node: int) -> Inode:
        """The table's lock is held."""
        found = self._inodes.get(node)
        if found is None:
            found = self._inodes[node] = Inode()
            if node < self._adopted:
                # Of an inode of an earlier daemon's neither is known how often it was looked up, nor what pages it has.
                found.lookups, found.stale = _EVER, True
        return found

    def all(self) -> list[tuple[int, Inode]]:
        """Every node that the kernel remembers."""
        with self._lock:
            return list(self._inodes.items())

    def forget(self, node: int, count: int) -> None:
        """The kernel lets go of so many lookups."""
        with self._lock:
            known = self._inodes.get(node)
            if known is None:
                return
            known.lookups -= count
            if known.lookups <= 0:
                del self._inodes[node]

    def entry(self, found: Attributes) -> bytes:
        """struct fuse_entry_out, counted as a lookup."""
        with self._lock:
            known = self._known(found.id)
            known.lookups += 1
        entry_valid, entry_ns = timeout(CACHE_TIMEOUT)
        attr_valid, attr_ns = self._attributes_valid(known)
        return abi.ENTRY.pack(found.id, 0, entry_valid, attr_valid, entry_ns, attr_ns) + pack_attributes(found)

    @staticmethod
    def _attributes_valid(inode: Inode | None) -> tuple[int, int]:
        # A shared mapping of a passthrough file changes it without the kernel telling the FUSE inode.
        return timeout(0 if inode is not None and inode.passthrough else CACHE_TIMEOUT)

    def attributes(self, found: Attributes) -> bytes:
        """struct fuse_attr_out."""
        valid, valid_ns = self._attributes_valid(self._inodes.get(found.id))
        return abi.ATTR_OUT.pack(valid, valid_ns, 0) + pack_attributes(found)
