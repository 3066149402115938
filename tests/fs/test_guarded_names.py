"""The name LOCK, where a guard stands in the data directory underneath and the mount shows something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keigo.tiers.fds import RENAME_EXCHANGE
from tests.conftest import World
from tests.fs.support import Area, raises, rename2


@pytest.fixture
def database(area: Area) -> Path:
    """A directory with a guard."""
    path = area.path / "db"
    path.mkdir()
    (path / "CURRENT").write_bytes(b"MANIFEST-000001\n")
    return path


def test_the_guard_does_not_show(area: Area, database: Path) -> None:
    assert os.listdir(database) == ["CURRENT"]
    assert database.stat().st_nlink == 2
    assert not (database / "LOCK").exists()
    (database / "below").mkdir()
    assert database.stat().st_nlink == 3
    (database / "below").rmdir()
    (database / "CURRENT").unlink()
    database.rmdir()
    assert os.listdir(area.path) == []


def test_a_lock_file_is_like_any_other(area: Area, database: Path) -> None:
    lock = database / "LOCK"
    for _ in range(3):
        lock.write_bytes(b"mine")
        assert area.tier_of("db/LOCK") == "fast"
        assert lock.read_bytes() == b"mine"
        lock.unlink()
        assert not lock.exists()
    lock.touch()
    lock.rename(database / "LOCK.old")
    (database / "LOCK.old").rename(lock)
    (database / "link").hardlink_to(lock)
    assert lock.stat().st_nlink == 2
    assert sorted(os.listdir(database)) == ["CURRENT", "LOCK", "link"]


def test_a_lock_made_before_the_directory_is_a_database(area: Area) -> None:
    path = area.path / "db"
    path.mkdir()
    (path / "LOCK").write_bytes(b"first")
    (path / "CURRENT").write_bytes(b"x")
    assert (path / "LOCK").read_bytes() == b"first"


def test_a_guarded_directory_moves(area: Area, database: Path) -> None:
    (database / "LOCK").touch()
    database.rename(area.path / "moved")
    assert sorted(os.listdir(area.path / "moved")) == ["CURRENT", "LOCK"]
    (area.path / "empty").mkdir()
    (area.path / "moved").rename(area.path / "empty")
    assert sorted(os.listdir(area.path / "empty")) == ["CURRENT", "LOCK"]
    assert (area.path / "empty").stat().st_nlink == 2


def test_an_empty_guarded_directory_is_replaced(area: Area, database: Path) -> None:
    (database / "CURRENT").unlink()
    (area.path / "new").mkdir()
    (area.path / "new" / "000001.log").write_bytes(b"x")
    (area.path / "new").rename(database)
    assert os.listdir(database) == ["000001.log"]
    assert database.stat().st_nlink == 2


def test_nothing_in_place_can_have_the_guards_name(area: Area, database: Path) -> None:
    """A deviation from POSIX, told as EBUSY: a LOCK that is no new file has no place beside the guard."""
    lock, plain = database / "LOCK", area.path / "plain"
    plain.write_bytes(b"plain")
    (area.path / "d").mkdir()
    for act in (
        lock.mkdir,
        lambda: lock.symlink_to("x"),
        lambda: os.mkfifo(lock),
        lambda: lock.hardlink_to(plain),
        lambda: plain.rename(lock),
        lambda: (area.path / "d").rename(lock),
    ):
        with raises(errno.EBUSY):
            act()
    assert not lock.exists()
    lock.write_bytes(b"lock")
    for act in (lambda: plain.rename(lock), lambda: rename2(plain, lock, RENAME_EXCHANGE)):
        with raises(errno.EBUSY):
            act()
    assert (lock.read_bytes(), plain.read_bytes()) == (b"lock", b"plain")


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_what_stands_in_the_guards_way_stays(mounted: World, kind: str) -> None:
    """A database cannot be made there, elsewhere it can, and the volume mounts again."""
    here, there = mounted.directory / "here", mounted.directory / "there"
    for path in (here, there):
        path.mkdir()
    lock = here / "LOCK"
    if kind == "directory":
        lock.mkdir()
    elif kind == "symlink":
        lock.symlink_to("x")
    else:
        os.mkfifo(lock)
    before = lock.lstat()
    for _ in range(2):
        with raises(errno.EBUSY):
            (here / "CURRENT").write_bytes(b"x")
        (there / "CURRENT").write_bytes(b"x")
    assert os.listdir(here) == ["LOCK"]
    mounted.umount()
    mounted.mount()
    assert lock.lstat().st_mode == before.st_mode
    assert os.listdir(here) == ["LOCK"]


def test_locks_that_are_links_of_each_other(world: World) -> None:
    """As `cp -al` leaves them."""
    one, other = world.directory / "db", world.directory / "backup"
    for path in (one, other):
        path.mkdir()
        (path / "CURRENT").write_bytes(b"x")
    (one / "LOCK").touch()
    (other / "LOCK").hardlink_to(one / "LOCK")
    (world.directory / "third").hardlink_to(one / "LOCK")
    world.mount()
    for path in (one, other):
        assert sorted(os.listdir(path)) == ["CURRENT", "LOCK"]
        (path / "LOCK").write_bytes(path.name.encode())
    assert (world.directory / "third").read_bytes() == b""
    world.keigo("drain", world.directory)
    world.umount()
    assert [(path / "LOCK").read_bytes() for path in (one, other)] == [b"db", b"backup"]
    assert (world.directory / "third").read_bytes() == b""
