"""LevelDB by plyvel.

The binding releases the GIL in every call: threads run in parallel as far as LevelDB lets them, which has one writer at
a time. Microseconds per operation of plyvel 1.5.1 on 2 CPUs (400 byte values, 200,000 keys) with 1, 2 and 4 threads:
get from the block cache 2.5, 1.6, 1.6; put 4.2, 9.3, 11.8; synced put 185, 172, 111. It has no direct I/O.

LevelDB maps up to 1000 tables into memory and does not cache their blocks that are not compressed: of these the page
cache, not `block_cache`, keeps what is read.

What is known of LevelDB's inside is from `db/db_impl.cc`, `db/dbformat.h`, `db/version_set.cc`, `table/format.cc` and
`util/env_posix.cc` of version 1.22.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from workloads.engines.options import EngineOptions, OptionError, refuse_others
from workloads.engines.protocol import Engine, EngineError, EngineStats, Level

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POLL_SECONDS: Final = 0.01
_LEVEL0_TRIGGER: Final = 4  # files of level 0 from which on it is compacted
_LEVEL_BASE: Final = 10 << 20  # bytes of level 1, and ten times as many for each further one
_LAST_LEVEL: Final = 6  # never compacted

_BOUNDS: Final = {
    "write_buffer": (64 << 10, 1 << 30),
    "file_size": (1 << 20, 1 << 30),
    "max_open_files": (74, 50000),
}
"""What LevelDB makes of values out of these bounds is the bound, without a word."""
_SETTABLE: Final = frozenset({*_BOUNDS, "block_cache", "bloom_bits", "compression", "sync", "compaction_style"})
_LEVEL: Final = re.compile(r"^--- level (\d+) ---$|^ \d+:(\d+)\[", re.MULTILINE)


def _in_one_line(
    method: Callable[Concatenate[LevelEngine, _P], _T],
) -> Callable[Concatenate[LevelEngine, _P], _T]:
    """What the engine says becomes an EngineError. Costs 0.25 us a call; inline in `get` and `put` 0.04."""

    @functools.wraps(method)
    def call(self: LevelEngine, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except self._binding.Error as error:
            raise self._told(error) from error

    return call


class LevelEngine:
    """An open LevelDB database."""

    name = "leveldb"

    def __init__(self, binding: ModuleType, path: str, options: EngineOptions, *, create: bool) -> None:
        self._binding = binding
        self._path = path
        self._synced = options.sync
        self._db: Any = self._open(options, create)

    @_in_one_line
    def _open(self, options: EngineOptions, create: bool) -> Any:  # noqa: ANN401 - plyvel has no types
        return self._binding.DB(
            self._path,
            create_if_missing=create,
            write_buffer_size=options.write_buffer,
            max_file_size=options.file_size,
            max_open_files=options.max_open_files,
            lru_cache_size=options.block_cache,
            bloom_filter_bits=options.bloom_bits or 0,
            compression=None if options.compression == "none" else "snappy",
        )

    def _told(self, error: Exception) -> EngineError:
        words = b"; ".join(part for part in error.args if isinstance(part, bytes)).decode(errors="replace")
        return EngineError(f"{self.name} {self._path}: {words or error}")

    def get(self, key: bytes) -> bytes | None:
        """See `Engine`."""
        try:
            # RocksDB verifies checksums unless it is told not to, LevelDB only when told.
            found: bytes | None = self._db.get(key, verify_checksums=True)
        except self._binding.Error as error:
            raise self._told(error) from error
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """See `Engine`."""
        try:
            self._db.put(key, value, sync=self._synced)
        except self._binding.Error as error:
            raise self._told(error) from error

    @_in_one_line
    def delete(self, key: bytes) -> None:
        """See `Engine`."""
        self._db.delete(key, sync=self._synced)

    @_in_one_line
    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """See `Engine`."""
        with self._db.iterator(start=start, verify_checksums=True) as cursor:
            return list(itertools.islice(cursor, count))

    @_in_one_line
    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """See `Engine`."""
        with self._db.write_batch(transaction=True, sync=self._synced) as written:
            for key, value in batch:
                if value is None:
                    written.delete(key)
                else:
                    written.put(key, value)

    @_in_one_line
    def flush(self) -> None:
        """See `Engine`."""
        # Compacting a range first writes the memtable out and waits for that; this range has no key but the empty one.
        self._db.compact_range(start=b"", stop=b"")
        self._raise_background_error()

    def _raise_background_error(self) -> None:
        """After a failed flush or compaction LevelDB fails every write, also of nothing."""
        with self._db.write_batch():
            pass

    @_in_one_line
    def sync(self) -> None:
        """See `Engine`."""
        # A synced write would not do: LevelDB does not sync the log of a memtable that is still being written out.
        self.flush()

    @_in_one_line
    def wait_for_compactions(self) -> None:
        """See `Engine`. Compactions that reads have caused (`allowed_seeks`) are not waited for: it does not tell."""
        self.flush()
        while any(map(_is_due, self._levels())):
            self._raise_background_error()
            time.sleep(_POLL_SECONDS)  # LevelDB tells nobody when it is done

    def _levels(self) -> tuple[Level, ...]:
        files: dict[int, list[int]] = {}
        level = 0
        for heading, size in _LEVEL.findall(self._db.get_property(b"leveldb.sstables").decode(errors="replace")):
            if heading:
                level = int(heading)
            else:
                files.setdefault(level, []).append(int(size))
        return tuple(Level(level, len(sizes), sum(sizes)) for level, sizes in sorted(files.items()))

    @_in_one_line
    def stats(self) -> EngineStats:
        """See `Engine`."""
        levels = self._levels()
        return EngineStats(levels, sum(level.bytes for level in levels), None)

    def close(self) -> None:
        """See `Engine`."""
        self._db.close()


def _is_due(level: Level) -> bool:
    """Whether a level will be compacted, or still is: it counts as before until the compaction is done."""
    if level.level == 0:
        return level.files >= _LEVEL0_TRIGGER
    return level.level < _LAST_LEVEL and level.bytes >= _LEVEL_BASE * 10 ** (level.level - 1)


def _check(options: EngineOptions) -> None:
    refuse_others("leveldb", options, _SETTABLE, "LevelDB, or plyvel, has no such option")
    for name, (least, most) in _BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise OptionError(f"leveldb cannot set {name} to {value}: it takes {least} to {most}")
    if options.compression not in (None, "none", "snappy"):
        raise OptionError(f"leveldb cannot set compression to {options.compression!r}: it takes none or snappy")
    if options.compaction_style == "universal":
        raise OptionError("leveldb cannot set compaction_style to 'universal': it is always leveled")


def open_engine(path: str, options: EngineOptions, *, create: bool) -> Engine:
    """Open a LevelDB database; see `Opener`.

    It can set write_buffer, file_size, block_cache, bloom_bits, compression (none, snappy), max_open_files and sync.
    """
    _check(options)
    try:
        binding = importlib.import_module("plyvel")
    except ImportError as error:
        raise EngineError(f"leveldb: the Python package plyvel cannot be imported: {error}") from error
    if create:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise EngineError(f"leveldb {path}: {error.strerror}") from error
    return LevelEngine(binding, path, options, create=create)
