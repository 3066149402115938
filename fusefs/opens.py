"""Handles that the kernel has: each in passthrough or mediated, known to the data path, and kept for the next daemon.

The first handle of an inode decides the mode, which is then that of all until the last is closed (`inodes`). A handle
is in the session's table before the kernel hears of it, and out of it before its backing id is closed: an id that is
closed must never be used again.

Any worker may call. `Inode.lock` is taken here, and `Volume.lock` and the leaves (the inodes' table, what was read, the
number of pinning opens) inside it.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from fusefs import _datapath, abi
from fusefs.connection import Connection
from fusefs.handles import Handle
from fusefs.inodes import Inode, Inodes
from fusefs.namespace import Namespace
from fusefs.read_counts import ReadCounts
from fusefs.session import KeptHandle, Session
from keigo import failpoints
from keigo.lsm.roles import IMMUTABLE, Role
from keigo.tiers.fds import Fd, open_direct

log = logging.getLogger(__name__)

_ROLES: Final = tuple(Role)


class Opens:
    """See the module's docstring."""

    def __init__(
        self,
        namespace: Namespace,
        connection: Connection,
        inodes: Inodes,
        counts: ReadCounts,
        session: Session | None,
    ) -> None:
        self._volume = namespace.volume
        self._files = namespace.files
        self._directories = namespace.directories
        self._handles = namespace.handles
        self._connection = connection
        self._inodes = inodes
        self._counts = counts
        self._session = session
        self._pinning = 0
        self._pinning_lock = threading.Lock()

    @property
    def pinning(self) -> int:
        """How many opens for reading alone have pinned an SST or a blob file."""
        return self._pinning

    # --- files ---

    def open(self, node: int, flags: int, unique: int) -> bytes:
        """Open a file for a request; returns OPEN_OUT."""
        inode = self._inodes.get(node)
        with inode.lock:
            if flags & os.O_ACCMODE == os.O_RDONLY or (inode.passthrough and not self._files.may_bypass(node)):
                inode.await_release()
            handle = self._files.open(node, flags)
            return self._opened(inode, node, handle, flags, unique)

    def created(self, node: int, handle: int, unique: int) -> bytes:
        """A file was created and opened for a request; returns OPEN_OUT."""
        inode = self._inodes.get(node)
        with inode.lock:
            # The creator counts as a writer whatever its flags say.
            return self._opened(inode, node, handle, os.O_RDWR, unique)

    def _opened(self, inode: Inode, node: int, handle: int, flags: int, unique: int) -> bytes:
        """Decide the mode of a new handle; its OPEN_OUT. Where that fails it is closed. The inode's lock is held."""
        try:
            return self._with_mode(inode, node, handle, flags, unique)
        except BaseException:
            self._abandon(inode, handle)
            raise

    def _with_mode(self, inode: Inode, node: int, handle: int, flags: int, unique: int) -> bytes:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        bypass = inode.passthrough > 0 or (writes and not inode.mediated and self._files.may_bypass(node))
        opened = self._handles.files[handle]
        if bypass and inode.backing is None:
            inode.backing = self._connection.backing_open(opened.file.fd)
            bypass = inode.backing is not None
        inode.handles[handle] = (bypass, writes)
        self._serve_reads(opened, bypass=bypass)
        if self._session is not None:
            role = _ROLES.index(opened.role)
            backing = -1 if inode.backing is None else inode.backing
            number = unique & ~abi.RESENT
            self._session.opened(KeptHandle(handle, node, number, False, opened.flags, bypass, backing, role))
            failpoints.hit("open.noted")
        self._count_open(inode, node, bypass=bypass)
        if bypass:
            assert inode.backing is not None  # noqa: S101
            if not writes and self._volume.record(node).role in IMMUTABLE:
                with self._pinning_lock:
                    self._pinning += 1
            return abi.OPEN_OUT.pack(handle, abi.FOPEN_PASSTHROUGH, inode.backing)
        keep = 0 if inode.stale else abi.FOPEN_KEEP_CACHE
        inode.stale = False
        return abi.OPEN_OUT.pack(handle, keep, 0)

    def _abandon(self, inode: Inode, handle: int) -> None:
        """Close a handle that the kernel does not hear of, and that is not counted yet. The inode's lock is held."""
        inode.handles.pop(handle, None)
        if self._session is not None:
            self._session.released(handle)
        self._close_backing(inode)
        if handle < _datapath.MAX_HANDLES:
            _datapath.clear(handle)
        self._files.release(handle)
        inode.changed.notify_all()

    def _close_backing(self, inode: Inode) -> bool:
        """Let go of the backing id that no handle uses any more, if there is one. The inode's lock is held."""
        if inode.passthrough or inode.backing is None:
            return False
        self._connection.backing_close(inode.backing)
        inode.backing = None
        return True

    def _serve_reads(self, opened: Handle, *, bypass: bool) -> None:
        """Let the data path serve a handle."""
        if opened.number < _datapath.MAX_HANDLES:
            direct = -1 if bypass else self._files.direct_of(opened.number)
            with self._volume.lock:  # a migration sets the tier under it, too
                tier = self._volume.open_files.by_id[opened.node].tier
                _datapath.set(opened.number, opened.file.fd, direct, tier.index, opened.node)
                if not bypass and opened.chunks is not None:
                    _datapath.attach(opened.number, opened.chunks)

    def _count_open(self, inode: Inode, node: int, *, bypass: bool) -> None:
        """The inode's lock is held."""
        if bypass:
            inode.passthrough += 1
            inode.stale = True
            self._volume.open_files.pin(node, 1)
        else:
            inode.mediated += 1

    def rehome(self, opened: Handle, tier: int) -> None:
        """A handle's file has migrated. `Volume.lock` is held."""
        if opened.number >= _datapath.MAX_HANDLES:
            return
        _datapath.move(opened.number, tier)
        if opened.chunks is not None:
            _datapath.attach(opened.number, opened.chunks)

    def release(self, node: int, handle: int) -> None:
        """The last descriptor of a handle was closed. Its number waits for `Handles.reuse`."""
        inode = self._inodes.get(node)
        written: Fd | None = None
        with inode.lock:
            if self._session is not None:
                self._session.released(handle)
                failpoints.hit("release.noted")
            bypass, _ = inode.handles.pop(handle)
            inode.duplicated.discard(handle)
            if bypass:
                inode.passthrough -= 1
                self._volume.open_files.pin(node, -1)
                opened = self._handles.files[handle]
                if self._close_backing(inode) and opened.role in IMMUTABLE:
                    written = opened.file
            else:
                inode.mediated -= 1
            self._counts.released(inode, node, handle)
            self._files.release(handle, reuse=False)
            inode.changed.notify_all()
        if written is not None:
            _drop_pages(written)

    # --- directories ---

    def open_directory(self, node: int, unique: int) -> bytes:
        """Open a directory for a request; returns OPEN_OUT."""
        handle = self._directories.opendir(node)
        if self._session is not None:
            self._session.opened(KeptHandle(handle, node, unique & ~abi.RESENT, is_directory=True))
        return abi.OPEN_OUT.pack(handle, 0, 0)

    def release_directory(self, handle: int) -> None:
        """The last descriptor of a directory was closed. Its number waits for `Handles.reuse`."""
        if self._session is not None:
            self._session.released(handle)
        self._directories.releasedir(handle, reuse=False)

    # --- of an earlier daemon ---

    def restore(self, kept: KeptHandle) -> None:
        """Open again what the kernel has open since an earlier daemon. Raises OSError."""
        if kept.is_directory:
            self._directories.restore(kept.number, kept.node)
            return
        writes = kept.flags & os.O_ACCMODE != os.O_RDONLY
        self._files.restore(kept.number, kept.node, kept.flags, _ROLES[kept.role], owed=kept.owed)
        inode = self._inodes.get(kept.node)
        with inode.lock:
            try:
                self._serve_reads(self._handles.files[kept.number], bypass=kept.bypass)
            except BaseException:
                if kept.number < _datapath.MAX_HANDLES:
                    _datapath.clear(kept.number)
                self._files.release(kept.number, reuse=False)  # the kernel has the number still
                raise
            if kept.number < _datapath.MAX_HANDLES:
                _datapath.doubt(kept.number)
            inode.handles[kept.number] = (kept.bypass, writes)
            if kept.bypass:
                inode.backing = kept.backing
            self._count_open(inode, kept.node, bypass=kept.bypass)


def _drop_pages(file: Fd) -> None:
    """Drop what passthrough left in memory of a file that will be read past it: the mount has pages of its own.

    Of 64 MiB it takes 4 ms, while nobody waits: the kernel sends RELEASE without waiting for the answer.
    """
    try:
        if open_direct(file) is not None:
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:  # the file is closed all the same; its pages are in memory twice for a while
        log.warning("pages of a table cannot be dropped: %s", error.strerror)
