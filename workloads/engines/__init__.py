"""The databases that workloads run on, behind one protocol, and `db_bench` beside it.

Owns how an engine is set up and driven: `protocol` says what an engine does, `options` how one is set up, `rocksdb`,
`speedb`, `leveldb` and `null` do it, `db_bench` runs RocksDB's own benchmark program. Knows nothing of workloads. An
option is set as it was asked for or the engine does not open: what the engine says it runs with is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from workloads.engines import leveldb, null, rocksdb, speedb
from workloads.engines.options import EngineOptions
from workloads.engines.protocol import Engine, EngineError, Opener

OPEN: Final[Mapping[str, Opener]] = {
    "rocksdb": rocksdb.open_engine,
    "leveldb": leveldb.open_engine,
    "speedb": speedb.open_engine,
    "null": null.open_null,
    "dict": null.open_dict,
}
"""Name -> how it is opened. `null` keeps nothing, `dict` keeps everything in memory until it is closed."""

ON_DISK: Final = ("rocksdb", "leveldb", "speedb")
"""The engines whose data is still there when they are opened again."""


def open_engine(name: str, path: str, options: EngineOptions | None = None, *, create: bool) -> Engine:
    """Open the database at `path` with an engine of this name; see `Opener`. Raises EngineError for an unknown name."""
    opener = OPEN.get(name)
    if opener is None:
        raise EngineError(f"{name}: not an engine; there are {', '.join(OPEN)}")
    return opener(path, options or EngineOptions(), create=create)
