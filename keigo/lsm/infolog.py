"""What the jobs of an LSM store do, from the lines of its info log (the file LOG).

A line is `TIME THREAD TEXT`. TIME is `2026/11/21-04:04:29.482679`. THREAD is, by the build,

    the kernel's thread id, decimal       RocksDB built on glibc >= 2.30, such as Debian's
    pthread_self(), decimal               RocksDB on an older glibc (rocksdict), Speedb (speedict), LevelDB >= 1.21
    pthread_self(), hexadecimal           LevelDB before, very old RocksDB

and `kernel_thread` tells the first from the others. RocksDB and Speedb (logging/env_logger.h, logging/log_buffer.cc,
logging/logging.h) may put `(Original Log Time TIME)`, a severity such as `[WARN]` and `[source file:line]` before the
text, in this order; lines with an original time were held back and are late. Options and statistics are dumped between
and across lines. What is read here, NAME being a column family's name, N the number of a file, J of a job, L a level:

    RocksDB version: V                                                        Header         db_impl_open.cc
    Speedb version: V (RocksDB's)                                             Header
    [NAME] [JOB J] Flushing memtable with next log file: N                    JobStarted     flush_job.cc
    [NAME] [JOB J] Compacting 3@0 + 2@1 files to L1, score 1.00               JobStarted     compaction_job.cc
    EVENT_LOG_v1 {.. "job": J, "event": "compaction_started", "files_L0": ..  JobStarted
    EVENT_LOG_v1 {.. "job": J, "event": "recovery_started", ..                JobStarted     db_impl_open.cc
    [NAME] [JOB J] Level-0 flush table #N: started                            TableStarted   flush_job.cc
    EVENT_LOG_v1 {.. "table_file_creation", and blob_file_creation            FileCreated    event_helpers.cc
    [NAME] Moving #N to level-L                                               TableMoved     db_impl_compaction_flush.cc
    [NAME] Moving #N from from_level-L to from_level-L                        TableMoved     db_impl_open.cc
    [AddFile] External SST file PATH was ingested in LL with path PATH        TableIngested  external_sst_file_..job.cc
    EVENT_LOG_v1 {.. "compaction_finished", flush_finished, recovery_finished JobFinished    compaction_job.cc
    EVENT_LOG_v1 {.. "table_file_deletion", and blob_file_deletion            FileDeleted    event_helpers.cc
    [NAME] Stalling writes because ..                                         WritersWait    column_family.cc
    [NAME] Stopping writes because ..                                         WritersWait
    [NAME] Increasing compaction threads because ..                           WritersWait (no longer)
    Shutdown: canceling all background work                                   WritersWait (no longer, none) db_impl.cc

and in LevelDB (db/db_impl.cc), which numbers no jobs and has one background thread, where a flush may interrupt a
compaction:

    Recovering log #N                                                         JobStarted
    Level-0 table #N: started                                                 TableStarted
    Level-0 table #N: B bytes OK                                              FileCreated
    Compacting 4@0 + 1@1 files                                                JobStarted
    Generated table #N@..: K keys, B bytes                                    FileCreated
    compacted to: files[ 0 1 0 0 0 0 0 ]                                      JobFinished
    Moved #N to level-L B bytes OK: ..                                        TableMoved
    Delete type=2 #N                                                          FileDeleted
    Too many L0 files; waiting...                                             WritersWait
    Current memtable full; waiting...                                         WritersWait

The reader keeps nothing of what it has read: events are joined by job and, in LevelDB, by thread.

*   A RocksDB compaction starts twice: its line tells the family and the output level, its JSON the input tables.
*   A flush starts once for each memtable; an atomic flush is one job of several families.
*   Tables of a flush or recovery job are at level 0, those of a compaction at its job's output level, unless the store
    keeps hot data back one level (`preclude_last_level_data_seconds`), which no line tells. Subcompactions and
    RocksDB's `CompactFiles` print the same lines, each from the thread that does the work.
*   Tables that LevelDB generates go to the output level of the compaction that last started (the level after the `@`
    is that of its input in some releases, of its output in others). What it flushes in the thread that began a
    recovery is at level 0. Any other flush goes to level 0, 1 or 2, and no line tells to which.
*   RocksDB and Speedb weigh whether writers must wait whenever a memtable is full and a job has ended, and tell it of
    each family each time (column_family.cc, RecalculateWriteStallConditions); that they need not, they tell only where
    there is still much to do. LevelDB tells it once for each time that its writers begin to wait.
*   Job numbers start anew with each open; a LOG is of one open.
*   RocksDB and Speedb buffer lines: they are written at some steps of a job, or with the first one after five seconds.
    A killed process has not written its last ones, so a LOG need not tell how the tables were left.

Pebble has no such file. Whoever writes a name or a path into the log can forge a line: believe no event more than the
store's own files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from keigo.lsm.roles import Role


class Kind(StrEnum):
    """What a job does."""

    FLUSH = "flush"
    COMPACTION = "compaction"
    RECOVERY = "recovery"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of RocksDB and Speedb."""

    thread: int
    engine: str
    version: str


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job begins; what the line does not tell is None or empty.

    `inputs` has (number of tables, level) for each level that has any.
    """

    thread: int
    job: int | None
    kind: Kind
    family: str | None = None
    inputs: tuple[tuple[int, int], ...] = ()
    input_tables: tuple[int, ...] = ()
    output_level: int | None = None


@dataclass(frozen=True, slots=True)
class TableStarted:
    """A flush is about to create this table."""

    thread: int
    job: int | None
    family: str | None
    number: int


@dataclass(frozen=True, slots=True)
class FileCreated:
    """An SST or blob file is complete, but not yet part of the database.

    `kind` is that of the job, in LevelDB, which numbers none. The size of a blob file is that of its blobs.
    """

    thread: int
    job: int | None
    family: str | None
    number: int
    role: Role
    size: int
    kind: Kind | None = None
    time: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class TableMoved:
    """A table is at another level without being rewritten."""

    thread: int
    family: str | None
    number: int
    level: int


@dataclass(frozen=True, slots=True)
class TableIngested:
    """A table that the application made is in the database; of which family, no line tells."""

    thread: int
    number: int
    level: int


@dataclass(frozen=True, slots=True)
class FileDeleted:
    """An SST or blob file is gone."""

    thread: int
    job: int | None
    number: int
    role: Role


@dataclass(frozen=True, slots=True)
class JobFinished:
    """A job is over, whether it succeeded or not; `lsm_state` has the number of tables at each level."""

    thread: int
    job: int | None
    kind: Kind
    output_level: int | None = None
    lsm_state: tuple[int, ...] = ()
    time: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class WritersWait:
    """Writers of a family (None: of any) are slowed down or stopped or, where `waiting` is False, are not any more."""

    thread: int
    family: str | None
    waiting: bool = True
    time: float = field(default=0.0, compare=False)


Event = (
    Header
    | JobStarted
    | TableStarted
    | FileCreated
    | TableMoved
    | TableIngested
    | FileDeleted
    | JobFinished
    | WritersWait
)
"""Where an event has a `time`, it is the line's: seconds since 1970 by the wall clock of the store's time zone. It is
good for differences only, and jumps where that clock does."""

MAX_LINE: Final = 1 << 20
"""Longer lines are dropped. RocksDB cuts its own at 64 KiB."""

_PID_MAX_LIMIT: Final = 1 << 22


def kernel_thread(thread: int) -> int | None:
    """The kernel's id of an event's thread; None where the build logs an address instead."""
    return thread if 0 < thread < _PID_MAX_LIMIT else None


# A search over a whole chunk: it goes from newline to newline at the speed of memchr and leaves a line of no
# interest after a few characters. The lookahead makes the prefix atomic, so that a line is not scanned again for each
# way to read it; (?>...) would say so, but the re of Python 3.11.2 mismatches nested ones. A family may be called
# "WARN" or "a:1", so what follows such a prefix is looked at.
_WAITS: Final = rb"Stalling writes |Stopping writes |Increasing compaction threads "
_NO_FAMILY: Final = rb"(?!\[JOB |Moving #|" + _WAITS + rb")"
_LINE: Final = re.compile(
    rb"\n(?=(?P<prefix>(?P<time>[0-9/:.-]{26}) (?P<thread>[0-9a-f]{1,32}) (?:\(Original Log Time [0-9/:.-]{26}\) )?"
    rb"(?:\[[A-Z]+\] " + _NO_FAMILY + rb")?(?:\[[^]\n]*:[0-9]+\] " + _NO_FAMILY + rb")?))(?P=prefix)(?P<text>(?:"
    rb"EVENT_LOG_v1 \{"
    rb"|\[(?:[^]\n]*\])+? (?:\[JOB [0-9]+\] (?:Compacting |Flushing |Level-0 flush )|Moving #|External SST file |"
    + _WAITS
    + rb")|Level-0 table #|Compacting |Generated table #|Moved #|Delete type=2 #|compacted to: |Recovering log #"
    rb"|Too many L0 files; |Current memtable full; |Shutdown: |RocksDB version: |Speedb version: "
    rb")[^\n]*)"
)
_TIME: Final = re.compile(rb"(\d{4})/(\d\d)/(\d\d)-(\d\d):(\d\d):(\d\d)\.(\d{6})")

_INPUT: Final = re.compile(rb"([0-9]{1,9})@([0-9]{1,3})")
_FILES: Final = re.compile(rb'"files_L([0-9]{1,3})": \[([0-9, ]*)\]')
_SST: Final = re.compile(rb"([0-9]{1,20})\.sst\b")
_FILE: Final = re.compile(rb"[0-9]{1,20}")
_FIELDS: Final = {
    key: re.compile(rb'"%s": \[?([0-9][0-9, ]*)' % key)
    for key in (b"file_number", b"file_size", b"total_blob_bytes", b"output_level", b"lsm_state")
}


def _name(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def _numbers(raw: bytes) -> tuple[int, ...]:
    return tuple(int(number) for number in _FILE.findall(raw))


def _inputs(raw: bytes) -> tuple[tuple[int, int], ...]:
    return tuple((int(count), int(level)) for count, level in _INPUT.findall(raw) if int(count))


def _field(key: bytes, rest: bytes) -> tuple[int, ...]:
    found = _FIELDS[key].search(rest)
    return () if found is None else _numbers(found[1])


def _header(thread: int, m: re.Match[bytes]) -> Event:
    return Header(thread, m[1].decode().lower(), m[2].decode())


def _flush_started(thread: int, m: re.Match[bytes]) -> Event:
    return JobStarted(thread, int(m["job"]), Kind.FLUSH, _name(m["family"]))


def _compaction_line(thread: int, m: re.Match[bytes]) -> Event:
    return JobStarted(
        thread, int(m["job"]), Kind.COMPACTION, _name(m["family"]), _inputs(m["inputs"]), (), int(m["level"])
    )


def _table_started(thread: int, m: re.Match[bytes]) -> Event:
    return TableStarted(thread, int(m["job"]), _name(m["family"]), int(m["number"]))


def _moving(thread: int, m: re.Match[bytes]) -> Event:
    return TableMoved(thread, _name(m["family"]), int(m["number"]), int(m["level"]))


def _ingested(thread: int, m: re.Match[bytes]) -> Event | None:
    name = _SST.match(m["path"].rpartition(b"/")[2])
    return None if name is None else TableIngested(thread, int(name[1]), int(m["level"]))


def _json(thread: int, m: re.Match[bytes]) -> Event | None:
    """An EVENT_LOG_v1 object. Its strings are not escaped (logging/event_logger.h), so it need not be JSON."""
    name, job, rest = m["event"], int(m["job"]), m["rest"]
    match name.rpartition(b"_"):
        case (b"table_file" | b"blob_file", _, b"creation" | b"deletion"):
            return _json_file(thread, job, m)
        case (b"flush" | b"compaction" | b"recovery" as kind, _, b"finished"):
            level = _field(b"output_level", rest)
            state = _field(b"lsm_state", rest)
            return JobFinished(thread, job, Kind(kind.decode()), level[0] if level else None, state)
        case (b"recovery", _, b"started"):
            return JobStarted(thread, job, Kind.RECOVERY)
        case (b"compaction", _, b"started"):
            levels = [(int(level), _numbers(tables)) for level, tables in _FILES.findall(rest)]
            inputs = tuple((len(tables), level) for level, tables in levels if tables)
            numbers = tuple(number for _, tables in levels for number in tables)
            return JobStarted(thread, job, Kind.COMPACTION, _name(m["family"] or m["late_family"]), inputs, numbers)
    return None


def _json_file(thread: int, job: int, m: re.Match[bytes]) -> Event | None:
    name, rest = m["event"], m["rest"]
    role = Role.SST if name.startswith(b"table") else Role.BLOB
    number = _field(b"file_number", rest)
    if not number:
        return None
    if name.endswith(b"deletion"):
        # A status is there only where the deletion failed.
        return None if b'"status"' in rest else FileDeleted(thread, job, number[0], role)
    size = _field(b"file_size" if role is Role.SST else b"total_blob_bytes", rest)
    return FileCreated(thread, job, _name(m["family"]), number[0], role, size[0]) if size else None


def _level0_table(thread: int, m: re.Match[bytes]) -> Event | None:
    number, size = int(m[1]), m[2]
    if size is None:
        return TableStarted(thread, None, None, number)
    # LevelDB keeps no empty table.
    return FileCreated(thread, None, None, number, Role.SST, int(size), Kind.FLUSH) if int(size) else None


def _compacting(thread: int, m: re.Match[bytes]) -> Event:
    return JobStarted(thread, None, Kind.COMPACTION, None, _inputs(m[1]), (), int(m[2]))


def _generated(thread: int, m: re.Match[bytes]) -> Event:
    return FileCreated(thread, None, None, int(m[1]), Role.SST, int(m[2]), Kind.COMPACTION)


def _moved(thread: int, m: re.Match[bytes]) -> Event:
    return TableMoved(thread, None, int(m[1]), int(m[2]))


def _deleted(thread: int, m: re.Match[bytes]) -> Event:
    return FileDeleted(thread, None, int(m[1]), Role.SST)


def _compacted(thread: int, m: re.Match[bytes]) -> Event:
    return JobFinished(thread, None, Kind.COMPACTION, None, _numbers(m[1]))


def _writers_wait(thread: int, m: re.Match[bytes]) -> Event:
    return WritersWait(thread, _name(m["family"]), waiting=not m["what"].startswith(b"I"))


def _leveldb_waits(thread: int, _: re.Match[bytes]) -> Event:
    return WritersWait(thread, None)


def _shutdown(thread: int, _: re.Match[bytes]) -> Event:
    return WritersWait(thread, None, waiting=False)


def _recovering(thread: int, _: re.Match[bytes]) -> Event:
    return JobStarted(thread, None, Kind.RECOVERY)


_JOB: Final = rb"\[(?P<family>.*)\] \[JOB (?P<job>[0-9]{1,10})\] "
_TABLE: Final = rb"#(?P<number>[0-9]{1,20})"
_N: Final = rb"([0-9]{1,20})"
_L: Final = rb"([0-9]{1,3})"

# Each pattern is linear in the length of the line: one greedy run at most, and fields that cannot overlap.
_GRAMMAR: Final[tuple[tuple[re.Pattern[bytes], Callable[[int, re.Match[bytes]], Event | None]], ...]] = tuple(
    (re.compile(pattern), event)
    for pattern, event in (
        (
            rb'EVENT_LOG_v1 \{"time_micros": [0-9]{1,20}, (?:"cf_name": "(?P<family>.*?)", )?'
            rb'"job": (?P<job>[0-9]{1,10}), "event": "(?P<event>[a-z_]{1,40})"'
            rb'(?:, "cf_name": "(?P<late_family>.*?)", )?(?P<rest>.*)',
            _json,
        ),
        (_JOB + rb"Compacting (?P<inputs>[0-9@+ ]*)files to L(?P<level>[0-9]{1,3})\b", _compaction_line),
        (_JOB + rb"Flushing memtable ", _flush_started),
        (_JOB + rb"Level-0 flush table " + _TABLE + rb": started", _table_started),
        (
            rb"\[(?P<family>.*)\] Moving " + _TABLE + rb"(?: from from_level-[0-9]{1,3})? to (?:from_)?level-"
            rb"(?P<level>[0-9]{1,3}) ",
            _moving,
        ),
        (
            rb"\[AddFile\] External SST file .* was ingested in L(?P<level>[0-9]{1,3}) with path (?P<path>.*)",
            _ingested,
        ),
        (rb"Level-0 table #" + _N + rb": (?:started|" + _N + rb" bytes OK)", _level0_table),
        (rb"Compacting ([0-9]{1,9}@[0-9]{1,3} \+ [0-9]{1,9}@" + _L + rb") files", _compacting),
        (rb"Generated table #" + _N + rb"(?:@[0-9]{1,3})?: [0-9]{1,20} keys, " + _N + rb" bytes", _generated),
        (rb"Moved #" + _N + rb" to level-" + _L + rb" [0-9]{1,20} bytes OK", _moved),
        (rb"Delete type=2 #" + _N + rb"\b", _deleted),
        (rb"compacted to: files\[([0-9 ]*)\]", _compacted),
        (rb"\[(?P<family>.*)\] (?P<what>" + _WAITS + rb")because ", _writers_wait),
        (rb"(?:Too many L0 files|Current memtable full); waiting\.\.\.", _leveldb_waits),
        (rb"Shutdown: canceling all background work", _shutdown),
        (rb"Recovering log #", _recovering),
        (rb"(RocksDB|Speedb) version: ([0-9][0-9.]{0,40})", _header),
    )
)


def _parse(thread: int, text: bytes) -> Event | None:
    for pattern, event in _GRAMMAR:
        found = pattern.match(text)
        if found is not None:
            return event(thread, found)
    return None


class InfoLogReader:
    """Reads a LOG from its beginning, or from any point of it, as it grows."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        # The line that is not complete yet, after the newline that ended the one before. A line that is too long loses
        # this newline with all that came of it, so that its end is not taken for a line.
        self._tail = bytearray(b"\n")

    def feed(self, data: bytes) -> list[Event]:
        """The events of the lines that `data`, the bytes after those fed before, completes.

        Never raises; keeps at most `MAX_LINE` bytes. Other lines, and those that are garbled or too long, are skipped.
        """
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return []
        chunk = bytes(self._tail) + data[: end + 1]
        self._tail = bytearray(b"\n")
        self._keep(data[end + 1 :])
        return _events(chunk)

    def _keep(self, data: bytes) -> None:
        if len(self._tail) + len(data) > MAX_LINE + 1:
            self._tail.clear()
        else:
            self._tail += data


def _events(chunk: bytes) -> list[Event]:
    events = []
    for line in _LINE.finditer(chunk):
        if line.end() - line.start() > MAX_LINE + 1:
            continue
        thread = line["thread"]
        event = _parse(int(thread, 10 if thread.isdigit() else 16), line["text"])
        if isinstance(event, FileCreated | JobFinished | WritersWait):
            event = replace(event, time=_seconds(line["time"]))
        if event is not None:
            events.append(event)
    return events


def _seconds(time: bytes) -> float:
    """A line's time; 0 for what is no time."""
    found = _TIME.fullmatch(time)
    if found is None:
        return 0.0
    year, month, day, hour, minute, second, micros = map(int, found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, micros, UTC).timestamp()
    except ValueError:
        return 0.0
