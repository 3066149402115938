"""The fast driver: speaks the FUSE protocol to /dev/fuse itself, so that the kernel moves the bytes.

A file opened for writing is handed to the kernel by passthrough: its writes never come here. READ, FSYNC and FLUSH of
all other files are served by `_datapath` without the GIL. What is left (names, opens, attributes) is Python, a few
times per file.

Modes. All concurrent opens of an inode must agree: passthrough with one backing id, or mediated. `Inode.lock` guards an
inode's mode and counts; it is taken before `Volume.lock`, never inside it. A reader that opens a file right after its
writer closed it may be heard before the writer's RELEASE, which the kernel sends without waiting: such an OPEN waits
for the RELEASE, since the reader would be pinned to passthrough, and the file to its tier, until its last close.

Where a keeper holds /dev/fuse, too, a daemon that dies is replaced under the mount (`adopt`): by what `Session` says
the next one opens the same files, knows the kernel's handles and backing ids, and has the kernel send again what was
not answered (`resume`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from fusefs import _datapath, abi
from fusefs.abi import Op
from fusefs.attributes import ROOT_ID, Attributes, Changes
from fusefs.driver import CACHE_TIMEOUT, DriverError
from fusefs.handles import Handle
from fusefs.messages import Request, ns_of, pack_attributes, timeout
from fusefs.namespace import Namespace
from fusefs.resume import NOTED, before, is_done, read_resent
from fusefs.session import Before, KeptHandle, KeptOperation, Session
from fusefs.thread_classes import CLASSES, ThreadClasses
from keigo import failpoints
from keigo.lsm.roles import IMMUTABLE, Role
from keigo.tiers import orphans
from keigo.tiers.adoption import drop_unused_orphans
from keigo.tiers.fds import Fd, open_direct
from keigo.tiers.traffic import Moved

log = logging.getLogger(__name__)

_WAITING: Final = 16  # workers that wait for requests, at most
_MOST: Final = 512  # workers in all: as many requests may hang on a device before other devices are held up
_MAX_WRITE: Final = 1 << 20
_RELEASE_WAIT: Final = 1.0  # seconds to wait for a RELEASE that must be on its way; 2 us to 1 ms on idle processors
_EVER: Final = 1 << 62  # lookups of an inode that is never to be forgotten
ROLES: Final = tuple(Role)
_MS_NOSUID_NODEV: Final = 6
_libc = ctypes.CDLL(None, use_errno=True)


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

    def __init__(self) -> None:
        self.lookups = 0
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


Handler = Callable[["KernelDriver", Request], bytes | None]


class KernelDriver:
    """See the module's docstring."""

    name = "kernel"

    def __init__(self, *, refuse_passthrough: bool = False, keeping: bool = False) -> None:
        """With `keeping` somebody waits for `kept`, and the next daemon can take over."""
        self._refuse = refuse_passthrough
        self._keeping = keeping
        self._session: Session | None = None
        self._adopted = 0
        """Ids below this one the kernel may know from an earlier daemon."""
        self._again: list[bytes] = []
        """Requests that an earlier daemon was asked, too."""
        self._begun: dict[int, tuple[int, KeptOperation]] = {}
        """Number of a request -> its slot and what is known of the try of an earlier daemon."""
        self._answered: dict[int, KeptHandle] = {}
        """Number of a request -> the handle that it got of an earlier daemon."""
        self._device = -1
        self._namespace: Namespace
        self._inodes: dict[int, Inode] = {}
        self._inodes_lock = threading.Lock()
        self._pinning_opens = 0
        self._fresh: dict[int, tuple[int, int]] = {}
        """Node -> foreground (reads, bytes) of released handles that were not told yet."""
        self._fresh_lock = threading.Lock()
        self._ended = threading.Event()
        self._starved = -1
        self._workers: set[threading.Thread] = set()
        self._workers_lock = threading.Lock()

    def facts(self) -> dict[str, int]:
        """How many inodes the kernel remembers, how many of their files are in passthrough, how many opens for reading
        alone have pinned an SST or a blob file, and how often a daemon took over from one that died since the mount.
        """
        with self._inodes_lock:
            return {
                "inodes": len(self._inodes),
                "passthrough": sum(inode.passthrough > 0 for inode in self._inodes.values()),
                "pinning_opens": self._pinning_opens,
                "successions": 0 if self._session is None else self._session.successions,
            }

    def reads(self) -> dict[int, dict[str, tuple[int, int]]]:
        """What the data path counted, of released and of open handles."""
        with self._inodes_lock:
            inodes = list(self._inodes.items())
        found = {}
        for node, inode in inodes:
            with inode.lock:
                counts = inode.reads
                for handle in inode.handles:
                    counts = _add_counts(counts, handle)
            by_class = {job.value: counts[number] for job, number in CLASSES.items() if counts[number][0]}
            if by_class:
                found[node] = by_class
        return found

    def fresh_reads(self) -> dict[int, tuple[int, int]]:
        """What the data path counted, of open handles and of those released meanwhile."""
        with self._fresh_lock:
            found, self._fresh = self._fresh, {}
            for node, reads, size in _datapath.fresh():
                _add_reads(found, node, reads, size)
        return found

    # --- mount ---

    def mount(self, namespace: Namespace, path: str, source: str, *, allow_other: bool) -> None:
        """Mount, and agree with the kernel on passthrough; where it has none nothing stays mounted."""
        self._namespace = namespace
        self._attach(path, source, allow_other=allow_other)
        if self._keeping:
            self._session = Session.new()
            namespace.volume.sheltering = True
            self._prepare_orphans(namespace)
        self._wire(namespace)

    @staticmethod
    def _prepare_orphans(namespace: Namespace) -> None:
        """Make their directories now: a device may be full when they are needed."""
        for tier in namespace.volume.tiers:
            try:
                orphans.directory(tier)
            except OSError as error:
                log.warning("tier %s: removed files that are open would not outlive the daemon: %s", tier.name, error)

    def adopt(self, namespace: Namespace, device: int, session: Session) -> None:
        """Take over a mount whose daemon is dead; requests wait until `serve`. Raises OSError."""
        self._namespace = namespace
        self._device, self._session, self._adopted = device, session, namespace.volume.catalog.next_id
        session.taken_over()
        namespace.volume.sheltering = True
        namespace.io.owe = session.owe
        self._wire(namespace)
        kept = list(session.handles())
        restored = []
        self._again = read_resent(device, _MAX_WRITE + 8192)
        # A number whose RELEASE comes again must not stand for another handle by then.
        closing = [_released(request) for raw in self._again if (request := Request(raw)).op in _RELEASES]
        namespace.handles.restore_numbers([*(handle.number for handle in kept), *closing])
        for handle in kept:
            try:
                self._restore(handle)
                restored.append(handle)
            except OSError as error:
                log.error("an open handle is lost (node %d): %s", handle.node, error)
                session.released(handle.number)
        drop_unused_orphans(namespace.volume)
        begun = {Request(op.request).unique & ~abi.RESENT: (slot, op) for slot, op in session.operations()}
        asked = {Request(raw).unique & ~abi.RESENT for raw in self._again}
        self._begun = {unique: found for unique, found in begun.items() if unique in asked}
        self._answered = {handle.unique: handle for handle in restored if handle.unique in asked}
        session.keep_only({slot for slot, _ in self._begun.values()})

    def kept(self) -> Mapping[str, int]:
        """Descriptors that the next daemon needs to take over; none where it cannot."""
        return {} if self._session is None else {"device": self._device, "session": self._session.fd}

    def _restore(self, kept: KeptHandle) -> None:
        if kept.is_directory:
            self._namespace.directories.restore(kept.number, kept.node)
            return
        writes = kept.flags & os.O_ACCMODE != os.O_RDONLY
        self._namespace.files.restore(kept.number, kept.node, kept.flags, ROLES[kept.role], owed=kept.owed)
        inode = self._inode(kept.node)
        with inode.lock:
            inode.handles[kept.number] = (kept.bypass, writes)
            if kept.bypass:
                inode.backing = kept.backing
            self._serve_reads(kept.number, kept.node, bypass=kept.bypass)
            if kept.number < _datapath.MAX_HANDLES:
                _datapath.doubt(kept.number)
            self._count_open(inode, kept.node, bypass=kept.bypass)

    def _wire(self, namespace: Namespace) -> None:
        namespace.meter.writes_are_timed = False
        namespace.meter.read_elsewhere = lambda tier: Moved(*_datapath.tally(tier))
        namespace.meter.failed_elsewhere = _datapath.failures
        namespace.meter.synced_elsewhere = _datapath.syncs
        namespace.files.rehomed = self._rehome
        if namespace.cache is not None:
            _datapath.set_cache_tier(namespace.cache.tier.index)

    def try_out(self, path: str) -> None:
        """Mount over a directory for a moment. Raises DriverError where this driver cannot be used here."""
        self._attach(path, "keigo-trial", allow_other=False)
        _libc.umount2(os.fsencode(path), 0)
        os.close(self._device)

    def _attach(self, path: str, source: str, *, allow_other: bool) -> None:
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DriverError(f"/dev/fuse: {error.strerror}") from error
        options = f"fd={self._device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
        if allow_other:
            options += ",allow_other"
        raw = (source.encode(), os.fsencode(path), b"fuse.keigo", _MS_NOSUID_NODEV, options.encode())
        if _libc.mount(*raw) != 0:
            code = ctypes.get_errno()
            os.close(self._device)
            raise DriverError(f"{path}: cannot mount: {os.strerror(code)}")
        root = self._inode(ROOT_ID)
        root.lookups = 1
        try:
            self._negotiate()
        except DriverError:
            _libc.umount2(os.fsencode(path), 0)
            os.close(self._device)
            raise

    def _negotiate(self) -> None:
        """Answer INIT, the kernel's first request. Raises DriverError where the kernel has no passthrough."""
        request = Request(os.read(self._device, _MAX_WRITE + 8192))
        if request.op != Op.INIT:
            raise DriverError(f"the kernel began with operation {request.op}")
        major, minor, readahead, flags = abi.INIT_IN.unpack_from(request.body)
        if flags & abi.INIT_EXT and len(request.body) >= abi.INIT_IN.size + 4:
            flags |= struct.unpack_from("=I", request.body, abi.INIT_IN.size)[0] << 32
        if major != abi.MAJOR or not flags & abi.PASSTHROUGH or self._refuse:
            self._reply(request.unique, errno.EPROTO)
            raise DriverError(f"this kernel (FUSE {major}.{minor}) has no passthrough, which came with Linux 6.9")
        wanted = (
            abi.ASYNC_READ
            | abi.ATOMIC_O_TRUNC
            | abi.BIG_WRITES
            | abi.DO_READDIRPLUS
            | abi.READDIRPLUS_AUTO
            | abi.ASYNC_DIO
            | abi.PARALLEL_DIROPS
            | abi.MAX_PAGES
            | abi.CACHE_SYMLINKS
            | abi.HANDLE_KILLPRIV_V2
            | abi.INIT_EXT
            | abi.PASSTHROUGH
            | (abi.HAS_RESEND if self._keeping else 0)
        ) & flags
        self._keeping = bool(wanted & abi.HAS_RESEND)
        self._reply(
            request.unique,
            0,
            abi.INIT_OUT.pack(
                abi.MAJOR,
                min(minor, abi.MINOR),
                readahead,
                wanted & 0xFFFFFFFF,
                64,  # background requests at most: readahead of many files at once
                48,
                _MAX_WRITE,
                1,
                _MAX_WRITE // 4096,
                0,
                wanted >> 32,
                1,  # depth of file systems below: 1 is any but a stacked one
                0,
            ),
        )

    # --- serve ---

    def serve(self, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        """Run the workers until the unmount. Signals are this thread's; the workers have them blocked."""
        caught = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, caught)
        self._starved = os.eventfd(0, os.EFD_CLOEXEC)
        _datapath.set_starved(self._starved)
        classes = ThreadClasses(_datapath.forget)
        _datapath.set_classifier(classes.class_of)
        self._namespace.files.works_at = classes.told
        for _ in range(_WAITING):
            self._add_worker()
        # In threads of their own: any of them may have to wait for a device.
        for raw in self._again:
            threading.Thread(target=self._dispatch, args=(raw,), name="keigo-again", daemon=True).start()

        def asked(number: int, _frame: object) -> None:
            log.info("%s: stopping", signal.Signals(number).name)
            threading.Thread(target=stop, name="keigo-stop", daemon=True).start()

        for number in caught:
            signal.signal(number, asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        ready()
        while not self._ended.is_set():
            os.read(self._starved, 8)
            signal.pthread_sigmask(signal.SIG_BLOCK, caught)
            self._add_worker()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        with self._workers_lock:
            left = list(self._workers)
        for worker in left:
            worker.join()
        classes.close()
        os.close(self._device)
        if self._session is not None:
            self._session.close()

    def _add_worker(self) -> None:
        """Start a worker, unless there are enough. The caller blocks the signals that workers must not take."""
        with self._workers_lock:
            if len(self._workers) >= _MOST:
                return
            worker = threading.Thread(target=self._work, name="keigo-fuse", daemon=True)
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError as error:  # the system's limit of threads
            log.warning("%s", error)
            with self._workers_lock:
                self._workers.discard(worker)

    def _work(self) -> None:
        device = self._device
        try:
            while raw := _datapath.next(device, _WAITING):
                self._dispatch(raw)
        except MemoryError:  # others go on; when they are all busy another one is started
            log.warning("no memory for another worker")
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.error("/dev/fuse: %s", error)
            self._ended.set()
            os.eventfd_write(self._starved, 1)
        with self._workers_lock:
            self._workers.discard(threading.current_thread())

    def _dispatch(self, raw: bytes) -> None:
        request = Request(raw)
        handler = HANDLERS.get(request.op)
        if handler is None:
            if request.op not in _UNANSWERED:
                self._reply(request.unique, errno.ENOSYS)
            return
        slot: int | None = None
        try:
            if self._session is not None and request.op in NOTED:
                slot, then = self._begin(self._session, request, raw)
                answer = self._name(request, then, handler)
            elif request.unique & abi.RESENT:
                answer = self._once_more(request, handler)
            else:
                answer = handler(self, request)
        except OSError as error:
            self._reply(request.unique, error.errno or errno.EIO)
        except struct.error:
            log.error("malformed request: operation %d, %d bytes", request.op, len(raw))
            self._reply(request.unique, errno.EINVAL)
        except MemoryError:
            log.warning("no memory for an operation: %s", Op(request.op).name)
            self._reply(request.unique, errno.ENOMEM)
        except Exception:
            log.exception("operation %s failed", Op(request.op).name)
            self._reply(request.unique, errno.EIO)
        else:
            if answer is not None:
                self._reply(request.unique, 0, answer)
            if request.op in _RELEASES:
                # Not before the answer: until then the next daemon may be asked to release this number again.
                with self._namespace.volume.lock:
                    self._namespace.handles.reuse(_released(request))
        if slot is not None and self._session is not None:
            self._session.end(slot)
        if request.op == Op.FSYNC and self._session is not None and len(request.body) >= abi.FSYNC_IN.size:
            self._session.owe(abi.FSYNC_IN.unpack_from(request.body)[0], False)

    def _begin(self, session: Session, request: Request, raw: bytes) -> tuple[int, Before | None]:
        """Note a change of names that is about to be made: its slot, and what an earlier daemon found if it tried."""
        known = self._begun.pop(request.unique & ~abi.RESENT, None)
        if known is not None:
            return known[0], known[1].before
        return session.begin(raw, before(self._namespace, request)), None

    def _name(self, request: Request, then: Before | None, handler: Handler) -> bytes | None:
        """Change names; the kernel hears of ids only once they are sure to outlive us."""
        if request.unique & abi.RESENT:
            kept = self._answered.get(request.unique & ~abi.RESENT)
            if kept is not None:
                return self._entry(self._namespace.nodes.getattr(kept.node)) + _open_again(kept)
            if then is not None and is_done(self._namespace, request, then):
                return b""
        failpoints.hit("names.begun")
        answer = handler(self, request)
        failpoints.hit("names.changed")
        self._namespace.volume.commit()
        failpoints.hit("names.committed")
        return answer

    def _once_more(self, request: Request, handler: Handler) -> bytes | None:
        """Answer what an earlier daemon was asked, and changes no names."""
        if request.op in (Op.OPEN, Op.OPENDIR):
            kept = self._answered.get(request.unique & ~abi.RESENT)
            if kept is not None:
                return _open_again(kept)
        elif request.op in _RELEASES and not self._namespace.handles.is_open(_released(request)):
            return b""
        return handler(self, request)

    def _reply(self, unique: int, error: int, data: bytes = b"") -> None:
        head = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(data), -error, unique)
        try:
            os.writev(self._device, [head, data] if data else [head])
        except OSError as failed:
            # ENOENT: the caller was interrupted; ENODEV: unmounted meanwhile. Nobody waits for the answer.
            if failed.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("reply to request %d: %s", unique, failed)

    # --- inodes ---

    def _inode(self, node: int) -> Inode:
        with self._inodes_lock:
            return self._known(node)

    def _known(self, node: int) -> Inode:
        """The lock of the inodes is held."""
        found = self._inodes.get(node)
        if found is None:
            found = self._inodes[node] = Inode()
            if node < self._adopted:
                # Of an inode of an earlier daemon's neither is known how often it was looked up, nor what pages it has.
                found.lookups, found.stale = _EVER, True
        return found

    def _forget(self, node: int, count: int) -> None:
        with self._inodes_lock:
            known = self._inodes.get(node)
            if known is None:
                return
            known.lookups -= count
            if known.lookups <= 0 and node != ROOT_ID:
                del self._inodes[node]

    def _entry(self, found: Attributes) -> bytes:
        """struct fuse_entry_out, counted as a lookup."""
        with self._inodes_lock:
            known = self._known(found.id)
            known.lookups += 1
        entry_valid, entry_ns = timeout(CACHE_TIMEOUT)
        attr_valid, attr_ns = self._attributes_valid(known)
        return abi.ENTRY.pack(found.id, 0, entry_valid, attr_valid, entry_ns, attr_ns) + pack_attributes(found)

    @staticmethod
    def _attributes_valid(inode: Inode | None) -> tuple[int, int]:
        # A shared mapping of a passthrough file changes it without the kernel telling the FUSE inode.
        return timeout(0 if inode is not None and inode.passthrough else CACHE_TIMEOUT)

    def _attributes(self, found: Attributes) -> bytes:
        valid, valid_ns = self._attributes_valid(self._inodes.get(found.id))
        return abi.ATTR_OUT.pack(valid, valid_ns, 0) + pack_attributes(found)

    # --- opens ---

    def _open(self, node: int, flags: int, unique: int) -> bytes:
        inode = self._inode(node)
        with inode.lock:
            if flags & os.O_ACCMODE == os.O_RDONLY or (
                inode.passthrough and not self._namespace.files.may_bypass(node)
            ):
                self._await_release(inode)
            handle = self._namespace.files.open(node, flags)
            return self._opened(inode, node, handle, flags, unique)

    @staticmethod
    def _await_release(inode: Inode) -> None:
        """While every writer has been closed and only its RELEASE is missing, wait for it. The lock is held."""

        def closing() -> bool:
            writers = {handle for handle, (_, writes) in inode.handles.items() if writes}
            alone = writers.isdisjoint(inode.duplicated)
            return bool(writers) and alone and all(_datapath.flushed(handle) for handle in writers)

        if inode.passthrough and closing() and not inode.changed.wait_for(lambda: not closing(), _RELEASE_WAIT):
            inode.duplicated = {handle for handle, (_, writes) in inode.handles.items() if writes}

    def _opened(self, inode: Inode, node: int, handle: int, flags: int, unique: int) -> bytes:
        """Decide the mode of a new handle; its OPEN_OUT. Where that fails it is closed. The lock is held."""
        try:
            return self._with_mode(inode, node, handle, flags, unique)
        except BaseException:
            self._abandon(inode, handle)
            raise

    def _with_mode(self, inode: Inode, node: int, handle: int, flags: int, unique: int) -> bytes:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        bypass = inode.passthrough > 0 or (writes and not inode.mediated and self._namespace.files.may_bypass(node))
        file = self._namespace.handles.files[handle].file
        if bypass and inode.backing is None:
            inode.backing = self._backing_open(file.fd)
            bypass = inode.backing is not None
        inode.handles[handle] = (bypass, writes)
        self._serve_reads(handle, node, bypass=bypass)
        if self._session is not None:
            role = ROLES.index(self._namespace.handles.files[handle].role)
            backing = -1 if inode.backing is None else inode.backing
            number = unique & ~abi.RESENT
            how = self._namespace.handles.files[handle].flags
            self._session.opened(KeptHandle(handle, node, number, False, how, bypass, backing, role))
            failpoints.hit("open.noted")
        self._count_open(inode, node, bypass=bypass)
        if bypass:
            assert inode.backing is not None  # noqa: S101
            if not writes and self._namespace.volume.record(node).role in IMMUTABLE:
                with self._inodes_lock:
                    self._pinning_opens += 1
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
        self._namespace.files.release(handle)
        inode.changed.notify_all()

    def _close_backing(self, inode: Inode) -> bool:
        """Let go of the backing id that no handle uses any more, if there is one. The inode's lock is held."""
        if inode.passthrough or inode.backing is None:
            return False
        fcntl.ioctl(self._device, abi.DEV_IOC_BACKING_CLOSE, abi.BACKING_ID.pack(inode.backing))
        inode.backing = None
        return True

    def _serve_reads(self, handle: int, node: int, *, bypass: bool) -> None:
        """Let the data path serve a handle."""
        if handle < _datapath.MAX_HANDLES:
            file = self._namespace.handles.files[handle].file
            direct = -1 if bypass else self._namespace.files.direct_of(handle)
            with self._namespace.volume.lock:  # a migration sets the tier under it, too
                tier = self._namespace.volume.open_files[node].tier
                _datapath.set(handle, file.fd, direct, tier.index, node)
                chunks = None if bypass else self._namespace.handles.files[handle].chunks
                if chunks is not None:
                    _datapath.attach(handle, chunks)

    def _count_open(self, inode: Inode, node: int, *, bypass: bool) -> None:
        """The inode's lock is held."""
        if bypass:
            inode.passthrough += 1
            inode.stale = True
            self._namespace.volume.pin_open(node, 1)
        else:
            inode.mediated += 1

    @staticmethod
    def _rehome(opened: Handle, tier: int) -> None:
        """A handle's file has migrated. `Volume.lock` is held."""
        if opened.number >= _datapath.MAX_HANDLES:
            return
        _datapath.move(opened.number, tier)
        if opened.chunks is not None:
            _datapath.attach(opened.number, opened.chunks)

    def _backing_open(self, fd: int) -> int | None:
        """Register a file with the kernel; None where it refuses (then the file is mediated)."""
        found: int = _libc.ioctl(self._device, ctypes.c_ulong(abi.DEV_IOC_BACKING_OPEN), abi.BACKING_MAP.pack(fd, 0, 0))
        if found >= 0:
            return found
        log.warning("the kernel refuses a backing file: %s", os.strerror(ctypes.get_errno()))
        return None

    def _release(self, node: int, handle: int) -> None:
        inode = self._inode(node)
        written: Fd | None = None
        with inode.lock:
            if self._session is not None:
                self._session.released(handle)  # before the backing id: an id that is closed must never be used again
                failpoints.hit("release.noted")
            bypass, _ = inode.handles.pop(handle)
            inode.duplicated.discard(handle)
            if bypass:
                inode.passthrough -= 1
                self._namespace.volume.pin_open(node, -1)
                if self._close_backing(inode) and self._namespace.handles.files[handle].role in IMMUTABLE:
                    written = self._namespace.handles.files[handle].file
            else:
                inode.mediated -= 1
            inode.reads = _add_counts(inode.reads, handle)
            if handle < _datapath.MAX_HANDLES:
                with self._fresh_lock:
                    reads, size = _datapath.clear(handle)
                    if reads:
                        _add_reads(self._fresh, node, reads, size)
            self._namespace.files.release(handle, reuse=False)
            inode.changed.notify_all()
        if written is not None:
            _drop_pages(written)

    # --- operations ---

    def _do_lookup(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        try:
            found = self._namespace.names.lookup(request.node, name)
        except FileNotFoundError:
            valid, valid_ns = timeout(CACHE_TIMEOUT)
            return abi.ENTRY.pack(0, 0, valid, 0, valid_ns, 0) + bytes(abi.ATTR.size)
        return self._entry(found)

    def _do_forget(self, request: Request) -> None:
        (count,) = abi.FORGET_IN.unpack_from(request.body)
        self._forget(request.node, count)

    def _do_batch_forget(self, request: Request) -> None:
        count, _ = abi.BATCH_FORGET_IN.unpack_from(request.body)
        for number in range(count):
            node, lookups = abi.FORGET_ONE.unpack_from(
                request.body, abi.BATCH_FORGET_IN.size + number * abi.FORGET_ONE.size
            )
            self._forget(node, lookups)

    def _do_getattr(self, request: Request) -> bytes:
        return self._attributes(self._namespace.nodes.getattr(request.node))

    def _do_setattr(self, request: Request) -> bytes:
        (valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            abi.SETATTR_IN.unpack_from(request.body)
        )
        now = None
        if valid & (abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW):
            now = time.time_ns()
        changes = Changes(
            mode=mode if valid & abi.FATTR_MODE else None,
            uid=uid if valid & abi.FATTR_UID else None,
            gid=gid if valid & abi.FATTR_GID else None,
            size=size if valid & abi.FATTR_SIZE else None,
            atime_ns=now
            if valid & abi.FATTR_ATIME_NOW
            else ns_of(atime, atime_ns)
            if valid & abi.FATTR_ATIME
            else None,
            mtime_ns=now
            if valid & abi.FATTR_MTIME_NOW
            else ns_of(mtime, mtime_ns)
            if valid & abi.FATTR_MTIME
            else None,
            kill_privileges=bool(valid & abi.FATTR_KILL_SUIDGID),
        )
        found = self._namespace.nodes.setattr(request.node, changes, handle if valid & abi.FATTR_FH else None)
        return self._attributes(found)

    def _do_readlink(self, request: Request) -> bytes:
        return self._namespace.nodes.readlink(request.node)

    def _do_symlink(self, request: Request) -> bytes:
        name, target = request.names(0, 2)
        return self._entry(self._namespace.names.symlink(request.node, name, target, request.caller))

    def _do_mknod(self, request: Request) -> bytes:
        mode, _, _, _ = abi.MKNOD_IN.unpack_from(request.body)
        (name,) = request.names(abi.MKNOD_IN.size, 1)
        return self._entry(self._namespace.names.mknod(request.node, name, mode, request.caller))

    def _do_mkdir(self, request: Request) -> bytes:
        mode, _ = abi.MKDIR_IN.unpack_from(request.body)
        (name,) = request.names(abi.MKDIR_IN.size, 1)
        return self._entry(self._namespace.names.mkdir(request.node, name, mode, request.caller))

    def _do_unlink(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._namespace.names.unlink(request.node, name)
        return b""

    def _do_rmdir(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._namespace.names.rmdir(request.node, name)
        return b""

    def _do_rename(self, request: Request) -> bytes:
        (parent,) = abi.RENAME_IN.unpack_from(request.body)
        old, new = request.names(abi.RENAME_IN.size, 2)
        self._namespace.names.rename(request.node, old, parent, new, 0)
        return b""

    def _do_rename2(self, request: Request) -> bytes:
        parent, flags, _ = abi.RENAME2_IN.unpack_from(request.body)
        old, new = request.names(abi.RENAME2_IN.size, 2)
        self._namespace.names.rename(request.node, old, parent, new, flags)
        return b""

    def _do_link(self, request: Request) -> bytes:
        (node,) = abi.LINK_IN.unpack_from(request.body)
        (name,) = request.names(abi.LINK_IN.size, 1)
        return self._entry(self._namespace.names.link(node, request.node, name))

    def _do_open(self, request: Request) -> bytes:
        flags, extra = abi.OPEN_IN.unpack_from(request.body)
        answer = self._open(request.node, flags, request.unique)
        if extra & abi.OPEN_KILL_SUIDGID:
            self._namespace.nodes.setattr(request.node, Changes(kill_privileges=True))
        return answer

    def _do_create(self, request: Request) -> bytes:
        flags, mode, _, _ = abi.CREATE_IN.unpack_from(request.body)
        (name,) = request.names(abi.CREATE_IN.size, 1)
        found, handle = self._namespace.files.create(request.node, name, mode, flags, request.caller)
        self._namespace.volume.commit()
        entry = self._entry(found)
        inode = self._inode(found.id)
        with inode.lock:
            # The creator counts as a writer whatever its flags say.
            return entry + self._opened(inode, found.id, handle, os.O_RDWR, request.unique)

    def _do_read(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._namespace.io.read(handle, offset, min(size, _MAX_WRITE))

    def _do_write(self, request: Request) -> bytes:
        handle, offset, size, flags, *_ = abi.WRITE_IN.unpack_from(request.body)
        data = request.body[abi.WRITE_IN.size : abi.WRITE_IN.size + size]
        if len(data) != size:
            raise OSError(errno.EINVAL, "malformed request")
        if flags & abi.WRITE_KILL_SUIDGID:
            self._namespace.nodes.setattr(request.node, Changes(kill_privileges=True))
        return abi.WRITE_OUT.pack(self._namespace.io.write(handle, offset, data), 0)

    def _do_statfs(self, _request: Request) -> bytes:
        space = self._namespace.statfs()
        return abi.STATFS_OUT.pack(
            space.blocks,
            space.free,
            space.free,
            space.inodes,
            space.inodes_free,
            space.block,
            255,
            space.block,
            0,
        )

    def _do_release(self, request: Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        self._release(request.node, handle)
        return b""

    def _do_flush(self, request: Request) -> bytes:
        handle, *_ = abi.FLUSH_IN.unpack_from(request.body)
        self._namespace.io.flush(handle)
        return b""

    def _do_fsync(self, request: Request) -> bytes:
        handle, flags, _ = abi.FSYNC_IN.unpack_from(request.body)
        self._namespace.io.fsync(handle, data_only=bool(flags & abi.FSYNC_DATA_ONLY))
        return b""

    def _do_setxattr(self, request: Request) -> bytes:
        size, flags = abi.SETXATTR_IN.unpack_from(request.body)
        (name,) = request.names(abi.SETXATTR_IN.size, 1)
        start = abi.SETXATTR_IN.size + len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) != size:
            raise OSError(errno.EINVAL, "malformed request")
        self._namespace.nodes.setxattr(request.node, name, value, flags)
        return b""

    @staticmethod
    def _sized(value: bytes, size: int) -> bytes:
        """The answer to a caller with room for `size` bytes; 0 asks how many there are."""
        if size == 0:
            return abi.GETXATTR_OUT.pack(len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return value

    def _do_getxattr(self, request: Request) -> bytes:
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        (name,) = request.names(abi.GETXATTR_IN.size, 1)
        return self._sized(self._namespace.nodes.getxattr(request.node, name), size)

    def _do_listxattr(self, request: Request) -> bytes:
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        return self._sized(b"".join(name + b"\0" for name in self._namespace.nodes.listxattr(request.node)), size)

    def _do_removexattr(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._namespace.nodes.removexattr(request.node, name)
        return b""

    def _do_opendir(self, request: Request) -> bytes:
        handle = self._namespace.directories.opendir(request.node)
        if self._session is not None:
            self._session.opened(KeptHandle(handle, request.node, request.unique & ~abi.RESENT, is_directory=True))
        return abi.OPEN_OUT.pack(handle, 0, 0)

    def _do_readdir(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._directory(handle, offset, size, plus=False)

    def _do_readdirplus(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._directory(handle, offset, size, plus=True)

    def _directory(self, handle: int, offset: int, size: int, *, plus: bool) -> bytes:
        parts: list[bytes] = []
        used = 0
        for name, found, following in self._namespace.directories.readdir(handle, offset):
            head = abi.ENTRY.size + abi.ATTR.size if plus else 0
            length = -(-(head + abi.DIRENT.size + len(name)) // 8) * 8
            if used + length > size:
                break
            entry = b""
            if plus:
                # "." and ".." are not looked up by this; node 0 tells the kernel so.
                known = name not in (b".", b"..")
                entry = self._entry(found) if known else abi.ENTRY.pack(0, 0, 0, 0, 0, 0) + pack_attributes(found)
            entry += abi.DIRENT.pack(found.id, following, len(name), stat.S_IFMT(found.mode) >> 12) + name
            parts.append(entry.ljust(length, b"\0"))
            used += length
        return b"".join(parts)

    def _do_releasedir(self, request: Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        if self._session is not None:
            self._session.released(handle)
        self._namespace.directories.releasedir(handle, reuse=False)
        return b""

    def _do_fsyncdir(self, request: Request) -> bytes:
        handle, *_ = abi.FSYNC_IN.unpack_from(request.body)
        self._namespace.directories.fsyncdir(handle)
        return b""

    def _do_fallocate(self, request: Request) -> bytes:
        handle, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request.body)
        self._namespace.io.fallocate(handle, mode, offset, length)
        return b""

    def _do_lseek(self, request: Request) -> bytes:
        handle, offset, whence, _ = abi.LSEEK_IN.unpack_from(request.body)
        return abi.LSEEK_OUT.pack(self._namespace.io.lseek(handle, offset, whence))

    def _do_copy_file_range(self, request: Request) -> bytes:
        source, offset, _, target, target_offset, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(request.body)
        done = self._namespace.io.copy_file_range(source, offset, target, target_offset, length)
        return abi.WRITE_OUT.pack(done, 0)

    def _do_destroy(self, _request: Request) -> bytes:
        return b""


def _released(request: Request) -> int:
    """The handle that a RELEASE or RELEASEDIR is about."""
    handle: int = abi.RELEASE_IN.unpack_from(request.body)[0]
    return handle


def _open_again(kept: KeptHandle) -> bytes:
    """The answer to an open that has its handle of an earlier daemon."""
    return abi.OPEN_OUT.pack(kept.number, abi.FOPEN_PASSTHROUGH if kept.bypass else 0, max(0, kept.backing))


def _drop_pages(file: Fd) -> None:
    """Drop what passthrough left in memory of a file that will be read past it: the mount has pages of its own.

    Of 64 MiB it takes 4 ms, while nobody waits: the kernel sends RELEASE without waiting for the answer.
    """
    try:
        if open_direct(file) is not None:
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:  # the file is closed all the same; its pages are in memory twice for a while
        log.warning("pages of a table cannot be dropped: %s", error.strerror)


def _add_reads(found: dict[int, tuple[int, int]], node: int, reads: int, size: int) -> None:
    before = found.get(node, (0, 0))
    found[node] = before[0] + reads, before[1] + size


def _add_counts(counts: list[tuple[int, int]], handle: int) -> list[tuple[int, int]]:
    """`counts` and those of a handle's slot, by class."""
    if handle >= _datapath.MAX_HANDLES:
        return counts
    return [(a + c, b + d) for (a, b), (c, d) in zip(counts, _datapath.counts(handle), strict=True)]


_RELEASES: Final = frozenset({Op.RELEASE, Op.RELEASEDIR})
_UNANSWERED: Final = frozenset({Op.INTERRUPT, Op.FORGET, Op.BATCH_FORGET})
HANDLERS: Final[dict[int, Handler]] = {
    op: getattr(KernelDriver, f"_do_{op.name.lower()}") for op in Op if hasattr(KernelDriver, f"_do_{op.name.lower()}")
}
