"""Guards that are about to go, or cannot be set or taken away durably: the volume knows where they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from keigo import config
from keigo.lsm.database import Belief
from keigo.lsm.threads import Job
from keigo.policies import make_policy
from keigo.tiers import creation
from keigo.tiers.catalog import ROOT
from keigo.tiers.opening import open_volume
from keigo.tiers.volume import Volume
from tests.conftest import MakeWorld, World


@pytest.fixture
def driver() -> str:
    """None is used."""
    return "kernel"


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world({}, "{slow: [wal, 0, 1, 2, 3, 4, 5, 6]}", names=("fast", "slow"))


@pytest.fixture
def volume(world: World) -> Iterator[Volume]:
    """With a database."""
    loaded = config.load(world.config)
    volume, _ = open_volume(loaded, world.directory, make_policy(loaded))
    volume.mkdir(ROOT, b"kv", 0o755, 0, 0)
    yield volume
    volume.close()


def create(volume: Volume, name: bytes) -> None:
    above = volume.lookup(ROOT, b"kv")
    assert above is not None
    file, fd = creation.create(volume, above.id, name, 0o644, 0, 0, 0, 1, Belief(Job.FOREGROUND))
    volume.open_files.close(file, fd, write=True)


def fail_after(monkeypatch: pytest.MonkeyPatch, volume: Volume, count: int) -> None:
    """Of the syncs on the primary tier one fails."""
    device = os.fstat(volume.primary.root.fd).st_dev
    real, left = os.fsync, count

    def call(fd: int) -> None:
        nonlocal left
        if os.fstat(fd).st_dev == device:
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", call)


def is_told_truly(world: World, volume: Volume) -> bool:
    """Whether there is a guard, which the volume must know."""
    there = (world.directory / "kv" / "LOCK").is_dir()
    assert there == bool(volume.guards.guarded)
    assert [tier.files for tier in volume.tiers] == ([1, 1] if there else [0, 2])
    return there


def test_a_lock_that_is_open_is_where_it_has_moved_to(volume: Volume) -> None:
    """It is moved when the database shows itself, which has it open by then."""
    above = volume.lookup(ROOT, b"kv")
    assert above is not None
    volume.evacuation.draining = True
    file, fd = creation.create(volume, above.id, b"LOCK", 0o644, 0, 0, 0, 1, Belief(Job.FOREGROUND))
    volume.evacuation.draining = False
    assert volume.record(file).home == "slow"
    volume.primary.promise(100)
    volume.open_files.by_id[file].promised += 100  # as if a LOCK were ever written
    promised = [tier.promised for tier in volume.tiers]
    assert promised == [0, 100]
    create(volume, b"CURRENT")
    assert volume.record(file).home == volume.open_files.by_id[file].tier.name == "fast"
    assert [tier.promised for tier in volume.tiers] == promised[::-1]
    volume.guards.remove_all()
    assert volume.record(file).home == volume.open_files.by_id[file].tier.name == "slow"
    assert [tier.promised for tier in volume.tiers] == promised
    volume.open_files.close(file, fd, write=True)
    assert [tier.promised for tier in volume.tiers] == [0, 0]


@pytest.mark.parametrize("draining", [True, False])
def test_a_lock_beside_a_guard_that_is_about_to_go(world: World, volume: Volume, draining: bool) -> None:
    """Of a copy of a database, which has none, that is opened while the volume is drained or the last tier leaves."""
    create(volume, b"CURRENT")
    if draining:
        volume.evacuation.draining = True
    else:
        volume.evacuation.leaving = volume.tiers[0]
    create(volume, b"LOCK")
    assert is_told_truly(world, volume)
    volume.guards.remove_all()
    assert not is_told_truly(world, volume)
    assert (world.directory / "kv" / "LOCK").is_file()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_that_cannot_be_set(world: World, volume: Volume, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    volume.evacuation.draining = True
    create(volume, b"LOCK")
    create(volume, b"CURRENT")
    volume.evacuation.draining = False
    above = volume.lookup(ROOT, b"kv")
    assert above is not None
    with monkeypatch.context() as patched:
        fail_after(patched, volume, count)
        with pytest.raises(OSError, match="Input/output"):
            volume.guards.put(above.id)
    assert not is_told_truly(world, volume)
    volume.guards.put(above.id)
    assert is_told_truly(world, volume)


@pytest.mark.parametrize("count", [1, 2])
def test_one_that_cannot_be_taken_away(
    world: World, volume: Volume, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    create(volume, b"LOCK")
    create(volume, b"CURRENT")
    assert is_told_truly(world, volume)
    with monkeypatch.context() as patched:
        fail_after(patched, volume, count)
        with pytest.raises(OSError, match="Input/output"):
            volume.guards.remove_all()
    assert is_told_truly(world, volume)
    volume.guards.remove_all()
    assert not is_told_truly(world, volume)
