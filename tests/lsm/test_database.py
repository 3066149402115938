"""What one database's files and threads tell, taken together: what is believed of a file at its creation."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.database import Database, Truth
from keigo.lsm.manifest import ManifestError
from keigo.lsm.options import parse_options
from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from tests.lsm.test_manifest import deleted, field, manifest, new_file

TRIGGER = 4  # tables in level 0 that call for a compaction, by default
OPTIONS = b"""[Version]
  rocksdb_version=7.8.3
[DBOptions]
  max_subcompactions=%d
[CFOptions "default"]
  level_compaction_dynamic_level_bytes=false
[CFOptions "other"]
  level_compaction_dynamic_level_bytes=false
"""


def line(thread: int, text: str) -> bytes:
    return b"2026/11/21-04:04:29.482679 %d %s\n" % (thread, text.encode())


def compacting(thread: int, job: int, level: int, family: str = "default", start: int = 0) -> bytes:
    return line(thread, f"[{family}] [JOB {job}] Compacting 4@{start} + 2@{level} files to L{level}, score 1.00")


def created(thread: int, job: int, number: int) -> bytes:
    return line(
        thread,
        f'EVENT_LOG_v1 {{"time_micros": 1, "cf_name": "default", "job": {job}, "event": "table_file_creation", '
        f'"file_number": {number}, "file_size": 100}}',
    )


def finished(thread: int, job: int) -> bytes:
    return line(thread, f'EVENT_LOG_v1 {{"time_micros": 1, "job": {job}, "event": "compaction_finished"}}')


class Growing:
    """A database and its MANIFEST, edit by edit."""

    def __init__(self, *, subcompactions: int = 1) -> None:
        self.database = Database()
        self.database.options = parse_options(OPTIONS % subcompactions)
        self.edits: list[bytes] = []
        self.fed = 0

    def edit(self, *edits: bytes) -> list[Truth]:
        self.edits += edits
        data = manifest(*self.edits)
        self.database.read_manifest(data[self.fed :])
        self.fed = len(data)
        return self.database.take_truths()

    def flushed(self, *numbers: int) -> None:
        self.edit(*(new_file(number, size=64 << 20) for number in numbers))

    def level(self, number: int, tid: int, job: Job = Job.COMPACTION) -> int | None:
        return self.database.believe(b"%06d.sst" % number, tid, job).level


def test_a_thread_named_for_flushes_makes_level_0() -> None:
    belief = Growing().database.believe(b"000009.sst", 1, Job.FLUSH)
    assert (belief.level, belief.job, belief.family) == (0, Job.FLUSH, "default")


def test_a_flush_is_of_the_family_that_the_log_says() -> None:
    db = Growing()
    db.edit(field(200, 1, 201, b"other"))
    db.database.read_log(line(77, "[other] [JOB 3] Flushing memtable with next log file: 8"))
    assert db.database.believe(b"000009.sst", 77, Job.FLUSH).family == "other"
    db.database.read_log(line(77, "[default] [JOB 4] Level-0 flush table #10: started"))
    assert db.database.believe(b"000010.sst", 77, Job.FLUSH).family == "default"


def test_the_log_names_a_job_by_the_kernel_s_thread() -> None:
    db = Growing()
    db.database.read_log(compacting(500, 7, 1) + compacting(501, 8, 4, start=3))
    assert db.level(20, 500) == 1
    assert db.level(21, 501) == 4
    assert db.level(22, 500) == 1


def test_an_address_is_tied_to_a_thread_by_a_file_that_both_name() -> None:
    db = Growing()
    db.database.read_log(compacting(140_412_425_598_656, 1, 1) + compacting(140_412_425_590_000, 2, 5, start=4))
    db.level(20, 500)  # not known yet which of the two it is
    db.level(21, 501)
    db.database.read_log(created(140_412_425_598_656, 1, 20) + created(140_412_425_590_000, 2, 21))
    assert (db.level(22, 500), db.level(23, 501)) == (1, 5)
    db.database.read_log(finished(140_412_425_598_656, 1) + compacting(140_412_425_598_656, 3, 2, start=1))
    assert db.level(24, 500) == 2, "the thread goes on to its next job under the same address"


def test_what_the_log_does_not_tell_is_predicted_once_for_a_job() -> None:
    db = Growing()
    db.flushed(*range(10, 10 + TRIGGER))
    assert db.level(20, 500) == 1
    # A flush meanwhile changes what would be picked now, not what the job is.
    db.edit(*(new_file(number, 2, size=8 << 30) for number in (30, 31)))
    assert db.level(21, 500) == 1
    # The MANIFEST has its files: the thread's next one is of another job.
    gone = b"".join(deleted(number) for number in range(10, 10 + TRIGGER))
    db.edit(gone + new_file(20, 1) + new_file(21, 1))
    assert db.level(22, 500) == 3
    assert db.database.outcomes == {(1, 1): 2}


def test_a_job_is_over_when_the_manifest_has_its_file() -> None:
    """Whatever the log says: its last lines can be late."""
    db = Growing()
    db.database.read_log(compacting(500, 7, 4, start=3))
    assert db.level(20, 500) == 4
    db.flushed(*range(10, 10 + TRIGGER))
    db.edit(new_file(20, 4))
    assert db.level(21, 500) == 1


def test_a_subcompaction_belongs_to_the_job_of_level_0() -> None:
    db = Growing(subcompactions=4)
    db.database.read_log(compacting(500, 7, 1) + compacting(501, 8, 5, start=4))
    assert db.level(20, 900) == 1, "a thread that has never begun a job of its own"
    db.database.read_log(created(900, 7, 20))
    assert db.level(21, 900) == 1


def test_families_are_compacted_in_the_order_in_which_they_came_to_need_it() -> None:
    db = Growing()
    db.edit(field(200, 1, 201, b"other"))
    for number in range(10, 10 + TRIGGER):
        db.edit(field(200, 1) + new_file(number, size=64 << 20))
    db.edit(*(new_file(number, 2, size=8 << 30) for number in (30, 31)))
    first = db.database.believe(b"000040.sst", 500, Job.COMPACTION)
    second = db.database.believe(b"000041.sst", 501, Job.COMPACTION)
    assert [(first.family, first.level), (second.family, second.level)] == [("other", 1), ("default", 3)]


def test_an_opener_starts_with_no_jobs() -> None:
    db = Growing()
    db.database.read_log(compacting(500, 7, 4))
    db.database.reopened()
    db.database.new_log()
    db.flushed(*range(10, 10 + TRIGGER))
    assert db.level(20, 500) == 1


def started(thread: int, job: int, *tables: int) -> bytes:
    return line(
        thread,
        f'EVENT_LOG_v1 {{"time_micros": 1, "job": {job}, "event": "compaction_started", "files_L0": {list(tables)}, '
        f'"score": 1}}',
    )


def test_a_belief_has_the_tables_that_the_job_reads() -> None:
    db = Growing(subcompactions=4)
    db.flushed(10, 11, 12, 13)
    early = db.database.believe(b"000020.sst", 500, Job.COMPACTION)
    assert (early.level, early.inputs) == (1, frozenset()), "no line of the job yet"
    db.database.read_log(compacting(500, 7, 1) + started(500, 7, 10, 12))
    assert db.database.believe(b"000021.sst", 500, Job.COMPACTION).inputs == {10, 12}
    assert db.database.believe(b"000022.sst", 900, Job.COMPACTION).inputs == {10, 12}, "of a subcompaction"
    assert db.database.believe(b"000023.sst", 600, Job.FLUSH).inputs == frozenset()


def test_tables_that_running_compactions_read_are_doomed() -> None:
    db = Growing()
    db.flushed(10, 11, 12, 13)
    db.database.read_log(started(500, 7, 10, 12, 99) + started(501, 8, 13))
    assert db.database.doomed() == {10, 12, 13}, "99 is not live"
    db.database.read_log(finished(500, 7))
    assert db.database.doomed() == {13}
    db.edit(deleted(13))
    assert db.database.doomed() == frozenset()


def test_pressure_is_that_of_the_worst_family() -> None:
    db = Growing()
    db.edit(field(200, 1, 201, b"other"))
    assert db.database.pressure() == CALM
    db.edit(*(field(200, 1) + new_file(number) for number in range(10, 22)))
    db.edit(*(new_file(number) for number in range(30, 38)))
    assert db.database.pressure() == Pressure(0.5)
    assert db.database.believe(b"000050.sst", 1, Job.FLUSH).pressure == Pressure(0.5)
    db.edit(*(field(200, 1) + new_file(number) for number in range(40, 48)))
    assert db.database.pressure() == Pressure(1.0, stalled=True)
    db.edit(field(200, 1) + deleted(10) + new_file(10, 3))
    assert db.database.pressure() == Pressure(15 / 16)
    db.database.new_manifest()
    assert db.database.pressure() == CALM


def test_writers_wait_when_the_log_says_so() -> None:
    db = Growing()
    db.database.read_log(compacting(500, 7, 1), 100.0)
    db.database.read_log(
        line(3, "[default] Stalling writes because of estimated pending compaction bytes 9 rate 1"), 100.0
    )
    assert db.database.pressure(100.0) == Pressure(0.0, stalled=True)
    assert db.database.believe(b"000050.sst", 1, Job.FLUSH, now=100.0).pressure.stalled
    assert not db.database.pressure(111.0).stalled, "the log does not grow"
    later = finished(500, 7).replace(b"04:04:29", b"04:04:31")
    db.database.read_log(later, 111.0)
    assert not db.database.pressure(111.0).stalled, "a job has ended and nothing was said"


def test_a_database_that_nobody_writes_has_no_writers_that_wait() -> None:
    db = Growing()
    db.flushed(*range(10, 30))
    assert db.database.pressure(59.0) == Pressure(1.0, stalled=True)
    assert db.database.pressure(61.0) == CALM


def test_leveldb_s_writers_wait_for_a_flush() -> None:
    database = Database()
    database.read_log(line(1 << 40, "Current memtable full; waiting..."))
    assert database.pressure().stalled
    flushed = line(1 << 41, "Level-0 table #5: 9557 bytes OK")
    database.read_log(flushed)
    assert database.pressure().stalled, "of the flush that they waited for, or of another"
    database.read_log(flushed.replace(b"04:04:29", b"04:04:31"))
    assert not database.pressure().stalled


def test_leveldb_flushes_in_the_middle_of_a_compaction() -> None:
    db = Growing()
    database = db.database
    database.engine = "leveldb"
    db.edit(*(new_file(number, 0, tag=7) for number in range(10, 14)), new_file(9, 1, tag=7))
    database.read_log(line(140_412_425_598_656, "Compacting 4@0 + 1@1 files"))
    assert database.believe(b"000020.ldb", 500, Job.FOREGROUND).level == 1
    database.read_log(line(140_412_425_598_656, "Level-0 table #21: started"))
    flush = database.believe(b"000021.ldb", 500, Job.FOREGROUND)
    assert (flush.level, flush.job) == (0, Job.FLUSH)
    db.edit(new_file(21, 0, tag=7))
    assert database.believe(b"000022.ldb", 500, Job.FOREGROUND).level == 1, "the compaction goes on"


def test_leveldb_puts_flushes_of_keys_in_order_below_level_0() -> None:
    db = Growing()
    database = db.database
    database.engine = "leveldb"
    levels = []
    for number, key in ((10, b"a"), (11, b"b"), (12, b"c"), (13, b"a")):
        database.read_log(line(140_412_425_598_656, f"Level-0 table #{number}: started"))
        levels.append(database.believe(b"%06d.ldb" % number, 500, Job.FOREGROUND).level)
        db.edit(new_file(number, 0 if number == 13 else 2, keys=(key, key), tag=7))
    database.read_log(line(140_412_425_598_656, "Level-0 table #14: started"))
    levels.append(database.believe(b"000014.ldb", 500, Job.FOREGROUND).level)
    assert levels == [2, 1, 2, 2, 0], "learned from the second, and unlearned from the fourth"


def test_truths_are_told_once_and_again_by_another_manifest() -> None:
    db = Growing()
    here = Truth(10, Role.SST, "default", 0)
    assert db.edit(new_file(10)) == [here]
    assert db.edit(field(2, 9)) == []
    assert db.edit(deleted(10) + new_file(10, 3)) == [Truth(10, Role.SST, "default", 3)]
    db.database.new_manifest()
    db.edits, db.fed = [], 0
    assert db.edit(new_file(10)) == [here], "of a database made anew, with the same numbers"


def test_where_a_table_was_first_counts() -> None:
    """A flush that was moved down before anybody looked was believed right."""
    db = Growing()
    db.edit(field(2, 1))
    db.level(10, 1, Job.FLUSH)
    assert db.edit(new_file(10), deleted(10) + new_file(10, 2)) == [Truth(10, Role.SST, "default", 2)]
    assert db.database.outcomes == {(0, 0): 1}


def test_nothing_is_known_of_a_store_that_says_nothing() -> None:
    belief = Database().believe(b"000009.sst", 500, Job.FOREGROUND)
    assert (belief.level, belief.family, belief.engine) == (None, None, None)


NUMBERS = st.integers(0, 30)
LOGS = st.one_of(
    st.binary(max_size=80),
    st.builds(compacting, st.sampled_from([1, 2, 1 << 40]), st.integers(0, 3), st.integers(0, 9)),
    st.builds(created, st.sampled_from([1, 2, 1 << 40]), st.integers(0, 3), NUMBERS),
    st.builds(finished, st.sampled_from([1, 2]), st.integers(0, 3)),
    NUMBERS.map(lambda n: line(1, f"Level-0 table #{n}: started")),
    st.just(line(3, "Compacting 1@1 + 1@2 files")),
    st.just(line(3, "RocksDB version: 8.1.1")),
    st.just(line(3, "[default] Stopping writes because we have 9 level-0 files")),
    st.builds(lambda thread, job, tables: started(thread, job, *tables), NUMBERS, NUMBERS, st.lists(NUMBERS)),
)
EDITS = st.one_of(
    st.builds(new_file, NUMBERS, st.integers(0, 40), st.integers(0, (1 << 63) - 1), tag=st.sampled_from([7, 103])),
    st.builds(deleted, NUMBERS, st.integers(0, 9)),
    st.sampled_from([field(200, 1, 201, b"other"), field(200, 1), field(200, 1, 202)]),
    st.binary(max_size=9),
)


@given(
    st.lists(
        st.one_of(
            LOGS.map(lambda data: ("log", data)),
            EDITS.map(lambda data: ("edit", data)),
            NUMBERS.map(lambda n: ("create", n)),
        ),
        max_size=30,
    ),
    st.sampled_from(list(Job)),
)
def test_nothing_that_a_database_writes_is_an_error_to_its_creates(
    steps: list[tuple[str, bytes | int]], job: Job
) -> None:
    db = Growing(subcompactions=2)
    broken = False
    for what, data in steps:
        if what == "log":
            assert isinstance(data, bytes)
            db.database.read_log(data)
        elif what == "edit" and not broken:
            assert isinstance(data, bytes)
            try:
                db.edit(data)
            except ManifestError:
                broken = True
                db.database.take_truths()
        elif isinstance(data, int):
            db.database.believe(b"%06d.sst" % data, data % 4, job)
            db.database.level_targets()
        check_counts(db.database)


def check_counts(database: Database) -> None:
    for number, tables in database._tables.items():
        assert +database._counts[number] == Counter(table.level for table in tables.values())
    assert 0 <= database.pressure().level0 <= 1
    database.doomed()
