"""MANIFESTs: those that real stores wrote against what the stores say, and edits written here against a model."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.manifest import BlobChange, ManifestError, ManifestReader, TableChange
from keigo.lsm.version_edit import Table
from tests.lsm.test_records import write_log

GOLDEN = Path(__file__).parent.parent / "data" / "lsm" / "manifest"
NAMES = ["leveldb", "pebble", "rocksdb-7.8", "rocksdb-blobs", "rocksdb-families", "rocksdb-universal", "speedb"]


def golden(name: str) -> tuple[bytes, dict[str, Any]]:
    return (GOLDEN / f"{name}.manifest").read_bytes(), json.loads((GOLDEN / f"{name}.json").read_text())


def read(data: bytes) -> ManifestReader:
    reader = ManifestReader()
    reader.feed(data)
    return reader


State = dict[int, tuple[str, str, dict[int, Table], dict[int, int]]]


def state(reader: ManifestReader) -> State:
    return {
        family.id: (family.name, family.comparator, dict(family.tables), dict(family.blobs))
        for family in reader.families.values()
    }


def row(table: Table) -> list[Any]:
    return [table.level, table.size, table.smallest.hex(), table.largest.hex()]


@pytest.mark.parametrize("name", NAMES)
def test_a_store_s_manifest_tells_what_the_store_tells(name: str) -> None:
    data, answer = golden(name)
    reader = read(data)
    families = reader.families.values()
    assert reader.engine == answer["engine"]
    assert reader.position == len(data)
    assert sorted(family.name for family in families) == answer["family_names"]
    assert {family.comparator for family in families} == {"leveldb.BytewiseComparator"}
    found = {str(number): row(table) for family in families for number, table in family.tables.items()}
    for number, said in answer["tables"].items():
        assert [None if right is None else mine for mine, right in zip(found[number], said, strict=True)] == said
    assert found.keys() == answer["tables"].keys()
    assert {str(n): size for family in families for n, size in family.blobs.items()} == answer["blobs"]
    files = {str(n): table.file for family in families for n, table in family.tables.items() if table.file != n}
    assert files == answer.get("files", {})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("leveldb", "pebble")])
def test_rocksdb_s_own_reader_agrees_family_by_family(name: str) -> None:
    data, answer = golden(name)
    found = {
        family.name: {str(number): row(table) for number, table in family.tables.items()}
        for family in read(data).families.values()
    }
    assert found == answer["families"]


def test_numbers_that_were_found() -> None:
    """By the names of the files that were in these directories."""
    data, _ = golden("pebble")
    reader = read(data)
    assert (reader.next_file_number, reader.families[0].log_number) == (16, 4)
    data, answer = golden("rocksdb-blobs")
    assert read(data).next_file_number > max(map(int, [*answer["tables"], *answer["blobs"]]))


def replay(told: dict[tuple[int, int], int], blobs: set[tuple[int, int]], reader: ManifestReader) -> None:
    """Do what a caller does with changes; they must fit what was told before."""
    for change in reader.take_changes():
        place = (change.family, change.number)
        if isinstance(change, BlobChange):
            assert (place in blobs) != change.live
            (blobs.add if change.live else blobs.remove)(place)
            continue
        assert told.get(place) == change.before
        assert change.before != change.after
        if change.after is None:
            del told[place]
        else:
            told[place] = change.after


def check_told(told: dict[tuple[int, int], int], blobs: set[tuple[int, int]], reader: ManifestReader) -> None:
    now = state(reader)
    assert told == {(family, n): t.level for family, (_, _, tables, _) in now.items() for n, t in tables.items()}
    assert blobs == {(family, number) for family, (_, _, _, found) in now.items() for number in found}


@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.lists(st.integers(0, 18_000), max_size=30))
def test_any_split_gives_the_same_state_and_changes_that_lead_to_it(name: str, cuts: list[int]) -> None:
    data, _ = golden(name)
    reader = ManifestReader()
    told: dict[tuple[int, int], int] = {}
    blobs: set[tuple[int, int]] = set()
    for cut in [*sorted(cuts), len(data)]:
        reader.feed(data[reader.position : max(reader.position, cut)])
        replay(told, blobs, reader)
        check_told(told, blobs, reader)
    assert state(reader) == state(read(data))


# Encoding, after the format's description


def varint(value: int, filler: int = 0) -> bytes:
    """`filler` more bytes than the number needs, which readers accept."""
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(filler):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def string(data: bytes) -> bytes:
    return varint(len(data)) + data


def internal(user_key: bytes) -> bytes:
    return string(user_key + b"\1\7\0\0\0\0\0\0")


def field(*parts: int | bytes) -> bytes:
    return b"".join(varint(part) if isinstance(part, int) else string(part) for part in parts)


TIMES = field(5, b"\x81\1", 6, b"\x82\1")
"""Custom fields that RocksDB always writes."""


SEQNO = 1 << 56


def new_file(
    number: int,
    level: int = 0,
    size: int = 100,
    keys: tuple[bytes, bytes] = (b"a", b"b"),
    tag: int = 103,
    custom: bytes = TIMES,
    filler: int = 0,
) -> bytes:
    path = varint(0) if tag == 102 else b""
    out = varint(tag) + varint(level) + varint(number, filler) + path + varint(size, filler)
    out += b"\0" if tag == 104 else b""
    out += internal(keys[0]) + internal(keys[1])
    if tag != 7:
        out += field(1, SEQNO)
    return out + (custom + b"\1" if tag >= 103 else b"")


def deleted(number: int, level: int = 0, filler: int = 0) -> bytes:
    return varint(6) + varint(level) + varint(number, filler)


def blob_file(number: int, count: int, size: int) -> bytes:
    return field(400, number, count, size, b"", b"", 0)


def manifest(*edits: bytes) -> bytes:
    return write_log(list(edits))


def table(
    number: int, level: int = 0, size: int = 100, keys: tuple[bytes, bytes] = (b"a", b"b"), tag: int = 103
) -> Table:
    return Table(number, level, size, *keys, number, 0 if tag == 7 else SEQNO)


NOTHING = [
    field(1, b"leveldb.BytewiseComparator"),
    field(2, 9, 9, 0, 3, 12, 4, 1 << 40),
    field(5, 3) + internal(b"k"),
    field(203, 5),
    field(401, 9, 1, 1, 0),
    field(401, 9, 1, 1, 5, b"new", 0),
    field(8193, b"db id"),
    field(8195, 9, 1, 1, 0),
    field(8196, 9, 1),
    field(8196, 9, 2, 4096, 1),
    field(8197, 9),
    field(8198, bytes(8)),
    field(8199, b"\x09\1", 8200, b"\x09", 8201, b"\1", 8202, b"progress", 8203, b"\1"),
    field(8192 + 4000, b"of the future"),
]
"""Fields that change no table, each of which is passed over by its own form."""


@pytest.mark.parametrize("nothing", NOTHING)
def test_a_field_is_as_long_as_its_form_says(nothing: bytes) -> None:
    for edit in (nothing + new_file(5), new_file(5) + nothing, nothing + nothing + new_file(5) + nothing):
        assert dict(read(manifest(edit)).families[0].tables) == {5: table(5)}


@pytest.mark.parametrize("tag", [7, 100, 102, 103, 104])
@pytest.mark.parametrize("length", [0, 16, 24, 118, 119, 120, 5000])
@pytest.mark.parametrize("filler", [0, 1])
def test_every_form_of_a_new_file(tag: int, length: int, filler: int) -> None:
    keys = (b"x" * length, b"y" * (length + 1))
    edit = new_file(1 << 35, 300, 1 << 40, keys, tag, filler=filler) + new_file(0, 0, 0, keys, tag)
    reader = read(manifest(edit))
    assert dict(reader.families[0].tables) == {
        1 << 35: table(1 << 35, 300, 1 << 40, keys, tag),
        0: table(0, 0, 0, keys, tag),
    }
    assert read(manifest(edit, deleted(1 << 35, 300, filler), deleted(0, filler=filler))).families[0].tables == {}


@pytest.mark.parametrize(
    "custom",
    [
        b"",
        TIMES,
        field(5, b"\1", 6, b"\1", 13, b"\7", 7, b"sum", 8, b"crc32c", 65, b"\1", 9, b"\2", 2, b"\1", 3, bytes(8)),
        field(4, b"\x80\1", 12, bytes(16), 14, b"\1", 15, b"\1", 16, b"\0", 10, b"min", 11, b"max", 17, b"x" * 300),
        field(63, b"of the future", 63 + 65, b"too"),
        field(66, 5) + field(67, b"prefix", 68, b"suffix", 71, b"\1a\1b"),
        field(69, 1, 3, *range(6)) + field(70, 1, 2, *range(6)),
        field(7, b""),
    ],
)
def test_custom_fields(custom: bytes) -> None:
    reader = read(manifest(new_file(5, custom=custom) + new_file(6)))
    assert dict(reader.families[0].tables) == {5: table(5), 6: table(6)}


def test_bounds_of_a_table_with_range_keys() -> None:
    """Bit 0: there are point keys, b..d; bit 1: the smallest of all is one; bit 2: the largest is."""
    points, ranges = internal(b"b") + internal(b"d"), internal(b"a") + internal(b"z")
    bounds = []
    for mark in (0, 1, 3, 5, 7):
        edit = field(104, 0, 5, 100) + bytes([mark]) + (points if mark & 1 else b"") + ranges + field(1, 2, 1)
        found = read(manifest(edit)).families[0].tables[5]
        bounds.append((found.smallest, found.largest))
    assert bounds == [(b"a", b"z"), (b"a", b"z"), (b"b", b"z"), (b"a", b"d"), (b"b", b"d")]


@pytest.mark.parametrize(
    ("edit", "engine"),
    [
        (field(1, b"x", 2, 3, 9, 0, 3, 4, 4, 5), None),
        (new_file(5, tag=7), "leveldb"),
        (new_file(5), "rocksdb"),
        (field(8193, b"id"), "rocksdb"),
        (field(200, 0), "rocksdb"),
        (new_file(5, custom=field(6, b"\1")), "pebble"),
        (field(105, 1, 2), "pebble"),
        (field(10, b"a", b"bbb", 1, 300), "pebble"),
        (field(10, 7), None),
    ],
)
def test_the_engine_is_known_by_its_fields(edit: bytes, engine: str | None) -> None:
    assert read(manifest(edit)).engine == engine


def test_tag_10_is_a_number_in_rocksdb_and_an_excise_in_pebble() -> None:
    number, excise = field(10, 3), field(10, b"abc", b"d", 0, 1)
    assert dict(read(manifest(field(8193, b""), number + new_file(5))).families[0].tables) == {5: table(5)}
    assert dict(read(manifest(field(11, 0, 1), excise + new_file(5))).families[0].tables) == {5: table(5)}
    with pytest.raises(ManifestError):
        read(manifest(field(8193, b""), excise + new_file(5)))


def test_a_number_is_cut_to_64_bits() -> None:
    most = b"\xff" * 9 + b"\x7f"
    assert list(read(manifest(b"\x67\0" + most + new_file(5)[3:])).families[0].tables) == [(1 << 64) - 1]
    assert read(manifest(b"\3" + most)).next_file_number == (1 << 64) - 1


def test_deletions_of_an_edit_come_before_its_additions() -> None:
    reader = read(manifest(new_file(5, 1), new_file(5, 2) + deleted(5, 1)))
    assert dict(reader.families[0].tables) == {5: table(5, 2)}


def test_a_move_is_one_change() -> None:
    reader = read(manifest(new_file(5) + new_file(6)))
    reader.take_changes()
    log = manifest(new_file(5) + new_file(6), deleted(5) + new_file(5, 1), deleted(6), new_file(7))
    reader.feed(log[reader.position :])
    assert sorted(reader.take_changes(), key=lambda change: change.number) == [
        TableChange(0, 5, 5, 0, 1),
        TableChange(0, 6, 6, 0, None),
        TableChange(0, 7, 7, None, 0),
    ]
    assert reader.take_changes() == []


def test_what_came_and_went_is_no_change() -> None:
    reader = ManifestReader()
    assert reader.take_changes() == []
    reader.feed(manifest(new_file(5), deleted(5), new_file(6), deleted(6) + new_file(6, size=7)))
    assert reader.take_changes() == [TableChange(0, 6, 6, None, 0)]


def test_a_virtual_table_is_in_its_backing_file() -> None:
    reader = read(manifest(new_file(8, custom=field(6, b"\1") + field(66, 5))))
    assert reader.families[0].tables[8].file == 5
    assert reader.take_changes() == [TableChange(0, 8, 5, None, 0)]


def test_families_are_added_and_dropped() -> None:
    add = field(1, b"reverse", 2, 4, 200, 1, 201, "größer".encode())
    log = manifest(add, new_file(5) + field(200, 1), new_file(6))
    reader = read(log)
    assert state(reader) == {
        0: ("default", "", {6: table(6)}, {}),
        1: ("größer", "reverse", {5: table(5)}, {}),
    }
    assert reader.families[1].log_number == 4
    assert len(reader.take_changes()) == 2
    longer = manifest(add, new_file(5) + field(200, 1), new_file(6), field(200, 1, 202))
    reader.feed(longer[len(log) :])
    assert state(reader) == {0: ("default", "", {6: table(6)}, {})}
    assert reader.take_changes() == [TableChange(1, 5, 5, 0, None)]


def test_a_family_s_name_need_not_be_text() -> None:
    assert read(manifest(field(200, 1, 201, b"\xff"))).families[1].name == "\\xff"


def test_an_atomic_group_is_applied_as_a_whole() -> None:
    before, add = new_file(4), field(200, 1, 201, b"one", 300, 2)
    group = [add, new_file(5) + field(200, 1, 300, 1), deleted(4) + field(300, 0)]
    whole = manifest(before, *group)
    torn = ManifestReader()
    torn.feed(whole[:-1])
    assert state(torn) == {0: ("default", "", {4: table(4)}, {})}
    torn.feed(whole[-1:])
    assert state(torn) == {0: ("default", "", {}, {}), 1: ("one", "", {5: table(5)}, {})}


def garbage(reason: str, *edits: bytes) -> None:
    """The last edit is refused, at its place, and what was there before it stays."""
    good = manifest(new_file(4), *edits[:-1])
    reader, before = ManifestReader(), state(read(manifest(new_file(4))))
    with pytest.raises(ManifestError, match=reason) as caught:
        reader.feed(manifest(new_file(4), *edits))
    assert caught.value.position == len(good)
    assert state(reader) == before
    with pytest.raises(ManifestError, match=reason):
        reader.feed(b"")


def test_what_is_no_edit_is_refused() -> None:
    garbage("unknown tag 99", new_file(5) + field(99))
    garbage("unknown tag 8$", field(8, 1))
    garbage("no end", new_file(5) + b"\x80")
    garbage("no end", new_file(5) + field(3))
    garbage("no end", new_file(5) + b"\3" + b"\x80" * 10 + b"\1")
    garbage("does not fit", new_file(5) + field(8193, 100))
    garbage("does not fit", new_file(5) + field(8193, (1 << 63)))
    garbage("key of 7 bytes", field(103, 0, 5, 100, bytes(7), bytes(9), 1, 1, 1))
    garbage("without bounds", field(104, 0, 5, 100))
    garbage("bounds by point keys", field(104, 0, 5, 100) + b"\2")
    garbage("field 64 of a table", new_file(5, custom=field(64, b"")))
    garbage("no end", new_file(5, custom=field(4, b"\x80")))
    garbage("no end", new_file(5, custom=field(4, b"")))
    garbage("no end", new_file(5, custom=field(70, 1, 1 << 63)))
    garbage("field 64 of a blob file", field(400, 1, 1, 1, b"", b"", 64, b"", 0))
    garbage("field 3 of a WAL", field(8196, 1, 3, 1))
    garbage("family 3", new_file(5) + field(200, 3))
    garbage("family 0 is added twice", field(201, b"again"))
    garbage("default family", field(202))
    garbage("family 7", field(200, 7, 202))
    garbage("not complete", field(300, 1), new_file(5))
    garbage("not complete", field(300, 5), field(300, 3))
    garbage("family 3", new_file(5) + field(300, 1), new_file(6) + field(200, 3, 300, 0))


def test_a_wrong_checksum_is_an_error_at_its_place() -> None:
    log = bytearray(manifest(new_file(5), new_file(6)))
    log[-1] ^= 0x80
    reader = ManifestReader()
    with pytest.raises(ManifestError, match="checksum") as caught:
        reader.feed(bytes(log))
    assert caught.value.position == len(manifest(new_file(5)))
    assert dict(reader.families[0].tables) == {5: table(5)}


def links(number: int, blob: int) -> bytes:
    return new_file(number, custom=TIMES + field(4, varint(blob)))


def test_a_rocksdb_blob_file_lives_until_it_is_garbage_or_older_than_what_any_table_needs() -> None:
    """A file's size is that of its blobs, and 62 bytes for its header and footer."""
    log = [blob_file(10, 2, 100) + blob_file(11, 2, 200) + blob_file(12, 1, 300) + links(20, 10) + links(21, 12)]
    blobs = {10: 162, 11: 262, 12: 362}
    assert read(manifest(*log)).families[0].blobs == blobs
    log.append(field(401, 11, 1, 50, 0))
    assert read(manifest(*log)).families[0].blobs == blobs
    log.append(field(401, 11, 1, 50, 0, 401, 12, 1, 9, 0))
    assert read(manifest(*log)).families[0].blobs == {10: 162, 12: 362}
    log.append(deleted(20) + links(22, 12))
    assert read(manifest(*log)).families[0].blobs == {12: 362}
    log.append(deleted(21) + deleted(22) + new_file(23))
    assert read(manifest(*log)).families[0].blobs == {}


def test_blob_files_that_went_are_told_and_forgotten() -> None:
    """RocksDB never says that they went, so that many edits must not leave as many of them."""
    edits = [blob_file(n, 1, 5) + (deleted(n) if n > 1 else b"") + links(n + 1, n) for n in range(1, 4000)]
    reader = read(manifest(edits[0]))
    assert BlobChange(0, 1, True) in reader.take_changes()
    tracemalloc.start()
    reader.feed(manifest(*edits)[reader.position :])
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1 << 19
    assert [change for change in reader.take_changes() if isinstance(change, BlobChange)] in (
        [BlobChange(0, 1, False), BlobChange(0, 3999, True)],
        [BlobChange(0, 3999, True), BlobChange(0, 1, False)],
    )


@pytest.mark.parametrize("taken", [False, True])
def test_memory_is_that_of_the_live_tables_and_not_of_the_history(taken: bool) -> None:
    edits = [deleted(n) + new_file(n + 1) for n in range(20_000)]
    log = manifest(*edits)
    reader = ManifestReader()
    if taken:
        reader.take_changes()
    tracemalloc.start()
    for at in range(0, len(log), 50_000):
        reader.feed(log[at : at + 50_000])
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1 << 19
    assert reader.take_changes() == [TableChange(0, 20_000, 20_000, None, 0)]


# Against a model

TABLES = st.builds(
    table,
    st.integers(0, 300),
    st.integers(0, 6),
    st.integers(0, (1 << 63) - 1),  # a byte more than it needs is ten, the most that a varint has
    st.tuples(st.binary(max_size=130), st.binary(max_size=130)),
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.integers(0, 300), max_size=4),
        st.lists(TABLES, max_size=4, unique_by=lambda new: new.number),
        st.sampled_from([7, 100, 102, 103, 103, 103]),
        st.integers(0, 1),
        st.sampled_from([b"", *NOTHING[:3], field(8300, b"what for")]),
    ),
    max_size=12,
)


@given(edits=EDITS, every=st.integers(1, 4))
def test_edits_do_to_the_tables_what_a_model_does(edits: list[Any], every: int) -> None:
    model: dict[int, dict[int, Table]] = {0: {}, 1: {}, 2: {}}
    log = [field(200, 1, 201, b"one"), field(200, 2, 201, b"two")]
    for family, gone, new, tag, filler, nothing in edits:
        edit = nothing + b"".join(
            deleted(number, model[family][number].level if number in model[family] else 0, filler) for number in gone
        )
        for number in gone:
            model[family].pop(number, None)
        for one in new:
            edit += new_file(one.number, one.level, one.size, (one.smallest, one.largest), tag, filler=filler)
            model[family][one.number] = replace(one, largest_seqno=0 if tag == 7 else SEQNO)
        log.append(edit + field(200, family))
    data = manifest(*log)
    reader = ManifestReader()
    told: dict[tuple[int, int], int] = {}
    step = 1 + len(data) // every
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        replay(told, set(), reader)
        check_told(told, set(), reader)
    assert {family.id: dict(family.tables) for family in reader.families.values()} == model


# Foreign bytes


def look_at_all(reader: ManifestReader) -> None:
    state(reader)
    reader.take_changes()
    assert reader.next_file_number >= 0
    assert all(family.log_number >= 0 for family in reader.families.values())


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_records_are_edits_or_a_manifest_error(records: list[bytes]) -> None:
    reader = ManifestReader()
    try:
        reader.feed(write_log(records))
    except ManifestError as error:
        assert error.position <= len(write_log(records))
    look_at_all(reader)


SEEDS = [
    *NOTHING,
    new_file(300, custom=TIMES + field(4, b"\x80\1", 12, bytes(16))),
    new_file(5, custom=field(66, 3)),
    new_file(5, custom=field(70, 1, 2, *range(6))),
    field(104, 0, 5, 100) + b"\7" + internal(b"a") * 4 + field(1, 2, 1),
    blob_file(7, 1, 1),
    field(107, 1, 2, 3, 4, 5, 108, 1, 2),
]


@given(
    st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255), st.sampled_from(["put", "cut", "insert"])), max_size=3),
)
def test_damaged_edits_are_edits_or_a_manifest_error(parts: list[bytes], damages: list[tuple[int, int, str]]) -> None:
    edit = bytearray(b"".join(parts))
    for place, byte, how in damages:
        at = place % (len(edit) + 1)
        edit[at : at + (how != "insert")] = b"" if how == "cut" else bytes([byte])
    reader = read(manifest(new_file(9)))
    before = state(reader)
    try:
        reader.feed(manifest(new_file(9), bytes(edit))[reader.position :])
    except ManifestError:
        assert state(reader) == before
    look_at_all(reader)


def test_a_long_edit_takes_time_in_proportion() -> None:
    """Forms that a careless pattern or copy would make quadratic; the test's own limit of time is the judge."""
    for part in (deleted(1), new_file(5), new_file(5, tag=100), field(401, 1, 1, 1, 0), field(8200, b"x"), b"\x80"):
        data = manifest(part * (1_000_000 // len(part)))
        try:
            read(data)
        except ManifestError as error:
            assert part == b"\x80"
            assert error.position == 0
