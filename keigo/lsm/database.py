"""One database: what its MANIFEST, its info log, its options and the names of its threads tell, taken together.

The MANIFEST is the truth, but comes after the job. The info log tells of a job while it runs, but not always before
its first file is created, and whoever writes into it can lie. So a *belief*, what a file is created for, is drawn from
the first of these that has an answer:

    the log has announced this very file         flushes, by the file's number
    the thread's name says flush                 level 0
    the log names the job of this thread         its output level
    the thread made a file of the same job       as that one
    the options and the MANIFEST                 `prediction`: the picker's own arithmetic

A job's thread is known by the kernel's id where the log prints it; where it prints an address instead, a file that
both have named ties the two together, for as long as the process lives. A job is over when the log says so or when the
MANIFEST has one of its files, whichever is first: the last lines of a job can be late.

Bytes in, beliefs and truths out; no I/O, no lock. The caller feeds what the files have grown by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from keigo.lsm import infolog, prediction
from keigo.lsm.infolog import (
    FileCreated,
    InfoLogReader,
    JobFinished,
    JobStarted,
    Kind,
    TableStarted,
    WritersWait,
)
from keigo.lsm.manifest import ManifestReader, TableChange
from keigo.lsm.options import LEVELDB, CompactionStyle, FamilyOptions, Options
from keigo.lsm.prediction import Prediction, TableState
from keigo.lsm.pressure import CALM, Pressure, Waits, pressure_of, worst
from keigo.lsm.roles import Role, file_number, role_of
from keigo.lsm.threads import Job

_K = TypeVar("_K")
_V = TypeVar("_V")
_IDLE: Final = (
    60.0  # seconds; one that writes nothing for so long has no writers that wait, however full its level 0 is
)
_MOST: Final = 4096  # threads, announcements and files remembered; far more than any database has under way


@dataclass(frozen=True, slots=True)
class Belief:
    """What a file is created for, as far as can be told at that moment."""

    job: Job
    level: int | None = None
    family: str | None = None
    engine: str | None = None
    reason: str = ""
    """Where the level is from."""
    pressure: Pressure = CALM
    """Of the database, at that moment."""
    inputs: frozenset[int] = frozenset()
    """Numbers of the tables that the job reads; none where that is not known."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the MANIFEST has a live file. `level` is None for a blob file."""

    number: int
    role: Role
    family: str
    level: int | None


@dataclass(slots=True)
class _Running:
    """A job that the log says is running."""

    kind: Kind
    thread: int
    """As the log prints it."""
    families: set[str] = field(default_factory=set)
    output_level: int | None = None
    inputs: tuple[tuple[int, int], ...] = ()
    input_tables: frozenset[int] = frozenset()
    tids: set[int] = field(default_factory=set)
    """Kernel threads that are known to work for it."""


@dataclass(slots=True)
class _Made:
    """What a thread's current job is believed to be, where the log does not tell; and the files it made."""

    belief: Belief
    files: set[int] = field(default_factory=set)


class Database:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.engine: str | None = None
        """As far as known: rocksdb, speedb, leveldb or pebble."""
        self.version: str | None = None
        self.options: Options | None = None
        self.manifest = ManifestReader()
        self.outcomes: Counter[tuple[int | None, int]] = Counter()
        """(level believed at create, level at which the MANIFEST then had it) -> number of SSTs."""
        self._log = InfoLogReader()
        self._tables: dict[int, dict[int, TableState]] = {}
        """Family id -> live tables."""
        self._counts: dict[int, Counter[int]] = {}
        """Family id -> number of live tables at each level."""
        self._names: dict[int, str] = {}
        self._known: dict[int, Truth] = {}
        """File number -> what the caller has been told."""
        self._forget_process()

    def _forget_process(self) -> None:
        self._waits = Waits()
        self._heard = 0.0
        """When it was last seen to write anything."""
        self._running: dict[int | None, _Running] = {}
        self._announced: dict[int, tuple[str | None, Kind]] = {}
        self._creators: dict[int, tuple[int, int | None]] = {}
        """Number of a file not yet live -> kernel thread that created it, level that was believed."""
        self._tid_of: dict[int, int] = {}
        """Thread as the log prints it -> kernel's id."""
        self._pool: set[int] = set()
        """Kernel threads that have begun compactions of their own, as those of subcompactions never do."""
        self._made: dict[int, _Made] = {}
        """Kernel thread -> its job as it was predicted."""
        self._queue: dict[int, None] = {}
        """Families that need a compaction, the one that waits longest first: RocksDB takes them in this order
        (db/db_impl/db_impl_compaction_flush.cc, SchedulePendingCompaction)."""
        self._in_order = False
        """LevelDB: whether the last flush went past what was there already, so that keys seem to come in order."""

    # --- what the files tell ---

    def reopened(self) -> None:
        """Another process has the database now, or the same has opened it anew: no job runs any more."""
        self._forget_process()

    def new_log(self) -> None:
        """What comes next is the beginning of another info log."""
        self._log = InfoLogReader()

    def read_log(self, data: bytes, now: float = 0.0) -> None:
        """Take in what the info log has grown by. `now` is seconds by any clock that does not jump."""
        self._waits.grew(now)
        self._heard = now
        for event in self._log.feed(data):
            match event:
                case infolog.Header():
                    self.engine, self.version = event.engine, event.version
                case JobStarted():
                    self._started(event)
                case TableStarted():
                    _remember(self._announced, event.number, (event.family, Kind.FLUSH))
                case FileCreated():
                    self._created(event)
                case JobFinished():
                    ended = self._running.pop(event.job, None)
                    self._waits.ended(() if ended is None else ended.families, event.time)
                case WritersWait():
                    self._waits.said(event.family, event.time, waiting=event.waiting)
                case _:
                    pass  # what is live, and where, is the MANIFEST's to say

    def _started(self, event: JobStarted) -> None:
        known = self._running.get(event.job)
        if known is None or event.job is None or known.kind is not event.kind:
            _remember(self._running, event.job, known := _Running(event.kind, event.thread))
        if event.family is not None:
            known.families.add(event.family)
            if event.kind is Kind.COMPACTION:
                self._taken_up(event.family, event.thread)
        known.output_level = event.output_level if event.output_level is not None else known.output_level
        known.inputs = event.inputs or known.inputs
        known.input_tables = frozenset(event.input_tables) or known.input_tables
        tid = self._kernel_thread(event.thread)
        if tid is not None:
            known.tids.add(tid)
            if event.kind is Kind.COMPACTION:
                self._pool.add(tid)

    def _taken_up(self, name: str, thread: int) -> None:
        """A compaction of a family has begun: it goes to the end of the queue, if it has not been sent there when the
        job was foreseen."""
        tid = self._kernel_thread(thread)
        made = None if tid is None else self._made.get(tid)
        if made is not None and made.belief.family == name:
            return
        for number in [number for number in self._queue if self._names.get(number) == name]:
            del self._queue[number]
            self._enqueue(number)

    def _enqueue(self, number: int) -> None:
        """Put a family at the end of the queue, or nowhere, by its need."""
        family = self.manifest.families.get(number)
        if family is None or self._predict(number) is None:
            self._queue.pop(number, None)
        elif number not in self._queue:
            self._queue[number] = None

    def _created(self, event: FileCreated) -> None:
        if event.job is None and event.kind is Kind.FLUSH:
            self._waits.ended((), event.time)  # LevelDB tells no other end of a flush
        if event.number not in self._creators:
            return
        tid, _ = self._creators[event.number]
        if infolog.kernel_thread(event.thread) is None:
            _remember(self._tid_of, event.thread, tid)
        job = self._running.get(event.job)
        if job is not None:
            for other in self._running.values():  # it may have been taken for another's
                other.tids.discard(tid)
            job.tids.add(tid)
            if job.thread == event.thread and job.kind is Kind.COMPACTION:
                self._pool.add(tid)

    def _kernel_thread(self, thread: int) -> int | None:
        return infolog.kernel_thread(thread) or self._tid_of.get(thread)

    def new_manifest(self) -> None:
        """What comes next is the beginning of another MANIFEST."""
        self.manifest = ManifestReader()
        self._tables = {}
        self._counts = {}
        self._known = {}

    def read_manifest(self, data: bytes, now: float = 0.0) -> None:
        """Take in what the MANIFEST has grown by, at `now` by the clock of `read_log`. Raises ManifestError."""
        self._heard = now
        try:
            self.manifest.feed(data)
        finally:
            if self.engine is None and self.manifest.engine is not None:
                self.engine = str(self.manifest.engine)

    def take_truths(self) -> list[Truth]:
        """Live files that are new or not where they were when last asked."""
        truths: list[Truth] = []
        changed: dict[int, None] = {}
        for number, family in self.manifest.families.items():
            self._names[number] = family.name
        for change in self.manifest.take_changes():
            name = self._names.get(change.family, "")
            changed[change.family] = None
            if not isinstance(change, TableChange):
                if change.live:
                    truths.append(Truth(change.number, Role.BLOB, name, None))
                continue
            tables = self._tables.setdefault(change.family, {})
            counts = self._counts.setdefault(change.family, Counter())
            before = tables.get(change.number)
            if before is not None:
                counts[before.level] -= 1
            if change.after is None:
                tables.pop(change.number, None)
                self._known.pop(change.file, None)
                continue
            table = self.manifest.families[change.family].tables[change.number]
            tables[change.number] = TableState(
                table.number,
                table.level,
                table.size,
                table.smallest,
                table.largest,
                largest_seqno=table.largest_seqno,
            )
            counts[table.level] += 1
            self._is_live(change.file, change.after if change.first is None else change.first)
            truths.append(Truth(change.file, Role.SST, name, change.after))
        if len(self.manifest.families) > 1:  # of one alone there is no order to know
            for number in changed:
                self._enqueue(number)
        fresh = [truth for truth in truths if self._known.get(truth.number) != truth]
        self._known.update((truth.number, truth) for truth in fresh)
        return fresh

    def _is_live(self, number: int, level: int) -> None:
        """A file is part of the database: the job that made it is over."""
        if self._announced.pop(number, None) is not None:
            self._in_order = level > 0 and sum(map(len, self._tables.values())) > 1
        if number not in self._creators:
            return
        tid, believed = self._creators.pop(number)
        self.outcomes[believed, level] += 1
        if self.engine == "leveldb":
            return  # a flush may interrupt a compaction, in the same thread
        made = self._made.get(tid)
        if made is not None and number in made.files:
            del self._made[tid]
        for job in [job for job, running in self._running.items() if tid in running.tids]:
            del self._running[job]

    def level_targets(self) -> dict[str, tuple[int, ...]]:
        """Family -> bytes that the store lets each level grow to; nothing for families that have no such targets."""
        found = {}
        for number, family in self.manifest.families.items():
            options = self._family_options(family.name)
            if options.compaction_style is CompactionStyle.LEVEL and (self.options or self.engine == "leveldb"):
                found[family.name] = prediction.level_targets(self._states(number), options)
        return found

    def pressure(self, now: float = 0.0) -> Pressure:
        """How much writers wait, of the family that is worst off; `now` by the clock of `read_log`."""
        found = worst(
            pressure_of(self._family_options(family.name), self._counts.get(number, {}))
            for number, family in self.manifest.families.items()
            if self.options or self.engine == "leveldb"
        )
        if now - self._heard > _IDLE:
            return CALM
        return replace(found, stalled=True) if self._waits.waiting(now) else found

    def doomed(self) -> frozenset[int]:
        """Numbers of the live tables that running compactions read, as far as the log tells: they will be gone soon."""
        busy = self._busy()
        return frozenset(number for tables in self._tables.values() for number in busy & tables.keys())

    # --- what a file is for ---

    def truth_of(self, name: bytes) -> Truth | None:
        """Where the MANIFEST has an SST or blob file; None where it does not have it."""
        truth = self._known.get(file_number(name) or 0)
        return truth if truth is not None and truth.role is role_of(name) else None

    def believe(self, name: bytes, tid: int, job: Job, *, opener: bool = True, now: float = 0.0) -> Belief:
        """What a thread, whose name says `job`, creates the SST or blob file `name` for.

        `opener`: whether it is of the process that has the database open. `now`: by the clock of `read_log`.
        """
        belief = self._believe_or_know(name, tid, job, opener)
        return replace(belief, pressure=self.pressure(now))

    def _believe_or_know(self, name: bytes, tid: int, job: Job, opener: bool) -> Belief:
        truth = self.truth_of(name)
        if truth is not None and job is not Job.COMPACTION and job is not Job.FLUSH:  # somebody puts a file back
            return Belief(job, truth.level, truth.family, self.engine, "live in the MANIFEST")
        number = file_number(name)
        if self.engine is None and name.endswith(b".ldb"):
            self.engine = "leveldb"
        belief = self._believe(number, tid, job, opener)
        if number is not None:
            _remember(self._creators, number, (tid, belief.level))
            if belief.job is Job.COMPACTION and self._job_of(tid) is None:
                made = self._made.get(tid)
                if made is None:
                    _remember(self._made, tid, made := _Made(belief))
                made.files.add(number)
        if role_of(name) is Role.BLOB:
            return replace(belief, level=None)
        return belief

    def _believe(self, number: int | None, tid: int, job: Job, opener: bool) -> Belief:
        announced = None if number is None else self._announced.get(number)
        running = self._job_of(tid)
        if announced is not None or job is Job.FLUSH:
            family = announced[0] if announced is not None else self._flushing(running)
            return self._flush(family, "announced by the info log" if announced is not None else "thread's name")
        if running is not None:
            return self._of(running, "job in the info log")
        if self.engine == "leveldb" and opener:
            return self._leveldb()
        if job is Job.COMPACTION:
            return self._compaction(tid)
        if not opener:
            return Belief(job, engine=self.engine, reason="a process that does not have the database open")
        if self.engine in ("rocksdb", "speedb"):
            return Belief(job, 0, self._only_family(), self.engine, "a thread of no pool: as when a WAL is recovered")
        return Belief(job, engine=self.engine, reason="of no known job")

    def _flush(self, family: str | None, reason: str) -> Belief:
        level = 0
        if self.engine == "leveldb":
            level = self._leveldb_flush()
        return Belief(Job.FLUSH, level, family or self._only_family(), self.engine, reason)

    def _leveldb_flush(self) -> int:
        states = list(self._states(0))
        smallest = max((state.largest for state in states), default=b"") + b"\0" if self._in_order else b""
        return prediction.predict_flush_output(states, LEVELDB, smallest).level

    def _of(self, running: _Running, reason: str) -> Belief:
        family = next(iter(running.families)) if len(running.families) == 1 else self._only_family()
        if running.kind is not Kind.COMPACTION:
            return Belief(Job.FLUSH, 0, family, self.engine, reason)
        level, inputs = running.output_level, running.input_tables
        return Belief(Job.COMPACTION, level, family, self.engine, reason, inputs=inputs)

    def _job_of(self, tid: int) -> _Running | None:
        """The running job that a thread is known to work for."""
        found = None
        for job in self._running.values():
            if tid in job.tids or self._kernel_thread(job.thread) == tid:
                found = job  # the last to begin: the lines that ended an earlier one may be late
        return found

    def _flushing(self, running: _Running | None) -> str | None:
        if running is not None and running.kind is Kind.FLUSH and len(running.families) == 1:
            return next(iter(running.families))
        families = {name for job in self._running.values() if job.kind is Kind.FLUSH for name in job.families}
        return families.pop() if len(families) == 1 else None

    def _only_family(self) -> str | None:
        families = list(self.manifest.families.values())
        return families[0].name if len(families) == 1 else None

    def _leveldb(self) -> Belief:
        """Of LevelDB's one background thread; its flushes are announced."""
        running = self._running.get(None)
        if running is not None and running.kind is Kind.COMPACTION and running.output_level is not None:
            return self._of(running, "job in the info log")
        predicted = prediction.predict_compaction_output(self._states(0), LEVELDB)
        if predicted is None:
            return self._flush(None, "nothing calls for a compaction")
        return Belief(Job.COMPACTION, predicted.level, "default", self.engine, predicted.reason)

    def _compaction(self, tid: int) -> Belief:
        """Of a thread of the pool whose job the log does not tell (yet)."""
        made = self._made.get(tid)
        if made is not None:
            return made.belief
        mine = self._unclaimed(tid)
        if mine is not None:
            mine.tids.add(tid)
            return self._of(mine, "the latest job in the info log of no known thread")
        if tid not in self._pool:
            helped = self._helped()
            if helped is not None:
                return self._of(helped, "subcompaction of a job in the info log")
        return self._predicted()

    def _unclaimed(self, tid: int) -> _Running | None:
        """Where the log prints addresses: the latest compaction of a thread that nobody has been tied to yet."""
        if tid in self._tid_of.values():
            return None
        found = None
        for job in self._running.values():
            if job.kind is Kind.COMPACTION and not job.tids and self._kernel_thread(job.thread) is None:
                found = job
        return found

    def _helped(self) -> _Running | None:
        """The job that a thread which never began one is a subcompaction of: one that can have any, the latest."""
        if self.options is not None and self.options.max_subcompactions <= 1:
            return None
        found = None
        for job in self._running.values():
            level0 = any(level == 0 for _, level in job.inputs)
            if job.kind is Kind.COMPACTION and level0 and job.output_level:
                found = job
        return found

    def _predicted(self) -> Belief:
        families = self.manifest.families
        for number in list(self._queue) if len(families) > 1 else families:
            predicted = self._predict(number)
            if predicted is not None:
                self._queue.pop(number, None)
                self._queue[number] = None
                family = self._names.get(number)
                return Belief(Job.COMPACTION, predicted.level, family, self.engine, predicted.reason)
        return self._nearest()

    def _nearest(self) -> Belief:
        """Nothing calls for a compaction, so it was asked for, or is for age: of the fullest level, perhaps."""
        best: tuple[float, int, str | None] | None = None
        for number, family in self.manifest.families.items():
            options, states = self._family_options(family.name), list(self._states(number))
            for level, score in prediction.scores(states, options):
                if score > 0 and (best is None or score > best[0]):
                    output = prediction.base_level(states, options) if level == 0 else level + 1
                    best = score, output, family.name
        if best is None:
            return Belief(Job.COMPACTION, None, self._only_family(), self.engine, "nothing calls for a compaction")
        return Belief(Job.COMPACTION, best[1], best[2], self.engine, "the fullest level, though none is full")

    def _predict(self, number: int) -> Prediction | None:
        options = self._family_options(self._names.get(number, ""))
        return prediction.predict_compaction_output(self._states(number), options)

    def _family_options(self, name: str) -> FamilyOptions:
        if self.engine == "leveldb":
            return LEVELDB
        if self.options is None:
            return FamilyOptions()
        families = self.options.families
        return families.get(name) or families.get("default") or FamilyOptions()

    def _states(self, family: int) -> Iterator[TableState]:
        """A family's live tables; those that a running compaction reads are marked."""
        busy = self._busy()
        for number, table in self._tables.get(family, {}).items():
            yield replace(table, being_compacted=True) if number in busy else table

    def _busy(self) -> frozenset[int]:
        return frozenset[int]().union(*(job.input_tables for job in self._running.values()))


def _remember(table: dict[_K, _V], key: _K, value: _V) -> None:
    """Put a pair into a table, which forgets its oldest when it has grown too large."""
    table.pop(key, None)
    table[key] = value
    if len(table) > _MOST:
        del table[next(iter(table))]
