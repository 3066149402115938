"""What the kernel driver leaves of a file in memory: one copy at most, the mount's."""

from __future__ import annotations

import os

import pytest

from keigo.tiers.fds import Fd, open_direct
from tests.conftest import MIB, MakeWorld
from tests.fs.support import cached_pages, until

MOST = 3 * MIB // 4096
"""Pages, of 4 MiB: clean ones go whenever somebody has caches dropped."""


@pytest.fixture
def driver() -> str:
    """This file is about one driver."""
    return "kernel"


def test_a_written_table_leaves_no_pages_below_the_mount(make_world: MakeWorld) -> None:
    world = make_world(levels="{fast: [wal], mid: [0, 1, 2, 3], slow: [4]}")
    if open_direct(Fd(os.open(world.config, os.O_RDONLY))) is None:
        pytest.skip("no direct I/O here: tables are read by way of these pages")
    world.mount()
    path, below = world.directory / "000001.sst", world.tiers["mid"] / "000001.sst"
    contents = os.urandom(4 * MIB)
    with path.open("wb", buffering=0) as file:
        file.write(contents)  # what is dirty nobody takes away
        assert cached_pages(below) > MOST
        with path.open("r+b", buffering=0):  # not the last that goes past the daemon
            pass
        assert cached_pages(below) > MOST
        os.fsync(file.fileno())
    until(lambda: cached_pages(below) == 0)
    until(lambda: path.read_bytes() == contents and cached_pages(path) > MOST)
    assert cached_pages(below) == 0
