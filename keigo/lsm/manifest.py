"""Which tables and blob files are live, and at which level, by a MANIFEST that is read as it grows.

A MANIFEST is a log (`records`) of version edits; applied one after the other they give the live files. An edit is a
row of fields, each a varint tag and its value. RocksDB and Speedb db/version_edit.h and .cc,
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

RocksDB does not write when a blob file goes: it goes when all its blobs are garbage and no table has it as its oldest,
or when it is older than the oldest one of any table (db/version_builder.cc, SaveBlobFilesTo).

An edit applies its deletions before its additions. That a deleted file was not there is no error, as in LevelDB.

While reading, a new file costs one match of a regular expression; what is in it is decoded when somebody asks, which
is for the few that are still live. 100 MiB of compactions take 1.4 s (scripts/bench_manifest.py), 10 s by the loop
over fields that reads all that the expression does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from keigo.lsm.records import RecordError, RecordReader

Engine: TypeAlias = Literal["rocksdb", "leveldb", "pebble"]

_Entry: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""A live table: level and number as varints, the fields that follow as in tag 103, and nothing."""


class ManifestError(Exception):
    """The record or fragment at `position` of the file is not one of a MANIFEST."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"MANIFEST at byte {position}: {reason}")
        self.position = position
        self.reason = reason


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


@dataclass(frozen=True, slots=True)
class TableChange:
    """Table `number` is at level `after` now, and was at `before`; None: not live.

    `first` is the level at which one that was not live came to life, if that was seen: it may have moved since.
    """

    family: int
    number: int
    file: int
    before: int | None
    after: int | None
    first: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BlobChange:
    """Blob file `number` came to life, or is no longer live."""

    family: int
    number: int
    live: bool


class _InvalidEditError(Exception):
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
_PRUNE: Final = 1024


class _Blob:
    """A blob file; one of Pebble lives until it is deleted, and has no `count`."""

    __slots__ = ("count", "garbage", "size")

    def __init__(self, size: int, count: int | None) -> None:
        self.size = size
        self.count = count
        self.garbage = 0


class _Edit:
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
    new: list[_Entry]

    def __init__(self) -> None:
        self.blobs: list[tuple[int, _Blob]] = []
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
    raise _InvalidEditError("a number has no end")


def _shortest(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(data: bytes) -> int:
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
        return _shortest(self.varint())

    def string(self) -> bytes:
        length = self.varint()
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise _InvalidEditError(f"a field of {length} bytes does not fit")
        return self.data[begin : self.at]

    def key(self) -> bytes:
        key = self.string()
        if len(key) < 8:
            raise _InvalidEditError(f"a key of {len(key)} bytes")
        return key

    def text(self) -> str:
        return self.string().decode(errors="backslashreplace")

    def more(self) -> bool:
        return self.at < len(self.data)

    def blob_fields(self) -> None:
        while tag := self.varint():
            if tag & 0x40:
                raise _InvalidEditError(f"unknown field {tag} of a blob file")
            self.string()

    def wal(self) -> None:
        self.varint()
        while (tag := self.varint()) != 1:
            if tag != 2:
                raise _InvalidEditError(f"unknown field {tag} of a WAL")
            self.varint()


@dataclass(slots=True)
class _Custom:
    """What is known of the custom fields of a new file."""

    backing: int | None = None
    oldest_blob: int = 0
    engine: Engine | None = None


def _custom(cursor: _Cursor) -> _Custom:
    found = _Custom()
    tags = set()
    while (tag := cursor.varint()) != 1:
        tags.add(tag)
        if tag == 66:
            found.backing = cursor.varint()
        elif tag in (69, 70):
            cursor.varint()
            cursor.varints((tag - 67) * cursor.varint())
        elif tag & 0x40 and tag not in (65, 67, 68, 71):
            raise _InvalidEditError(f"unknown field {tag} of a table")
        else:
            value = cursor.string()
            if tag == 4:
                found.oldest_blob = _number(value)
    if 5 in tags:
        found.engine = "rocksdb"
    elif not tags.isdisjoint((6, 66, 67, 68, 69, 70, 71)):
        found.engine = "pebble"
    return found


def _entry_custom(entry: _Entry) -> _Custom:
    cursor = _Cursor(entry[2])
    cursor.varint()
    cursor.string()
    cursor.string()
    if cursor.more():
        cursor.varints(2)
    return _custom(cursor) if cursor.more() else _Custom()


def _table(entry: _Entry) -> Table:
    cursor = _Cursor(entry[2])
    number, size = _number(entry[1]), cursor.varint()
    smallest, largest = cursor.string()[:-8], cursor.string()[:-8]
    largest_seqno = 0
    if cursor.more():
        cursor.varint()
        largest_seqno = cursor.varint()
    return Table(number, _number(entry[0]), size, smallest, largest, _file(entry), largest_seqno)


def _file(entry: _Entry) -> int:
    backing = _entry_custom(entry).backing if b"\x42" in entry[2] else None
    return _number(entry[1]) if backing is None else backing


def _new_file(tag: int, cursor: _Cursor, edit: _Edit) -> None:
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
        raise _InvalidEditError("a table without bounds")
    mark = cursor.data[cursor.at]
    cursor.at += 1
    if not mark & 1 and mark & 6:
        raise _InvalidEditError("bounds by point keys, of which there are none")
    points = (cursor.key(), cursor.key()) if mark & 1 else (b"", b"")
    ranges = (cursor.key(), cursor.key())
    smallest = points[0] if mark & 2 else ranges[0]
    largest = points[1] if mark & 4 else ranges[1]
    return _shortest(len(smallest)) + smallest + _shortest(len(largest)) + largest


def _blob_field(tag: int, cursor: _Cursor, edit: _Edit) -> None:
    """Tags 400 and 401 of RocksDB, and their forerunners."""
    number, count, size = cursor.varint(), cursor.varint(), cursor.varint()
    edit.engine = "rocksdb"
    if tag in (400, 8194):
        cursor.string()
        cursor.string()
        edit.blobs.append((number, _Blob(size + _BLOB_HEADER_AND_FOOTER, count)))
    else:
        edit.garbage.append((number, count))
    cursor.blob_fields()


def _family_field(tag: int, cursor: _Cursor, edit: _Edit) -> None:
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


def _pebble_field(tag: int, cursor: _Cursor, edit: _Edit) -> None:
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
        edit.blobs.append((number, _Blob(size, None)))
    elif tag == 108:
        cursor.varint()
        edit.deleted_blobs.append(cursor.varint())
    else:
        cursor.varints(1 if tag == 106 else 2)


def _field(tag: int, cursor: _Cursor, edit: _Edit, excise: bool) -> None:
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
        raise _InvalidEditError(f"unknown tag {tag}")


def _decode(record: bytes, engine: Engine | None) -> _Edit:
    """Decode an edit; what tag 10 is depends on the engine, and where that is unknown, on which of them fits."""
    if engine is not None:
        return _decode_as(record, engine == "pebble")
    try:
        edit = _decode_as(record, False)
    except _InvalidEditError:
        return _decode_as(record, True)
    if edit.engine is None and edit.new:
        edit.engine = _entry_custom(edit.new[0]).engine
    return edit


def _decode_as(record: bytes, excise: bool) -> _Edit:
    edit = _Edit()
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


class _Tables(Mapping[int, Table]):
    """A family's live tables by number, decoded when asked for."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[bytes, _Entry]) -> None:
        self._entries = entries

    def __getitem__(self, number: int) -> Table:
        if number < 0:
            raise KeyError(number)
        return _table(self._entries[_shortest(number)])

    def __iter__(self) -> Iterator[int]:
        return map(_number, self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Family:
    """A live column family: what it is now, not what it was when it was asked for.

    LevelDB and Pebble have one, id 0. `blobs` has the size in bytes of each blob file.
    """

    def __init__(self, family_id: int, name: str) -> None:
        self.id = family_id
        self.name = name
        self.comparator = ""
        self._log = b"\0"
        self._entries: dict[bytes, _Entry] = {}
        self._blobs: dict[int, _Blob] = {}
        self._blob_limit = _PRUNE
        self._oldest_blobs: dict[bytes, int] = {}
        self._told: dict[bytes, _Entry] = {}
        self._told_blobs: set[int] = set()
        # Numbers whose state may differ from what was told -> the first that was new; None: any may.
        self._touched: dict[bytes, _Entry | None] | None = None

    @property
    def log_number(self) -> int:
        """WALs below this one have nothing that is not in the family's tables."""
        return _number(self._log)

    @property
    def tables(self) -> Mapping[int, Table]:
        """The live tables by number: a view."""
        return _Tables(self._entries)

    @property
    def blobs(self) -> Mapping[int, int]:
        """The sizes of the live blob files by number."""
        if not self._blobs:
            return {}
        linked = self._linked()
        floor = min(linked, default=None)
        return {
            number: blob.size
            for number, blob in self._blobs.items()
            if blob.count is None
            or (floor is not None and number >= floor and (number in linked or blob.garbage < blob.count))
        }

    def _linked(self) -> set[int]:
        """The blob files that some table has as its oldest."""
        oldest, entries = self._oldest_blobs, self._entries
        for number in oldest.keys() - entries.keys():
            del oldest[number]
        for number in entries.keys() - oldest.keys():
            oldest[number] = _entry_custom(entries[number]).oldest_blob
        return self._blobs.keys() & oldest.values()

    def _apply(self, edit: _Edit) -> None:
        entries, touched = self._entries, self._touched
        if edit.comparator is not None:
            self.comparator = edit.comparator
        if edit.log is not None:
            self._log = edit.log
        for number in edit.deleted:
            entries.pop(number, None)
        for entry in edit.new:
            entries[entry[1]] = entry
        if touched is not None:
            for number in edit.deleted:
                touched.setdefault(number, None)
            for entry in edit.new:
                touched.setdefault(entry[1], entry)
            if len(touched) > len(entries) + len(self._told) + _PRUNE:
                self._touched = None
        if edit.blobs or edit.garbage or edit.deleted_blobs:
            self._apply_blobs(edit)

    def _apply_blobs(self, edit: _Edit) -> None:
        for number in edit.deleted_blobs:
            self._blobs.pop(number, None)
        self._blobs.update(edit.blobs)
        for number, count in edit.garbage:
            if (blob := self._blobs.get(number)) is not None:
                blob.garbage += count
        if len(self._blobs) > self._blob_limit:
            live = self.blobs
            self._blobs = {number: blob for number, blob in self._blobs.items() if number in live}
            self._blob_limit = 2 * len(live) + _PRUNE

    def _take_changes(self, dropped: bool = False) -> Iterator[TableChange | BlobChange]:
        now: Mapping[bytes, _Entry] = {} if dropped else self._entries
        told, touched = self._told, self._touched or {}
        for number in told.keys() | now.keys() if dropped or self._touched is None else touched:
            before, after = told.pop(number, None), now.get(number)
            some = after or before
            if after is not None:
                told[number] = after
            if some is not None and (before is None or after is None or before[0] != after[0]):
                entries = (before, after, touched.get(number))
                levels = [None if entry is None else _number(entry[0]) for entry in entries]
                yield TableChange(self.id, _number(number), _file(some), *levels)
        self._touched = {}
        blobs = set() if dropped else set(self.blobs)
        for blob in blobs ^ self._told_blobs:
            yield BlobChange(self.id, blob, blob in blobs)
        self._told_blobs = blobs


class ManifestReader:
    """Reads one MANIFEST from its first byte, and keeps what lives after the edits so far.

    `feed` takes the bytes of the file from `position` on. One thread at a time.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        """Whose MANIFEST it is, as soon as a field tells; Speedb's is RocksDB's."""
        self._log = RecordReader()
        self._families = {0: Family(0, "default")}
        self._dropped: list[Family] = []
        self._next_file = b"\0"
        self._group: list[_Edit] = []
        self._error: ManifestError | None = None

    @property
    def position(self) -> int:
        """The offset in the file of the byte that the next `feed` starts with."""
        return self._log.position

    @property
    def families(self) -> Mapping[int, Family]:
        """The live column families by id."""
        return MappingProxyType(self._families)

    @property
    def next_file_number(self) -> int:
        """No file of a lower number will be made, but those that are being made."""
        return _number(self._next_file)

    def feed(self, data: bytes) -> None:
        """Apply the edits that `data` completes, those of an atomic group together.

        Raises ManifestError at the first that is none; those before it stay applied, and any later call raises again.
        """
        if self._error is not None:
            raise ManifestError(self._error.position, self._error.reason)
        try:
            try:
                records = self._log.feed(data)
            except RecordError as error:
                self._apply_records(error.records)
                raise ManifestError(error.position, error.reason) from error
            self._apply_records(records)
        except ManifestError as error:
            self._error = error
            raise

    def _apply_records(self, records: list[bytes]) -> None:
        for position, record in zip(self._log.starts, records, strict=True):
            try:
                edit = _decode(record, self.engine)
                if edit.group is None and not self._group:
                    if edit.family or edit.add is not None or edit.drop:
                        self._check([edit])
                    self._apply(edit)
                else:
                    self._collect(edit)
            except _InvalidEditError as error:
                raise ManifestError(position, str(error)) from None

    def _collect(self, edit: _Edit) -> None:
        """Keep an edit of an atomic group until all of the group are there."""
        group = self._group
        if edit.group is None or (group and group[-1].group != edit.group + 1):
            raise _InvalidEditError("an atomic group is not complete")
        group.append(edit)
        if edit.group == 0:
            self._check(group)
            self._group = []
            for member in group:
                self._apply(member)

    def _check(self, edits: list[_Edit]) -> None:
        """Raise if an edit is of a family that is not there, so that applying them cannot fail."""
        lives: dict[int, bool] = {}
        for edit in edits:
            if lives.get(edit.family, edit.family in self._families) == (edit.add is not None):
                raise _InvalidEditError(f"family {edit.family} is added twice, or was never")
            if edit.drop and edit.family == 0:
                raise _InvalidEditError("the default family is dropped")
            lives[edit.family] = not edit.drop

    def _apply(self, edit: _Edit) -> None:
        if self.engine is None:
            self.engine = edit.engine
        if edit.next_file is not None:
            self._next_file = edit.next_file
        if edit.add is not None:
            self._families[edit.family] = Family(edit.family, edit.add)
        self._families[edit.family]._apply(edit)
        if edit.drop:
            family = self._families.pop(edit.family)
            if family._told or family._told_blobs:
                self._dropped.append(family)

    def take_changes(self) -> list[TableChange | BlobChange]:
        """What differs from the state at the last call, in no order; at the first call, from nothing.

        A table that is deleted from one level and added to another is one change, a trivial move.
        """
        changes = [change for family in self._dropped for change in family._take_changes(dropped=True)]
        self._dropped = []
        for family in self._families.values():
            changes += family._take_changes()
        return changes
