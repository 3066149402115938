"""Speedb by speedict: the binding of `rocksdb` over another engine, and what is measured there holds here.

Microseconds per operation of speedict 0.3.12 with 1, 2 and 4 threads, as there: get from the block cache 3.2, 3.1, 3.7;
get with direct reads of a disk 74, 64, 75; put 5.2, 6.2, 6.2; synced put 310, 256, 231. It also holds the
GIL during `flush`.
"""

from __future__ import annotations

from workloads.engines.options import EngineOptions
from workloads.engines.protocol import Engine
from workloads.engines.rocksdb import open_with


def open_engine(path: str, options: EngineOptions, *, create: bool) -> Engine:
    """Open a Speedb database; see `Opener`. Every option can be set, and every compression but zlib."""
    return open_with("speedb", "speedict", path, options, create=create)
