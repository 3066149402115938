"""Files are opened, created and closed; their handles follow them from tier to tier.

Any thread may call. `Volume.lock` is taken here, and is held where a docstring says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fusefs.attributes import Attributes, Caller, attributes_of
from fusefs.errnos import check_name, of_node
from fusefs.handles import Handle, Handles
from fusefs.nodes import Nodes
from keigo.lsm.database import Belief
from keigo.lsm.options import Engine
from keigo.lsm.roles import IMMUTABLE, Role, role_of
from keigo.lsm.threads import Job, job_of_thread
from keigo.tiers.creation import create
from keigo.tiers.descriptors import TOO_MANY, leave_some
from keigo.tiers.fds import Fd, magic_link, open_direct
from keigo.tiers.observer import TELLING, Observer
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from fusefs.io_priority import IoPriority
    from keigo.cache.cache import Cache

OBSERVED: Final = frozenset({Role.INFOLOG, Role.MANIFEST, Role.CURRENT, Role.OPTIONS, Role.IDENTITY, Role.LOCK})


class FileHandles:
    """See the module's docstring."""

    def __init__(
        self,
        volume: Volume,
        handles: Handles,
        nodes: Nodes,
        observer: Observer,
        cache: Cache | None,
        io_priority: IoPriority | None,
    ) -> None:
        self._volume = volume
        self._handles = handles
        self._nodes = nodes
        self._observer = observer
        self._cache = cache
        self._io_priority = io_priority
        self.works_at: Callable[[int, Job | None], None] = lambda _thread, _job: None
        """Tells a driver that a thread works at a job that its name does not tell; None: at none any more."""
        self.rehomed: Callable[[Handle, int], None] = lambda _handle, _tier: None
        """Tells a driver the new tier of a handle, which may have got its chunks, too."""
        volume.hooks.reopen = self._reopen

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, int]:
        """Create a file and open it; returns its attributes and a handle."""
        check_name(name)
        belief = self._observer.belief(parent, name, caller.tid)
        self._tell_work(name, caller.tid, belief)
        with self._volume.lock:
            leave_some(self._volume.primary.root.fd)
            existing = self._volume.lookup(parent, name)
            if existing is not None and existing.kind == "file" and not flags & os.O_EXCL:
                handle = self._open(existing.id, flags)
                attributes = self._nodes.getattr(existing.id)
            else:
                attributes, handle = self._create(parent, name, mode, flags, caller, belief)
        self._truncated_by(handle, flags)
        if role_of(name) in TELLING:
            self._observer.named(parent, name, caller.tid)
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
        elif role in IMMUTABLE and self._io_priority is not None:
            self._io_priority.seen(tid, job_of_thread(tid))  # by its name: who opens a database makes tables, too

    def _work_told(self, tid: int, job: Job | None) -> None:
        self.works_at(tid, job)
        if self._io_priority is not None:
            self._io_priority.told(tid, job)

    def _create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller, belief: Belief
    ) -> tuple[Attributes, int]:
        """A new file, opened. `Volume.lock` is held."""
        node, file = create(self._volume, parent, name, mode, caller.uid, caller.gid, flags, caller.tid, belief)
        # The volume counts the creator as a writer, whatever its flags say: so does the handle.
        handle = self._add(node, file, os.O_RDWR | flags & ~os.O_ACCMODE)
        return attributes_of(node, os.fstat(file.fd), 1), handle

    @of_node
    def open(self, node: int, flags: int) -> int:
        """Open a file; returns a handle."""
        with self._volume.lock:
            handle = self._open(node, flags)
        self._truncated_by(handle, flags)
        return handle

    def _truncated_by(self, handle: int, flags: int) -> None:
        """Tell of a truncation by open. `Volume.lock` is not held."""
        opened = self._handles.files[handle]
        if flags & os.O_TRUNC and opened.role in TELLING:
            self._observer.truncated(opened.node, 0)

    def _open(self, node: int, flags: int) -> int:
        with self._volume.lock:
            leave_some(self._volume.primary.root.fd)  # before the open, which may cut the file
            if node in self._volume.orphans.records:
                known = self._handles.any_of(node).file
                file = Fd(os.open(magic_link(known.fd), flags & (os.O_ACCMODE | os.O_TRUNC) | os.O_CLOEXEC))
                self._volume.open_files.opened(node, write=flags & os.O_ACCMODE != os.O_RDONLY)
            else:
                file = self._volume.open_file(node, flags)
            return self._add(node, file, flags)

    def _add(self, node: int, file: Fd, flags: int) -> int:
        handle = Handle(self._handles.new_number(), node, file, flags, self._volume.record(node).role)
        self._put(handle)
        return handle.number

    def _put(self, handle: Handle) -> None:
        self._handles.put(handle)
        self._find_chunks(handle)

    def restore(self, number: int, node: int, flags: int, role: Role, *, owed: bool = False) -> None:
        """Open a file again that an earlier daemon had open by this number. Raises OSError."""
        how = flags & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
        with self._volume.lock:
            handle = Handle(number, node, self._volume.open_again(node, how), how, role)
            handle.doubtful, handle.owed = True, owed
            self._put(handle)

    def _find_chunks(self, handle: Handle) -> None:
        """Give a handle that only reads its file's chunks, if it may have some at its home. The lock is held."""
        if self._cache is None or handle.chunks is not None or handle.writes or handle.role not in IMMUTABLE:
            return
        handle.chunks = self._cache.chunks_for(handle.node, os.fstat(handle.file.fd).st_size)

    def _reopen(self, node: int) -> None:
        """Move all handles of a node to its new home, or none. The lock is held."""
        handles = list(self._handles.by_node.get(node, ()))
        if not handles:
            return
        directory, name = self._volume.locate(node)
        home = self._volume.open_files.by_id[node].tier.index
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
            self.rehomed(handle, home)

    @of_node
    def may_bypass(self, node: int) -> bool:
        """Whether the kernel may write a file without us.

        Not where what an LSM writes tells of its levels, and not a set-user-id file: the kernel writes the backing
        file with our rights, which keep the bits that a write by another must clear.
        """
        with self._volume.lock:
            if self._volume.record(node).role in OBSERVED:
                return False
            return not self._nodes.getattr(node).mode & (stat.S_ISUID | stat.S_ISGID)

    def direct_of(self, handle: int) -> int:
        """A descriptor of an immutable file for reads past the page cache; -1 where there is none.

        The kernel keeps the mount's own pages of it: with the backing file's there would be two copies in memory.
        """
        opened = self._handles.files[handle]
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
            with self._volume.lock:
                if os.path.sameopenfile(direct.fd, opened.file.fd):  # else a migration came between
                    opened.direct = direct
        return opened.direct.fd

    def release(self, handle: int, *, reuse: bool = True) -> None:
        """The last descriptor of a handle was closed. Without `reuse` its number waits for `Handles.reuse`."""
        with self._volume.lock:
            opened = self._handles.drop(handle)
            if reuse:
                self._handles.reuse(handle)
        # The descriptor is closed on return, without the lock: for an unlinked file that frees its blocks.
        self._volume.open_files.close(opened.node, opened.file, write=opened.writes)
