"""The info log: what its lines tell, in every dialect, and that nothing in it can hurt the reader."""

import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.infolog import (
    MAX_LINE,
    Event,
    FileCreated,
    FileDeleted,
    Header,
    InfoLogReader,
    JobFinished,
    JobStarted,
    Kind,
    TableIngested,
    TableMoved,
    TableStarted,
    WritersWait,
    kernel_thread,
)
from keigo.lsm.roles import Role

DATA = Path(__file__).parent.parent / "data/lsm/infolog"
ORACLES: dict[str, Any] = json.loads((DATA / "oracles.json").read_text())

ROCKSDB = b"2026/11/21-12:55:45.090208 10850 "
HELD_BACK = b"2026/11/21-12:55:45.090208 10850 (Original Log Time 2026/11/21-12:55:45.090100) "
LEVELDB = b"2026/11/21-12:56:14.410181 7fd16c7f8640 "
LEVELDB_THREAD = 0x7FD16C7F8640


def read(*chunks: bytes) -> list[Event]:
    reader = InfoLogReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


@cache
def archived() -> dict[str, bytes]:
    with tarfile.open(DATA / "logs.tar.xz") as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        return {name: file.read() for name, file in files.items() if file is not None}


@cache
def golden(name: str) -> tuple[bytes, ...]:
    """The logs of a database, oldest first."""
    return tuple(archived()[log] for log in ORACLES[name]["logs"])


@cache
def events(name: str) -> tuple[Event, ...]:
    return tuple(event for log in golden(name) for event in read(log))


T = TypeVar("T")


def only(kind: type[T], found: Iterable[Event]) -> list[T]:
    return [event for event in found if isinstance(event, kind)]


# What the events say of the live tables must be what the stores said.


@dataclass
class Table:
    """`level` is None for a table that LevelDB flushed, `family` where no line tells it."""

    level: int | None
    family: str | None


@dataclass
class Replay:
    """The live tables of a database, joined from its events as `keigo.lsm.infolog` says."""

    tables: dict[int, Table] = field(default_factory=dict)
    levels: dict[int, int] = field(default_factory=dict)
    recovering: int | None = None
    output_level: int | None = None

    def open(self) -> None:
        self.levels = {}
        self.recovering = None

    def apply(self, event: Event) -> None:
        match event:
            case JobStarted(job=None, kind=Kind.RECOVERY):
                self.recovering = event.thread
            case JobStarted(job=None, kind=Kind.COMPACTION):
                self.output_level = event.output_level
            case JobStarted(job=int(job), kind=Kind.FLUSH | Kind.RECOVERY):
                self.levels[job] = 0
            case JobStarted(job=int(job), output_level=int(level)):
                self.levels[job] = level
            case FileCreated(role=Role.SST):
                self.tables[event.number] = Table(self._level(event), event.family)
            case TableIngested():
                self.tables[event.number] = Table(event.level, None)
            case TableMoved():
                self.tables[event.number].level = event.level
            case FileDeleted(role=Role.SST):
                self.tables.pop(event.number, None)

    def _level(self, event: FileCreated) -> int | None:
        if event.job is not None:
            return self.levels[event.job]
        if event.kind is Kind.COMPACTION:
            return self.output_level
        return 0 if event.thread == self.recovering else None


def replay(name: str) -> dict[int, Table]:
    state = Replay()
    for log in golden(name):
        state.open()
        for event in read(log):
            state.apply(event)
    return state.tables


@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"leveldb"}))
def test_events_give_the_level_and_family_of_every_live_table(name: str) -> None:
    ingested = {event.number for event in only(TableIngested, events(name))}
    told = {number: (table.level, table.family) for number, table in replay(name).items()}
    live = {int(number): (level, family) for number, (level, family) in ORACLES[name]["live"].items()}
    for number in ingested & live.keys():
        live[number] = (live[number][0], None)
    assert told == live


def test_leveldb_tells_every_level_but_that_of_a_flush() -> None:
    told = {number: table.level for number, table in replay("leveldb").items()}
    live = {int(number): level for number, (level, _) in ORACLES["leveldb"]["live"].items()}
    flushed = {number for number, level in told.items() if level is None}
    assert told.keys() == live.keys()
    assert len(flushed) == 1
    assert all(live[number] <= 2 for number in flushed)
    assert {n: level for n, level in told.items() if n not in flushed} == {
        n: level for n, level in live.items() if n not in flushed
    }


def test_golden_logs_have_what_they_are_there_for() -> None:
    def started(name: str, kind: Kind) -> list[JobStarted]:
        return [event for event in only(JobStarted, events(name)) if event.kind is kind]

    for name in ("rocksdb-leveled", "speedb-leveled", "debian-leveled", "leveldb"):
        assert only(TableMoved, events(name))
    for name in ("rocksdb-leveled", "speedb-leveled"):
        assert {event.family for event in only(FileCreated, events(name))} == {"default", "a] [JOB 7] [b"}
    for name in ("rocksdb-crashed", "speedb-crashed"):
        recoveries = {event.job for event in started(name, Kind.RECOVERY)}
        assert {e.family for e in only(FileCreated, events(name)) if e.job in recoveries} == {"default", "other"}
    assert started("leveldb", Kind.RECOVERY)
    for name in ("rocksdb-ingestion", "speedb-ingestion"):
        assert [event.level for event in only(TableIngested, events(name))] == [0, 6, 6]
    # CompactFiles works in the thread that calls it, here the main one.
    compactions = started("debian-compactfiles", Kind.COMPACTION)
    assert ORACLES["debian-compactfiles"]["pid"] in {event.thread for event in compactions}
    makers: dict[int | None, set[int]] = {}
    for event in only(FileCreated, events("rocksdb-subcompactions")):
        makers.setdefault(event.job, set()).add(event.thread)
    assert max(len(threads) for threads in makers.values()) > 1
    blobs = [event for event in only(FileCreated, events("rocksdb-blobs")) if event.role is Role.BLOB]
    gone = [event.number for event in only(FileDeleted, events("rocksdb-blobs")) if event.role is Role.BLOB]
    assert blobs
    assert set(gone) <= {event.number for event in blobs}


@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"leveldb"}))
def test_the_two_lines_of_a_compaction_agree(name: str) -> None:
    """The line has the output level and the family, the JSON the tables; both count the same inputs."""
    for log in golden(name):
        started = [event for event in only(JobStarted, read(log)) if event.kind is Kind.COMPACTION]
        lines = {event.job: event for event in started if event.output_level is not None}
        objects = {event.job: event for event in started if event.output_level is None}
        assert lines.keys() == objects.keys()
        for job, line in lines.items():
            assert line.inputs == objects[job].inputs
            assert len(objects[job].input_tables) == sum(count for count, _ in line.inputs)
            assert line.input_tables == ()
        for event in only(JobFinished, read(log)):
            if event.kind is Kind.COMPACTION and event.job is not None:
                assert event.output_level == lines[event.job].output_level


@pytest.mark.parametrize(
    ("name", "engine", "version"),
    [("rocksdb-leveled", "rocksdb", "9."), ("debian-leveled", "rocksdb", "7.8.3"), ("speedb-leveled", "speedb", "2.7")],
)
def test_the_first_event_names_engine_and_version(name: str, engine: str, version: str) -> None:
    header = events(name)[0]
    assert isinstance(header, Header)
    assert header.engine == engine
    assert header.version.startswith(version)


def test_debian_logs_the_kernels_thread_ids_and_the_others_addresses() -> None:
    pid = ORACLES["debian-leveled"]["pid"]
    assert kernel_thread(events("debian-leveled")[0].thread) == pid
    for name in ("rocksdb-leveled", "speedb-leveled", "leveldb"):
        assert {kernel_thread(event.thread) for event in events(name)} == {None}


# Each line that is read, as the stores print it.


@pytest.mark.parametrize("prefix", [ROCKSDB, HELD_BACK, ROCKSDB + b"[db/x.cc:12] ", HELD_BACK + b"[WARN] [db/x.cc:1] "])
@pytest.mark.parametrize(
    ("text", "event"),
    [
        (b"[f] [JOB 2] Flushing memtable with next log file: 8", JobStarted(10850, 2, Kind.FLUSH, "f")),
        (b"[f] [JOB 2] Level-0 flush table #9: started", TableStarted(10850, 2, "f", 9)),
        (
            b"[f] [JOB 7] Compacting 2@0 + 1@6 files to L6, score 1.00",
            JobStarted(10850, 7, Kind.COMPACTION, "f", ((2, 0), (1, 6)), (), 6),
        ),
        (
            b"[f] [JOB 7] Compacting 4@0 files to L1, score -1.00",
            JobStarted(10850, 7, Kind.COMPACTION, "f", ((4, 0),), (), 1),
        ),
        (b"[f] Moving #56 to level-2 133842 bytes", TableMoved(10850, "f", 56, 2)),
        (b"[f] Moving #56 from from_level-1 to from_level-6 133842 bytes", TableMoved(10850, "f", 56, 6)),
        (
            b"[AddFile] External SST file /a/b.sst was ingested in L6 with path /db/000014.sst (global_seqno=0)",
            TableIngested(10850, 14, 6),
        ),
        (b"RocksDB version: 7.8.3", Header(10850, "rocksdb", "7.8.3")),
        (b"Speedb version: 2.7.0-? (8.1.1)", Header(10850, "speedb", "2.7.0")),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 7, "event": "compaction_started", "compaction_reason": "X", '
            b'"files_L0": [16, 14], "files_L1": [], "files_L6": [13], "score": 1, "input_data_size": 26471}',
            JobStarted(10850, 7, Kind.COMPACTION, None, ((2, 0), (1, 6)), (16, 14, 13), None),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 7, "event": "compaction_started", "cf_name": "f", '
            b'"compaction_reason": "X", "files_L3": [5], "score": 1}',
            JobStarted(10850, 7, Kind.COMPACTION, "f", ((1, 3),), (5,), None),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 1, "event": "recovery_started", "wal_files": [12]}',
            JobStarted(10850, 1, Kind.RECOVERY),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "cf_name": "f", "job": 7, "event": "table_file_creation", '
            b'"file_number": 18, "file_size": 19062, "file_checksum": "", "table_properties": {"data_size": 17274}}',
            FileCreated(10850, 7, "f", 18, Role.SST, 19062),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "cf_name": "f", "job": 7, "event": "blob_file_creation", '
            b'"file_number": 19, "total_blob_count": 3, "total_blob_bytes": 345, "status": "OK"}',
            FileCreated(10850, 7, "f", 19, Role.BLOB, 345),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 4, "event": "table_file_deletion", "file_number": 9}',
            FileDeleted(10850, 4, 9, Role.SST),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 4, "event": "blob_file_deletion", "file_number": 9}',
            FileDeleted(10850, 4, 9, Role.BLOB),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 7, "event": "compaction_finished", "output_level": 6, '
            b'"num_output_files": 1, "lsm_state": [1, 0, 2]}',
            JobFinished(10850, 7, Kind.COMPACTION, 6, (1, 0, 2)),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 3, "event": "flush_finished", "lsm_state": [2, 0, 0]}',
            JobFinished(10850, 3, Kind.FLUSH, None, (2, 0, 0)),
        ),
        (
            b'EVENT_LOG_v1 {"time_micros": 1, "job": 1, "event": "recovery_finished"}',
            JobFinished(10850, 1, Kind.RECOVERY),
        ),
        (b"[f] Stalling writes because we have 3 level-0 files rate 8388608", WritersWait(10850, "f")),
        (
            b"[f] Stopping writes because we have 2 immutable memtables (waiting for flush), max_write_buffer_number "
            b"is set to 2",
            WritersWait(10850, "f"),
        ),
        (
            b"[f] Stalling writes because of estimated pending compaction bytes 527936 rate 8388608",
            WritersWait(10850, "f"),
        ),
        (b"Shutdown: canceling all background work", WritersWait(10850, None, waiting=False)),
        (b"[f] Increasing compaction threads because we have 2 level-0 files ", WritersWait(10850, "f", waiting=False)),
    ],
)
def test_rocksdb_line(prefix: bytes, text: bytes, event: Event) -> None:
    assert read(prefix + text + b"\n") == [event]


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (b"Recovering log #3", JobStarted(LEVELDB_THREAD, None, Kind.RECOVERY)),
        (b"Level-0 table #5: started", TableStarted(LEVELDB_THREAD, None, None, 5)),
        (b"Level-0 table #5: 9557 bytes OK", FileCreated(LEVELDB_THREAD, None, None, 5, Role.SST, 9557, Kind.FLUSH)),
        (
            b"Compacting 4@0 + 1@1 files",
            JobStarted(LEVELDB_THREAD, None, Kind.COMPACTION, None, ((4, 0), (1, 1)), (), 1),
        ),
        (
            b"Compacting 1@2 + 0@3 files",
            JobStarted(LEVELDB_THREAD, None, Kind.COMPACTION, None, ((1, 2),), (), 3),
        ),
        (
            b"Generated table #16@1: 5 keys, 77 bytes",
            FileCreated(LEVELDB_THREAD, None, None, 16, Role.SST, 77, Kind.COMPACTION),
        ),
        (b"compacted to: files[ 0 1 2 ]", JobFinished(LEVELDB_THREAD, None, Kind.COMPACTION, None, (0, 1, 2))),
        (b"Moved #7 to level-1 9373 bytes OK: files[ 0 1 ]", TableMoved(LEVELDB_THREAD, None, 7, 1)),
        (b"Delete type=2 #9", FileDeleted(LEVELDB_THREAD, None, 9, Role.SST)),
        (b"Current memtable full; waiting...", WritersWait(LEVELDB_THREAD, None)),
        (b"Too many L0 files; waiting...", WritersWait(LEVELDB_THREAD, None)),
    ],
)
def test_leveldb_line(text: bytes, event: Event) -> None:
    assert read(LEVELDB + text + b"\n") == [event]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[f] [JOB 2] Flushing memtable with next log file: 8",
        ROCKSDB,
        ROCKSDB + b"[f] Moved #4 files to level-2 535374 bytes OK: files[0 0 4]",
        ROCKSDB + b"[f] [JOB 7] Generated table #18: 1951 keys, 19062 bytes",
        ROCKSDB + b"[f] [JOB 7] Compacted 2@0 + 1@6 files to L6 => 19062 bytes",
        ROCKSDB + b"[f] [JOB 7] Compacting 2@0 + 1@6",
        ROCKSDB + b"[f] [JOB 99999999999] Compacting 2@0 files to L6",
        ROCKSDB + b'EVENT_LOG_v1 {"time_micros": 1, "job": 26, "event": "trivial_move", "destination_level": 2}',
        ROCKSDB + b'EVENT_LOG_v1 {"time_micros": 1, "job": 2, "event": "flush_started", "num_memtables": 1}',
        ROCKSDB + b'EVENT_LOG_v1 {"time_micros": 1, "job": 4, "event": "table_file_deletion", "file_number": 9, '
        b'"status": "IO error"}',
        ROCKSDB + b'EVENT_LOG_v1 {"time_micros": 1, "cf_name": "f", "job": 7, "event": "table_file_creation"}',
        ROCKSDB + b"[AddFile] External SST file /a was ingested in L6 with path /db/x.sst",
        LEVELDB + b"Level-0 table #5: 0 bytes OK",
        LEVELDB + b"Level-0 table #5: 77 bytes IO error",
        LEVELDB + b"Moved #7 to level-1 9373 bytes IO error: files[ 0 1 ]",
        LEVELDB + b"Delete type=0 #9",
        LEVELDB + b"Compacted 4@0 + 1@1 files => 77 bytes",
    ],
)
def test_line_without_an_event(line: bytes) -> None:
    assert read(line + b"\n") == []


@pytest.mark.parametrize("family", ["WARN", "a:1", "a] [b", "[JOB 3] Moving #", '"', "", " ", "ä"])
def test_any_family_name(family: str) -> None:
    check_family(family.encode(), family)


def test_a_family_name_that_is_not_utf8_is_one_that_can_be_stored() -> None:
    """As in the MANIFEST's reader: one text for one name, and no lone surrogates, which no file can hold."""
    check_family(b"caf\xe9", "caf\\xe9")


def check_family(name: bytes, family: str) -> None:
    line = b"[" + name + b"] [JOB 2] Level-0 flush table #9: started\n"
    made = b'EVENT_LOG_v1 {"time_micros": 1, "cf_name": "' + name + b'", "job": 2, "event": "table_file_creation", '
    made += b'"file_number": 9, "file_size": 5}\n'
    expected = [TableStarted(10850, 2, family, 9), FileCreated(10850, 2, family, 9, Role.SST, 5)]
    waits = b"[" + name + b"] Stopping writes because we have 5 level-0 files\n"
    for prefix in (ROCKSDB, ROCKSDB + b"[db/x.cc:1] ", HELD_BACK + b"[WARN] [db/x.cc:1] "):
        assert read(prefix + line + ROCKSDB + made) == expected
        assert read(prefix + waits) == [WritersWait(10850, family)]


def test_the_time_of_a_line() -> None:
    """As captured from db_bench of RocksDB 7.8.3."""
    (waits,) = only(
        WritersWait,
        read(
            b"2026/11/21-18:54:45.596978 25166 [WARN] [db/column_family.cc:944] [default] Stopping writes because we "
            b"have 2 immutable memtables (waiting for flush), max_write_buffer_number is set to 2\n"
        ),
    )
    (ended,) = only(
        JobFinished,
        read(
            b"2026/11/21-18:54:45.608579 25133 (Original Log Time 2026/11/21-18:54:45.608497) EVENT_LOG_v1 "
            b'{"time_micros": 1795287285608486, "job": 2, "event": "flush_finished", "lsm_state": [1, 0, 0, 0]}\n'
        ),
    )
    assert (waits.thread, waits.family) == (25166, "default")
    assert ended.time - waits.time == pytest.approx(0.011601, abs=1e-6)
    (nonsense,) = only(WritersWait, read(b"9999/99/99-99:99:99.999999 1 Too many L0 files; waiting...\n"))
    assert nonsense.time == 0.0


# The bytes come as they come.


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_byte_by_byte_gives_the_same_events(name: str) -> None:
    log = golden(name)[-1]
    assert read(*(log[i : i + 1] for i in range(len(log)))) == read(log)


@given(st.sampled_from(sorted(ORACLES)), st.lists(st.integers(0, 1 << 16), max_size=40))
def test_any_split_gives_the_same_events(name: str, sizes: list[int]) -> None:
    log = golden(name)[-1]
    chunks, start = [], 0
    for size in sizes:
        chunks.append(log[start : start + size])
        start += size
    assert read(*chunks, log[start:]) == read(log)


def test_line_counts_once_its_newline_is_there() -> None:
    reader = InfoLogReader()
    assert reader.feed(LEVELDB + b"Delete type=2 #9") == []
    assert reader.feed(b"7\n") == [FileDeleted(LEVELDB_THREAD, None, 97, Role.SST)]


@pytest.mark.parametrize("chunk", [1 << 10, 1 << 16, 1 << 22])
@pytest.mark.parametrize(("padding", "kept"), [(0, True), (1, False)])
def test_line_over_the_bound_is_dropped_however_it_comes(chunk: int, padding: int, kept: bool) -> None:
    short = LEVELDB + b"Delete type=2 #9"
    log = LEVELDB + b"Moved #7 to level-1 5 bytes OK"
    log += b" " * (MAX_LINE + padding - len(log)) + b"\n" + short + b"\n"
    moved: list[Event] = [TableMoved(LEVELDB_THREAD, None, 7, 1)] if kept else []
    expected = [*moved, FileDeleted(LEVELDB_THREAD, None, 9, Role.SST)]
    assert read(*(log[i : i + chunk] for i in range(0, len(log), chunk))) == expected


def test_what_is_left_of_a_long_line_is_not_a_line() -> None:
    short = LEVELDB + b"Delete type=2 #9"
    assert read(short, b" " * MAX_LINE, b"\n") == []
    assert read(b" " * MAX_LINE, b" " * 9, short + b"\n") == []
    assert read(b" " * MAX_LINE, b" " * 9, short, b"\n") == []


def test_memory_is_bounded() -> None:
    reader = InfoLogReader()
    for _ in range(64):
        assert reader.feed(b"x" * (MAX_LINE // 4)) == []
    assert len(reader._tail) <= MAX_LINE + 1
    assert reader.feed(b"\n" + LEVELDB + b"Delete type=2 #9\n") == [FileDeleted(LEVELDB_THREAD, None, 9, Role.SST)]


# Nothing in it raises, or takes for ever.


@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing(data: bytes) -> None:
    read(data + b"\n")


@cache
def telling_lines() -> list[bytes]:
    """The golden lines that have an event."""
    lines = (line for name in sorted(ORACLES) for log in golden(name) for line in log.splitlines(keepends=True))
    return [line for line in lines if read(line)]


@given(st.data())
def test_mutated_lines_raise_nothing(data: st.DataObject) -> None:
    line = bytearray(data.draw(st.sampled_from(telling_lines())))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from([b"", b"\n", b"[", b"]", b'"', b"9" * 40, b"-", b"\xff", b"@", b" [JOB ", b"files to L"])
        )
        line = line or bytearray(b"\n")
    read(bytes(line) + b"\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "head",
    [
        b"[",
        b"[f] [JOB 2] Compacting ",
        b"[AddFile] External SST file ",
        b'EVENT_LOG_v1 {"time_micros": 1, "cf_name": "',
        b'EVENT_LOG_v1 {"time_micros": 1, "job": 7, "event": "compaction_started", ',
        b"Compacting ",
        b"compacted to: files[",
    ],
)
@pytest.mark.parametrize(
    "unit",
    [
        b"[f] [JOB 2] Compacting ",
        b"1",
        b"1@1 + ",
        b":1",
        b"] ",
        b" was ingested in L1 with path /",
        b'", "job": 1, "event": "',
        b'"files_L0": [1',
        b'"lsm_state": [',
        b'"file_number": ',
    ],
)
def test_a_long_line_takes_time_in_proportion_to_its_length(head: bytes, unit: bytes) -> None:
    """A quadratic one would take minutes."""
    line = ROCKSDB + head + unit * ((MAX_LINE - 100) // len(unit))
    read(line + b"\n")
