"""fsync, fdatasync and fsync of a directory reach the devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.attributes import ROOT_ID, Caller
from fusefs.namespace import Namespace
from keigo import config
from keigo.policies import make_policy
from keigo.tiers.opening import open_volume
from tests.background import sync_at
from tests.conftest import MIB, MakeWorld, World
from tests.fs.support import opened, unwritten_pages

CREATE = os.O_RDWR | os.O_CREAT
ON_DISK = "{mid: [wal, 0, 1], slow: [2]}"  # memory has nothing to write back


@pytest.fixture
def disk(make_world: MakeWorld) -> World:
    """A world whose WALs go to a tier on a disk that can be looked at."""
    world = make_world(levels=ON_DISK, names=("mid", "slow"))
    world.mount()
    return world


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_a_synced_file_is_on_the_device(disk: World, sync: Callable[[int], None]) -> None:
    backing = disk.tiers["mid"] / "000001.log"
    waiting = []
    with opened(disk.directory / "000001.log", CREATE) as fd:
        for _ in range(5):
            os.write(fd, b"x" * 5 * MIB)
            waiting.append(unwritten_pages(backing))
            sync(fd)
            assert unwritten_pages(backing) == 0
    assert any(waiting)  # else the device was not slower than memory, or somebody called sync(2) each time


def test_sync_through_another_handle(disk: World) -> None:
    backing = disk.tiers["mid"] / "000001.log"
    with opened(disk.directory / "000001.log", CREATE) as writer:
        os.write(writer, b"x" * MIB)
        with opened(disk.directory / "000001.log", os.O_RDONLY) as reader:
            os.fsync(reader)
        assert unwritten_pages(backing) == 0


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
@pytest.mark.parametrize("create", [True, False], ids=["create", "open"])
def test_synchronous_writes(disk: World, flag: int, *, create: bool) -> None:
    path = disk.directory / "000001.log"
    if not create:
        path.touch()
    with opened(path, CREATE | flag) as fd:
        os.write(fd, b"x" * 1000)
        assert unwritten_pages(disk.tiers["mid"] / "000001.log") == 0
        os.write(fd, b"x" * MIB)
        assert unwritten_pages(disk.tiers["mid"] / "000001.log") == 0


def test_sync_of_an_unlinked_file(disk: World) -> None:
    path = disk.directory / "000001.log"
    with opened(path, CREATE) as fd:
        os.write(fd, b"x")
        path.unlink()
        os.fsync(fd)
        os.fdatasync(fd)


def test_msync(disk: World) -> None:
    import mmap

    path = disk.directory / "000001.log"
    path.write_bytes(bytes(MIB))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, MIB) as shared:
        os.fsync(fd)
        shared[:] = b"m" * MIB
        shared.flush()
    backing = disk.tiers["mid"] / "000001.log"
    assert unwritten_pages(backing) == 0
    assert backing.read_bytes() == b"m" * MIB


def test_sync_of_directories_and_of_the_file_system(disk: World) -> None:
    directory = disk.directory / "d"
    directory.mkdir()
    (directory / "000001.log").write_bytes(b"x" * MIB)
    for path in (directory, disk.directory):
        with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
    sync_at(disk.directory)


@pytest.fixture
def namespace(world: World) -> Iterator[Namespace]:
    """A namespace without a driver, in this process."""
    loaded = config.load(world.config)
    volume, _ = open_volume(loaded, world.directory, make_policy(loaded))
    namespace = Namespace(volume)
    yield namespace
    namespace.close()
    volume.close()


def test_sync_of_a_directory_reaches_every_mirror(
    namespace: Namespace, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = Caller(0, 0, 0)
    made = namespace.names.mkdir(ROOT_ID, b"d", 0o755, me)
    for name in (b"000001.log", b"plain"):
        _, handle = namespace.files.create(made.id, name, 0o644, os.O_RDWR, me)
        namespace.files.release(handle)
    synced: set[Path] = set()

    def record(fd: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fsync", record)
    namespace.directories.fsyncdir(namespace.directories.opendir(made.id))
    assert synced == {world.tiers["fast"] / "d", world.directory / "d"}


def test_an_error_of_the_device_is_told(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    _, handle = namespace.files.create(ROOT_ID, b"plain", 0o644, os.O_RDWR, Caller(0, 0, 0))

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "fdatasync", fail)
    for data_only in (True, False):
        with pytest.raises(OSError, match="broken"):
            namespace.io.fsync(handle, data_only=data_only)
    with pytest.raises(OSError, match="broken"):
        namespace.directories.fsyncdir(namespace.directories.opendir(ROOT_ID))
