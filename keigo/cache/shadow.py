"""A shadow: the cached chunks of one file, on the cache's device. It can be lost at any moment without harm.

    N.data    the chunks at the offsets that they have in the file; holes elsewhere
    N.map     4096 bytes of head: MAGIC, the length of what follows (u32), `Head` in msgpack, its XXH3-64 (u64)
              then for each chunk the checksum of its bytes (u64; 0: it is not there)
              then for each chunk its heat (u16), as of some time

Little-endian. A checksum is the chunk's XXH3-64 with the shadow's own random seed and the chunk's number, so that what
another shadow left behind on the device is no chunk of this one. It is written after the chunk and set to 0 before
the chunk is punched out; nothing is synced until the cache is closed. So after a crash it says which chunks may be
there, and a look at each tells.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import threading
from collections.abc import Sequence
from typing import Final

import msgspec
import xxhash

from keigo.tiers.fds import Fd, fallocate, lstat_or_none

MAGIC: Final = b"KEIGOSH1"
DATA: Final = b".data"
MAP: Final = b".map"
ALIGNMENT: Final = 4096
_HEAD: Final = 4096
_IN_INODE: Final = 4  # extents
_LENGTH: Final = struct.Struct("<I")
_SUM: Final = struct.Struct("<Q")
_PUNCH: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KNOWN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MIX: Final = 0x9E3779B97F4A7C15
_U64: Final = (1 << 64) - 1
_heads = threading.Lock()
"""A leaf: held while a head is written."""


class ShadowError(Exception):
    """A shadow cannot be used; the text says why."""


class Home(msgspec.Struct, frozen=True, array_like=True):
    """What a file is, as far as its device tells: another of the same name differs in at least one of these."""

    tier: str
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    """Changes with every write, link and change of attributes, and nobody can set it."""

    @classmethod
    def of(cls, tier: str, status: os.stat_result) -> Home:
        """Of a file on a tier."""
        return cls(tier, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_changed(self, before: Home, *, moved: bool) -> bool:
        """Whether a file that was `before` has other contents now, as far as can be told. A move keeps the time."""
        if (self.size, self.mtime_ns) != (before.size, before.mtime_ns):
            return True
        return not moved and (self.tier, self.ino) != (before.tier, before.ino)


class Head(msgspec.Struct, array_like=True):
    """What a map begins with."""

    path: bytes
    """A name of the file in the volume, without a leading slash."""
    home: Home
    shift: int
    """log2 of the bytes of a chunk."""
    seed: int


def chunks_of(size: int, shift: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size >> shift)


def map_space(size: int, shift: int) -> int:
    """Bytes that the map of such a file takes."""
    return _HEAD + _round_up(10 * chunks_of(size, shift))


def base_space(size: int, shift: int) -> int:
    """Bytes that the shadow of such a file takes beside its chunks: its map, and what a file system notes of where the
    chunks are (12 bytes of an extent each on ext4, 16 on XFS; few are in the inode)."""
    return map_space(size, shift) + _round_up(16 * max(0, chunks_of(size, shift) - _IN_INODE))


def chunk_space(size: int, shift: int, index: int) -> int:
    """Bytes that a chunk takes on the device."""
    return _round_up(min(1 << shift, size - (index << shift)))


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Shadow:
    """An open shadow. One thread at a time writes; `check` may be called by any."""

    def __init__(self, directory: Fd, name: bytes, head: Head, data: Fd, index: Fd) -> None:
        self._directory = directory
        self.name = name
        self.head = head
        self.data = data
        self._map = index
        self.size = head.home.size
        self.shift = head.shift
        self.count = chunks_of(self.size, self.shift)
        self.dirty = False
        self._void = False
        self.charged = 0
        """Bytes that it is counted for; the cache's."""

    @classmethod
    def create(cls, directory: Fd, name: bytes, path: bytes, home: Home, shift: int) -> Shadow:
        """A new one, without chunks. Raises OSError with nothing left behind, if it can."""
        head = Head(path, home, shift, random.getrandbits(64))
        data = Fd(os.open(name + DATA, _NEW, 0o600, dir_fd=directory.fd))
        try:
            os.ftruncate(data.fd, _round_up(home.size))
            index = Fd(os.open(name + MAP, _NEW, 0o600, dir_fd=directory.fd))
            made = cls(directory, name, head, data, index)
            # All of it now: what is written there later must not fail, and cost the shadow, where the device is full.
            os.posix_fallocate(index.fd, 0, map_space(home.size, shift))
            made.write_head()
        except OSError:
            delete(directory, name)
            raise
        return made

    @classmethod
    def load(cls, directory: Fd, name: bytes, shift: int) -> Shadow:
        """One that is there. Raises ShadowError or OSError."""
        index = Fd(os.open(name + MAP, _KNOWN, dir_fd=directory.fd))
        data = Fd(os.open(name + DATA, _KNOWN, dir_fd=directory.fd))
        head = parse_head(os.pread(index.fd, _HEAD, 0))
        if head.shift != shift:
            raise ShadowError(f"has chunks of {1 << head.shift} bytes")
        sizes = os.fstat(data.fd).st_size, os.fstat(index.fd).st_size
        if sizes != (_round_up(head.home.size), map_space(head.home.size, shift)):
            raise ShadowError("is not as long as its head says")
        return cls(directory, name, head, data, index)

    def write_head(self) -> None:
        """Write what the file is, as of now. Raises OSError."""
        raw = msgspec.msgpack.encode(self.head)
        block = MAGIC + _LENGTH.pack(len(raw)) + raw + _SUM.pack(xxhash.xxh3_64_intdigest(raw))
        if len(block) > _HEAD:
            raise OSError(errno.ENAMETOOLONG, "the path of a cached file is too long")
        self.dirty = True
        with _heads:
            if not self._void:
                _write(self._map, block.ljust(_HEAD, b"\0"), 0)

    def void(self) -> None:
        """See to it that no later mount takes it for the shadow of anything, whatever happens. Raises OSError.

        By any thread. To remove it would not do: after a power loss it may be there again.
        """
        with _heads:
            self._void = True
            _write(self._map, bytes(_HEAD), 0)
            os.fdatasync(self._map.fd)

    def sums(self) -> Sequence[int]:
        """The checksum of each chunk; 0: it is not there. Raises OSError, ShadowError."""
        raw = os.pread(self._map.fd, 8 * self.count, _HEAD)
        if len(raw) != 8 * self.count:
            raise ShadowError("its map ends too soon")
        return struct.unpack(f"<{self.count}Q", raw)

    def heat(self) -> bytes:
        """The heat of each chunk, when it was last written. Raises OSError, ShadowError."""
        raw = os.pread(self._map.fd, 2 * self.count, _HEAD + 8 * self.count)
        if len(raw) != 2 * self.count:
            raise ShadowError("its map ends too soon")
        return raw

    def write_heat(self, heat: bytes) -> None:
        """Note the heat of all chunks. Raises OSError."""
        self.dirty = True
        _write(self._map, heat, _HEAD + 8 * self.count)

    def length(self, index: int) -> int:
        """Bytes of a chunk."""
        return min(1 << self.shift, self.size - (index << self.shift))

    def _sum(self, index: int, data: bytes | memoryview) -> int:
        return xxhash.xxh3_64_intdigest(data, seed=(self.head.seed ^ (index + 1) * _MIX) & _U64) or 1

    def seal(self, index: int, data: memoryview) -> None:
        """A chunk, whose bytes these are, was written to `data`. Raises OSError."""
        self.dirty = True
        _write(self._map, _SUM.pack(self._sum(index, data)), _HEAD + 8 * index)

    def check(self, index: int) -> bool:
        """Whether a chunk is what it was when it was sealed. Raises OSError."""
        raw = os.pread(self._map.fd, 8, _HEAD + 8 * index)
        if len(raw) != 8 or raw == bytes(8):
            return False
        found = os.pread(self.data.fd, self.length(index), index << self.shift)
        return len(found) == self.length(index) and self._sum(index, found) == _SUM.unpack(raw)[0]

    def punch(self, index: int) -> None:
        """Give a chunk's room back; nobody reads it any more. Raises OSError."""
        self.dirty = True
        _write(self._map, bytes(8), _HEAD + 8 * index)
        fallocate(self.data.fd, _PUNCH, index << self.shift, _round_up(self.length(index)))

    def punch_others(self, there: Sequence[int]) -> None:
        """Give all room back but that of some chunks, in ascending order; nobody reads it. Raises OSError."""
        after = 0
        for index in (*there, self.count):
            if index > after:
                end = min(_round_up(self.size), index << self.shift)
                fallocate(self.data.fd, _PUNCH, after << self.shift, end - (after << self.shift))
            after = index + 1

    def space(self) -> int:
        """Bytes that it takes on the device."""
        return sum(os.fstat(file.fd).st_blocks * 512 for file in (self.data, self._map))

    def sync(self) -> None:
        """Make all of it durable. Raises OSError: then it must not be trusted."""
        if self.dirty:
            os.fsync(self.data.fd)
            os.fsync(self._map.fd)
            self.dirty = False

    def delete(self) -> None:
        """Remove it; nobody reads it any more, though its file may still be open. Raises OSError."""
        os.ftruncate(self.data.fd, 0)
        delete(self._directory, self.name)


def parse_head(raw: bytes) -> Head:
    """The head of a map. Raises ShadowError."""
    if len(raw) != _HEAD or raw[: len(MAGIC)] != MAGIC:
        raise ShadowError("has no head")
    (length,) = _LENGTH.unpack_from(raw, len(MAGIC))
    start = len(MAGIC) + _LENGTH.size
    body = raw[start : start + length]
    if len(raw) < start + length + _SUM.size:
        raise ShadowError("has a head that is too long")
    if _SUM.unpack_from(raw, start + length)[0] != xxhash.xxh3_64_intdigest(body):
        raise ShadowError("has a damaged head")
    try:
        head = msgspec.msgpack.decode(body, type=Head)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # msgspec lets text that is no UTF-8 through
        raise ShadowError(f"has a head that is none: {error}") from error
    if not 0 < head.home.size < 1 << 62 or not 12 <= head.shift <= 30 or not 0 <= head.seed <= _U64:
        raise ShadowError("has a head that cannot be")
    return head


def delete(directory: Fd, name: bytes) -> None:
    """Remove what there is of a shadow, and what stands in its place. Raises OSError."""
    for kind in (MAP, DATA):
        status = lstat_or_none(name + kind, directory.fd)
        if status is None:
            continue
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(name + kind, dir_fd=directory.fd)
        else:
            os.unlink(name + kind, dir_fd=directory.fd)


def _write(file: Fd, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file.fd, view, offset)
        view, offset = view[done:], offset + done
