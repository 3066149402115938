"""RocksDB by rocksdict, and the same binding over Speedb.

The binding holds the GIL during `get`, `put`, `delete`, `write` and each step of a scan, also while they wait for a
device: threads of one process take turns. rocksdict releases it during `flush` and compactions, speedict does not.
Microseconds per operation of rocksdict 0.3.29 on 2 CPUs (400 byte values, 200,000 keys) with 1, 2 and 4 threads:
get from the block cache 3.5, 3.9, 3.3; get with direct reads of a disk 91, 92, 72; put 4.8, 6.3, 5.3; synced put 306,
282, 261. Only `db_bench` shows what several threads can do. A put that the engine stalls stops every Python thread, on
a full device for ever: see `runner.stuck`.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from workloads.engines.options import EngineOptions, OptionError
from workloads.engines.protocol import Engine, EngineError, EngineStats, Level
from workloads.engines.readback import check_in_effect
from workloads.engines.stats_text import stall_micros

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POLL_SECONDS: Final = 0.01
_QUIET_SECONDS: Final = 1.0
_NOT_COMPRESSING: Final = ("zlib",)  # accepted by rocksdict 0.3.29 and speedict 0.3.12, told in OPTIONS, and not done
_AT_WORK: Final = (
    "rocksdb.num-running-flushes",
    "rocksdb.num-running-compactions",
    "rocksdb.mem-table-flush-pending",
)


def _in_one_line(
    method: Callable[Concatenate[RocksEngine, _P], _T],
) -> Callable[Concatenate[RocksEngine, _P], _T]:
    """What the engine says becomes an EngineError. Costs 0.25 us a call; inline in `get` and `put` 0.04."""

    @functools.wraps(method)
    def call(self: RocksEngine, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            raise self._told(error) from error

    return call


class RocksEngine:
    """An open database of RocksDB or Speedb."""

    def __init__(self, name: str, binding: ModuleType, path: str, options: EngineOptions, *, create: bool) -> None:
        self.name = name
        self._binding = binding
        self._path = path
        self._flush_is_sync = not options.wal
        self._writing = binding.WriteOptions()
        self._writing.sync = options.sync
        self._writing.disable_wal = not options.wal
        self._db: Any = self._open(_binding_options(binding, options, create=create))
        self._db.set_write_options(self._writing)
        try:
            self._check(options)
        except BaseException:
            self.close()
            raise

    @_in_one_line
    def _open(self, settings: Any) -> Any:  # noqa: ANN401 - one binding of two
        # Without the second mention the binding takes the options of an existing column family from its OPTIONS file.
        return self._binding.Rdict(self._path, settings, {"default": settings})

    def _check(self, options: EngineOptions) -> None:
        check_in_effect(self.name, self._path, options)
        if options.block_cache:
            capacity = self._property("rocksdb.block-cache-capacity")
            if capacity != options.block_cache:
                raise OptionError(f"{self.name} does not run with block_cache {options.block_cache}: it is {capacity}")

    def _property(self, name: str) -> int:
        value = self._db.property_int_value(name)
        if value is None:
            raise EngineError(f"{self.name} {self._path}: has no property {name}")
        return int(value)

    def _told(self, error: Exception) -> EngineError:
        if type(error) is not Exception:  # the binding raises no class of its own for what the engine says
            raise error
        return EngineError(f"{self.name} {self._path}: {error}")

    def get(self, key: bytes) -> bytes | None:
        """See `Engine`."""
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._told(error) from error
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """See `Engine`."""
        try:
            self._db.put(key, value)
        except Exception as error:
            raise self._told(error) from error

    @_in_one_line
    def delete(self, key: bytes) -> None:
        """See `Engine`."""
        self._db.delete(key)

    @_in_one_line
    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """See `Engine`."""
        # `items` takes 16 us for ten pairs where this takes 8, and ends at a damaged block as at the end of the data.
        found: list[tuple[bytes, bytes]] = []
        cursor = self._db.iter()
        cursor.seek(start)
        while len(found) < count:
            if not cursor.valid():
                cursor.status()
                break
            found.append((cursor.key(), cursor.value()))
            cursor.next()
        return found

    @_in_one_line
    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """See `Engine`."""
        written = self._binding.WriteBatch(raw_mode=True)
        for key, value in batch:
            if value is None:
                written.delete(key)
            else:
                written.put(key, value)
        self._db.write(written, self._writing)

    @_in_one_line
    def flush(self) -> None:
        """See `Engine`."""
        self._db.flush()

    @_in_one_line
    def sync(self) -> None:
        """See `Engine`."""
        if self._flush_is_sync:
            self._db.flush()
        else:
            self._db.flush_wal(True)

    @_in_one_line
    def wait_for_compactions(self) -> None:
        """See `Engine`."""
        failed = self._property("rocksdb.background-errors")  # ever; the engine may have recovered
        self._db.flush()
        at_work = time.monotonic()
        while True:
            if self._property("rocksdb.background-errors") > failed:
                raise EngineError(f"{self.name} {self._path}: a flush or compaction failed; its LOG says why")
            if any(self._property(name) for name in _AT_WORK):
                at_work = time.monotonic()
            elif not self._property("rocksdb.compaction-pending") or time.monotonic() > at_work + _QUIET_SECONDS:
                return
            time.sleep(_POLL_SECONDS)  # the binding has no WaitForCompact, and the engine tells nobody else

    @_in_one_line
    def stats(self) -> EngineStats:
        """See `Engine`."""
        levels: dict[int, tuple[int, int]] = {}
        for file in self._db.live_files():
            files, size = levels.get(file["level"], (0, 0))
            levels[file["level"]] = files + 1, size + file["size"]
        found = tuple(Level(level, *levels[level]) for level in sorted(levels))
        return EngineStats(
            found, sum(level.bytes for level in found), stall_micros(self._db.property_value("rocksdb.dbstats"))
        )

    @_in_one_line
    def close(self) -> None:
        """See `Engine`."""
        self._db.close()


def _binding_options(binding: ModuleType, options: EngineOptions, *, create: bool) -> Any:  # noqa: ANN401
    found = binding.Options(raw_mode=True)
    found.create_if_missing(create)
    found.set_use_direct_reads(options.direct_reads)
    found.set_use_direct_io_for_flush_and_compaction(options.direct_writes)
    setters = {
        "write_buffer": found.set_write_buffer_size,
        "file_size": found.set_target_file_size_base,
        "background_jobs": found.set_max_background_jobs,
        "subcompactions": found.set_max_subcompactions,
        "max_open_files": found.set_max_open_files,
        "growth_factor": found.set_max_bytes_for_level_multiplier,
        "level_base": found.set_max_bytes_for_level_base,
        "level0_slowdown": found.set_level_zero_slowdown_writes_trigger,
        "level0_stop": found.set_level_zero_stop_writes_trigger,
        "dynamic_levels": found.set_level_compaction_dynamic_level_bytes,
    }
    for name, setter in setters.items():
        if (value := getattr(options, name)) is not None:
            setter(value)
    if options.compression is not None:
        found.set_compression_type(getattr(binding.DBCompressionType, options.compression)())
    if options.compaction_style is not None:
        styles = binding.DBCompactionStyle
        found.set_compaction_style(styles.universal() if options.compaction_style == "universal" else styles.level())
    if options.db_paths:
        found.set_db_paths([binding.DBPath(place.path, place.target_size) for place in options.db_paths])
    found.set_block_based_table_factory(_table_options(binding, options))
    return found


def _table_options(binding: ModuleType, options: EngineOptions) -> Any:  # noqa: ANN401
    found = binding.BlockBasedOptions()
    if options.block_cache == 0:
        found.disable_cache()
    elif options.block_cache is not None:
        found.set_block_cache(binding.Cache(options.block_cache))
    if options.bloom_bits:
        found.set_bloom_filter(options.bloom_bits, False)
    return found


def open_with(name: str, module: str, path: str, options: EngineOptions, *, create: bool) -> Engine:
    """Open with the binding that is Python package `module`; see `Opener`."""
    try:
        binding = importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"{name}: the Python package {module} cannot be imported: {error}") from error
    if options.compression in _NOT_COMPRESSING:
        raise OptionError(f"{name} cannot set compression to {options.compression!r}: {module} then compresses nothing")
    if create:
        for directory in (path, *(place.path for place in options.db_paths)):
            _make(name, directory)
    return RocksEngine(name, binding, path, options, create=create)


def _make(name: str, directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{name} {directory}: {error.strerror}") from error


def open_engine(path: str, options: EngineOptions, *, create: bool) -> Engine:
    """Open a RocksDB database; see `Opener`. Every option can be set, and every compression but zlib."""
    return open_with("rocksdb", "rocksdict", path, options, create=create)
