"""The policies that go by reads, on real mounts."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from keigo.control import ask
from tests.conftest import World
from tests.fs.support import until

PAGE = 4096
PAGES = 64


def configure(world: World, placement: str) -> None:
    lines = [line for line in world.config.read_text().splitlines() if not line.startswith("placement:")]
    world.config.write_text("\n".join([*lines, f"placement: {placement}"]) + "\n")


def adopted(world: World, name: str) -> Path:
    """A file that was there before the volume, and is an hour old."""
    path = world.directory / name
    path.write_bytes(b"x" * PAGES * PAGE)
    then = time.time() - 3600
    os.utime(path, (then, then))
    return path


def read(path: Path, count: int) -> None:
    """Read so many pages from the device."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, PAGE) as buffer:
            for number in range(count):
                os.preadv(fd, [buffer], number % PAGES * PAGE)
    finally:
        os.close(fd)


def tiers_of(world: World) -> dict[str, str]:
    return {row["name"]: row["tier"] for row in ask(world.volume, "ls") if row["role"] == "sst"}


@pytest.mark.parametrize("policy", ["popularity", "mutant"])
def test_what_is_read_goes_up_and_what_is_not_stays(world: World, policy: str) -> None:
    hot, cold = adopted(world, "000001.sst"), adopted(world, "000002.sst")
    configure(world, f"{{policy: {policy}, period: 1}}")
    world.mount()
    assert tiers_of(world) == {hot.name: "slow", cold.name: "slow"}
    read(hot, 500)
    until(lambda: tiers_of(world)[hot.name] == "fast")
    assert hot.read_bytes() == b"x" * PAGES * PAGE
    assert tiers_of(world)[cold.name] == "slow"
    until(lambda: ": fits fast" in world.log())


def test_fill_order_moves_nothing_as_long_as_there_is_room(world: World) -> None:
    hot = adopted(world, "000001.sst")
    configure(world, "{policy: fill-order}")
    world.mount()
    read(hot, 500)
    until(lambda: next(row["heat"] for row in ask(world.volume, "ls") if row["name"] == hot.name) > 0)
    (world.directory / "000003.sst").write_bytes(b"new")
    world.keigo("pin", world.directory, "000003.sst", "mid")
    until(lambda: tiers_of(world)["000003.sst"] == "mid")
    assert tiers_of(world)[hot.name] == "slow"
