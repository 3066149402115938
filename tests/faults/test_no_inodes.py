"""A tier whose file system has room but no inode left: files go to the next one, and nothing is lost or half done."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keigo import mounts
from keigo.control import ask
from tests.conftest import MIB, MakeWorld, World
from tests.devices.disks import command, loop_device, mounted

INODES = 80
LEVELS = "{fast: [wal, 0, 1, 2, 3, 4, 5, 6]}"
DATA = bytes(range(256)) * 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")


@contextmanager
def scarce(world: World, tier: str) -> Iterator[Path]:
    """The world, mounted, with a tier whose file system has few inodes; where that can be reached past the mount."""
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(16 * MIB))
        command("mkfs.ext4", "-q", "-m", "0", "-N", str(INODES), "-E", "nodiscard", device)
        place = world.tiers[tier]
        stack.enter_context(mounted(device, at=place))
        (place / "lost+found").rmdir()

        def end() -> None:
            world.destroy_daemon()
            if world.pids:
                world.wait_dead()
            mount = mounts.mount_at(str(world.directory))
            if mount is not None and mount.volume is not None:
                command("umount", "-l", world.directory)

        stack.callback(end)
        aside = stack.enter_context(mounted(device, at=world.base / "aside"))
        world.mount()
        yield aside


def use_up(place: Path) -> list[Path]:
    """Take the inodes that are left."""
    taken: list[Path] = []
    try:
        while True:
            path = place / ".keigo" / f"stranger{len(taken)}"
            path.touch()
            taken.append(path)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return taken


def make(world: World, name: str) -> Path:
    path = world.directory / name
    path.write_bytes(DATA)
    return path


def test_new_files_go_to_the_next_tier(make_world: MakeWorld) -> None:
    world = make_world({"mid": "64MiB"}, LEVELS)
    with scarce(world, "fast") as aside:
        first = make(world, "000001.sst")
        world.wait_closed()
        assert world.tier_of(first.name) == "fast"
        before = os.statvfs(world.directory)
        taken = use_up(aside)
        assert before.f_ffree - os.statvfs(world.directory).f_ffree >= len(taken) // 2
        made = [make(world, f"{number:06}.{kind}") for number in range(2, 12) for kind in ("sst", "log")]
        world.wait_closed()
        assert {world.tier_of(path.name) for path in made} == {"mid"}
        assert "had no space left" in next(row["reason"] for row in world.ls() if row["name"] == made[0].name)
        # It cannot move there, and it is said why; one that is there can leave, and then another has room.
        said = ask(world.volume, "migrate", pattern=made[0].name, tier="fast")
        assert os.strerror(errno.ENOSPC) in said["skipped"][made[0].name]
        assert world.tier_of(made[0].name) == "mid"
        said = ask(world.volume, "migrate", pattern=first.name, tier="mid")
        assert said["moved"] == [first.name]
        said = ask(world.volume, "migrate", pattern=made[0].name, tier="fast")
        assert said["moved"] == [made[0].name]
        for path in taken:
            path.unlink()
        last = make(world, "000099.sst")
        world.wait_closed()
        assert world.tier_of(last.name) == "fast"
        assert all(path.read_bytes() == DATA for path in [first, last, *made])
        world.umount()
        world.keigo("fsck", world.directory, "-d", world.config)


def test_a_directory_that_a_tier_cannot_mirror(make_world: MakeWorld) -> None:
    world = make_world({"mid": "64MiB"}, LEVELS)
    with scarce(world, "fast") as aside:
        (world.directory / "d").mkdir()
        taken = use_up(aside)
        path = make(world, "d/000001.sst")
        world.wait_closed()
        assert (world.tiers["mid"] / "d" / "000001.sst").exists()
        assert not (world.tiers["fast"] / "d").exists()
        for each in taken:
            each.unlink()
        assert path.read_bytes() == DATA
        assert ask(world.volume, "migrate", pattern="d/*", tier="fast")["moved"] == ["d/000001.sst"]
        assert path.read_bytes() == DATA
        world.umount()


def refused(what: str, *args: object) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        getattr(os, what)(*args)


def test_the_primary_has_none(make_world: MakeWorld) -> None:
    """It has all directories, and the intents of what changes names on two tiers."""
    world = make_world({"fast": "64MiB", "mid": "64MiB"}, "{fast: [wal, 0, 1, 2], slow: [3, 4, 5, 6]}")
    with scarce(world, "slow") as aside:
        at = world.directory
        (at / "d").mkdir()
        fast, slow = make(world, "000001.sst"), make(world, "other")
        world.wait_closed()
        assert world.tier_of(fast.name) == "fast"
        taken = use_up(aside)
        refused("mkdir", at / "e")
        refused("symlink", "x", at / "link")
        refused("mkfifo", at / "fifo")
        assert sorted(os.listdir(at)) == ["000001.sst", "d", "other"]
        # A migration and a rename over a file of another tier begin with an intent.
        said = ask(world.volume, "migrate", pattern=fast.name, tier="mid")
        assert os.strerror(errno.ENOSPC) in said["skipped"][fast.name]
        kept = make(world, "000002.log")
        assert kept.read_bytes() == fast.read_bytes() == slow.read_bytes() == DATA
        os.rename(kept, at / "000003.log")
        os.unlink(at / "000003.log")
        os.chmod(fast, 0o600)
        world.wait_closed()
        assert world.tier_of(fast.name) == "fast"
        world.kill()
        world.mount()
        assert sorted(os.listdir(at)) == ["000001.sst", "d", "other"]
        assert fast.read_bytes() == slow.read_bytes() == DATA
        for path in taken:
            path.unlink()
        (at / "e").mkdir()
        world.wait_closed()
        assert ask(world.volume, "migrate", pattern=fast.name, tier="mid")["moved"] == [fast.name]
        assert fast.read_bytes() == DATA
        ask(world.volume, "umount")  # what is mounted below stays
        world.wait_dead()
        world.keigo("fsck", world.directory, "-d", world.config)
