"""The catalog: an LMDB index of the volume's names, homes and levels.

It is an index, not the truth: the trees on the tiers are. It may be deleted and is rebuilt by a scan, which loses
only levels, heat and checksums. So it is written behind: changes gather in memory and `flush` commits them without
a sync (a durable commit per create would cost an fsync each). After a crash of the process LMDB is intact and at
most one flush interval behind; after a crash of the machine, which unsynced LMDB pages may not survive, the boot id
differs and the catalog is discarded.

Tables (keys and values are bytes; ids are 8 bytes big-endian):

    entries   directory id + name -> kind + id
    dirs      directory id        -> parent id + name
    files     file id             -> FileRecord (msgpack)
    meta      word                -> JSON

The caller holds `Volume.lock` around every call.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import lmdb
import msgspec

from keigo.lsm.roles import Role
from keigo.tiers.fds import Fd, fallocate, proc_path

ROOT: Final = 1
CATALOG: Final = b"catalog"
FORMAT: Final = 1
_FLUSH_AT: Final = 4096  # pending changes; about 5 ms of commit, so that no request waits longer for it
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE
_SPARE: Final = 4 << 20  # bytes on the device, for some 10 000 files more
_MAP_SIZE: Final = 1 << 36  # address space only: the file grows as it fills

Kind = Literal["dir", "file", "special"]  # special: symbolic link, FIFO, socket
_KINDS: Final[dict[bytes, Kind]] = {b"d": "dir", b"f": "file", b"s": "special"}
_ID = struct.Struct(">Q")
log = logging.getLogger(__name__)


class FileRecord(msgspec.Struct, array_like=True):
    """What is known of one file, all its hard links together."""

    home: str
    """Name of the tier that holds it."""
    links: list[tuple[int, bytes]]
    """Its names, as (directory id, name)."""
    size: int = 0
    """Bytes when it was last closed."""
    space: int = 0
    """Bytes that it is charged for on its tier."""
    mtime_ns: int = 0
    """Modification time when it was last closed: the checksum holds only for this."""
    role: Role = Role.OTHER
    level: int | None = None
    created_level: int | None = None
    """The level that was believed at create."""
    checksum: int | None = None
    """XXH3-64 of the contents, computed when it last migrated."""
    created: float = 0.0
    """Seconds since the epoch."""
    reason: str = "found here"
    """Why it is on this tier."""
    heat: float = 0.0
    """How often it is read, as a score of `placement.heat`; 0: (almost) never."""
    special: bool = False
    kept: bool = False
    """Whether a user moved it here by command: the policy leaves it."""
    family: str | None = None
    """Column family of an SST or blob file."""
    costs: list[tuple[float, float, float]] | None = None
    """Seconds that it was expected to cost, by tier, when it was created: to write, to read, for its room."""
    moved: float = 0.0
    """When it last migrated, in seconds since the epoch; 0: never."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name in a directory stands for."""

    kind: Kind
    id: int


class State(msgspec.Struct):
    """Whether the catalog can be believed."""

    format: int
    clean: bool
    boot: str
    next_id: int


class CatalogError(Exception):
    """The catalog is damaged; it is to be discarded and rebuilt."""


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class _Table:
    """An LMDB table behind changes not yet committed."""

    __slots__ = ("db", "env", "pending")

    def __init__(self, env: lmdb.Environment, name: bytes) -> None:
        self.env = env
        self.db = env.open_db(name)
        self.pending: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        if key in self.pending:
            return self.pending[key]
        with self.env.begin(self.db) as txn:
            found = txn.get(key)
            return None if found is None else bytes(found)

    def put(self, key: bytes, value: bytes | None) -> None:
        self.pending[key] = value

    def commit(self, txn: lmdb.Transaction) -> None:
        for key, value in self.pending.items():
            if value is None:
                txn.delete(key, db=self.db)
            else:
                txn.put(key, value, db=self.db)

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key starts with `prefix`: those committed in key order, then those that are not yet."""
        with self.env.begin(self.db) as txn, txn.cursor(self.db) as cursor:
            if cursor.set_range(prefix) if prefix else cursor.first():
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    if key not in self.pending:
                        yield bytes(key), bytes(value)
        for key, pending in self.pending.items():
            if pending is not None and key.startswith(prefix):
                yield key, pending


class Catalog:
    """Names, directories and file records of one volume."""

    def __init__(self, env: lmdb.Environment, *, clean: bool, next_id: int, hold: bool) -> None:
        self._env = env
        self._hold = hold
        self.was_clean = clean
        """Whether it was closed properly last time: only then does a missing file mean a loss."""
        self._entries = _Table(env, b"entries")
        self._dirs = _Table(env, b"dirs")
        self._files = _Table(env, b"files")
        self._meta = _Table(env, b"meta")
        self._tables = (self._entries, self._dirs, self._files, self._meta)
        self._next_id = next_id
        self._failing = False
        """Whether the last attempt to commit has failed."""
        self._file = Fd(os.open(os.path.join(env.path(), "data.mdb"), os.O_RDWR | os.O_CLOEXEC))
        self._spare_until = 0
        self._page: int = env.stat()["psize"]
        device = os.fstatvfs(self._file.fd)
        self._spare = min(_SPARE, device.f_blocks * device.f_frsize // 64)
        self.changed: Callable[[int, FileRecord | None], None] = lambda _file, _record: None
        """Hears of each file whose record is about to be set, and of each that is forgotten (None)."""
        self._decode = msgspec.msgpack.Decoder(FileRecord).decode
        self._encode = msgspec.msgpack.Encoder().encode

    @classmethod
    def open(cls, state: Fd, *, hold: bool = False, known: bool = False) -> Catalog:
        """Open the catalog in state directory `state` (`.keigo`), making or rebuilding it where it must be.

        With `hold` nothing is ever committed, and what it says of itself stays as it is. With `known` somebody knows
        its ids, and they must not come to stand for other files: it is not rebuilt. Raises CatalogError if the
        directory cannot hold one, or has not the one that is known.
        """
        try:
            return cls._open(state, hold, known=known)
        except (lmdb.Error, msgspec.MsgspecError, CatalogError) as error:
            if known:
                raise CatalogError(f"catalog: cannot be read, and the mount knows its ids: {error}") from error
            shutil.rmtree(CATALOG, dir_fd=state.fd)
        try:
            return cls._open(state, hold)
        except lmdb.Error as error:
            raise CatalogError(f"catalog: {error}") from error

    @classmethod
    def _open(cls, state: Fd, hold: bool, *, known: bool = False) -> Catalog:
        try:
            os.mkdir(CATALOG, 0o700, dir_fd=state.fd)
        except FileExistsError:
            pass
        env = lmdb.open(
            os.fsdecode(proc_path(state.fd, CATALOG)),
            map_size=_MAP_SIZE,
            max_dbs=4,
            mode=0o600,
            sync=False,
            metasync=False,
        )
        try:
            table = env.open_db(b"meta")
            with env.begin(table) as txn:
                raw = txn.get(b"state")
            if raw is None and known:
                raise CatalogError("is not there")
            last = (
                msgspec.json.decode(raw, type=State) if raw is not None else State(FORMAT, False, boot_id(), ROOT + 1)
            )
            if last.format != FORMAT or (not last.clean and last.boot != boot_id()):
                raise CatalogError("not to be trusted")
            catalog = cls(env, clean=last.clean, next_id=last.next_id, hold=hold)
            if not hold:
                catalog._mark(clean=False)
        except BaseException:
            env.close()
            raise
        return catalog

    def _mark(self, *, clean: bool) -> None:
        self._commit(clean=clean)
        self._env.sync(True)

    def _state(self, *, clean: bool) -> bytes:
        return msgspec.json.encode(State(FORMAT, clean, boot_id(), self._next_id))

    def flush(self) -> None:
        """Commit what has gathered. On an error (a full device) it stays gathered and lmdb.Error is raised."""
        if any(table.pending for table in self._tables):
            self._failing = True
            self._commit(clean=False)
            self._failing = False

    def _commit(self, *, clean: bool) -> None:
        # The next id goes with the names that it is next to: an id in use is never handed out again.
        self._meta.put(b"state", self._state(clean=clean))
        with self._env.begin(write=True) as txn:
            for table in self._tables:
                table.commit(txn)
        for table in self._tables:
            table.pending.clear()
        self._set_aside()

    def _set_aside(self) -> None:
        """Keep room on the device: when it is full names still change, and who takes over must know their ids."""
        used = (self._env.info()["last_pgno"] + 1) * self._page
        if used + self._spare // 2 < self._spare_until:
            return
        try:
            fallocate(self._file.fd, _KEEP_SIZE, used, self._spare)
        except OSError as error:
            log.debug("catalog: no room can be set aside: %s", error.strerror)
        else:
            self._spare_until = used + self._spare

    def close(self) -> None:
        """Commit, sync, and note that all is well; where that cannot be written, the next mount is as after a kill."""
        try:
            self._mark(clean=True)
        except lmdb.Error as error:
            log.warning("the catalog is closed as it is: %s", error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without a word: its directory is about to be removed."""
        self._env.close()
        # Not left to the end of the process: the next mount refuses while anybody has a file open below it.
        self._file = Fd(-1)

    def _changed(self) -> None:
        if not self._hold and sum(len(table.pending) for table in self._tables) >= _FLUSH_AT:
            self.try_flush()

    def try_flush(self) -> None:
        """Commit what has gathered, if that can be done now. After an error not before a `flush` has succeeded.

        Else each change would try again with all that has gathered: of 4000 pending ones that takes 10 ms.
        """
        if self._failing:
            return
        try:
            self.flush()
        except lmdb.Error as error:  # the names are right in memory and on the tiers
            log.warning("catalog: %s", error)

    @property
    def next_id(self) -> int:
        """All ids below this one may be in use."""
        return self._next_id

    def new_id(self) -> int:
        """An id never used before in this catalog."""
        self._next_id += 1
        return self._next_id - 1

    # --- names ---

    def entry(self, directory: int, name: bytes) -> Entry | None:
        """What `name` stands for, or None."""
        raw = self._entries.get(_ID.pack(directory) + name)
        return None if raw is None else Entry(_KINDS[raw[:1]], _ID.unpack_from(raw, 1)[0])

    def put_entry(self, directory: int, name: bytes, entry: Entry) -> None:
        """Set a name."""
        self._entries.put(_ID.pack(directory) + name, entry.kind[0].encode() + _ID.pack(entry.id))
        self._changed()

    def drop_entry(self, directory: int, name: bytes) -> None:
        """Forget a name."""
        self._entries.put(_ID.pack(directory) + name, None)
        self._changed()

    def names(self, directory: int) -> list[tuple[bytes, Entry]]:
        """All names in a directory."""
        return [
            (key[8:], Entry(_KINDS[raw[:1]], _ID.unpack_from(raw, 1)[0]))
            for key, raw in self._entries.scan(_ID.pack(directory))
        ]

    def empty(self, directory: int) -> bool:
        """Whether a directory has no names."""
        return next(self._entries.scan(_ID.pack(directory)), None) is None

    # --- directories ---

    def parent(self, directory: int) -> tuple[int, bytes] | None:
        """(parent id, name) of a directory; None for the root and for one that was removed."""
        raw = self._dirs.get(_ID.pack(directory))
        return None if raw is None else (_ID.unpack_from(raw)[0], raw[8:])

    def put_dir(self, directory: int, parent: int, name: bytes) -> None:
        """Set where a directory is."""
        self._dirs.put(_ID.pack(directory), _ID.pack(parent) + name)
        self._changed()

    def drop_dir(self, directory: int) -> None:
        """Forget a directory."""
        self._dirs.put(_ID.pack(directory), None)
        self._changed()

    def directories(self) -> list[int]:
        """Ids of all directories but the root."""
        return [_ID.unpack(key)[0] for key, _ in self._dirs.scan()]

    # --- files ---

    def file(self, file: int) -> FileRecord | None:
        """The record of a file: a copy; `put_file` makes changes count."""
        raw = self._files.get(_ID.pack(file))
        return None if raw is None else self._decode(raw)

    def put_file(self, file: int, record: FileRecord) -> None:
        """Set a file's record."""
        self.changed(file, record)
        self._files.put(_ID.pack(file), self._encode(record))
        self._changed()

    def drop_file(self, file: int) -> None:
        """Forget a file."""
        self.changed(file, None)
        self._files.put(_ID.pack(file), None)
        self._changed()

    def files(self) -> Iterator[tuple[int, FileRecord]]:
        """All files; the catalog must not change meanwhile."""
        for key, raw in self._files.scan():
            yield _ID.unpack(key)[0], self._decode(raw)
