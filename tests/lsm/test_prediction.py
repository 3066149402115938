"""Where compactions go: RocksDB's arithmetic by examples, and real stores' picks."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.options import LEVELDB, CompactionStyle, Engine, FamilyOptions, UniversalOptions, parse_options
from keigo.lsm.prediction import (
    UNLIMITED,
    TableState,
    base_level,
    level_targets,
    predict_compaction_output,
    predict_flush_output,
    scores,
    target_file_size,
)

DATA = Path(__file__).parent.parent / "data" / "lsm" / "options"
MIB = 1 << 20
GIB = 1 << 30

STATIC = FamilyOptions(level_compaction_dynamic_level_bytes=False)
DYNAMIC = FamilyOptions()
UNIVERSAL = FamilyOptions(compaction_style=CompactionStyle.UNIVERSAL, level_compaction_dynamic_level_bytes=False)


def tables(*levels: str | int, size: int = MIB) -> list[TableState]:
    """Level by level a number of bytes, or the tables' ranges of keys: `ac*` from a to c, * being compacted.

    The first table of a level is the newest.
    """
    made: list[TableState] = []
    for level, what in enumerate(levels):
        for given_ in what.split() if isinstance(what, str) else ["az"] * (what > 0):
            bytes_ = size if isinstance(what, str) else what
            number = 1000 - len(made)
            busy = given_.endswith("*")
            made.append(TableState(number, level, bytes_, given_[:1].encode(), given_[1:2].encode(), busy, number))
    return made


def output(found: list[TableState], options: FamilyOptions) -> int | None:
    prediction = predict_compaction_output(found, options)
    return None if prediction is None else prediction.level


# Targets and the base level


def test_static_targets_grow_by_the_multiplier_from_level_1() -> None:
    assert level_targets([], STATIC) == tuple(256 * MIB * each for each in (1, 1, 10, 100, 1000, 10_000, 100_000))
    assert base_level(tables(0, 0, 0, GIB), STATIC) == 1


def test_static_targets_obey_the_additional_multipliers() -> None:
    options = replace(STATIC, num_levels=5, max_bytes_for_level_multiplier_additional=(9, 2, 3))
    assert level_targets([], options) == tuple(256 * MIB * each for each in (1, 1, 20, 600, 6000))


def test_a_target_beyond_64_bits_stays_what_it_was() -> None:
    assert level_targets([], replace(STATIC, max_bytes_for_level_base=1 << 62))[1:4] == (1 << 62,) * 3


def test_with_dynamic_level_bytes_an_empty_tree_compacts_into_the_last_level() -> None:
    assert base_level(tables("az az"), DYNAMIC) == 6
    assert level_targets(tables("az az"), DYNAMIC) == (UNLIMITED,) * 7


@pytest.mark.parametrize(
    ("last", "base"), [(100 * MIB, 6), (256 * MIB, 6), (257 * MIB, 5), (2561 * MIB, 4), (30 * GIB, 3), (9000 * GIB, 1)]
)
def test_with_dynamic_level_bytes_the_base_level_is_the_lowest_whose_target_is_at_most_the_base_size(
    last: int, base: int
) -> None:
    assert base_level(tables(0, 0, 0, 0, 0, 0, last), DYNAMIC) == base


def test_dynamic_targets_are_a_tenth_of_the_level_below_and_at_least_the_base_size() -> None:
    targets = level_targets(tables(0, 0, 0, 0, 0, 0, 276 * GIB), replace(DYNAMIC, max_bytes_for_level_base=GIB))
    assert targets[:3] == (UNLIMITED,) * 3
    assert targets[3] == GIB
    assert targets[4:] == pytest.approx((2.76 * GIB, 27.6 * GIB, 276 * GIB), rel=1e-6)


def test_no_dynamic_base_level_has_more_than_the_base_size() -> None:
    assert level_targets(tables(0, 0, 0, 0, 0, 0, 90_000 * GIB), DYNAMIC)[1] == 256 * MIB


def test_the_base_level_stays_the_first_that_has_data_though_the_last_one_shrank() -> None:
    assert base_level(tables(0, 0, 0, 0, MIB, MIB, MIB), DYNAMIC) == 4


# Scores


def test_level_0_scores_by_tables_or_by_bytes_whichever_is_more() -> None:
    assert scores(tables("az az az az az az", 0), STATIC)[0] == (0, 1.5)
    assert scores(tables("az", 0, size=512 * MIB), STATIC)[0] == (0, 2.0)


def test_tables_that_are_being_compacted_do_not_count() -> None:
    assert dict(scores(tables("az* az az az", "ac* df", size=128 * MIB), STATIC))[0] == 1.5
    assert dict(scores(tables("", "ac* df", size=128 * MIB), STATIC))[1] == 0.5


def test_with_dynamic_level_bytes_a_score_above_1_is_tenfold_and_divided_by_what_comes_down() -> None:
    found = dict(scores(tables("az az az az az az", 0, 0, 0, 0, 400 * MIB, 2560 * MIB), DYNAMIC))
    assert found[0] == 15.0
    assert found[5] == pytest.approx(400 / (256 + 6) * 10)
    assert dict(scores(tables("az az az az", 0, 0, 0, 0, 200 * MIB, 2560 * MIB), DYNAMIC))[5] == pytest.approx(0.78125)
    assert dict(scores(tables("az az az az"), DYNAMIC))[0] == 1.0


def test_with_dynamic_level_bytes_level_0_is_measured_by_the_base_level_s_size() -> None:
    assert dict(scores(tables("az", 0, 0, 0, 0, 0, GIB, size=512 * MIB), DYNAMIC))[0] == pytest.approx(20)
    found = tables("az", 0, 0, 0, 0, 400 * MIB, 2560 * MIB, size=800 * MIB)
    assert dict(scores(found, DYNAMIC))[0] == pytest.approx(20)


def test_from_8_2_on_unnecessary_levels_are_drained() -> None:
    found = tables(0, 0, 0, MIB, MIB, 0, 10 * MIB)
    assert dict(scores(found, replace(DYNAMIC, version=(8, 2, 0))))[4] == pytest.approx(10.02)
    assert output(found, replace(DYNAMIC, version=(8, 2, 0))) == 4
    assert output(found, replace(DYNAMIC, version=(8, 1, 9))) is None


def test_all_of_an_unnecessary_level_comes_down_and_of_another_what_exceeds_its_target() -> None:
    found = dict(scores(tables(0, 0, 0, MIB, 100 * MIB, 5120 * MIB, 2560 * MIB), DYNAMIC))
    assert found[5] == pytest.approx(5120 / (2560 + 1) * 10, rel=1e-6)


def test_while_recent_data_is_kept_out_of_the_last_level_the_one_above_it_is_necessary() -> None:
    found = tables(0, 0, 0, 0, 0, MIB, 10 * MIB)
    assert output(found, DYNAMIC) == 6
    assert output(found, replace(DYNAMIC, preclude_last_level_data_seconds=1)) is None


def test_levels_come_in_the_order_of_their_scores() -> None:
    assert [level for level, _ in scores(tables("az az", GIB, 26 * GIB), STATIC)][:3] == [2, 1, 0]


# Picks of level style


def test_nothing_is_picked_while_no_score_is_1() -> None:
    assert output(tables("az az az", 200 * MIB), STATIC) is None
    assert output([], STATIC) is None


def test_level_0_goes_to_the_base_level() -> None:
    assert output(tables("az az az az"), STATIC) == 1
    assert output(tables("az az az az"), DYNAMIC) == 6
    assert output(tables("az az az az", 0, 0, 0, 0, 0, 20 * GIB), DYNAMIC) == 4


def test_another_level_goes_to_the_next_and_the_highest_score_first() -> None:
    assert output(tables("az az az az", 300 * MIB, 5200 * MIB), STATIC) == 3
    assert output(tables("az az az az", 300 * MIB), STATIC) == 2


def test_of_level_0_one_compaction_at_a_time() -> None:
    busy = tables("az az az az az* az*", "ac df*", "ac", size=128 * MIB)
    assert output(busy, replace(STATIC, level0_file_num_compaction_trigger=10)) is None


def test_while_level_0_waits_the_base_level_gives_nothing() -> None:
    found = tables("az az az az az*", "ac df gi", "ac", size=200 * MIB)
    assert scores(found, STATIC)[1][0] == 1
    assert scores(found, STATIC)[1][1] > 1
    assert output(found, STATIC) is None


def test_while_level_0_waits_its_newest_tables_are_merged_within() -> None:
    assert output(tables("az az az az az* az*"), STATIC) == 0
    assert output(tables("az az az az az* az*", "ac*"), STATIC) == 0


@pytest.mark.parametrize(
    "level0",
    ["az az az az az*", "az* az az az az az", "az az az az* az* az az"],
    ids=["too few in all", "the newest is taken", "too few in a row"],
)
def test_level_0_is_not_merged_within(level0: str) -> None:
    assert output(tables(level0), STATIC) is None


def test_a_merge_within_level_0_ends_where_tables_grow_or_exceed_max_compaction_bytes() -> None:
    found = tables("az az az az az az* az*")
    assert output(found, STATIC) == 0
    grown = [replace(each, size=3 * MIB) if i == 3 else each for i, each in enumerate(found)]
    assert output(grown, STATIC) is None
    assert output(found, replace(STATIC, max_compaction_bytes=3 * MIB)) is None


def test_a_level_gives_no_table_whose_way_is_being_compacted() -> None:
    free = tables("", "ac df", "ac* df", size=200 * MIB)
    assert output(free, STATIC) == 2
    assert output(tables("", "ac df", "af*", size=300 * MIB), STATIC) is None


def test_tables_that_share_a_key_are_compacted_together() -> None:
    assert output(tables("", "ac* cd df", "", size=300 * MIB), STATIC) is None
    assert output(tables("", "ac cd*", "", size=300 * MIB), STATIC) is None
    assert output(tables("", "ac* de ef", "", size=300 * MIB), STATIC) == 2


def test_level_0_goes_around_what_is_being_compacted_in_the_base_level() -> None:
    assert output(tables("ac ac ac ac", "ab*"), STATIC) is None
    assert output(tables("ac ac ac df", "ab*"), STATIC) == 1
    assert output(tables("bc bc bc bc", "ab*"), STATIC) is None


@pytest.mark.parametrize(
    "options",
    [
        replace(STATIC, disable_auto_compactions=True),
        replace(STATIC, compaction_style=CompactionStyle.NONE),
        replace(STATIC, engine=Engine.PEBBLE),
        replace(STATIC, num_levels=1),
    ],
)
def test_where_the_picker_is_off_or_unknown_nothing_is_predicted(options: FamilyOptions) -> None:
    assert output(tables("az az az az az az az"), options) is None


def test_fifo_stays_in_level_0() -> None:
    assert output(tables("az az az az"), replace(STATIC, compaction_style=CompactionStyle.FIFO)) == 0


# Picks of universal style


def runs(*sizes: int, **levels: int) -> list[TableState]:
    """L0 tables of so many MiB from the newest on, and `l5=3`: level 5 has 3 MiB. A negative size: being compacted."""
    found = [TableState(i, 0, abs(size) * MIB, b"a", b"z", size < 0, 1000 - i) for i, size in enumerate(sizes)]
    for name, size in levels.items():
        found.append(TableState(100 + len(found), int(name[1:]), abs(size) * MIB, b"a", b"z", size < 0))
    return found


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (runs(1, 1, 1), None),
        (runs(1, 1, 1, 1), 6),
        (runs(1, 1, 1, l6=1), 6),
        (runs(1, 1, 1, 1, l6=100), 5),
        (runs(1, 1, 1, 1, l5=50, l6=100), 4),
        (runs(1, 1, 1, 1, l1=50, l6=100), 0),
        (runs(1, 1, 9, 90, l6=900), 0),
        (runs(1, 2, 4, 8, l6=100), 0),
        (runs(1, 1, -1, -1, l6=-3), 0),
        (runs(-1, -1, 1, 1, l6=1), 6),
    ],
    ids=[
        "too few runs",
        "size amplification, nothing in the last level",
        "size amplification",
        "similar sizes, above the last level",
        "similar sizes, above level 5",
        "similar sizes, above level 1",
        "similar sizes, within level 0",
        "too many runs, though each is twice the newer one",
        "newer runs than those being compacted stay above them",
        "older runs than those being compacted",
    ],
)
def test_a_universal_compaction_goes_right_above_the_next_older_run(found: list[TableState], level: int | None) -> None:
    assert output(found, UNIVERSAL) == level


def test_too_many_runs_are_merged_from_the_newest_on_by_as_many_as_are_too_many() -> None:
    assert output(runs(1, 2, 4, 8, 100), UNIVERSAL) == 0
    assert output(runs(1, 2, 4, 8, 100), replace(UNIVERSAL, universal=UniversalOptions(max_read_amp=5))) is None
    # 1, 1.01, 2.03, 4.08, 8.20, 16.5, 33.1, 66.6, 134: by itself it takes nine runs to hold 100 MiB.
    auto = replace(UNIVERSAL, universal=UniversalOptions(max_read_amp=0), write_buffer_size=MIB)
    assert output(runs(1, 2, 4, 8, 100), auto) is None


def test_similar_size_stops_at_a_much_smaller_run() -> None:
    similar = UniversalOptions(stop_style="kCompactionStopStyleSimilarSize", size_ratio=10, max_read_amp=9)
    assert output(runs(9, 1, 1, 40, l6=100), replace(UNIVERSAL, universal=similar)) == 0
    assert output(runs(9, 5, 2, 40, l6=100), replace(UNIVERSAL, universal=similar)) is None
    assert output(runs(4, 4, l5=4, l6=100), replace(UNIVERSAL, universal=similar)) == 5


def test_a_compaction_takes_two_runs_at_least() -> None:
    eager = UniversalOptions(min_merge_width=1, max_size_amplification_percent=0, max_read_amp=5)
    assert output(runs(-1, -1, -1, l6=1), replace(UNIVERSAL, universal=eager)) is None


def test_the_last_level_is_left_to_what_is_ingested_behind() -> None:
    assert output(runs(1, 1, 1, 1), replace(UNIVERSAL, allow_ingest_behind=True)) == 5


def test_the_last_level_does_not_amplify_while_recent_data_is_kept_out_of_it() -> None:
    tiered = replace(UNIVERSAL, preclude_last_level_data_seconds=1)
    assert output(runs(9, 1, 1, l5=4, l6=5), UNIVERSAL) == 6
    assert output(runs(9, 1, 1, l5=4, l6=5), tiered) == 5


def test_before_8_7_a_gap_ends_the_search_for_size_amplification() -> None:
    gap = runs(1, -1, 9, l5=1, l6=1)
    assert output(gap, replace(UNIVERSAL, version=(8, 7))) == 6
    patient = replace(UNIVERSAL, version=(8, 6), universal=UniversalOptions(min_merge_width=9))
    assert output(gap, patient) is None
    assert output(gap[1:], replace(patient, level0_file_num_compaction_trigger=3)) == 6


def test_the_result_of_a_merge_within_level_0_is_as_old_as_what_it_was_made_of() -> None:
    merged = TableState(900, 0, 50 * MIB, b"a", b"z", False, largest_seqno=5)
    newer = [TableState(n, 0, MIB, b"a", b"z", False, largest_seqno=n) for n in (10, 11, 12)]
    assert output([merged, *newer, *runs(l6=100)], UNIVERSAL) == 0
    assert output([replace(merged, largest_seqno=900), *newer, *runs(l6=100)], UNIVERSAL) == 5


# LevelDB


def test_leveldb_counts_level_0_and_weighs_the_others() -> None:
    assert output(tables("az az az"), LEVELDB) is None
    assert output(tables("az", size=GIB), LEVELDB) is None
    assert output(tables("az az az az", 9 * MIB), LEVELDB) == 1
    assert output(tables("az az az az", 11 * MIB), LEVELDB) == 2
    assert output(tables("", 9 * MIB, 101 * MIB), LEVELDB) == 3


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (tables(), 2),
        (tables("ce"), 0),
        (tables("ac", "ce"), 0),
        (tables("ac", "", "ce"), 1),
        (tables("ac", "xz", "xz", "ce"), 2),
        ([*tables("ac", "xz"), TableState(7, 2, 21 * MIB, b"d", b"f")], 0),
        ([TableState(7, 3, 21 * MIB, b"d", b"f")], 1),
        ([TableState(7, 3, 20 * MIB, b"d", b"f")], 2),
    ],
)
def test_leveldb_flushes_below_level_0_what_overlaps_nothing_there(found: list[TableState], level: int) -> None:
    assert predict_flush_output(found, LEVELDB, b"d", b"e").level == level
    assert predict_flush_output(found, STATIC, b"d", b"e").level == 0


def test_a_flush_of_unknown_keys_overlaps_whatever_there_is() -> None:
    assert predict_flush_output(tables("", "", "ce"), LEVELDB).level == 1
    assert predict_flush_output([], LEVELDB).level == 2


# Sizes of tables


def test_table_sizes_grow_below_level_1() -> None:
    options = replace(STATIC, target_file_size_base=10, target_file_size_multiplier=3, write_buffer_size=4)
    assert [target_file_size(options, level) for level in range(5)] == [4, 10, 30, 90, 270]


def test_table_sizes_count_from_a_dynamic_base_level() -> None:
    options = replace(DYNAMIC, target_file_size_base=10, target_file_size_multiplier=3)
    assert [target_file_size(options, level, base_level=4) for level in (4, 5, 6)] == [10, 10, 30]
    assert [target_file_size(options, level, base_level=1) for level in (1, 2, 3)] == [10, 10, 30]


def test_table_sizes_of_other_stores() -> None:
    assert {target_file_size(LEVELDB, level) for level in range(1, 7)} == {2 * MIB}
    assert target_file_size(UNIVERSAL, 0) == UNLIMITED
    assert target_file_size(UNIVERSAL, 6) == 64 * MIB
    pebble = FamilyOptions(engine=Engine.PEBBLE, target_file_size_base=2, target_file_size_multiplier=2)
    assert [target_file_size(pebble, level, base_level=4) for level in (4, 5, 6)] == [4, 8, 16]


# Anything


KEY = st.binary(max_size=2)
ANY_TABLE = st.builds(
    TableState,
    number=st.integers(0, 1 << 64),
    level=st.integers(-1, 9),
    size=st.integers(0, 1 << 64) | st.integers(0, 4 * GIB),
    smallest=KEY,
    largest=KEY,
    being_compacted=st.booleans(),
    largest_seqno=st.integers(0, 1 << 56),
)
ANY_OPTIONS = st.builds(
    FamilyOptions,
    engine=st.sampled_from(Engine),
    version=st.sampled_from([(), (7, 8, 3), (8, 2), (9, 8, 4)]),
    compaction_style=st.sampled_from(CompactionStyle),
    num_levels=st.integers(1, 8),
    level0_file_num_compaction_trigger=st.integers(-1, 5),
    max_bytes_for_level_base=st.integers(0, 1 << 64),
    max_bytes_for_level_multiplier=st.floats(1e-9, 1e99),
    max_bytes_for_level_multiplier_additional=st.lists(st.integers(-1, 9), max_size=8).map(tuple),
    level_compaction_dynamic_level_bytes=st.booleans(),
    target_file_size_base=st.integers(0, 1 << 64),
    write_buffer_size=st.integers(0, 1 << 64),
    preclude_last_level_data_seconds=st.integers(0, 1),
    allow_ingest_behind=st.booleans(),
    max_mem_compact_level=st.integers(0, 3),
    universal=st.builds(
        UniversalOptions,
        size_ratio=st.integers(0, 1 << 64),
        min_merge_width=st.integers(0, 5),
        stop_style=st.sampled_from(["kCompactionStopStyleTotalSize", "kCompactionStopStyleSimilarSize"]),
        max_read_amp=st.integers(-1, 5),
    ),
)


@given(st.lists(ANY_TABLE, max_size=30), ANY_OPTIONS)
def test_whatever_a_store_says_a_prediction_is_one_of_its_levels(
    found: list[TableState], options: FamilyOptions
) -> None:
    prediction = predict_compaction_output(found, options)
    assert prediction is None or 0 <= prediction.level < options.num_levels
    assert 0 <= predict_flush_output(found, options, b"a", b"b").level <= options.max_mem_compact_level
    assert len(level_targets(found, options)) == options.num_levels
    for level in range(options.num_levels):
        assert 0 <= target_file_size(options, level, base_level(found, options)) <= 1 << 64


# Real picks


def replayed(name: str) -> tuple[Counter[tuple[int, int | None]], Counter[tuple[int, int | None]]]:
    """How often a real store's compactions, and flushes, went to a level, and the prediction to another."""
    trace = json.loads(gzip.decompress((DATA / f"{name}.picks.json.gz").read_bytes()))
    file = DATA / f"{name}.OPTIONS.gz"
    options = parse_options(gzip.decompress(file.read_bytes())).families["default"] if file.exists() else LEVELDB
    live: dict[int, TableState] = {}
    picks: Counter[tuple[int, int | None]] = Counter()
    flushes: Counter[tuple[int, int | None]] = Counter()
    for kind, *event in trace:
        match kind:
            case "add":
                level, number, size, smallest, largest, seqno = event
                keys = bytes.fromhex(smallest), bytes.fromhex(largest)
                live[number] = TableState(number, level, size, *keys, largest_seqno=seqno)
            case "move":
                live[event[0]] = replace(live[event[0]], level=event[1])
            case "drop":
                for number in event[0]:
                    del live[number]
            case "pick":
                picks[event[0], output(list(live.values()), options)] += 1
                for number in event[1]:
                    live[number] = replace(live[number], being_compacted=True)
            case "flush":
                keys = bytes.fromhex(event[1]), bytes.fromhex(event[2])
                flushes[event[0], predict_flush_output(live.values(), options, *keys).level] += 1
    return picks, flushes


TRACES = sorted(path.name.removesuffix(".picks.json.gz") for path in DATA.glob("*.picks.json.gz"))


def hits(found: Counter[tuple[int, int | None]]) -> int:
    return sum(times for (level, predicted), times in found.items() if level == predicted)


def test_real_picks_are_predicted() -> None:
    """But for the few whose state changed between the pick and the line that tells of it."""
    picks = sum((replayed(name)[0] for name in TRACES), Counter())
    assert picks.total() > 200
    assert len({level for level, _ in picks}) == 7
    assert hits(picks) >= 0.97 * picks.total()


@pytest.mark.parametrize("name", TRACES)
def test_each_store_s_picks_are_predicted(name: str) -> None:
    picks, _ = replayed(name)
    assert picks
    assert hits(picks) >= 0.9 * picks.total()


@pytest.mark.parametrize("name", ["leveldb-random", "leveldb-mixed"])
def test_leveldb_s_flushes_are_predicted_without_exception(name: str) -> None:
    _, flushes = replayed(name)
    assert {level for level, _ in flushes} == {0, 1, 2}
    assert hits(flushes) == flushes.total()
