"""One version edit of a MANIFEST, decoded.

An edit is a row of fields, each a varint tag and its value. RocksDB and Speedb db/version_edit.h and .cc,
db/wal_edit.cc, db/blob/blob_file_addition.cc and blob_file_garbage.cc, LevelDB db/version_edit.cc, Pebble
internal/manifest/version_edit.go. "bytes" and "key" have a varint length before them; a key
is an internal one, whose last 8 bytes are sequence number and type.

    1     comparator        bytes                               all
    2     log number        varint                              all
    3     next file number  varint                              all
    4     last sequence     varint                              all
    5     compact pointer   level, key                          all
    6     deleted file      level, number                       all
    7     new file          level, number, size, key, key       all may read it, LevelDB writes it
    9     previous log      varint                              all
    10    log to keep       varint                              RocksDB; in Pebble
    10    excise            bytes, bytes, varint, varint
    11    marked            level, number                       Pebble
    100   new file 2        as 7; sequence, sequence            Pebble; RocksDB may read it
    102   new file 3        as 100, path id before the size     RocksDB, of old
    103   new file 4        as 100; custom fields               RocksDB, Pebble
    104   new file 5        as 103, a mark before the keys      Pebble: bit 0: point keys, before the range keys;
                                                                bit 1, 2: the smallest, largest of all is one of them
    105   created backing   number, size                        Pebble: a file for virtual tables
    106   removed backing   number                              Pebble
    107   new blob file     id, number, size, value size, time  Pebble
    108   deleted blob file id, number                          Pebble
    200   column family     id                                  RocksDB: of the whole edit; 0, if absent
    201   family added      bytes: its name                     RocksDB
    202   family dropped    nothing                             RocksDB
    203   highest family    varint                              RocksDB
    300   atomic group      varint: how many more edits         RocksDB
    400   blob file         number, count, size, bytes, bytes, custom fields          RocksDB
    401   blob garbage      number, count, size, custom fields                        RocksDB
    8194, 8195              as 400, 401                         RocksDB, of old
    8196  WAL added         number, (2, size)?, 1               RocksDB
    8197  WAL deleted       number                              RocksDB
    bit 13                  bytes                               RocksDB: any other that may be passed over

A custom field of a new file is a varint tag and bytes; tag 1 ends them, tag 0 those of a blob file. A tag with bit 6
must be known: 65 (path id) in RocksDB; in Pebble 67, 68 and 71 (synthetic prefix and suffix, suffix mask), and three
whose value is not bytes: 66 (virtual: number of the backing file), 69 and 70 (blob references: depth, count, then two
or three varints for each). Tag 4 is the oldest blob file a RocksDB table refers to.

While reading, a new file costs one match of a regular expression; what is in it is decoded when somebody asks, which
is for the few that are still live. 100 MiB of compactions take 1.4 s (scripts/bench_manifest.py), 10 s by the loop
over fields that reads all that the expression does not know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Engine: TypeAlias = Literal["rocksdb", "leveldb", "pebble"]

Entry: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""A live table: level and number as varints, the fields that follow as in tag 103, and nothing."""


@dataclass(frozen=True, slots=True)
class Table:
    """A live table, with the user keys that bound it.

    `file` is the number in the name of the file that holds it: `number`, but for Pebble's virtual tables, several of
    which can share a file. `largest_seqno` is 0 where it is not told (LevelDB).
    """

    number: int
    level: int
    size: int
    smallest: bytes
    largest: bytes
    file: int
    largest_seqno: int = 0


class InvalidEditError(Exception):
    """Why a record is no edit."""


# No possessive quantifiers: where one fails, Python 3.11.2 goes on behind its beginning. And bounds for repetitions of
# a group, each of which takes memory until the match ends. The forms are such that backtracking finds nothing else.

# A varint in its shortest form, so that its bytes can stand for the number; and in any form.
_N: Final = rb"(?:[\x80-\xff]{0,8}[\x01-\x7f]|\x00|[\x80-\xff]{9}\x01)"
_ANY: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"


def _lengths(shortest: int) -> bytes:
    """Matches a length of one byte, and as many bytes."""
    return b"(?:" + b"|".join(rb"\x%02x.{%d}" % (n, n) for n in range(shortest, 128)) + b")"


_KEY: Final = _lengths(8)

# What RocksDB puts at the head of an edit, in this order: 2, 9, 3, 4, 203, 5, 6.
_HEAD: Final = re.compile(
    rb"(?:\x02(%(N)b))?(?:\x09%(ANY)b)?(?:\x03(%(N)b))?(?:\x04%(ANY)b)?(?:\xcb\x01%(ANY)b)?"
    rb"(?:\x05[\x00-\x7f]%(KEY)b){0,99}((?:\x06[\x00-\x7f]%(N)b){0,999})" % {b"N": _N, b"ANY": _ANY, b"KEY": _KEY},
    re.DOTALL,
)
_DELETED: Final = re.compile(rb"\x06[\x00-\x7f](%b)" % _N, re.DOTALL)
# The oldest blob file's field, which is decoded long after it was matched.
_OLDEST: Final = b"|".join(rb"\x04\x%02x[\x80-\xff]{%d}[\x00-\x7f]" % (n, n - 1) for n in range(1, 11))
# A new file 4 with short keys, and custom fields of the common form; or all that is left, whatever it is.
_NEW: Final = re.compile(
    rb"\x67([\x00-\x7f])(%(N)b)(%(N)b%(KEY)b%(KEY)b%(ANY)b%(ANY)b(?:[\x02\x03\x05-\x3f\x41]%(BYTES)b|%(OLDEST)b){0,99}\x01)"
    rb"|(.+)" % {b"N": _N, b"ANY": _ANY, b"KEY": _KEY, b"BYTES": _lengths(0), b"OLDEST": _OLDEST},
    re.DOTALL,
)

_BLOB_HEADER_AND_FOOTER: Final = 30 + 32  # RocksDB db/blob/blob_log_format.h


class Blob:
    """A blob file; one of Pebble lives until it is deleted, and has no `count`."""

    __slots__ = ("count", "garbage", "size")

    def __init__(self, size: int, count: int | None) -> None:
        self.size = size
        self.count = count
        self.garbage = 0


class Edit:
    """A decoded edit; numbers of files are varints in their shortest form."""

    family = 0
    comparator: str | None = None
    log: bytes | None = None
    next_file: bytes | None = None
    add: str | None = None
    drop = False
    group: int | None = None
    engine: Engine | None = None
    deleted: list[bytes]
    new: list[Entry]

    def __init__(self) -> None:
        self.blobs: list[tuple[int, Blob]] = []
        self.garbage: list[tuple[int, int]] = []
        self.deleted_blobs: list[int] = []


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, cut to 64 bits as the stores do, and where it ends."""
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + 1
        shift += 7
    raise InvalidEditError("a number has no end")


def shortest(value: int) -> bytes:
    """A number as a varint in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_of(data: bytes) -> int:
    """The number that a varint is."""
    return _varint(data, 0)[0]


class _Cursor:
    """Reads the fields of an edit one by one."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def varint(self) -> int:
        value, self.at = _varint(self.data, self.at)
        return value

    def varints(self, count: int) -> None:
        """Skip numbers; `count` may be anything, the data ends it."""
        while count:
            self.varint()
            count -= 1

    def number(self) -> bytes:
        return shortest(self.varint())

    def string(self) -> bytes:
        length = self.varint()
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise InvalidEditError(f"a field of {length} bytes does not fit")
        return self.data[begin : self.at]

    def key(self) -> bytes:
        key = self.string()
        if len(key) < 8:
            raise InvalidEditError(f"a key of {len(key)} bytes")
        return key

    def text(self) -> str:
        return self.string().decode(errors="backslashreplace")

    def more(self) -> bool:
        return self.at < len(self.data)

    def blob_fields(self) -> None:
        while tag := self.varint():
            if tag & 0x40:
                raise InvalidEditError(f"unknown field {tag} of a blob file")
            self.string()

    def wal(self) -> None:
        self.varint()
        while (tag := self.varint()) != 1:
            if tag != 2:
                raise InvalidEditError(f"unknown field {tag} of a WAL")
            self.varint()


@dataclass(slots=True)
class Custom:
    """What is known of the custom fields of a new file."""

    backing: int | None = None
    oldest_blob: int = 0
    engine: Engine | None = None


def _custom(cursor: _Cursor) -> Custom:
    found = Custom()
    tags = set()
    while (tag := cursor.varint()) != 1:
        tags.add(tag)
        if tag == 66:
            found.backing = cursor.varint()
        elif tag in (69, 70):
            cursor.varint()
            cursor.varints((tag - 67) * cursor.varint())
        elif tag & 0x40 and tag not in (65, 67, 68, 71):
            raise InvalidEditError(f"unknown field {tag} of a table")
        else:
            value = cursor.string()
            if tag == 4:
                found.oldest_blob = number_of(value)
    if 5 in tags:
        found.engine = "rocksdb"
    elif not tags.isdisjoint((6, 66, 67, 68, 69, 70, 71)):
        found.engine = "pebble"
    return found


def custom_of(entry: Entry) -> Custom:
    """The custom fields of a table, as far as they are of interest."""
    cursor = _Cursor(entry[2])
    cursor.varint()
    cursor.string()
    cursor.string()
    if cursor.more():
        cursor.varints(2)
    return _custom(cursor) if cursor.more() else Custom()


def table_of(entry: Entry) -> Table:
    """A table, decoded."""
    cursor = _Cursor(entry[2])
    number, size = number_of(entry[1]), cursor.varint()
    smallest, largest = cursor.string()[:-8], cursor.string()[:-8]
    largest_seqno = 0
    if cursor.more():
        cursor.varint()
        largest_seqno = cursor.varint()
    return Table(number, number_of(entry[0]), size, smallest, largest, file_of(entry), largest_seqno)


def file_of(entry: Entry) -> int:
    """The number in the name of the file that holds a table."""
    backing = custom_of(entry).backing if b"\x42" in entry[2] else None
    return number_of(entry[1]) if backing is None else backing


def _new_file(tag: int, cursor: _Cursor, edit: Edit) -> None:
    level, number = cursor.number(), cursor.number()
    if tag == 102:
        cursor.varint()
    begin = cursor.at
    cursor.varint()
    size_end = cursor.at
    bounds = _bounds(cursor) if tag == 104 else b""
    if not bounds:
        cursor.key()
        cursor.key()
    bounds_end = cursor.at
    if tag != 7:
        cursor.varints(2)
    if tag >= 103:
        edit.engine = _custom(cursor).engine or edit.engine
    data = cursor.data
    body = data[begin:size_end] + bounds + data[bounds_end : cursor.at] if bounds else data[begin : cursor.at]
    edit.new.append((level, number, body, b""))


def _bounds(cursor: _Cursor) -> bytes:
    """The bounds of a new file 5, as two keys."""
    if not cursor.more():
        raise InvalidEditError("a table without bounds")
    mark = cursor.data[cursor.at]
    cursor.at += 1
    if not mark & 1 and mark & 6:
        raise InvalidEditError("bounds by point keys, of which there are none")
    points = (cursor.key(), cursor.key()) if mark & 1 else (b"", b"")
    ranges = (cursor.key(), cursor.key())
    smallest = points[0] if mark & 2 else ranges[0]
    largest = points[1] if mark & 4 else ranges[1]
    return shortest(len(smallest)) + smallest + shortest(len(largest)) + largest


def _blob_field(tag: int, cursor: _Cursor, edit: Edit) -> None:
    """Tags 400 and 401 of RocksDB, and their forerunners."""
    number, count, size = cursor.varint(), cursor.varint(), cursor.varint()
    edit.engine = "rocksdb"
    if tag in (400, 8194):
        cursor.string()
        cursor.string()
        edit.blobs.append((number, Blob(size + _BLOB_HEADER_AND_FOOTER, count)))
    else:
        edit.garbage.append((number, count))
    cursor.blob_fields()


def _family_field(tag: int, cursor: _Cursor, edit: Edit) -> None:
    """Tags 200 to 203 and 300 of RocksDB."""
    edit.engine = "rocksdb"
    if tag == 200:
        edit.family = cursor.varint()
    elif tag == 201:
        edit.add = cursor.text()
    elif tag == 202:
        edit.drop = True
    elif tag == 203:
        cursor.varint()
    else:
        edit.group = cursor.varint()


def _pebble_field(tag: int, cursor: _Cursor, edit: Edit) -> None:
    """Tags 11 and 105 to 108, and 10 where it is Pebble's."""
    edit.engine = "pebble"
    if tag == 10:
        cursor.string()
        cursor.string()
        cursor.varints(2)
    elif tag == 107:
        cursor.varint()
        number, size = cursor.varint(), cursor.varint()
        cursor.varints(2)
        edit.blobs.append((number, Blob(size, None)))
    elif tag == 108:
        cursor.varint()
        edit.deleted_blobs.append(cursor.varint())
    else:
        cursor.varints(1 if tag == 106 else 2)


def _field(tag: int, cursor: _Cursor, edit: Edit, excise: bool) -> None:
    if tag == 6:
        cursor.varint()
        edit.deleted.append(cursor.number())
    elif tag in (7, 100, 102, 103, 104):
        if tag == 104:
            edit.engine = "pebble"
        elif tag == 7:
            edit.engine = edit.engine or "leveldb"
        _new_file(tag, cursor, edit)
    elif tag == 1:
        edit.comparator = cursor.text()
    elif tag == 2:
        edit.log = cursor.number()
    elif tag == 3:
        edit.next_file = cursor.number()
    elif tag in (4, 9) or (tag == 10 and not excise):
        cursor.varint()
    elif tag == 5:
        cursor.varint()
        cursor.key()
    elif tag in (400, 401, 8194, 8195):
        _blob_field(tag, cursor, edit)
    elif tag in (200, 201, 202, 203, 300):
        _family_field(tag, cursor, edit)
    elif tag in (10, 11, 105, 106, 107, 108):
        _pebble_field(tag, cursor, edit)
    elif tag & 0x2000:
        edit.engine = "rocksdb"
        if tag == 8196:
            cursor.wal()
        elif tag == 8197:
            cursor.varint()
        else:
            cursor.string()
    else:
        raise InvalidEditError(f"unknown tag {tag}")


def decode(record: bytes, engine: Engine | None) -> Edit:
    """Decode an edit; what tag 10 is depends on the engine, and where that is unknown, on which of them fits."""
    if engine is not None:
        return _decode_as(record, engine == "pebble")
    try:
        edit = _decode_as(record, False)
    except InvalidEditError:
        return _decode_as(record, True)
    if edit.engine is None and edit.new:
        edit.engine = custom_of(edit.new[0]).engine
    return edit


def _decode_as(record: bytes, excise: bool) -> Edit:
    edit = Edit()
    head = _HEAD.match(record)
    if head is None:  # it matches anything, if only with nothing
        raise AssertionError
    edit.log, edit.next_file, deleted = head.groups()
    edit.deleted = _DELETED.findall(deleted) if deleted else []
    edit.new = new = _NEW.findall(record, head.end())
    if new and new[-1][3]:
        cursor = _Cursor(record, len(record) - len(new.pop()[3]))
        while cursor.more():
            _field(cursor.varint(), cursor, edit, excise)
    return edit
