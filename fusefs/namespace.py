"""The file system: operations on node ids and handles, for any driver.

A node id is the id of a directory or file in the volume's catalog; hard links share one. The kernel's lookup counts
need not be tracked: nothing here is kept per node, only per open handle.

Every method may be called from any thread and raises OSError with the errno to answer. Methods may block on a
device; `read_nowait` never does. `Volume.lock` guards the tables here too; it is not held while bytes move.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import xxhash

from fusefs.handles import DirectoryHandle, Handle
from fusefs.meter import Meter
from keigo.lsm.database import Belief
from keigo.lsm.options import Engine
from keigo.lsm.roles import IMMUTABLE, Role, role_of
from keigo.lsm.threads import Job, job_of_thread
from keigo.tiers.catalog import ROOT, Entry
from keigo.tiers.creation import create
from keigo.tiers.descriptors import TOO_MANY, is_among_last, leave_some
from keigo.tiers.directories import fail
from keigo.tiers.fds import Fd, fallocate, magic_link, open_direct, open_regular, set_times
from keigo.tiers.observer import TELLING, Observer
from keigo.tiers.orphans import removed_directory
from keigo.tiers.rename import rename
from keigo.tiers.tier import Tier
from keigo.tiers.traffic import Traffic
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from fusefs.io_priority import IoPriority
    from keigo.cache._chunks import Chunks
    from keigo.cache.cache import Cache

NAME_MAX: Final = 255
ROOT_ID: Final = ROOT
OBSERVED: Final = frozenset({Role.INFOLOG, Role.MANIFEST, Role.CURRENT, Role.OPTIONS, Role.IDENTITY, Role.LOCK})
_FOLLOWED: Final = TELLING - {Role.INFOLOG}  # an info log is read when an SST is created, which is soon enough
_DOTS: Final = 2  # "." and "..", the first names of every directory


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ids for ownership of what is created, thread id for context."""

    uid: int
    gid: int
    tid: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows of a node; times in nanoseconds since the epoch."""

    id: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Attributes to set; None leaves one as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_privileges: bool = False
    """Clear set-user-id, and set-group-id of what a group may execute, as a write by another user does."""


@dataclass(frozen=True, slots=True)
class Space:
    """statfs of the volume: blocks of `block` bytes, and inodes."""

    block: int
    blocks: int
    free: int
    inodes: int
    inodes_free: int


P = ParamSpec("P")
R = TypeVar("R")


def _of_node(operation: Callable[P, R]) -> Callable[P, R]:
    """An operation on a node, which may be gone since it was looked up: ESTALE, not ENOENT.

    The kernel then looks the name up again. So whoever opens a name while another file is renamed over it gets the one
    or the other, as from any file system, and never hears that there is none.
    """

    @functools.wraps(operation)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return operation(*args, **kwargs)
        except FileNotFoundError as error:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), error.filename) from error

    return tried


class Namespace:
    """See the module's docstring."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.observer = Observer(volume)
        self._numbers = itertools.count(1)
        self._free_numbers: list[int] = []
        self._handles: dict[int, Handle] = {}
        self._by_node: dict[int, set[Handle]] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self.meter = Meter(volume, self._by_node)
        self.works_at: Callable[[int, Job | None], None] = lambda _thread, _job: None
        """Tells a driver that a thread works at a job that its name does not tell; None: at none any more."""
        self.rehomed: Callable[[int, int], None] = lambda _handle, _tier: None
        """Tells a driver the new tier of a handle, which may have got its chunks, too."""
        self.owe: Callable[[int, bool], None] = lambda _handle, _owed: None
        """Tells a driver whether the next fsync of a handle is to fail, also if another daemon does it."""
        self.cache: Cache | None = None
        """Has copies of what is read of slow tiers; None: nobody has."""
        self.io_priority: IoPriority | None = None
        """Lowers the I/O priority of threads that work in the background; None: all keep theirs."""
        volume.hooks.reopen = self._reopen

    # --- nodes ---

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Attributes of a name in a directory."""
        _check_name(name)
        if self.volume.reserved(parent, name):
            raise fail(errno.ENOENT, name)
        with self.volume.lock:
            entry = self.volume.lookup(parent, name)
            if entry is None:
                raise fail(errno.ENOENT, name)
            return self._attributes(entry)

    @_of_node
    def getattr(self, node: int) -> Attributes:
        """Attributes of a node."""
        with self.volume.lock:
            return self._attributes(self._entry(node))

    def _entry(self, node: int) -> Entry:
        if self._is_directory(node) or self._removed_directory(node) is not None:
            return Entry("dir", node)
        return Entry("special" if self.volume.record(node).special else "file", node)

    def _is_directory(self, node: int) -> bool:
        return node == ROOT or self.volume.catalog.parent(node) is not None

    def _removed_directory(self, node: int) -> Fd | None:
        return next((opened.file for opened in self._directories.values() if opened.node == node), None)

    def _attributes(self, entry: Entry) -> Attributes:
        node = entry.id
        if entry.kind == "dir":
            if not self._is_directory(node):
                removed = self._object(node)
                return _attributes(node, os.fstat(removed.fd), 0)
            status = self.volume.stat_dir(node)
            mtime, ctime = self.volume.dir_times(node)
            attributes = _attributes(node, status, status.st_nlink - self.volume.hidden_dirs(node))
            return replace(attributes, mtime_ns=mtime, ctime_ns=ctime)
        if node in self.volume.orphans.records:
            file = self._any_handle(node).file
            status = os.fstat(file.fd)
            return _attributes(node, status, status.st_nlink - (node in self.volume.orphans.sheltered))
        status = self.volume.stat_file(node)
        return _attributes(node, status, status.st_nlink)

    def _any_handle(self, node: int) -> Handle:
        found = next(iter(self._by_node.get(node, ())), None)
        if found is None:
            raise fail(errno.ENOENT)
        return found

    def _object(self, node: int) -> Fd:
        """A descriptor of a node, at least O_PATH. The lock is held."""
        entry = self._entry(node)
        if entry.kind == "dir":
            if self._is_directory(node):
                return self.volume.directories.at(node, self.volume.primary)
            removed = self._removed_directory(node)
            if removed is None:
                raise fail(errno.ENOENT)
            return removed
        if node in self.volume.orphans.records:
            return self._any_handle(node).file
        directory, name = self.volume.locate(node)
        return Fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))

    @_of_node
    def setattr(self, node: int, changes: Changes, handle: int | None = None) -> Attributes:
        """Change attributes and return all of them."""
        with self.volume.lock:
            self.volume.touch(node)
            if changes.size is not None:
                self._truncate(node, changes.size, handle)
            at = self._object(node)
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
            tells = changes.size is not None and self.volume.record(node).role in TELLING
        if tells:
            self.observer.truncated(node, attributes.size)
        return attributes

    def _stamped(self, node: int, at: Fd) -> list[Fd]:
        """The objects that carry a node's times: a directory's mirrors all do. The lock is held."""
        if not self._is_directory(node):
            return [at]
        return [mirror for _, mirror in self.volume.directories.mirrors(node)]

    @staticmethod
    def _kill_privileges(at: Fd) -> None:
        mode = stat.S_IMODE(os.fstat(at.fd).st_mode)
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            os.chmod(magic_link(at.fd), kept)

    def _truncate(self, node: int, size: int, handle: int | None) -> None:
        opened = None if handle is None else self._handles.get(handle)
        if opened is None or not opened.writes:
            opened = next((known for known in self._by_node.get(node, ()) if known.writes), None)
        if opened is not None:
            file = opened.file
        else:
            directory, name = self.volume.locate(node)
            file = open_regular(name, os.O_WRONLY, directory.fd)
        self._count_writes(node, file)
        os.ftruncate(file.fd, size)
        self.volume.open_files.resized(node, os.fstat(file.fd))

    def _count_writes(self, node: int, file: Fd) -> None:
        """Before a file's size changes otherwise than by writes: count those that the kernel has done past us."""
        with self.volume.lock:
            if node in self.volume.open_files.bypassed:
                self.volume.open_files.measure(node, os.fstat(file.fd))

    @_of_node
    def readlink(self, node: int) -> bytes:
        """Target of a symbolic link."""
        with self.volume.lock:
            directory, name = self.volume.locate(node)
            return os.readlink(name, dir_fd=directory.fd)

    # --- names ---

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a directory."""
        _check_name(name)
        with self.volume.lock:
            return self.getattr(self.volume.mkdir(parent, name, mode, caller.uid, caller.gid))

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        with self.volume.lock:
            entry = self.volume.lookup(parent, name)
            self.volume.rmdir(parent, name)
        if entry is not None:
            self.observer.removed(entry.id)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of a file."""
        self.volume.unlink(parent, name)
        if role_of(name) in TELLING:
            self.observer.named(parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        _check_name(name)
        with self.volume.lock:
            made = self.volume.make_special(
                parent, name, lambda fd: os.symlink(target, name, dir_fd=fd), caller.uid, caller.gid
            )
            return self.getattr(made)

    def mknod(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a FIFO, a socket or an empty regular file; EPERM for devices."""
        _check_name(name)
        if stat.S_ISREG(mode):
            attributes, handle = self.create(parent, name, mode, os.O_WRONLY | os.O_EXCL, caller)
            self.release(handle)
            return attributes
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise fail(errno.EPERM, name)
        with self.volume.lock:
            made = self.volume.make_special(
                parent, name, lambda fd: os.mknod(name, mode, dir_fd=fd), caller.uid, caller.gid
            )
            return self.getattr(made)

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int) -> None:
        """Rename; `flags` as in renameat2(2)."""
        _check_name(new)
        # The descriptors are let go of here, without the lock: that frees a replaced file's blocks.
        rename(self.volume, (old_parent, old), (new_parent, new), flags)
        for parent, name in ((old_parent, old), (new_parent, new)):
            self._renamed(parent, name)

    def _renamed(self, parent: int, name: bytes) -> None:
        """Tell of a name that stands for something else now. No lock is held."""
        role = role_of(name)
        if role in TELLING:
            self.observer.named(parent, name)
        elif role in IMMUTABLE:
            self.observer.appeared(parent, name)

    def link(self, node: int, parent: int, name: bytes) -> Attributes:
        """Give a file another name."""
        _check_name(name)
        with self.volume.lock:
            self.volume.link(node, parent, name)
            attributes = self.getattr(node)
        self._renamed(parent, name)
        return attributes

    # --- files ---

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, int]:
        """Create a file and open it; returns its attributes and a handle."""
        _check_name(name)
        belief = self.observer.belief(parent, name, caller.tid)
        self._tell_work(name, caller.tid, belief)
        with self.volume.lock:
            leave_some(self.volume.primary.root.fd)
            existing = self.volume.lookup(parent, name)
            if existing is not None and existing.kind == "file" and not flags & os.O_EXCL:
                handle = self._open(existing.id, flags)
                attributes = self.getattr(existing.id)
            else:
                attributes, handle = self._create(parent, name, mode, flags, caller, belief)
        self._truncated_by(handle, flags)
        if role_of(name) in TELLING:
            self.observer.named(parent, name, caller.tid)
        return attributes, handle

    def _tell_work(self, name: bytes, tid: int, belief: Belief) -> None:
        """LevelDB's background thread has no name: it is the one that makes tables. But so does, once, the thread that
        opens the database and finds a log to recover; that one makes a new log then, as no background thread does.
        """
        role = role_of(name)
        if role is Role.SST and belief.engine == Engine.LEVELDB and belief.job in (Job.FLUSH, Job.COMPACTION):
            self._work_told(tid, Job.COMPACTION)
        elif role is Role.WAL and belief.job is Job.FOREGROUND:
            self._work_told(tid, None)
        elif role in IMMUTABLE and self.io_priority is not None:
            self.io_priority.seen(tid, job_of_thread(tid))  # by its name: who opens a database makes tables, too

    def _work_told(self, tid: int, job: Job | None) -> None:
        self.works_at(tid, job)
        if self.io_priority is not None:
            self.io_priority.told(tid, job)

    def _create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller, belief: Belief
    ) -> tuple[Attributes, int]:
        """A new file, opened. `Volume.lock` is held."""
        node, file = create(self.volume, parent, name, mode, caller.uid, caller.gid, flags, caller.tid, belief)
        # The volume counts the creator as a writer, whatever its flags say: so does the handle.
        handle = self._add(node, file, os.O_RDWR | flags & ~os.O_ACCMODE)
        return _attributes(node, os.fstat(file.fd), 1), handle

    @_of_node
    def open(self, node: int, flags: int) -> int:
        """Open a file; returns a handle."""
        with self.volume.lock:
            handle = self._open(node, flags)
        self._truncated_by(handle, flags)
        return handle

    def _truncated_by(self, handle: int, flags: int) -> None:
        """Tell of a truncation by open. `Volume.lock` is not held."""
        opened = self._handles[handle]
        if flags & os.O_TRUNC and opened.role in TELLING:
            self.observer.truncated(opened.node, 0)

    def _open(self, node: int, flags: int) -> int:
        with self.volume.lock:
            leave_some(self.volume.primary.root.fd)  # before the open, which may cut the file
            if node in self.volume.orphans.records:
                known = self._any_handle(node).file
                file = Fd(os.open(magic_link(known.fd), flags & (os.O_ACCMODE | os.O_TRUNC) | os.O_CLOEXEC))
                self.volume.open_files.opened(node, write=flags & os.O_ACCMODE != os.O_RDONLY)
            else:
                file = self.volume.open_file(node, flags)
            return self._add(node, file, flags)

    def _add(self, node: int, file: Fd, flags: int) -> int:
        # Numbers are used again: the data path has a table of them.
        handle = Handle(self._new_number(), node, file, flags, self.volume.record(node).role)
        self._put(handle)
        return handle.number

    def _new_number(self) -> int:
        return self._free_numbers.pop() if self._free_numbers else next(self._numbers)

    def _put(self, handle: Handle) -> None:
        self._handles[handle.number] = handle
        self._by_node.setdefault(handle.node, set()).add(handle)
        self._find_chunks(handle)

    def is_open(self, number: int) -> bool:
        """Whether a file or directory is open by this number."""
        return number in self._handles or number in self._directories

    def reuse(self, number: int) -> None:
        """Nobody will ever again mean the handle that had this number (see `release`)."""
        with self.volume.lock:
            self._free_numbers.append(number)

    def restore_numbers(self, used: Collection[int]) -> None:
        """Hand out none of these: an earlier daemon has."""
        highest = max(used, default=0)
        self._numbers = itertools.count(highest + 1)
        self._free_numbers = sorted(set(range(1, highest + 1)) - set(used), reverse=True)

    def restore(self, number: int, node: int, flags: int, role: Role, *, owed: bool = False) -> None:
        """Open a file again that an earlier daemon had open by this number. Raises OSError."""
        how = flags & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
        with self.volume.lock:
            handle = Handle(number, node, self.volume.open_again(node, how), how, role)
            handle.doubtful, handle.owed = True, owed
            self._put(handle)

    def restore_directory(self, number: int, node: int) -> None:
        """Likewise a directory; its names are read anew. Raises OSError."""
        with self.volume.lock:
            if self._is_directory(node):
                opened = DirectoryHandle(node, self._object(node))
                opened.names = self._listed(node)
            else:
                opened = DirectoryHandle(node, removed_directory(self.volume.primary))
            self._directories[number] = opened

    def _find_chunks(self, handle: Handle) -> None:
        """Give a handle that only reads its file's chunks, if it may have some at its home. The lock is held."""
        if self.cache is None or handle.chunks is not None or handle.writes or handle.role not in IMMUTABLE:
            return
        handle.chunks = self.cache.chunks_for(handle.node, os.fstat(handle.file.fd).st_size)

    def _reopen(self, node: int) -> None:
        """Move all handles of a node to its new home, or none. The lock is held."""
        handles = list(self._by_node.get(node, ()))
        if not handles:
            return
        directory, name = self.volume.locate(node)
        home = self.volume.open_files.by_id[node].tier.index
        fresh = [
            Fd(os.open(name, h.flags & os.O_ACCMODE | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
            for h in handles
        ]
        direct = [
            None if h.direct is None else open_direct(file) or file for h, file in zip(handles, fresh, strict=True)
        ]
        for handle, file, other in zip(handles, fresh, direct, strict=True):
            os.dup2(file.fd, handle.file.fd, inheritable=False)
            if handle.direct is not None and other is not None:
                os.dup2(other.fd, handle.direct.fd, inheritable=False)
            self._find_chunks(handle)
            self.rehomed(handle.number, home)

    @_of_node
    def may_bypass(self, node: int) -> bool:
        """Whether the kernel may write a file without us.

        Not where what an LSM writes tells of its levels, and not a set-user-id file: the kernel writes the backing
        file with our rights, which keep the bits that a write by another must clear.
        """
        with self.volume.lock:
            if self.volume.record(node).role in OBSERVED:
                return False
            return not self.getattr(node).mode & (stat.S_ISUID | stat.S_ISGID)

    def file_of(self, handle: int) -> Fd:
        """The descriptor of a handle."""
        return self._handles[handle].file

    def flags_of(self, handle: int) -> int:
        """How a handle was opened, as in open(2); its creator's can read and write."""
        return self._handles[handle].flags

    def role_of(self, handle: int) -> Role:
        """What the file of a handle was when it was opened."""
        return self._handles[handle].role

    def chunks_of(self, handle: int) -> Chunks | None:
        """Which parts of a handle's file are cached."""
        return self._handles[handle].chunks

    def direct_of(self, handle: int) -> int:
        """A descriptor of an immutable file for reads past the page cache; -1 where there is none.

        The kernel keeps the mount's own pages of it: with the backing file's there would be two copies in memory.
        """
        opened = self._handles[handle]
        if opened.writes or opened.role not in IMMUTABLE:
            return -1
        while opened.direct is None:
            try:
                leave_some(opened.file.fd)
                direct = open_direct(opened.file)  # without the lock: a device may hang
            except OSError as error:
                if error.errno not in TOO_MANY:
                    raise
                return -1
            if direct is None:
                return -1
            with self.volume.lock:
                if os.path.sameopenfile(direct.fd, opened.file.fd):  # else a migration came between
                    opened.direct = direct
        return opened.direct.fd

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        opened = self._handles[handle]
        if opened.chunks is not None:
            return self.read_cached(handle, offset, size)[0]
        flow = self._traffic_of(opened).reads
        data = b""
        began = flow.begin()
        try:
            data = os.pread(opened.file.fd, size, offset)
            while data and len(data) < size:
                more = os.pread(opened.file.fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            flow.end(began, len(data))
        return data

    def read_cached(self, handle: int, offset: int, size: int) -> tuple[bytes, int]:
        """Like `read`, of a handle with chunks; also how many of the bytes were cached."""
        opened = self._handles[handle]
        assert opened.chunks is not None  # noqa: S101
        assert self.cache is not None  # noqa: S101
        home, cached = self._traffic_of(opened).reads, self.cache.tier.traffic.reads
        data, served = b"", 0
        began = home.begin()
        try:
            data, served = opened.chunks.read(opened.file.fd, size, offset)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            if served == len(data) and served:
                home.end_elsewhere(cached, began, served)
            else:
                home.end(began, len(data) - served)
                cached.add(served)
        return data, served

    def read_nowait(self, handle: int, offset: int, size: int) -> bytes | None:
        """Like `read`, but None where it would have to wait for a device."""
        opened = self._handles[handle]
        buffer = bytearray(size)
        flow = self._traffic_of(opened).reads
        moved = 0
        began = flow.begin()
        try:
            done = os.preadv(opened.file.fd, [buffer], offset, os.RWF_NOWAIT)
            # Short: the end of the file, or the end of what is in memory.
            if done < size and offset + done < os.fstat(opened.file.fd).st_size:
                return None
            moved = done
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        finally:
            flow.end(began, moved)
        return bytes(buffer if done == size else buffer[:done])

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write; returns how many bytes. ENOSPC when the volume or the device is full."""
        opened = self._handles[handle]
        file = opened.file
        self.volume.open_files.grow(opened.node, offset, offset + len(data))
        view = memoryview(data)
        done = 0
        flow = self._traffic_of(opened).writes
        began = flow.begin()
        try:
            while done < len(data):
                done += os.pwrite(file.fd, view[done:], offset + done)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            if done == 0:
                raise
            # What was written counts; the error comes again with the rest.
        finally:
            flow.end(began, done)
        if opened.role in _FOLLOWED:
            self.observer.wrote(opened.node)
        return done

    def is_synchronous(self, handle: int) -> bool:
        """Whether writes through a handle wait for the device."""
        return bool(self._handles[handle].flags & (os.O_SYNC | os.O_DSYNC))

    def fsync(self, handle: int, *, data_only: bool) -> None:
        """Make a file durable."""
        opened = self._handles[handle]
        if opened.doubtful:
            self._check_written_back(opened)
        syncs = self._traffic_of(opened).syncs
        began = syncs.begin()
        try:
            if data_only:
                os.fdatasync(opened.file.fd)
            else:
                os.fsync(opened.file.fd)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            syncs.end(began, 0)

    def _check_written_back(self, opened: Handle) -> None:
        """Before the first sync of a handle of an earlier daemon's, which may have died over an error of another.

        Linux tells such an error once per open file; the tier's root has been open all the time. Who asks takes the
        error from all others, which are owed it until they have had it. Raises OSError, once.
        """
        tier = self._tier_of(opened)
        try:
            if opened.owed:
                raise fail(errno.EIO)
            tier.check_written_back()
        except OSError as error:
            tier.health.failed(error)
            with self.volume.lock:
                for handle in self._handles.values():
                    if handle.doubtful and self._tier_of(handle) is tier:
                        self.owe(handle.number, True)
            raise
        finally:
            opened.doubtful = False

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """Allocate, or with mode flags punch, zero or keep the size, as fallocate(2)."""
        opened = self._handles[handle]
        self._count_writes(opened.node, opened.file)
        fallocate(opened.file.fd, mode, offset, length)
        self.volume.open_files.resized(opened.node, os.fstat(opened.file.fd))

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """Find data or a hole (SEEK_DATA, SEEK_HOLE) from an offset on."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.EINVAL)
        return os.lseek(self._handles[handle].file.fd, offset, whence)

    def copy_file_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int:
        """Copy between two open files; returns how many bytes, at most what one call of the kernel's copies."""
        opened, into = self._handles[source], self._handles[target]
        self.volume.open_files.grow(into.node, target_offset, target_offset + length)
        try:
            done = os.copy_file_range(opened.file.fd, into.file.fd, length, offset, target_offset)
            self._traffic_of(opened).reads.add(done, 1)
            self._traffic_of(into).writes.add(done, 1)
            return done
        finally:
            self.volume.open_files.resized(into.node, os.fstat(into.file.fd))
            if into.role in _FOLLOWED:
                self.observer.wrote(into.node)

    def flush(self, handle: int) -> None:
        """One descriptor of the application's was closed: report what closing ours would (NFS and its like)."""
        file = self._handles[handle].file
        os.close(os.dup(file.fd))

    def release(self, handle: int, *, reuse: bool = True) -> None:
        """The last descriptor of a handle was closed. Without `reuse` its number waits for a call of that name."""
        with self.volume.lock:
            opened = self._handles.pop(handle)
            handles = self._by_node[opened.node]
            handles.discard(opened)
            if not handles:
                del self._by_node[opened.node]
            if reuse:
                self._free_numbers.append(handle)
        # The descriptor is closed on return, without the lock: for an unlinked file that frees its blocks.
        self.volume.open_files.close(opened.node, opened.file, write=opened.writes)

    # --- directories ---

    @_of_node
    def opendir(self, node: int) -> int:
        """Open a directory; returns a handle."""
        with self.volume.lock:
            if self._entry(node).kind != "dir":
                raise fail(errno.ENOTDIR)
            opened = DirectoryHandle(node, self._object(node))
            if is_among_last(opened.file.fd):  # most directories are open already
                leave_some(opened.file.fd)
            number = self._new_number()
            self._directories[number] = opened
            return number

    def readdir(self, handle: int, offset: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """(name, attributes, offset of the next) from `offset` on; 0 reads the directory anew."""
        opened = self._directories[handle]
        if offset == 0:
            with self.volume.lock:
                if not self._is_directory(opened.node):
                    return  # removed: not even the dots are left
                opened.names = self._listed(opened.node)
        for number in range(bisect_right(opened.names, offset, key=itemgetter(0)), len(opened.names)):
            following, name, entry = opened.names[number]
            with self.volume.lock:
                # The kernel believes what it is told here for as long as a lookup, so it must be true now: since the
                # directory was read the name may have gone, or stand for another file.
                now = self.volume.lookup(opened.node, name) if number >= _DOTS else entry
                if now is None:
                    continue
                try:
                    attributes = self._attributes(now)
                except FileNotFoundError:
                    continue  # lost from its tier: the kernel would take the error for the end of the directory
            yield name, attributes, following

    def _listed(self, node: int) -> list[tuple[int, bytes, Entry]]:
        above = self.volume.catalog.parent(node)
        found = [(1, b".", Entry("dir", node)), (_DOTS, b"..", Entry("dir", above[0] if above else ROOT))]
        names = sorted((xxhash.xxh3_64_intdigest(name) >> 2, name, entry) for name, entry in self.volume.names(node))
        for offset, name, entry in names:
            found.append((max(offset, found[-1][0] + 1), name, entry))
        return found

    def releasedir(self, handle: int, *, reuse: bool = True) -> None:
        """Close a directory. `reuse` as with `release`."""
        with self.volume.lock:
            del self._directories[handle]
            if reuse:
                self._free_numbers.append(handle)

    def fsyncdir(self, handle: int) -> None:
        """Make a directory's names durable, on every tier that has some."""
        node = self._directories[handle].node
        with self.volume.lock:
            if not self._is_directory(node):
                return  # removed: it has none
        self.volume.sync_dir(node)

    # --- the volume ---

    def _tier_of(self, opened: Handle) -> Tier:
        """The tier that holds an open file."""
        return self.volume.open_files.by_id[opened.node].tier

    def _traffic_of(self, opened: Handle) -> Traffic:
        return self._tier_of(opened).traffic

    def close(self) -> None:
        """Release what the kernel did not: after an abort no release comes."""
        for number in list(self._handles):
            self.release(number)
        self._directories.clear()

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

    # --- extended attributes ---

    @_of_node
    def getxattr(self, node: int, name: bytes) -> bytes:
        """Value of a user.* attribute; ENODATA for all others, which cannot be set."""
        if not name.startswith(b"user."):
            raise fail(errno.ENODATA, name)
        with self.volume.lock:
            at = self._object(node)
            return os.getxattr(magic_link(at.fd), name)

    @_of_node
    def setxattr(self, node: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a user.* attribute; EOPNOTSUPP for all others."""
        if not name.startswith(b"user."):
            raise fail(errno.EOPNOTSUPP, name)
        with self.volume.lock:
            self.volume.touch(node)
            at = self._object(node)
            os.setxattr(magic_link(at.fd), name, value, flags)

    @_of_node
    def listxattr(self, node: int) -> list[bytes]:
        """Names of the user.* attributes."""
        with self.volume.lock:
            at = self._object(node)
            names = os.listxattr(magic_link(at.fd))
        return [os.fsencode(name) for name in names if name.startswith("user.")]

    @_of_node
    def removexattr(self, node: int, name: bytes) -> None:
        """Remove a user.* attribute."""
        if not name.startswith(b"user."):
            raise fail(errno.EOPNOTSUPP, name)
        with self.volume.lock:
            self.volume.touch(node)
            at = self._object(node)
            os.removexattr(magic_link(at.fd), name)


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise fail(errno.ENAMETOOLONG, name)


def _attributes(node: int, status: os.stat_result, nlink: int) -> Attributes:
    return Attributes(
        node,
        status.st_mode,
        nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blksize,
        status.st_blocks,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
