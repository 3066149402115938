"""Which tables and blob files are live, and at which level, by a MANIFEST that is read as it grows.

A MANIFEST is a log (`records`) of version edits (`version_edit`); applied one after the other they give the live files.

RocksDB does not write when a blob file goes: it goes when all its blobs are garbage and no table has it as its oldest,
or when it is older than the oldest one of any table (db/version_builder.cc, SaveBlobFilesTo).

An edit applies its deletions before its additions. That a deleted file was not there is no error, as in LevelDB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from keigo.lsm.records import RecordError, RecordReader
from keigo.lsm.version_edit import (
    Blob,
    Edit,
    Engine,
    Entry,
    InvalidEditError,
    Table,
    custom_of,
    decode,
    file_of,
    number_of,
    shortest,
    table_of,
)

_PRUNE: Final = 1024


class ManifestError(Exception):
    """The record or fragment at `position` of the file is not one of a MANIFEST."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"MANIFEST at byte {position}: {reason}")
        self.position = position
        self.reason = reason


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


class _Tables(Mapping[int, Table]):
    """A family's live tables by number, decoded when asked for."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[bytes, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, number: int) -> Table:
        if number < 0:
            raise KeyError(number)
        return table_of(self._entries[shortest(number)])

    def __iter__(self) -> Iterator[int]:
        return map(number_of, self._entries)

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
        self._entries: dict[bytes, Entry] = {}
        self._blobs: dict[int, Blob] = {}
        self._blob_limit = _PRUNE
        self._oldest_blobs: dict[bytes, int] = {}
        self._told: dict[bytes, Entry] = {}
        self._told_blobs: set[int] = set()
        # Numbers whose state may differ from what was told -> the first that was new; None: any may.
        self._touched: dict[bytes, Entry | None] | None = None

    @property
    def log_number(self) -> int:
        """WALs below this one have nothing that is not in the family's tables."""
        return number_of(self._log)

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
            oldest[number] = custom_of(entries[number]).oldest_blob
        return self._blobs.keys() & oldest.values()

    def _apply(self, edit: Edit) -> None:
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

    def _apply_blobs(self, edit: Edit) -> None:
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
        now: Mapping[bytes, Entry] = {} if dropped else self._entries
        told, touched = self._told, self._touched or {}
        for number in told.keys() | now.keys() if dropped or self._touched is None else touched:
            before, after = told.pop(number, None), now.get(number)
            some = after or before
            if after is not None:
                told[number] = after
            if some is not None and (before is None or after is None or before[0] != after[0]):
                entries = (before, after, touched.get(number))
                levels = [None if entry is None else number_of(entry[0]) for entry in entries]
                yield TableChange(self.id, number_of(number), file_of(some), *levels)
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
        self._group: list[Edit] = []
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
        return number_of(self._next_file)

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
                edit = decode(record, self.engine)
                if edit.group is None and not self._group:
                    if edit.family or edit.add is not None or edit.drop:
                        self._check([edit])
                    self._apply(edit)
                else:
                    self._collect(edit)
            except InvalidEditError as error:
                raise ManifestError(position, str(error)) from None

    def _collect(self, edit: Edit) -> None:
        """Keep an edit of an atomic group until all of the group are there."""
        group = self._group
        if edit.group is None or (group and group[-1].group != edit.group + 1):
            raise InvalidEditError("an atomic group is not complete")
        group.append(edit)
        if edit.group == 0:
            self._check(group)
            self._group = []
            for member in group:
                self._apply(member)

    def _check(self, edits: list[Edit]) -> None:
        """Raise if an edit is of a family that is not there, so that applying them cannot fail."""
        lives: dict[int, bool] = {}
        for edit in edits:
            if lives.get(edit.family, edit.family in self._families) == (edit.add is not None):
                raise InvalidEditError(f"family {edit.family} is added twice, or was never")
            if edit.drop and edit.family == 0:
                raise InvalidEditError("the default family is dropped")
            lives[edit.family] = not edit.drop

    def _apply(self, edit: Edit) -> None:
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
