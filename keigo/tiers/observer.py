"""What the databases in a volume are doing: beliefs for their CREATEs, levels for the catalog.

At the CREATE of an SST or blob file it says what the file is for; when a MANIFEST has grown it sets the levels and
column families right in the catalog. A database is a directory with a MANIFEST or an info log of its own
(`database_files` reads them). Nothing is parsed while the database waits for a write, and what grew between two looks
is read once.

No error in here may fail what the database asked for: what is not understood is logged, once, and the files are then
known by their roles alone.

Threads: one of our own reads after a MANIFEST was written; whoever creates an SST reads first, too. Locks in their
order: `DatabaseFiles.correcting`, `DatabaseFiles.lock`, `Volume.lock`, `_wake` (a condition on its own lock), which
guards the tables here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import Final

from keigo.lsm.database import Belief
from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import IMMUTABLE, Role, role_of
from keigo.lsm.threads import has_thread, job_of_thread, process_of_thread
from keigo.tiers.catalog import ROOT
from keigo.tiers.database_files import DatabaseFiles
from keigo.tiers.directories import shown
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_GATHER: Final = 0.05  # seconds in which edits gather: a flush and its compactions write several
_BATCH: Final = 256  # levels set at once under the volume's lock: about 2 ms
_PATIENCE: Final = 8  # chunks (of each file) that a CREATE reads before it does without: about 0.1 s
_FAULT: Final = "the database in directory %d is not followed any more"
_TABLE: Final = (b"sst", b"ldb")
_BLOB: Final = (b"blob",)
TELLING: Final = frozenset({Role.MANIFEST, Role.CURRENT, Role.OPTIONS, Role.INFOLOG})
"""Roles of the files whose coming, going and changing is to be told here."""


class Observer:
    """See the module's docstring."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._databases: dict[int, DatabaseFiles] = {}
        """By directory."""
        self._wake = threading.Condition()
        self._dirty: set[int] = set()
        """Directories that have news."""
        self._outcomes: Counter[tuple[int | None, int]] = Counter()
        self._cpu = 0.0
        """What there was of databases that are gone."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="keigo-observer", daemon=True)
        volume.hooks.doomed = self.doomed

    # --- life ---

    def start(self) -> None:
        """Begin with what is there."""
        with self.volume.lock:
            for directory in [ROOT, *self.volume.catalog.directories()]:
                if any(role_of(name) is Role.MANIFEST for name, _ in self.volume.catalog.names(directory)):
                    self._dirty.add(directory)
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread is gone and no file of a database is open."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for known in self._all():
            with known.lock:
                known.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._dirty or self._stopping)
                self._wake.wait_for(lambda: self._stopping, _GATHER)
                if self._stopping:
                    return
                directories, self._dirty = self._dirty, set()
                for directory in directories:
                    self._database(directory)  # `settle` knows of it from now on
            for directory in directories:
                self._settle(self._database(directory))

    def settle(self) -> None:
        """Take in all that the databases have written so far."""
        with self._wake:
            for directory in self._dirty:  # found by the mount, and not looked at yet
                self._database(directory)
        for known in self._all():
            self._settle(known)

    def _settle(self, known: DatabaseFiles) -> None:
        began = time.thread_time()
        try:
            self._catch_up(known)
            pending = known.read_options()
            with known.lock:
                if pending is not None:
                    known.set_options(*pending)
                known.cpu += time.thread_time() - began
            self._correct(known)
        except Exception:
            log.exception(_FAULT, known.directory)
            known.broken = True
        with self.volume.lock:
            gone = known.directory != ROOT and self.volume.catalog.parent(known.directory) is None
        if gone:  # it was removed after we had heard of it
            self.removed(known.directory)

    def _retire(self, directory: int) -> None:
        """Forget a database, but for what `facts` sums up. `_wake` is held."""
        known = self._databases.pop(directory, None)
        if known is not None:
            self._outcomes += known.database.outcomes
            self._cpu += known.cpu

    # --- what the namespace tells ---

    def wrote(self, file: int) -> None:
        """A file of a telling role was written."""
        record = self.volume.catalog_file(file)
        for directory, _ in record.links[:1] if record else ():
            if record and record.role is not Role.MANIFEST:
                known = self._database(directory)
                with known.lock:
                    known.contents_changed(file)
            self._mark(directory)

    def truncated(self, file: int, size: int) -> None:
        """A file of a telling role ends at `size` now. The caller may hold `Inode.lock`, but not `Volume.lock`."""
        record = self.volume.catalog_file(file)
        for directory, _ in record.links[:1] if record else ():
            known = self._database(directory)
            with known.lock:
                known.truncated(file, size)
            self._mark(directory)

    def named(self, directory: int, name: bytes, tid: int | None = None) -> None:
        """A name of a telling role was created, by thread `tid`, or came or went otherwise."""
        if role_of(name) is Role.INFOLOG and tid is not None:
            known = self._database(directory)
            with known.lock:
                known.log_created(process_of_thread(tid))
        known = self._database(directory)
        with known.lock:
            known.changed = True
        self._mark(directory)

    def appeared(self, directory: int, name: bytes) -> None:
        """An SST or blob file came here by link or rename: the MANIFEST may have it already."""
        known = self._known(directory)
        if known is None:
            return
        with known.lock:
            truth = known.database.truth_of(name)
            if truth is not None:
                known.truths.append(truth)
        self._mark(directory)

    def removed(self, directory: int) -> None:
        """A directory is gone."""
        with self._wake:
            self._dirty.discard(directory)
            self._retire(directory)

    def belief(self, directory: int, name: bytes, tid: int) -> Belief:
        """What a thread creates a file for. Takes `Volume.lock`; the caller does not hold it."""
        job = job_of_thread(tid)
        if role_of(name) not in IMMUTABLE:
            return Belief(job)
        known = self._database(directory)
        try:
            if not self._catch_up(known, _PATIENCE):
                return Belief(job)
            began = time.thread_time()
            with known.lock:
                opener = known.process is not None and known.process == process_of_thread(tid)
                belief = known.database.believe(name, tid, job, opener=opener, now=time.monotonic())
                known.cpu += time.thread_time() - began
        except Exception:
            log.exception(_FAULT, known.directory)
            known.broken = True
            return Belief(job)
        if known.truths:
            self._mark(directory)
        log.debug("%s by thread %d: %s", shown(name), tid, belief)
        return belief

    # --- what is known ---

    def databases(self) -> dict[int, dict[str, object]]:
        """Directory -> engine, version, what is wrong with its MANIFEST, and the levels' target sizes by family."""
        found: dict[int, dict[str, object]] = {}
        for known in self._all():
            with known.lock:
                database = known.database
                problem = "not followed any more; see the log" if known.broken else known.failed
                found[known.directory] = {
                    "engine": database.engine,
                    "version": database.version,
                    "problem": problem,
                    "targets": {} if known.broken else database.level_targets(),
                    "pressure": asdict(database.pressure(time.monotonic())),
                }
        return found

    def pressures(self) -> dict[int, Pressure]:
        """Directory -> how much writers of its database wait, now. One whose process has ended has none."""
        found = {}
        for known in self._all():
            if not known.broken:
                with known.lock:
                    ended = known.process is not None and not has_thread(known.process)
                    found[known.directory] = CALM if ended else known.database.pressure(time.monotonic())
        return found

    def doomed(self) -> frozenset[int]:
        """Ids of the files that running compactions read: they will be gone soon. Takes `Volume.lock`."""
        found = set()
        for known in self._all():
            if known.broken:
                continue
            with known.lock:
                numbers = known.database.doomed()
            with self.volume.lock:
                found |= {self._file_of(known.directory, number, _TABLE) for number in numbers}
        return frozenset(file for file in found if file is not None)

    def facts(self) -> dict[str, object]:
        """For `status`: how many SSTs were believed at CREATE to be for which level, and at which the MANIFEST then had
        them; and the CPU time that all of it took."""
        with self._wake:
            outcomes, seconds = Counter(self._outcomes), self._cpu
        for known in self._all():
            with known.lock:
                outcomes += known.database.outcomes
                seconds += known.cpu
        rows = [{"believed": believed, "actual": actual, "files": n} for (believed, actual), n in outcomes.items()]
        return {"outcomes": sorted(rows, key=str), "cpu_seconds": seconds}

    # --- tables ---

    def _all(self) -> list[DatabaseFiles]:
        with self._wake:
            return list(self._databases.values())

    def _known(self, directory: int) -> DatabaseFiles | None:
        with self._wake:
            return self._databases.get(directory)

    def _database(self, directory: int) -> DatabaseFiles:
        with self._wake:
            found = self._databases.get(directory)
            if found is None:
                found = self._databases[directory] = DatabaseFiles(self.volume, directory)
            return found

    def _mark(self, directory: int) -> None:
        with self._wake:
            self._dirty.add(directory)
            self._wake.notify_all()

    # --- reading and correcting ---

    def _catch_up(self, known: DatabaseFiles, chunks: int | None = None) -> bool:
        """Read what has grown, at most so many chunks; whether all of it was read. Others get the lock in between."""
        more = True
        while more and chunks != 0 and not known.broken and not self._stopping:
            with known.lock:
                more = known.read_some()
            chunks = None if chunks is None else chunks - 1
        return not more and not known.broken

    def _correct(self, known: DatabaseFiles) -> None:
        """Set levels and column families right in the catalog, as the MANIFEST has them."""
        moved = False
        with known.correcting:
            with known.lock:
                truths, known.truths = known.truths, []
            for start in range(0, len(truths), _BATCH):
                with self.volume.lock:
                    for truth in truths[start : start + _BATCH]:
                        suffixes = _BLOB if truth.role is Role.BLOB else _TABLE
                        file = self._file_of(known.directory, truth.number, suffixes)
                        if file is not None:
                            moved = self.volume.set_level(file, truth.level, truth.family) or moved
        if moved:
            self.volume.hooks.file_closed()

    def _file_of(self, directory: int, number: int, suffixes: tuple[bytes, ...]) -> int | None:
        for suffix in suffixes:
            entry = self.volume.lookup(directory, b"%06d.%s" % (number, suffix))
            if entry is not None and entry.kind == "file":
                return entry.id
        return None
