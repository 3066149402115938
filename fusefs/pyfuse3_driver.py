"""The portable driver: libfuse through pyfuse3, for kernels without passthrough and for unprivileged mounts.

pyfuse3 runs one trio loop; an operation that may block runs in a thread of its own, so that an fsync or a copy
stalls nobody else. Reads of what is in memory are answered in the loop (RWF_NOWAIT): a thread would cost them more
than the read. pyfuse3 3.5 has no fallocate, lseek, copy_file_range and lock operations: the kernel then emulates or
refuses them (locks are the kernel's own).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from fusefs.attributes import Attributes, Caller, Changes
from fusefs.driver import CACHE_TIMEOUT, DriverError
from fusefs.namespace import Namespace
from fusefs.reading_threads import ReadingThreads
from keigo.lsm.roles import IMMUTABLE
from keigo.lsm.threads import Job, process_of_thread

if TYPE_CHECKING:
    from keigo.cache._chunks import Chunks

log = logging.getLogger(__name__)

_THREADS: Final = 96  # as many as pyfuse3 takes requests at once: none waits for another's fsync
_SMALL_WRITE: Final = 1 << 16  # bytes; a WAL append's memcpy takes 10 us, a thread for it 100
P = ParamSpec("P")
R = TypeVar("R")


def _answer(error: BaseException, what: str) -> FUSEError:
    """The errno for an exception in an operation: an OSError's own, EIO for a defect of ours, which is logged."""
    if isinstance(error, OSError) and error.errno:
        return FUSEError(error.errno)
    if isinstance(error, MemoryError):
        log.warning("no memory for an operation: %s", what)
        return FUSEError(errno.ENOMEM)
    log.error("%s failed", what, exc_info=error)
    return FUSEError(errno.EIO)


def _entry(attributes: Attributes) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(attributes.id)
    entry.generation = 0
    entry.entry_timeout = CACHE_TIMEOUT
    entry.attr_timeout = CACHE_TIMEOUT
    entry.st_mode = ModeT(attributes.mode)
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blksize = attributes.blksize
    entry.st_blocks = attributes.blocks
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def _caller(context: RequestContext) -> Caller:
    return Caller(context.uid, context.gid, context.pid)


def _file_info(handle: int) -> FileInfo:
    # Every change of a file goes through the kernel's pages, and a migration changes no byte: they stay valid.
    return FileInfo(fh=FileHandleT(handle), keep_cache=True)


class Operations(pyfuse3.Operations):
    """pyfuse3's callbacks, each a call of the namespace."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._names = namespace.names
        self._nodes = namespace.nodes
        self._files = namespace.files
        self._io = namespace.io
        self._directories = namespace.directories
        self._open_files = namespace.handles.files
        self._statfs = namespace.statfs
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._threads = ReadingThreads()
        self._opened: dict[int, tuple[int, int | None]] = {}
        """Handle of an SST or blob file -> node, process that opened it."""
        self.reads: dict[int, dict[str, tuple[int, int]]] = {}
        """Node -> class of thread -> (reads, bytes)."""
        self._fresh: dict[int, tuple[int, int]] = {}
        self._fresh_lock = threading.Lock()

    def take_fresh(self) -> dict[int, tuple[int, int]]:
        """See `Driver.fresh_reads`."""
        with self._fresh_lock:
            found, self._fresh = self._fresh, {}
        return found

    async def _call(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await trio.to_thread.run_sync(lambda: operation(*args, **kwargs), limiter=self._limiter)
        except Exception as error:  # noqa: BLE001  whatever it is must be answered; defects are logged there
            raise _answer(error, operation.__name__) from None

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name; the kernel may remember that there is none."""
        del ctx
        try:
            return _entry(await self._call(self._names.lookup, parent_inode, name))
        except FUSEError as error:
            if error.errno != errno.ENOENT:
                raise
            absent = EntryAttributes()
            absent.st_ino = InodeT(0)
            absent.entry_timeout = CACHE_TIMEOUT
            return absent

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel lets go of nodes: nothing is kept of them but how often they were read."""
        for inode, _ in inode_list:
            self.reads.pop(inode, None)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes of a node."""
        del ctx
        return _entry(await self._call(self._nodes.getattr, inode))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes."""
        del ctx
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _entry(await self._call(self._nodes.setattr, inode, changes, fh))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Target of a symbolic link."""
        del ctx
        return FileNameT(await self._call(self._nodes.readlink, inode))

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a FIFO, socket or file."""
        del rdev
        return _entry(await self._call(self._names.mknod, parent_inode, name, mode, _caller(ctx)))

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """Make a directory."""
        return _entry(await self._call(self._names.mkdir, parent_inode, name, mode, _caller(ctx)))

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a file's name."""
        del ctx
        await self._call(self._names.unlink, parent_inode, name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a directory."""
        del ctx
        await self._call(self._names.rmdir, parent_inode, name)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        return _entry(await self._call(self._names.symlink, parent_inode, name, target, _caller(ctx)))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename, replace or exchange."""
        del ctx
        await self._call(self._names.rename, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a hard link."""
        del ctx
        return _entry(await self._call(self._names.link, inode, new_parent_inode, new_name))

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create and open a file."""
        attributes, handle = await self._call(self._files.create, parent_inode, name, mode, flags, _caller(ctx))
        return _file_info(handle), _entry(attributes)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        handle = await self._call(self._files.open, inode, flags)
        if self._open_files[handle].role in IMMUTABLE:
            self._opened[handle] = inode, process_of_thread(ctx.pid)
        return _file_info(handle)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read, in the loop when the bytes are in memory."""
        chunks = self._open_files[fh].chunks
        if chunks is not None:  # it waits for one device or the other, as a rule
            found, served = await self._call(self._io.read_cached, fh, off, size)
        else:
            found, served = await self._read_home(fh, off, size), 0
        if fh in self._opened:
            self._count(fh, off, len(found), chunks, served)
        return found

    async def _read_home(self, fh: FileHandleT, off: int, size: int) -> bytes:
        try:
            found = self._io.read_nowait(fh, off, size)
        except Exception as error:  # noqa: BLE001  whatever it is must be answered; defects are logged there
            raise _answer(error, "read") from None
        return await self._call(self._io.read, fh, off, size) if found is None else found

    def _count(self, fh: int, off: int, size: int, chunks: Chunks | None, served: int) -> None:
        """Before the answer: the reader still waits for it."""
        node, process = self._opened[fh]
        job = self._threads.job_of_reader(process, node, off, size)
        counts = self.reads.setdefault(node, {})
        number, total = counts.get(job.value, (0, 0))
        counts[job.value] = number + 1, total + size
        if job is not Job.FOREGROUND:
            return
        if chunks is not None:
            chunks.warm(off, size, served)
        if not served or served < size:
            with self._fresh_lock:
                number, total = self._fresh.get(node, (0, 0))
                self._fresh[node] = number + 1, total + size - served

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write; in the loop when it is small and only goes to memory."""
        if len(buf) > _SMALL_WRITE or self._io.is_synchronous(fh):
            return await self._call(self._io.write, fh, off, buf)
        try:
            return self._io.write(fh, off, buf)
        except Exception as error:  # noqa: BLE001  as in _call
            raise _answer(error, "write") from None

    async def flush(self, fh: FileHandleT) -> None:
        """A descriptor was closed."""
        await self._call(self._io.flush, fh)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        await self._call(self._io.fsync, fh, data_only=datasync)

    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor was closed."""
        self._opened.pop(fh, None)
        await self._call(self._files.release, fh)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        del ctx
        return FileHandleT(await self._call(self._directories.opendir, inode))

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Names from an offset on, as many as fit."""
        entries = await self._call(self._directories.readdir, fh, start_id)
        while True:
            batch = await self._call(_take, entries, 64)
            for name, attributes, following in batch:
                if not pyfuse3.readdir_reply(token, FileNameT(name), _entry(attributes), following):
                    return
            if not batch:
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        await self._call(self._directories.releasedir, fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make names durable."""
        del datasync
        await self._call(self._directories.fsyncdir, fh)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Room of the volume."""
        del ctx
        space = await self._call(self._statfs)
        data = StatvfsData()
        data.f_bsize = data.f_frsize = space.block
        data.f_blocks = space.blocks
        data.f_bfree = data.f_bavail = space.free
        data.f_files = space.inodes
        data.f_ffree = data.f_favail = space.inodes_free
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Value of an extended attribute."""
        del ctx
        if not name.startswith(b"user."):
            # The kernel asks for security.capability before every write: no thread for an answer that is known.
            raise FUSEError(errno.ENODATA)
        return await self._call(self._nodes.getxattr, inode, name)

    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute."""
        del ctx
        await self._call(self._nodes.setxattr, inode, name, value)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Names of extended attributes."""
        del ctx
        return [XAttrNameT(name) for name in await self._call(self._nodes.listxattr, inode)]

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        del ctx
        await self._call(self._nodes.removexattr, inode, name)


def _take(entries: object, count: int) -> list[tuple[bytes, Attributes, int]]:
    from itertools import islice

    return list(islice(cast("Sequence[tuple[bytes, Attributes, int]]", entries), count))


class Pyfuse3Driver:
    """See the module's docstring. libfuse keeps global state: one mount per process."""

    name = "pyfuse3"

    def facts(self) -> dict[str, int]:
        """Nothing is kept per inode."""
        return {}

    def kept(self) -> dict[str, int]:
        """Nothing: libfuse cannot go on with a session that it has not begun."""
        return {}

    def reads(self) -> dict[int, dict[str, tuple[int, int]]]:
        """What was counted of SSTs and blob files."""
        return {node: dict(counts) for node, counts in list(self._operations.reads.items())}

    def fresh_reads(self) -> dict[int, tuple[int, int]]:
        """What was counted of SSTs and blob files."""
        return self._operations.take_fresh()

    def mount(self, namespace: Namespace, path: str, source: str, *, allow_other: bool) -> None:
        """Mount through libfuse."""
        options = {"default_permissions", f"fsname={source}", "subtype=keigo"}
        if allow_other:
            options.add("allow_other")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise DriverError("/dev/fuse: not there or not permitted")
        try:
            self._operations = Operations(namespace)
            pyfuse3.init(self._operations, path, options)
        except RuntimeError as error:
            raise DriverError(f"{path}: libfuse cannot mount: {error}") from error

    def serve(self, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        """Run the trio loop until the unmount."""
        try:
            trio.run(self._serve, ready, stop)
        finally:
            pyfuse3.close(unmount=False)

    async def _serve(self, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, stop)
            ready()
            await pyfuse3.main(max_tasks=_THREADS)
            nursery.cancel_scope.cancel()


async def _watch_signals(
    stop: Callable[[], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            log.info("%s: stopping", signal.Signals(number).name)
            threading.Thread(target=stop, name="keigo-stop", daemon=True).start()
