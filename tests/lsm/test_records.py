"""The log format: written here after its description, by LevelDB, and by RocksDB."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import google_crc32c
import plyvel
import pytest
import rocksdict
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.records import BLOCK, RecordError, RecordReader

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def fragment(kind: int, payload: bytes, header: bytes = b"") -> bytes:
    """One fragment; `header` is what stands before the payload in recyclable logs and in Pebble's."""
    crc: int = google_crc32c.value(bytes([kind]) + header + payload)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little") + len(payload).to_bytes(2, "little") + bytes([kind]) + header + payload


def write_log(records: list[bytes], shift: int = 0, header: bytes = b"") -> bytes:
    """A log of `records`, the way all of the stores' writers do it; `shift` is added to the types."""
    out = bytearray()
    size = 7 + len(header)
    for record in records:
        rest, first = record, True
        while first or rest:
            room = BLOCK - len(out) % BLOCK
            if room < size:
                out += bytes(room)
                room = BLOCK
            part, rest = rest[: room - size], rest[room - size :]
            kind = (FIRST if rest else FULL) if first else (MIDDLE if rest else LAST)
            out += fragment(kind + shift, part, header)
            first = False
    return bytes(out)


NUMBER = (77).to_bytes(4, "little")
FORMATS = [(0, b""), (4, NUMBER), (8, NUMBER + bytes(8))]
"""The three formats, by the types they add to 1 to 4 and what they add to the header: all, recyclable, Pebble's."""

# Sizes at which a record ends just before, at and just after the end of a block.
SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(BLOCK - 30, BLOCK + 5),
    st.integers(2 * BLOCK - 40, 2 * BLOCK + 5),
    st.integers(0, 4 * BLOCK),
)


def make_records(sizes: list[int]) -> list[bytes]:
    rng = random.Random(len(sizes))
    return [rng.randbytes(size) for size in sizes]


@pytest.mark.parametrize("form", FORMATS)
@given(sizes=st.lists(SIZES, max_size=6), cuts=st.lists(st.integers(0, 6 * BLOCK), max_size=8))
def test_any_records_are_read_back_in_any_split(form: tuple[int, bytes], sizes: list[int], cuts: list[int]) -> None:
    records = make_records(sizes)
    log = write_log(records, *form)
    reader = RecordReader()
    found = []
    for cut in [*sorted(cuts), len(log)]:
        found += reader.feed(log[reader.position : max(cut, reader.position)])
    assert found == records
    assert reader.position == len(log)


def test_a_split_at_every_byte() -> None:
    records = make_records([0, 1, 100, BLOCK, 3])
    log = write_log(records)
    reader = RecordReader()
    assert [record for at in range(len(log)) for record in reader.feed(log[at : at + 1])] == records


def test_records_have_their_place_in_the_file() -> None:
    records = make_records([10, BLOCK, 0, 5])
    log = write_log(records)
    reader = RecordReader()
    assert reader.feed(log) == records
    assert [reader.starts[0], reader.starts[1]] == [0, 17]
    for start, record in zip(reader.starts, records, strict=True):
        assert log[start + 7 : start + 17] == (record[:10] if len(record) >= 10 else log[start + 7 : start + 17])
        assert log[start + 6] in (FULL, FIRST)


@given(sizes=st.lists(SIZES, min_size=1, max_size=4), cut=st.integers(1, BLOCK))
def test_a_torn_tail_waits(sizes: list[int], cut: int) -> None:
    records = make_records(sizes)
    log = write_log(records)
    torn = log[: max(0, len(log) - cut)]
    reader = RecordReader()
    found = reader.feed(torn)
    assert found == records[: len(found)]
    assert len(found) < len(records)
    assert reader.feed(log[len(torn) :]) == records[len(found) :]


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_end_the_log_until_they_are_overwritten(form: tuple[int, bytes]) -> None:
    records = make_records([10, BLOCK, 20])
    log = write_log(records, *form)
    for written in (0, 28, len(log)):
        file = log[:written] + bytes(3 * BLOCK)
        reader = RecordReader()
        found = reader.feed(file)
        assert reader.position <= len(log)
        assert reader.feed(file[reader.position :]) == []
        assert found + reader.feed(log[reader.position :]) == records


def test_zeros_up_to_a_block_that_is_written_are_passed_over() -> None:
    """Pebble does not begin a fragment whose header does not fit, and fills with zeros."""
    first, second = make_records([BLOCK - 7 - 15, 9])
    log = fragment(FULL, first) + bytes(15) + fragment(FULL, second)
    assert RecordReader().feed(log) == [first, second]
    reader = RecordReader()
    assert reader.feed(log[:BLOCK]) == [first]
    assert reader.position == BLOCK - 15
    assert reader.feed(log[reader.position :]) == [second]


def test_what_a_recycled_file_had_before_ends_the_log() -> None:
    old = write_log(make_records([100, 3000, 200, 50_000]), 4, (76).to_bytes(4, "little"))
    records = make_records([500, 40_000])
    new = write_log(records, 4, NUMBER)
    for written in (0, 511, len(new)):
        file = new[:written] + old[written:]
        reader = RecordReader(77)
        found = reader.feed(file)
        assert found == records[: len(found)]
        assert reader.feed(file[reader.position :]) == []
        assert found + reader.feed(new[reader.position :]) == records


def test_the_beginning_of_a_fragment_in_a_recycled_file_is_not_kept() -> None:
    """Its end may be from the file's former life, and may be overwritten before it is read."""
    log = write_log([b"record"], 4, NUMBER)
    reader = RecordReader()
    assert reader.feed(log[:12]) == []
    assert reader.position == 0
    assert reader.feed(log) == [b"record"]


def test_only_the_low_half_of_a_log_number_is_written() -> None:
    assert RecordReader((5 << 32) + 77).feed(write_log([b"a"], 4, NUMBER)) == [b"a"]


@pytest.mark.parametrize(
    ("kind", "header"), [(9, b""), (10, b""), (33, b""), (130, b""), (11, NUMBER), (34, NUMBER), (131, NUMBER)]
)
def test_rocksdb_s_other_types_are_passed_over(kind: int, header: bytes) -> None:
    shift = 4 if header else 0
    log = fragment(kind, bytes(4), header) + write_log([b"one"], shift, header)
    assert RecordReader().feed(log) == [b"one"]
    reader = RecordReader()
    assert [record for at in range(len(log)) for record in reader.feed(log[reader.position : at + 1])] == [b"one"]


def fails(log: bytes, position: int, reason: str, records: list[bytes]) -> None:
    reader = RecordReader()
    with pytest.raises(RecordError, match=reason) as caught:
        reader.feed(log)
    assert (caught.value.position, caught.value.records, reader.position) == (position, records, position)
    with pytest.raises(RecordError, match=reason) as again:
        reader.feed(b"")
    assert (again.value.position, again.value.records) == (position, [])


def test_garbage_is_an_error_and_what_was_before_it_is_not_lost() -> None:
    good = fragment(FULL, b"good")
    bad = bytearray(fragment(FULL, b"evil"))
    bad[-1] ^= 1
    fails(good + bad, 11, "checksum", [b"good"])
    fails(good + fragment(FIRST, b"a") + fragment(FULL, b"b"), 19, "begins inside", [b"good"])
    fails(good + fragment(FIRST, b"a") + fragment(FIRST, b"b"), 19, "begins inside", [b"good"])
    fails(good + fragment(MIDDLE, b"a"), 11, "without a beginning", [b"good"])
    fails(good + fragment(LAST, b"a"), 11, "without a beginning", [b"good"])
    fails(good + fragment(50, b"a"), 11, "unknown type 50", [b"good"])
    fails(good + fragment(9, b"\x07\0\0\0"), 11, "compressed", [b"good"])
    fails(good + b"\1\1\1\1\xff\xff\1", 11, "checksum", [b"good"])


def test_an_empty_first_fragment_begins_again_in_the_next_block() -> None:
    """A fault of old writers, which LevelDB's reader forgives."""
    first = bytes(BLOCK - 14)
    log = fragment(FULL, first) + fragment(FIRST, b"") + fragment(FULL, b"again")
    assert RecordReader().feed(log) == [first, b"again"]


def test_a_length_takes_no_memory_before_its_bytes_are_there() -> None:
    reader = RecordReader()
    assert reader.feed(b"\1\1\1\1\xf0\x7f\1") == []
    assert reader.position == 7


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_any_bytes_are_a_log_or_a_record_error(data: bytes, cuts: list[int]) -> None:
    reader = RecordReader()
    try:
        for cut in [*sorted(cuts), len(data)]:
            reader.feed(data[reader.position : cut])
    except RecordError as error:
        assert error.position <= len(data)


@given(sizes=st.lists(SIZES, min_size=1, max_size=3), at=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_yields_another_record(sizes: list[int], at: int, bit: int) -> None:
    records = make_records(sizes)
    log = bytearray(write_log(records))
    log[at % len(log)] ^= 1 << bit
    try:
        found = RecordReader().feed(bytes(log))
    except RecordError as error:
        found = error.records
    assert found == records[: len(found)]


def test_what_leveldb_wrote(tmp_path: Path) -> None:
    values = make_records([5, 100_000, BLOCK, 0, 700])
    with plyvel.DB(str(tmp_path), create_if_missing=True) as db:
        for value in values:
            db.put(b"key", value)
    check_wal(tmp_path, values)


def test_what_rocksdb_wrote(tmp_path: Path) -> None:
    values = make_records([5, 100_000, BLOCK, 0, 700])
    db: Any = rocksdict.Rdict(str(tmp_path), rocksdict.Options(True))
    for value in values:
        db[b"key"] = value
    db.flush_wal(True)
    check_wal(tmp_path, values)
    db.close()


def test_what_rocksdb_wrote_to_a_file_that_it_recycled(tmp_path: Path) -> None:
    options = rocksdict.Options(True)
    options.set_recycle_log_file_num(1)
    db: Any = rocksdict.Rdict(str(tmp_path), options)
    for _ in range(4):
        for value in make_records([70_000] * 9):
            db[b"key"] = value
        db.flush()
    values = make_records([5, 100_000, 30])
    for value in values:
        db[b"key"] = value
    db.flush_wal(True)
    wal = max(tmp_path.glob("*.log"), key=lambda path: int(path.stem))
    assert wal.stat().st_size > 200_000
    check_log(wal, values)
    db.close()


def check_wal(directory: Path, values: list[bytes]) -> None:
    (wal,) = directory.glob("*.log")
    check_log(wal, values)


def check_log(wal: Path, values: list[bytes]) -> None:
    records = RecordReader(int(wal.stem)).feed(wal.read_bytes())
    assert len(records) == len(values)
    for record, value in zip(records, values, strict=True):
        assert record.endswith(value)
        assert len(record) - len(value) < 30
