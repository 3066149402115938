"""fsck and mount, where somebody changed the trees of a volume that was not mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import World

DATA = os.urandom(200_000)
NAME = "000001.sst"


@pytest.fixture
def closed(world: World) -> World:
    """An unmounted volume whose one SST has migrated to `mid`, so that its checksum is known."""
    world.mount()
    (world.directory / NAME).write_bytes(DATA)
    world.keigo("migrate", world.directory, NAME, "mid")
    world.umount()
    return world


def fsck(world: World, *options: str) -> tuple[int, str]:
    done = world.keigo("fsck", world.directory, "-d", world.config, *options, check=False)
    return done.returncode, done.stdout


def damage(path: Path, *, keep_time: bool) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_to_find(closed: World) -> None:
    code, said = fsck(closed)
    assert code == 0
    assert "1 file(s) checked, 0 problem(s)" in said


@pytest.mark.parametrize("keep_time", [True, False])
def test_changed_bytes(closed: World, *, keep_time: bool) -> None:
    damage(closed.tiers["mid"] / NAME, keep_time=keep_time)
    for options in ((), ("--repair",), ()):
        code, said = fsck(closed, *options)
        assert code == 1
        assert f"{NAME}: checksum: on tier mid" in said
    # Not even a mount and a move make it look sound.
    closed.mount()
    done = closed.keigo("migrate", closed.directory, NAME, "slow", check=False)
    assert done.returncode == 1
    assert "is damaged on tier mid" in done.stdout
    closed.umount()
    assert fsck(closed)[0] == 1
    (closed.tiers["mid"] / NAME).write_bytes(DATA)
    assert fsck(closed)[0] == 0


def test_changed_size(closed: World) -> None:
    with (closed.tiers["mid"] / NAME).open("ab") as file:
        file.write(b"more")
    code, said = fsck(closed, "--repair")
    assert code == 1
    assert f"{NAME}: size: 200004 bytes on tier mid, 200000 in the catalog [NOT repaired]" in said
    # The good copy turns up elsewhere: it is the one with the checksum.
    (closed.tiers["slow"] / NAME).write_bytes(DATA)
    code, said = fsck(closed, "--repair")
    assert "differ; slow's is served" in said
    closed.mount()
    assert (closed.directory / NAME).read_bytes() == DATA


def test_missing(closed: World) -> None:
    aside = closed.base / "aside"
    (closed.tiers["mid"] / NAME).rename(aside)
    code, said = fsck(closed)
    assert code == 1
    assert f"{NAME}: missing: was on tier mid when the volume was closed [found]" in said
    aside.rename(closed.tiers["mid"] / NAME)
    assert fsck(closed)[0] == 0


def test_orphan(closed: World) -> None:
    (closed.tiers["fast"] / "000002.sst").write_bytes(b"x")
    code, said = fsck(closed)
    assert code == 1
    assert "000002.sst: orphan: on tier fast, unknown to the catalog [found]" in said
    assert fsck(closed, "--repair")[0] == 0
    assert fsck(closed) == (0, "2 file(s) checked, 0 problem(s), 0 left\n")


def test_duplicate(closed: World) -> None:
    (closed.tiers["fast"] / NAME).write_bytes(DATA)
    code, said = fsck(closed)
    assert code == 1
    assert f"{NAME}: duplicate: on tiers mid and fast, identical; kept on mid [found]" in said
    assert fsck(closed, "--repair")[0] == 0
    assert not (closed.tiers["fast"] / NAME).exists()
    assert (closed.tiers["mid"] / NAME).read_bytes() == DATA
