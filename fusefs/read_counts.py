"""What the data path counted of reads, by node: it counts per handle, and forgets a handle that is closed.

`ReadCounts._lock` guards what was not told yet; it is taken inside `Inode.lock`, and no other inside it.
"""

from __future__ import annotations

import threading

from fusefs import _datapath
from fusefs.inodes import Inode, Inodes
from fusefs.thread_classes import CLASSES


class ReadCounts:
    """See the module's docstring."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._lock = threading.Lock()
        self._fresh: dict[int, tuple[int, int]] = {}
        """Node -> foreground (reads, bytes) of released handles that were not told yet."""

    def by_class(self) -> dict[int, dict[str, tuple[int, int]]]:
        """See `Driver.reads`: of released and of open handles."""
        found = {}
        for node, inode in self._inodes.all():
            with inode.lock:
                counts = inode.reads
                for handle in inode.handles:
                    counts = _add_counts(counts, handle)
            by_class = {job.value: counts[number] for job, number in CLASSES.items() if counts[number][0]}
            if by_class:
                found[node] = by_class
        return found

    def fresh(self) -> dict[int, tuple[int, int]]:
        """See `Driver.fresh_reads`: of open handles and of those released meanwhile."""
        with self._lock:
            found, self._fresh = self._fresh, {}
            for node, reads, size in _datapath.fresh():
                _add_reads(found, node, reads, size)
        return found

    def released(self, inode: Inode, node: int, handle: int) -> None:
        """Keep what was read by a handle, which the data path serves no more. The inode's lock is held."""
        inode.reads = _add_counts(inode.reads, handle)
        if handle < _datapath.MAX_HANDLES:
            with self._lock:
                reads, size = _datapath.clear(handle)
                if reads:
                    _add_reads(self._fresh, node, reads, size)


def _add_reads(found: dict[int, tuple[int, int]], node: int, reads: int, size: int) -> None:
    before = found.get(node, (0, 0))
    found[node] = before[0] + reads, before[1] + size


def _add_counts(counts: list[tuple[int, int]], handle: int) -> list[tuple[int, int]]:
    """`counts` and those of a handle's slot, by class."""
    if handle >= _datapath.MAX_HANDLES:
        return counts
    return [(a + c, b + d) for (a, b), (c, d) in zip(counts, _datapath.counts(handle), strict=True)]
