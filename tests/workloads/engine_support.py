"""What the tests of engines share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workloads.engines import ON_DISK
from workloads.engines.options import EngineOptions
from workloads.engines.protocol import Engine

SMALL = EngineOptions(write_buffer=64 << 10, compression="none", bloom_bits=10)
ROOT = Path(__file__).parent.parent.parent
KEEPING = (*ON_DISK, "dict")
ROCKS = ("rocksdb", "speedb")
on_disk = pytest.mark.parametrize("name", ON_DISK)
keeping = pytest.mark.parametrize("name", KEEPING)
rocks = pytest.mark.parametrize("name", ROCKS)


def small(name: str) -> EngineOptions:
    return SMALL if name in ON_DISK else EngineOptions()


def key(number: int) -> bytes:
    return b"user%08d" % number


def value(number: int) -> bytes:
    return os.urandom(400) + key(number)


def fill(engine: Engine, count: int) -> dict[bytes, bytes]:
    """Write pairs in an order that makes tables overlap."""
    pairs = {key(number * 7919 % count): value(number) for number in range(count)}
    for one, written in pairs.items():
        engine.put(one, written)
    return pairs


def info_log(directory: Path) -> str:
    return (directory / "LOG").read_text(errors="replace")
