"""The file system, for any driver: what all operations on names, nodes and handles mean, without FUSE types.

    names        looked up and changed            by (node id of the directory, name)
    nodes        attributes                       by node id
    files        opened, created, closed          by node id, then by a handle's number
    io           read, written, synced            by number
    directories  opened, listed, synced, closed   by node id, then by number
    handles      the table of what is open

Every method of theirs may be called from any thread, but for those of `handles`, and raises OSError with the errno to
answer. They may block on a device; `io.read_nowait` never does. `Volume.lock` guards the table of handles, too; it is
not held while bytes move.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fusefs.attributes import Space
from fusefs.directory_handles import DirectoryHandles
from fusefs.file_handles import FileHandles
from fusefs.file_io import FileIO
from fusefs.handles import Handles
from fusefs.meter import Meter
from fusefs.names import Names
from fusefs.nodes import Nodes
from keigo.tiers.observer import Observer
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from fusefs.io_priority import IoPriority
    from keigo.cache.cache import Cache


class Namespace:
    """See the module's docstring."""

    def __init__(self, volume: Volume, cache: Cache | None = None, io_priority: IoPriority | None = None) -> None:
        """`cache` has copies of what is read of slow tiers; `io_priority` lowers threads of the background."""
        self.volume = volume
        self.cache = cache
        self.io_priority = io_priority
        self.observer = Observer(volume)
        self.handles = Handles()
        self.meter = Meter(volume, self.handles.by_node)
        self.nodes = Nodes(volume, self.handles, self.observer)
        self.files = FileHandles(volume, self.handles, self.nodes, self.observer, cache, io_priority)
        self.io = FileIO(volume, self.handles, self.observer, cache)
        self.directories = DirectoryHandles(volume, self.handles, self.nodes)
        self.names = Names(volume, self.nodes, self.files, self.observer)

    def close(self) -> None:
        """Release what the kernel did not: after an abort no release comes."""
        for number in list(self.handles.files):
            self.files.release(number)
        self.handles.directories.clear()

    def statfs(self) -> Space:
        """Size and room of the whole volume. Tiers that share a device share its free space."""
        block = 4096
        devices: dict[int, os.statvfs_result] = {}
        capacity: dict[int, int] = {}
        free: dict[int, int] = {}
        for tier in self.volume.tiers:
            device = os.fstat(tier.root.fd).st_dev
            devices[device] = status = os.fstatvfs(tier.root.fd)
            capacity[device] = capacity.get(device, 0) + tier.capacity
            capacity[device] = min(capacity[device], status.f_blocks * status.f_frsize)
            free[device] = min(free.get(device, 0) + tier.free(), status.f_bavail * status.f_frsize)
        return Space(
            block,
            sum(capacity.values()) // block,
            sum(free.values()) // block,
            sum(status.f_files for status in devices.values()),
            sum(status.f_favail for status in devices.values()),
        )
