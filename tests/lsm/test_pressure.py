"""How much writers wait: by the MANIFEST and OPTIONS, and by the info log."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.options import LEVELDB, CompactionStyle, Engine, FamilyOptions
from keigo.lsm.pressure import CALM, Pressure, Waits, pressure_of, worst

ROCKSDB = FamilyOptions()


@pytest.mark.parametrize(
    ("tables", "pressure"),
    [
        ({}, CALM),
        ({0: 4, 1: 900}, CALM),
        ({0: 12}, Pressure(0.5)),
        ({0: 19}, Pressure(15 / 16)),
        ({0: 20}, Pressure(1.0, stalled=True)),
        ({0: 300}, Pressure(1.0, stalled=True)),
    ],
)
def test_level_0_between_compaction_and_slowdown(tables: dict[int, int], pressure: Pressure) -> None:
    assert pressure_of(ROCKSDB, tables) == pressure


def test_leveldb_s_numbers() -> None:
    assert [pressure_of(LEVELDB, {0: n}) for n in (4, 6, 7, 8)] == [
        CALM,
        Pressure(0.5),
        Pressure(0.75),
        Pressure(1.0, stalled=True),
    ]


def test_universal_counts_a_level_as_a_table() -> None:
    universal = replace(ROCKSDB, compaction_style=CompactionStyle.UNIVERSAL)
    assert pressure_of(universal, {0: 9, 4: 7, 5: 100, 6: 0}) == pressure_of(ROCKSDB, {0: 11})


def test_slowdown_that_is_switched_off_or_beyond_the_stop() -> None:
    for slow in (-1, 99):
        options = replace(ROCKSDB, level0_slowdown_writes_trigger=slow, level0_stop_writes_trigger=10)
        assert [pressure_of(options, {0: n}).stalled for n in (9, 10)] == [False, True]
        assert pressure_of(options, {0: 7}).level0 == 0.5


def test_no_limit_at_all() -> None:
    options = replace(ROCKSDB, level0_slowdown_writes_trigger=-1, level0_stop_writes_trigger=-1)
    assert pressure_of(options, {0: 999}) == CALM


def test_trigger_at_the_slowdown() -> None:
    options = replace(ROCKSDB, level0_file_num_compaction_trigger=3, level0_slowdown_writes_trigger=3)
    assert [pressure_of(options, {0: n}) for n in (2, 3)] == [CALM, Pressure(1.0, stalled=True)]


@pytest.mark.parametrize(
    "options",
    [
        replace(ROCKSDB, disable_auto_compactions=True),
        replace(ROCKSDB, compaction_style=CompactionStyle.FIFO),
        replace(ROCKSDB, engine=Engine.PEBBLE),
    ],
)
def test_stores_that_make_nobody_wait_for_level_0(options: FamilyOptions) -> None:
    assert pressure_of(options, {0: 1000}) == CALM


@given(st.integers(-1, 50), st.integers(-1, 50), st.integers(-1, 50), st.integers(0, 100))
def test_more_tables_never_mean_less_pressure(trigger: int, slow: int, stop: int, count: int) -> None:
    options = replace(
        ROCKSDB,
        level0_file_num_compaction_trigger=trigger,
        level0_slowdown_writes_trigger=slow,
        level0_stop_writes_trigger=stop,
    )
    less, more = pressure_of(options, {0: count}), pressure_of(options, {0: count + 1})
    assert 0 <= less.level0 <= more.level0 <= 1
    assert more.stalled or not less.stalled
    assert less.stalled == (less.level0 == 1)


def test_the_worst_of_each() -> None:
    assert worst([]) == CALM
    assert worst([Pressure(0.3), Pressure(0.1, stalled=True), CALM]) == Pressure(0.3, stalled=True)


def test_writers_wait_until_a_job_ends_without_a_word() -> None:
    waits = Waits()
    waits.grew(100.0)
    waits.said("default", 5.0, waiting=True)
    assert waits.waiting(100.0)
    waits.ended({"default"}, 5.2)  # the line was of this very job
    waits.ended({"other"}, 9.0)
    assert waits.waiting(100.0)
    waits.ended({"default"}, 9.0)
    assert not waits.waiting(100.0)


def test_a_job_of_no_known_family_may_be_of_any() -> None:
    waits = Waits()
    waits.said("default", 5.0, waiting=True)
    waits.said(None, 5.0, waiting=True)
    waits.ended((), 9.0)
    assert not waits.waiting(0.0)


def test_the_log_says_that_they_wait_no_more() -> None:
    waits = Waits()
    waits.said("default", 5.0, waiting=True)
    waits.said("other", 5.0, waiting=True)
    waits.said("default", 5.1, waiting=False)
    assert waits.waiting(0.0)
    waits.said(None, 5.1, waiting=False)
    assert not waits.waiting(0.0)


def test_a_silent_log_says_nothing() -> None:
    waits = Waits()
    waits.grew(100.0)
    waits.said("default", 5.0, waiting=True)
    assert (waits.waiting(109.0), waits.waiting(111.0)) == (True, False)
    waits.grew(112.0)
    assert waits.waiting(113.0), "it was a long compaction"


def test_a_wall_clock_that_is_set_back_does_not_keep_them_waiting() -> None:
    waits = Waits()
    waits.said("default", 7200.0, waiting=True)
    waits.ended({"default"}, 3605.0)
    assert not waits.waiting(0.0)
