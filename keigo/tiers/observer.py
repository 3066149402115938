"""What the databases in a volume are doing: reads their MANIFEST, info log and options from the tiers.

At the CREATE of an SST or blob file it says what the file is for; when a MANIFEST has grown it sets the levels and
column families right in the catalog. A database is a directory with a MANIFEST or an info log of its own. Files are
read from where they were read last: nothing is parsed while the database waits for a write, and what grew between two
looks is read once.

What cannot be read or parsed is logged, once, and the database's files are then known by their roles alone: no error
in here may fail what the database asked for.

Threads: one of our own reads after a MANIFEST was written; whoever creates an SST reads first, too. `_Watched.lock`
guards a database and is taken before `Volume.lock`; `_wake`, a condition on its own lock, may be taken under either.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from keigo.lsm.database import Belief, Database, Truth
from keigo.lsm.manifest import ManifestError
from keigo.lsm.options import OptionsError, parse_options
from keigo.lsm.roles import IMMUTABLE, Role, file_number, role_of
from keigo.lsm.threads import job_of_thread, process_of_thread
from keigo.tiers.catalog import ROOT
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_CHUNK: Final = 1 << 20
_GATHER: Final = 0.05  # seconds in which edits gather: a flush and its compactions write several
_LONGEST: Final = 1 << 24  # bytes of an OPTIONS file or a CURRENT that are worth reading
_BATCH: Final = 256  # levels set at once under the volume's lock: about 2 ms
TELLING: Final = frozenset({Role.MANIFEST, Role.CURRENT, Role.OPTIONS, Role.INFOLOG})
"""Roles of the files whose coming and going is to be told by `named`."""


class _Followed:
    """A file that grows, and how far it was read."""

    __slots__ = ("fd", "file", "position")

    def __init__(self, file: int) -> None:
        self.file = file
        self.position = 0
        self.fd: Fd | None = None


class _Watched:
    """One database. All but `directory` is guarded by `lock`; the last truth must be the last to be written, too, so
    `correcting` is held over that, and taken before `lock`."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self.correcting = threading.Lock()
        self.lock = threading.Lock()
        self.database = Database()
        self.manifest: _Followed | None = None
        self.log: _Followed | None = None
        self.options: int | None = None
        self.process: int | None = None
        self.changed = True
        """Whether names in the directory have changed since they were last looked at."""
        self.truths: list[Truth] = []
        """What is to be set right in the catalog."""
        self.cpu = 0.0
        """Seconds of CPU that following it has taken."""
        self.broken = False
        """Whether we failed, by a fault of our own."""
        self.failed: str | None = None
        """Why its MANIFEST cannot be read."""


class Observer:
    """See the module's docstring."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._watched: dict[int, _Watched] = {}
        self._wake = threading.Condition()
        self._dirty: set[int] = set()
        """Directories."""
        self._manifests: dict[int, int] = {}
        """File id -> directory, of those that were written."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="keigo-observer", daemon=True)

    # --- life ---

    def start(self) -> None:
        """Begin with what is there."""
        with self.volume.lock:
            directories = [ROOT, *self.volume.catalog.directories()]
            found = [at for at in directories if any(role_of(name) is Role.MANIFEST for name in self._names(at))]
        for directory in found:
            self._mark(directory)
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread is gone."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._dirty or self._stopping)
                self._wake.wait_for(lambda: self._stopping, _GATHER)
                if self._stopping:
                    return
                directory = self._dirty.pop()
            watched = self._watch(directory)
            began = time.thread_time()
            self._catch_up(watched)
            self._correct(watched)
            with watched.lock:
                watched.cpu += time.thread_time() - began

    # --- what the namespace tells ---

    def wrote(self, file: int) -> None:
        """A MANIFEST has grown."""
        directory = self._manifests.get(file)
        if directory is None:
            with self.volume.lock:
                record = self.volume.record(file)
            if not record.links:
                return
            directory = self._manifests[file] = record.links[0][0]
        self._mark(directory)

    def removed(self, file: int) -> None:
        """A file is gone: its id will not be used again."""
        self._manifests.pop(file, None)

    def named(self, directory: int, name: bytes, tid: int | None = None) -> None:
        """A file of a telling role was created, by thread `tid`, or came here by rename."""
        role = role_of(name)
        watched = self._watch(directory)
        with watched.lock:
            watched.changed = True
            if role is Role.INFOLOG and tid is not None:
                process = process_of_thread(tid)
                if process != watched.process:
                    watched.process = process
                    watched.database.reopened()
        if role is not Role.INFOLOG:
            self._mark(directory)

    def belief(self, directory: int, name: bytes, tid: int) -> Belief:
        """What a thread creates a file for. Takes `Volume.lock`; the caller does not hold it."""
        job = job_of_thread(tid)
        if role_of(name) not in IMMUTABLE:
            return Belief(job)
        watched = self._watch(directory)
        began = time.thread_time()
        if not self._catch_up(watched):
            return Belief(job)
        with watched.lock:
            if watched.truths:
                self._mark(directory)
            belief = watched.database.believe(name, tid, job)
            watched.cpu += time.thread_time() - began
        log.debug("%s by thread %d: %s", shown(self.volume.path(directory, name)), tid, belief)
        return belief

    def settle(self) -> None:
        """Take in all that the databases have written so far."""
        with self._wake:
            databases = list(self._watched.values())
        for watched in databases:
            self._catch_up(watched)
            self._correct(watched)

    def databases(self) -> dict[int, dict[str, object]]:
        """Directory -> engine, version, what is wrong with its MANIFEST, and the levels' target sizes by family."""
        with self._wake:
            known = list(self._watched.values())
        found: dict[int, dict[str, object]] = {}
        for watched in known:
            with watched.lock:
                database = watched.database
                found[watched.directory] = {
                    "engine": database.engine,
                    "version": database.version,
                    "problem": watched.failed,
                    "targets": database.level_targets(),
                }
        return found

    def facts(self) -> dict[str, object]:
        """For `status`: how many SSTs were believed at CREATE to be for which level, and at which the MANIFEST then had
        them; and the CPU time that all of it took."""
        outcomes: Counter[tuple[int | None, int]] = Counter()
        seconds = 0.0
        with self._wake:
            databases = list(self._watched.values())
        for watched in databases:
            with watched.lock:
                outcomes += watched.database.outcomes
                seconds += watched.cpu
        rows = [{"believed": believed, "actual": actual, "files": n} for (believed, actual), n in outcomes.items()]
        return {"outcomes": sorted(rows, key=str), "cpu_seconds": seconds}

    # --- reading ---

    def _watch(self, directory: int) -> _Watched:
        with self._wake:
            found = self._watched.get(directory)
            if found is None:
                found = self._watched[directory] = _Watched(directory)
            return found

    def _mark(self, directory: int) -> None:
        if directory in self._dirty:
            return  # whoever takes it out reads after that
        with self._wake:
            self._dirty.add(directory)
            self._wake.notify_all()

    def _names(self, directory: int) -> list[bytes]:
        with self.volume.lock:
            return [name for name, entry in self.volume.catalog.names(directory) if entry.kind == "file"]

    def _catch_up(self, watched: _Watched) -> bool:
        """Read what has grown; whether that worked."""
        more = True
        while more and not watched.broken:
            try:
                more = self._read_some(watched)
            except Exception:
                log.exception("%s: its database is not followed any more", shown(self.volume.path(watched.directory)))
                watched.broken = True
        return not watched.broken

    def _read_some(self, watched: _Watched) -> bool:
        """Read a chunk of each file; whether there may be more. Others who wait for the lock get it in between."""
        with watched.lock:
            if watched.changed:
                self._look(watched)
            more = self._follow(watched, watched.manifest, self._read_manifest)
            if not more:
                watched.truths += watched.database.take_truths()
            return self._follow(watched, watched.log, self._read_log) or more

    def _look(self, watched: _Watched) -> None:
        """Find out which files are to be followed. The database's lock is held."""
        watched.changed = False
        names = self._names(watched.directory)
        by_role: dict[Role, list[bytes]] = {}
        for name in names:
            by_role.setdefault(role_of(name), []).append(name)
        self._look_for_log(watched, by_role.get(Role.INFOLOG, ()))
        manifest = self._current(watched, by_role)
        if manifest is not None and (watched.manifest is None or watched.manifest.file != manifest):
            watched.manifest = _Followed(manifest)
            watched.failed = None
            watched.database.new_manifest()
        newest = max(by_role.get(Role.OPTIONS, ()), key=lambda name: file_number(name) or 0, default=None)
        options = None if newest is None else self._file(watched.directory, newest)
        if options is not None and options != watched.options:
            watched.options = options
            self._read_options(watched, options)

    def _look_for_log(self, watched: _Watched, names: Iterable[bytes]) -> None:
        file = self._file(watched.directory, b"LOG") if b"LOG" in names else None
        if watched.log is not None and watched.log.file != file:
            while self._follow(watched, watched.log, self._read_log):
                pass  # its last lines, before it is renamed or removed
        if file is not None and (watched.log is None or watched.log.file != file):
            watched.log = _Followed(file)
            watched.database.new_log()

    def _file(self, directory: int, name: bytes) -> int | None:
        entry = self.volume.lookup(directory, name)
        return entry.id if entry is not None and entry.kind == "file" else None

    def _current(self, watched: _Watched, by_role: dict[Role, list[bytes]]) -> int | None:
        """The MANIFEST in use: what CURRENT names or, in newer Pebble, the newest marker; else the newest there is."""
        manifests = by_role.get(Role.MANIFEST, [])
        named: bytes | None = None
        for name in by_role.get(Role.CURRENT, ()):
            if name == b"CURRENT":
                named = self._contents(self._file(watched.directory, name)).removesuffix(b"\n")
            elif name.startswith(b"marker.manifest."):
                named = max(named or b"", name.split(b".", 3)[3])
        if named not in manifests:
            named = max(manifests, key=lambda name: file_number(name) or 0, default=None)
        return None if named is None else self._file(watched.directory, named)

    def _contents(self, file: int | None) -> bytes:
        """A small file, whole; nothing where it is gone or cannot be read."""
        fd = None if file is None else self._open(file)
        return b"" if fd is None else _read(fd, _LONGEST, 0)

    def _open(self, file: int) -> Fd | None:
        try:
            with self.volume.lock:
                directory, name = self.volume.locate(file)
                return Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: %s", self.volume.show(file), error.strerror)
            return None

    def _follow(self, watched: _Watched, followed: _Followed | None, read: Callable[[_Watched, bytes], None]) -> bool:
        """Read a chunk of what a file has grown by; whether there may be more. The database's lock is held."""
        if followed is None:
            return False
        if followed.fd is None or os.fstat(followed.fd.fd).st_nlink == 0:  # it was moved to another tier, or is gone
            followed.fd = self._open(followed.file)
        if followed.fd is None:
            return False
        data = _read(followed.fd, _CHUNK, followed.position)
        if data:
            before = followed.position
            followed.position += len(data)
            read(watched, data)
            return len(data) == _CHUNK and followed.position > before
        return False

    def _read_manifest(self, watched: _Watched, data: bytes) -> None:
        followed = watched.manifest
        if followed is None or watched.failed is not None:
            return
        try:
            watched.database.read_manifest(data)
        except ManifestError as error:
            watched.failed = str(error)
            log.warning("%s: %s; its levels are not followed", self.volume.show(followed.file), error)
            return
        # What was preallocated is zeros until it is written: the reader says from where it wants to read again.
        followed.position = watched.database.manifest.position

    @staticmethod
    def _read_log(watched: _Watched, data: bytes) -> None:
        watched.database.read_log(data)

    def _read_options(self, watched: _Watched, file: int) -> None:
        try:
            watched.database.options = parse_options(self._contents(file))
        except OptionsError as error:
            log.warning("%s: %s; defaults are assumed", self.volume.show(file), error)

    # --- correcting ---

    def _correct(self, watched: _Watched) -> None:
        """Set levels and column families right in the catalog, as the MANIFEST has them."""
        moved = False
        with watched.correcting:
            with watched.lock:
                truths, watched.truths = watched.truths, []
            for start in range(0, len(truths), _BATCH):
                with self.volume.lock:
                    for truth in truths[start : start + _BATCH]:
                        file = self._find(watched.directory, truth)
                        if file is not None:
                            moved = self.volume.set_level(file, truth.level, truth.family) or moved
        if moved:
            self.volume.file_closed()

    def _find(self, directory: int, truth: Truth) -> int | None:
        suffixes = (b"blob",) if truth.role is Role.BLOB else (b"sst", b"ldb")
        for suffix in suffixes:
            found = self._file(directory, b"%06d.%s" % (truth.number, suffix))
            if found is not None:
                return found
        return None


def _read(fd: Fd, size: int, offset: int) -> bytes:
    try:
        return os.pread(fd.fd, size, offset)
    except OSError as error:
        log.warning("cannot read what a database tells of itself: %s", error.strerror)
        return b""
