"""OPTIONS files: those of real stores, rendered ones, and garbage."""

from __future__ import annotations

import gzip
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.options import (
    LEVELDB,
    CompactionStyle,
    Engine,
    FamilyOptions,
    Options,
    OptionsError,
    UniversalOptions,
    parse_options,
)

DATA = Path(__file__).parent.parent / "data" / "lsm" / "options"
GOLDEN = sorted(DATA.glob("*.OPTIONS.gz"))
MIB = 1 << 20


def golden(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.OPTIONS.gz").read_bytes())


@pytest.mark.parametrize(
    ("name", "engine", "version"),
    [
        ("bench-static", Engine.ROCKSDB, (7, 8, 3)),
        ("rocksdict-random", Engine.ROCKSDB, (9, 8, 4)),
        ("speedict-random", Engine.SPEEDB, (8, 1, 1)),
    ],
)
def test_a_real_file_names_its_engine_and_release(name: str, engine: Engine, version: tuple[int, ...]) -> None:
    options = parse_options(golden(name))
    assert (options.engine, options.version) == (engine, version)
    family = options.families["default"]
    assert (family.engine, family.version) == (engine, version)


@pytest.mark.parametrize("path", [path for path in GOLDEN if "families" not in path.name], ids=lambda path: path.name)
def test_a_real_file_states_the_sizes_that_the_store_was_given(path: Path) -> None:
    options = parse_options(gzip.decompress(path.read_bytes()))
    assert list(options.families) == ["default"]
    family = options.families["default"]
    assert family.write_buffer_size == 65536
    assert family.target_file_size_base == 32768
    assert family.max_bytes_for_level_base == 131072
    assert family.max_bytes_for_level_multiplier == 4.0
    assert family.max_bytes_for_level_multiplier_additional == (1,) * 7
    assert family.max_compaction_bytes == 25 * 32768
    universal = "universal" in path.name
    assert family.compaction_style is (CompactionStyle.UNIVERSAL if universal else CompactionStyle.LEVEL)


@pytest.mark.parametrize(
    ("name", "dynamic", "jobs"), [("bench-static", False, 4), ("bench-dynamic", True, 4), ("bench-mixed", True, 2)]
)
def test_db_bench_states_dynamic_level_bytes_and_jobs(name: str, dynamic: bool, jobs: int) -> None:
    options = parse_options(golden(name))
    family = options.families["default"]
    assert family.level_compaction_dynamic_level_bytes is dynamic
    assert (family.level0_slowdown_writes_trigger, family.level0_stop_writes_trigger) == (20, 36)
    assert options.max_background_jobs == jobs
    assert (options.max_background_compactions, options.max_background_flushes) == (-1, -1)
    assert options.max_subcompactions == 1


@pytest.mark.parametrize("module", ["rocksdict", "speedict"])
def test_a_real_file_states_every_family_with_its_own_options(module: str) -> None:
    families = parse_options(golden(f"{module}-families")).families
    assert list(families) == ["default", "spaced name #1: \\ done", "fifo"]
    assert families["default"].compaction_style is CompactionStyle.LEVEL
    universal = families["spaced name #1: \\ done"]
    assert universal.compaction_style is CompactionStyle.UNIVERSAL
    assert universal.num_levels == 5
    assert universal.universal == UniversalOptions(
        size_ratio=7, max_merge_width=(1 << 31) - 1, max_size_amplification_percent=150
    )
    assert families["fifo"].compaction_style is CompactionStyle.FIFO
    assert families["fifo"].disable_auto_compactions


def test_pebble_s_names_are_mapped_to_rocksdb_s() -> None:
    options = parse_options(
        b"[Version]\n  pebble_version=0.1\n\n"
        b"[Options]\n  comparer=leveldb.BytewiseComparator\n  l0_compaction_threshold=2\n  lbase_max_bytes=134217728\n"
        b"  max_concurrent_compactions=3\n  mem_table_size=8388608\n  flush_delay_delete_range=0s\n\n"
        b'[Level "0"]\n  block_size=4096\n  target_file_size=4194304\n\n[Level "1"]\n  target_file_size=8388608\n'
    )
    assert (options.engine, options.version, options.max_background_compactions) == (Engine.PEBBLE, (0, 1), 3)
    assert options.families == {
        "default": FamilyOptions(
            engine=Engine.PEBBLE,
            version=(0, 1),
            level0_file_num_compaction_trigger=2,
            max_bytes_for_level_base=128 * MIB,
            target_file_size_base=4 * MIB,
            target_file_size_multiplier=2,
            write_buffer_size=8 * MIB,
        )
    }


def test_leveldb_s_constants() -> None:
    assert LEVELDB.engine is Engine.LEVELDB
    assert (LEVELDB.num_levels, LEVELDB.level0_file_num_compaction_trigger) == (7, 4)
    assert (LEVELDB.level0_slowdown_writes_trigger, LEVELDB.level0_stop_writes_trigger) == (8, 12)
    assert (LEVELDB.max_bytes_for_level_base, LEVELDB.max_bytes_for_level_multiplier) == (10 * MIB, 10)
    assert not LEVELDB.level_compaction_dynamic_level_bytes
    assert LEVELDB.max_mem_compact_level == 2
    assert (LEVELDB.target_file_size_base, LEVELDB.write_buffer_size) == (2 * MIB, 4 * MIB)


SMALLEST = b'[Version]\nrocksdb_version=9.8.4\n[CFOptions "default"]\n'


def test_what_is_missing_has_the_default() -> None:
    families = {"default": FamilyOptions(version=(9, 8, 4))}
    assert parse_options(SMALLEST) == Options(Engine.ROCKSDB, (9, 8, 4), families)


def test_of_two_equal_names_the_first_counts() -> None:
    assert parse_options(SMALLEST + b"num_levels=3\nnum_levels=x\n").families["default"].num_levels == 3


def test_a_comment_ends_a_line_unless_escaped() -> None:
    options = parse_options(SMALLEST + b'num_levels=3 # of 7\n[CFOptions "a\\#b"] # second\nnum_levels=4\n')
    assert [(name, family.num_levels) for name, family in options.families.items()] == [("default", 3), ("a#b", 4)]


def test_a_family_s_name_may_have_any_character() -> None:
    options = parse_options(SMALLEST + b'[CFOptions "a\\nb\\rc\\\\d\\:"e"]\n')
    assert list(options.families) == ["default", 'a\nb\rc\\d:"e']


def test_unknown_sections_and_names_are_skipped() -> None:
    assert parse_options(SMALLEST + b'novel=1\n[TableOptions/New "default"]\nnum_levels=2\n') == parse_options(SMALLEST)


def test_allow_ingest_behind_counts_for_every_family_where_the_database_has_it() -> None:
    options = parse_options(SMALLEST + b'[CFOptions "b"]\n[DBOptions]\nallow_ingest_behind=true\n')
    assert [family.allow_ingest_behind for family in options.families.values()] == [True, True]


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"", 1, "no [Version]"),
        (b"\n\n[DBOptions]\n", 4, "no [Version]"),
        (b"[Version]\nrocksdb_version=9.x\n", 2, "not a version"),
        (b"[Version]\nrocksdb_version=9.8\n[DBOptions]\n", 3, "no column family `default`"),
        (b"a=1\n", 1, "before the first section"),
        (SMALLEST + b"num_levels\n", 4, "neither a section nor name=value"),
        (SMALLEST + b"=1\n", 4, "neither a section nor name=value"),
        (SMALLEST + b'[CFOptions "open]\n', 4, "a section is"),
        (SMALLEST + b'[CFOptions "default"]\n', 4, "twice"),
        (SMALLEST + b"num_levels=0\n", 4, "num_levels=0: not an integer of 1 to 1024"),
        (SMALLEST + b"num_levels=1000000000\n", 4, "not an integer of 1 to 1024"),
        (SMALLEST + b"write_buffer_size=" + b"9" * 5000 + b"\n", 4, "not an integer"),
        (SMALLEST + b"max_bytes_for_level_multiplier=nan\n", 4, "not a number of at least 1"),
        (SMALLEST + b"max_bytes_for_level_multiplier=0\n", 4, "not a number of at least 1"),
        (SMALLEST + b"max_bytes_for_level_multiplier_additional=1:x\n", 4, "not an integer"),
        (SMALLEST + b"compaction_style=kNovel\n", 4, "kNovel"),
        (SMALLEST + b"disable_auto_compactions=yes\n", 4, "not a boolean"),
        (SMALLEST + b"compaction_options_universal=7\n", 4, "not a structure"),
    ],
)
def test_what_is_malformed_is_refused_at_its_line(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(OptionsError) as raised:
        parse_options(data)
    assert raised.value.line == line
    assert reason in raised.value.reason


def test_a_bad_field_of_a_structure_is_refused() -> None:
    with pytest.raises(OptionsError, match="size_ratio=x: not an integer"):
        parse_options(SMALLEST + b"compaction_options_universal={min_merge_width=3;size_ratio=x;}\n")


def escaped(name: str) -> str:
    for raw, to in (("\\", "\\\\"), ("#", "\\#"), (":", "\\:"), ("\r", "\\r"), ("\n", "\\n")):
        name = name.replace(raw, to)
    return name


def shown(value: Any) -> str:
    if isinstance(value, UniversalOptions):
        return "{" + "".join(f"{each.name}={shown(getattr(value, each.name))};" for each in fields(value)) + "}"
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def render(options: Options) -> bytes:
    """As RocksDB writes it."""
    lines = ["# This is a RocksDB option file.", "", "[Version]"]
    lines += ["  rocksdb_version=" + ".".join(map(str, options.version)), "", "[DBOptions]"]
    lines += [f"  {each.name}={shown(getattr(options, each.name))}" for each in fields(options)[3:]]
    names = {"universal": "compaction_options_universal"}
    for name, family in options.families.items():
        lines += ["  ", f'[CFOptions "{escaped(name)}"]']
        for each in fields(family):
            if each.name not in {"engine", "version", "max_mem_compact_level"}:
                lines.append(f"  {names.get(each.name, each.name)}={shown(getattr(family, each.name))}")
        lines += ["  ", f'[TableOptions/BlockBasedTable "{escaped(name)}"]', "  block_size=4096"]
    return "\n".join([*lines, "  "]).encode()


COUNT = st.integers(0, (1 << 64) - 1)
UNIVERSAL = st.builds(
    UniversalOptions,
    size_ratio=COUNT,
    min_merge_width=COUNT,
    max_merge_width=COUNT,
    max_size_amplification_percent=COUNT,
    stop_style=st.sampled_from(["kCompactionStopStyleTotalSize", "kCompactionStopStyleSimilarSize"]),
    allow_trivial_move=st.booleans(),
    incremental=st.booleans(),
    max_read_amp=st.integers(-1, 100),
)
FAMILY = st.builds(
    FamilyOptions,
    version=st.just((9, 8, 4)),
    compaction_style=st.sampled_from(CompactionStyle),
    disable_auto_compactions=st.booleans(),
    num_levels=st.integers(1, 1024),
    level0_file_num_compaction_trigger=st.integers(-1, 1 << 31),
    max_bytes_for_level_base=COUNT,
    max_bytes_for_level_multiplier=st.floats(1, 1e6),
    max_bytes_for_level_multiplier_additional=st.lists(st.integers(-5, 5), max_size=8).map(tuple),
    level_compaction_dynamic_level_bytes=st.booleans(),
    target_file_size_base=COUNT,
    target_file_size_multiplier=COUNT,
    max_compaction_bytes=COUNT,
    write_buffer_size=COUNT,
    ttl=COUNT,
    preclude_last_level_data_seconds=COUNT,
    allow_ingest_behind=st.booleans(),
    universal=UNIVERSAL,
)
NAME = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('#\\:"\r\n[]= ')), max_size=20)


@given(st.dictionaries(NAME, FAMILY, max_size=3), FAMILY, COUNT)
def test_what_is_written_is_read(families: dict[str, FamilyOptions], default: FamilyOptions, jobs: int) -> None:
    options = Options(Engine.ROCKSDB, (9, 8, 4), {"default": default} | families, max_background_jobs=jobs)
    assert parse_options(render(options)) == options


@given(st.binary(max_size=300) | st.text('[]"=\n#\\ Version{};:0', max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for prefix in (b"", SMALLEST):
        try:
            parse_options(prefix + data)
        except OptionsError as error:
            assert 1 <= error.line <= (prefix + data).count(b"\n") + 1


@given(st.sampled_from(GOLDEN), st.data())
def test_a_damaged_file_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    text = bytearray(gzip.decompress(path.read_bytes()))
    for position in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=10)):
        text[position] = data.draw(st.integers(0, 255))
    try:
        parse_options(bytes(text[: data.draw(st.integers(0, len(text)))]))
    except OptionsError as error:
        assert 1 <= error.line <= text.count(b"\n") + 1


def test_options_are_values() -> None:
    family = FamilyOptions()
    assert family == replace(family)
    with pytest.raises(AttributeError):
        family.num_levels = 3  # type: ignore[misc]
