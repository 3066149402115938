"""The catalog's device is full: it is an index, so operations go on, and it is written when there is room."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import lmdb
import pytest

from keigo.control import is_served
from tests.cache.test_faults import fill
from tests.conftest import MIB, MakeWorld, World
from tests.devices.disks import command, loop_device, mounted

FILES = 900
NAME = "{:04}-" + "n" * 180
LEVELS = "{fast: [wal, 0, 1, 2, 3], slow: [4, 5, 6]}"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")


@pytest.fixture
def full(make_world: MakeWorld) -> Iterator[World]:
    """A mounted world whose catalog is on a tier of its own, which is full."""
    world = make_world({"fast": "64MiB"}, LEVELS, "catalog: mid\n")
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(8 * MIB))
        command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", device)
        stack.enter_context(mounted(device, at=world.tiers["mid"]))

        def end() -> None:
            world.destroy_daemon()
            if world.pids:
                world.wait_dead()

        stack.callback(end)
        world.mount()
        fill(stranger(world))
        yield world


def stranger(world: World) -> Path:
    return world.tiers["mid"] / ".keigo" / "stranger"


def make_many(world: World) -> list[str]:
    """Names that the catalog has no room for."""
    for number in range(FILES):
        (world.directory / NAME.format(number)).write_bytes(b"%d" % number)
    for number in range(0, FILES, 3):
        os.unlink(world.directory / NAME.format(number))
    for number in range(1, FILES, 3):
        os.rename(world.directory / NAME.format(number), world.directory / f"r{number:04}")
    return sorted([NAME.format(number) for number in range(2, FILES, 3)] + [f"r{n:04}" for n in range(1, FILES, 3)])


def check(world: World, names: list[str]) -> None:
    assert sorted(os.listdir(world.directory)) == names
    for name in names:
        number = int(name[:4] if name[0] != "r" else name[1:])
        assert (world.directory / name).read_bytes() == b"%d" % number


def catalogued(world: World) -> set[str]:
    """The names that the catalog has on its device."""
    with (
        lmdb.open(str(world.tiers["mid"] / ".keigo" / "catalog"), readonly=True, lock=False, max_dbs=4) as env,
        env.begin(env.open_db(b"entries", create=False)) as found,
    ):
        return {os.fsdecode(bytes(key)[8:]) for key, _ in found.cursor()}


def wait_log(world: World, said: str) -> None:
    while said not in world.log():
        assert is_served(world.volume)
        time.sleep(0.01)


def test_all_goes_on_and_is_written_when_there_is_room(full: World) -> None:
    names = make_many(full)
    wait_log(full, "the catalog cannot be written")
    check(full, names)
    assert set(names) - catalogued(full)
    assert full.log().count("No space left") < 20  # told, but not each time
    stranger(full).unlink()
    wait_log(full, "the catalog cannot be written: not any more")
    full.kill()
    assert catalogued(full) == set(names)
    full.mount()
    check(full, names)
    full.umount()
    full.keigo("fsck", full.directory, "-d", full.config)


@pytest.mark.parametrize("room", ["none", "some"])
def test_killed_while_it_is_full(full: World, room: str) -> None:
    names = make_many(full)
    wait_log(full, "the catalog cannot be written")
    full.kill()
    if room == "some":
        stranger(full).unlink()
    full.mount()
    check(full, names)
    full.umount()
    full.keigo("fsck", full.directory, "-d", full.config)


@pytest.mark.parametrize("how", ["umount", "signal"])
def test_unmounted_while_it_is_full(full: World, how: str) -> None:
    names = make_many(full)
    wait_log(full, "the catalog cannot be written")
    full.wait_closed()
    if how == "umount":
        full.umount()
    else:
        os.kill(full.pids[-1], signal.SIGTERM)
    full.wait_dead()
    assert not full.is_mounted()
    assert "is closed" in full.log()
    full.mount()
    check(full, names)
    stranger(full).unlink()
    full.umount()
    full.keigo("fsck", full.directory, "-d", full.config)
