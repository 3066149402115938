"""The log format that WALs and MANIFESTs share, read as the file grows.

LevelDB doc/log_format.md, RocksDB db/log_format.h, Pebble record/record.go. A file is a row of blocks of 32 KiB; a
record is one fragment, or several in consecutive blocks. Fewer than 7 bytes at a block's end are filler.

    fragment    masked crc32c of what follows `length` (4, little endian), length of the payload (2), type (1), payload
    1 2 3 4     full, first, middle, last
    5 6 7 8     the same in a file that may be recycled: log number (4) before the payload
    9           RocksDB: compression of all that follows (4)    9 10 11 12   Pebble: log number (4), offset known to be
    10 11       RocksDB: timestamp sizes (11: log number first)              synced (8), then as 1 2 3 4
    130 131     RocksDB: the WAL before this one (131: log number first), once 33 34
    bit 7       a type that an older reader may pass over

The types 9 to 11 mean different things to RocksDB and Pebble; which header makes the checksum right tells them apart.

A file that is not recycled ends with its last byte, or in the middle of a fragment that is being written, or in zeros
where it was allocated ahead. Zeros that reach up to the end of what was fed end the log for now, also if they begin
within a fragment. Once a fragment with a log number has been read, whatever is no fragment of that log is what the
file's former life left, and ends the log for now too.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import google_crc32c

BLOCK: Final = 32 << 10
LONGEST: Final = 1 << 30
"""No record of these stores comes near this size: they start a new MANIFEST at this size, and a new WAL before."""

_HEADER: Final = Struct("<IHB")
_NUMBER: Final = Struct("<I")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SET_COMPRESSION: Final = 9
_PASS_OVER: Final = frozenset({9, 10, 11, 33, 34, *range(128, 256)})


class RecordError(Exception):
    """The bytes at `position` cannot be part of a log.

    `records` are the complete ones that the failed call read before them.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"at byte {position}: {reason}")
        self.position = position
        self.reason = reason
        self.records: list[bytes] = []


class RecordReader:
    """Reads the records of one log, from its first byte.

    `position` is the offset in the file of the byte that the next `feed` starts with: all before it is read for good.
    It is the end of what was fed, except where that can still be overwritten: in zeros, in a file that may be
    recycled. After an error the reader is done, and raises the same error again.

    `log_number` is the number of the file, of a WAL that may be recycled; without it the first fragment with a log
    number tells.
    """

    def __init__(self, log_number: int | None = None) -> None:
        self.position = 0
        self.starts: list[int] = []
        """Where each record of the last `feed` begins in the file."""
        self._number = None if log_number is None else log_number & 0xFFFFFFFF
        self._rewritten = log_number is not None  # what follows the last fragment may be overwritten
        self._recycled = False
        self._tail = b""  # an unfinished fragment, as far as it was fed
        self._parts: list[bytes] = []  # an unfinished record's fragments
        self._size = 0
        self._start = 0
        self._in_record = False
        self._error: RecordError | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The records that `data`, the file's bytes from `position` on, completes.

        Raises RecordError.
        """
        self.starts = []
        if self._error is not None:
            raise RecordError(self._error.position, self._error.reason)
        buffer = self._tail + data if self._tail else data
        base = self.position - len(self._tail)
        records: list[bytes] = []
        try:
            end, keep = self._read(buffer, base, records)
        except RecordError as error:
            self._tail, self._parts = b"", []
            self.position = error.position
            error.records = records
            self._error = error
            raise
        self._tail = buffer[end:] if keep else b""
        self.position = base + (len(buffer) if keep else end)
        return records

    def _read(self, buffer: bytes, base: int, records: list[bytes]) -> tuple[int, bool]:
        """Read `buffer`, which is at `base` in the file; returns where it stopped, and whether the rest is of use."""
        at, size = 0, len(buffer)
        unpack, crc32c = _HEADER.unpack_from, google_crc32c.value
        while True:
            room = BLOCK - (base + at) % BLOCK
            if room < 7:
                if at + room > size:
                    return at, True
                at += room
                continue
            if at + 7 > size:
                return at, not self._rewritten
            checksum, length, kind = unpack(buffer, at)
            if 1 <= kind <= 4 and (end := at + 7 + length) <= size and 7 + length <= room:
                crc = crc32c(buffer[at + 6 : end])
                if (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF == checksum:
                    self._fragment(kind, buffer[at + 7 : end], base + at, records)
                    at = end
                    continue
            if checksum == length == kind == 0:
                after = _after_zeros(buffer, at, room)
                if after is None:
                    return at, False
                at = after
                continue
            header = _header_of(buffer, at, min(room, size - at), room, checksum, length, kind)
            if header is None:
                return at, kind <= _LAST and not self._rewritten
            if header == 0 or (header > 7 and not self._is_ours(buffer, at)):
                if self._recycled or _unwritten(buffer, at, length, kind):
                    return at, False
                raise RecordError(base + at, f"no fragment of type {kind} and {length} bytes has this checksum")
            end = at + header + length
            self._other(kind, header, buffer[at + header : end], base + at, records)
            at = end

    def _is_ours(self, buffer: bytes, at: int) -> bool:
        (number,) = _NUMBER.unpack_from(buffer, at + 7)
        if self._number is None:
            self._number = number
        self._recycled = self._rewritten = True
        return bool(number == self._number)

    def _other(self, kind: int, header: int, payload: bytes, position: int, records: list[bytes]) -> None:
        """A fragment that is not of the types 1 to 4."""
        if header == 11 and 5 <= kind <= 8:
            self._fragment(kind - 4, payload, position, records)
        elif header == 19 and 9 <= kind <= 12:
            self._fragment(kind - 8, payload, position, records)
        elif kind == _SET_COMPRESSION and any(payload):
            raise RecordError(position, "the log is compressed")
        elif kind not in _PASS_OVER:
            raise RecordError(position, f"unknown type {kind}")

    def _fragment(self, kind: int, payload: bytes, position: int, records: list[bytes]) -> None:
        if kind <= _FIRST:
            # Old writers left an empty first fragment at the end of a block and began the record again in the next.
            if self._size:
                raise RecordError(position, "a record begins inside another")
            if kind == _FULL:
                self._in_record = False
                records.append(payload)
                self.starts.append(position)
                return
            self._parts, self._start, self._in_record = [], position, True
        elif not self._in_record:
            raise RecordError(position, "a record without a beginning")
        self._size += len(payload)
        if self._size > LONGEST:
            raise RecordError(position, f"a record of more than {LONGEST} bytes")
        self._parts.append(payload)
        if kind == _LAST:
            records.append(b"".join(self._parts))
            self.starts.append(self._start)
            self._parts, self._size, self._in_record = [], 0, False


def _after_zeros(buffer: bytes, at: int, room: int) -> int | None:
    """The next block that is not all zeros, if there is one, and this one is zeros from `at` on."""
    if buffer[at : at + room].strip(b"\0"):
        return None
    for block in range(at + room, len(buffer), BLOCK):
        if buffer[block : block + BLOCK].strip(b"\0"):
            return block
    return None


def _header_sizes(kind: int) -> tuple[int, ...]:
    if kind <= _LAST:
        return (7,)
    return (11,) if kind <= 8 else (7, 11, 19)


def _unwritten(buffer: bytes, at: int, length: int, kind: int) -> bool:
    """Whether a fragment with a wrong checksum is the last, and ends in zeros: only its beginning is there so far."""
    last = buffer[at + _header_sizes(kind)[-1] + length - 1 :]
    return last != b"" and not last.strip(b"\0")


def _header_of(buffer: bytes, at: int, available: int, room: int, checksum: int, length: int, kind: int) -> int | None:
    """The size of the header that makes the checksum right; 0 where none can, None where more bytes are needed."""
    for header in _header_sizes(kind):
        if header + length > room:
            break
        if header + length > available:
            return None
        crc = google_crc32c.value(buffer[at + 6 : at + header + length])
        if (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF == checksum:
            return header
    return 0
