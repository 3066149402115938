"""RocksDB, LevelDB and Speedb as one protocol, set up so that a few MiB already mean many files and compactions.

Keys are numbers, and a value says which key and version it belongs to: whoever reads one can tell whether it is right.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

KIB: Final = 1 << 10
VALUE_SIZE: Final = 400
Pairs = Iterable[tuple[bytes, bytes]]


def key_of(number: int) -> bytes:
    return b"key%09d" % number


def number_of(key: bytes) -> int:
    return int(key.removeprefix(b"key"))


def value_of(number: int, version: int) -> bytes:
    """Incompressible, and no other key or version has the same."""
    return b"%09d" % version + hashlib.shake_128(b"%d/%d" % (number, version)).digest(VALUE_SIZE - 9)


def version_of(number: int, value: bytes) -> int:
    """The version that a value found under a key has. Raises ValueError where it is not one of that key's."""
    version = int(value[:9])
    if value != value_of(number, version):
        raise ValueError(f"key {number}: a value that was never written")
    return version


class Store(Protocol):
    """An open database. Any call may raise the engine's own exception, with the engine's own words."""

    def put(self, pairs: Pairs, *, sync: bool) -> None:
        """Write all pairs in one batch; with `sync` they survive a crash of the machine once this returns."""
        ...

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete all keys in one batch."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, its checksum verified."""
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs in key order, checksums verified."""
        ...

    def compact(self) -> None:
        """Compact the whole database; returns when it is done."""
        ...

    def levels(self) -> Mapping[int, int]:
        """Level -> number of SST files."""
        ...

    def checkpoint(self, path: str) -> None:
        """Make an openable copy by hard links. NotImplementedError where the engine, or its binding, has none."""
        ...

    def close(self) -> None:
        """Close; every file of the database is closed on return."""
        ...


class RocksStore:
    """RocksDB by rocksdict, Speedb by speedict: the same binding over two engines."""

    def __init__(self, module: str, path: str, *, create: bool, log_dir: str | None) -> None:
        self._module: Any = importlib.import_module(module)
        options = self._options = self._module.Options(raw_mode=True)
        options.create_if_missing(create)
        options.set_write_buffer_size(512 * KIB)
        options.set_target_file_size_base(512 * KIB)
        options.set_max_bytes_for_level_base(1024 * KIB)
        options.set_max_bytes_for_level_multiplier(3)
        options.set_level_zero_file_num_compaction_trigger(2)
        options.set_level_compaction_dynamic_level_bytes(False)  # levels 1 and 2 are used, and so every tier
        options.set_compression_type(self._module.DBCompressionType.none())
        options.set_paranoid_checks(True)
        if log_dir is not None:
            options.set_db_log_dir(log_dir)
        self._reading = self._module.ReadOptions()
        self._reading.set_verify_checksums(True)
        self._synced = self._module.WriteOptions()
        self._synced.sync = True
        self._db = self._module.Rdict(path, options)

    def put(self, pairs: Pairs, *, sync: bool) -> None:
        batch = self._module.WriteBatch(raw_mode=True)
        for key, value in pairs:
            batch[key] = value
        self._write(batch, sync=sync)

    def delete(self, keys: Iterable[bytes]) -> None:
        batch = self._module.WriteBatch(raw_mode=True)
        for key in keys:
            del batch[key]
        self._write(batch, sync=False)

    def _write(self, batch: Any, *, sync: bool) -> None:
        if sync:
            self._db.write(batch, self._synced)
        else:
            self._db.write(batch)

    def get(self, key: bytes) -> bytes | None:
        found = self._db.get(key, None, self._reading)
        return None if found is None else bytes(found)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self._db.items(read_opt=self._reading)

    def compact(self) -> None:
        self._db.flush()
        self._db.compact_range(None, None)

    def levels(self) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for file in self._db.live_files():
            found[file["level"]] = found.get(file["level"], 0) + 1
        return found

    def checkpoint(self, path: str) -> None:
        if not hasattr(self._module, "Checkpoint"):
            raise NotImplementedError
        self._module.Checkpoint(self._db).create_checkpoint(path)

    def close(self) -> None:
        self._db.close()


class LevelStore:
    """LevelDB by plyvel."""

    def __init__(self, path: str, *, create: bool) -> None:
        import plyvel

        self._db = plyvel.DB(
            path,
            create_if_missing=create,
            paranoid_checks=True,
            write_buffer_size=256 * KIB,
            max_file_size=1024 * KIB,  # LevelDB takes no less
            compression=None,
        )

    def put(self, pairs: Pairs, *, sync: bool) -> None:
        with self._db.write_batch(sync=sync) as batch:
            for key, value in pairs:
                batch.put(key, value)

    def delete(self, keys: Iterable[bytes]) -> None:
        with self._db.write_batch() as batch:
            for key in keys:
                batch.delete(key)

    def get(self, key: bytes) -> bytes | None:
        found = self._db.get(key, verify_checksums=True)
        return None if found is None else bytes(found)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        with self._db.iterator(verify_checksums=True) as found:
            yield from found

    def compact(self) -> None:
        self._db.compact_range()

    def levels(self) -> Mapping[int, int]:
        counts = {level: int(self._db.get_property(b"leveldb.num-files-at-level%d" % level)) for level in range(7)}
        return {level: count for level, count in counts.items() if count}

    def checkpoint(self, path: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._db.close()


def open_rocksdb(path: str, *, create: bool, log_dir: str | None = None) -> Store:
    return RocksStore("rocksdict", path, create=create, log_dir=log_dir)


def open_speedb(path: str, *, create: bool, log_dir: str | None = None) -> Store:
    return RocksStore("speedict", path, create=create, log_dir=log_dir)


def open_leveldb(path: str, *, create: bool, log_dir: str | None = None) -> Store:
    if log_dir is not None:
        raise NotImplementedError
    return LevelStore(path, create=create)


def destroy_rocksdb(path: str) -> None:
    from rocksdict import Rdict

    Rdict.destroy(path)


def destroy_speedb(path: str) -> None:
    from speedict import Rdict

    Rdict.destroy(path)


def destroy_leveldb(path: str) -> None:
    import plyvel

    plyvel.destroy_db(path)


class Opener(Protocol):
    def __call__(self, path: str, *, create: bool, log_dir: str | None = None) -> Store:
        """Open a database, made anew where there is none and `create` is set. `log_dir` is where its info log goes."""
        ...


OPEN: Final[Mapping[str, Opener]] = {
    "rocksdb": open_rocksdb,
    "leveldb": open_leveldb,
    "speedb": open_speedb,
}
DESTROY: Final[Mapping[str, Callable[[str], None]]] = {
    "rocksdb": destroy_rocksdb,
    "leveldb": destroy_leveldb,
    "speedb": destroy_speedb,
}
ENGINES: Final = tuple(OPEN)
