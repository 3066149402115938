"""Directories: make, remove, rename."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from keigo.tiers.fds import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.support import Area, opened, raises, rename2


def fill(directory: Path, names: tuple[str, ...] = ("000001.log", "000002.sst", "plain")) -> None:
    """A directory that every tier mirrors."""
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(name.encode())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_make_and_remove(area: Area) -> None:
    made = area.path / "d"
    before = os.umask(0)
    made.mkdir(0o1751)
    os.umask(before)
    assert made.stat().st_mode == stat.S_IFDIR | 0o1751
    assert made.stat().st_nlink == 2
    (made / "inside").mkdir()
    assert made.stat().st_nlink == 3
    with raises(errno.EEXIST):
        made.mkdir()
    with raises(errno.ENOTEMPTY):
        made.rmdir()
    (made / "inside").rmdir()
    assert made.stat().st_nlink == 2
    made.rmdir()
    with raises(errno.ENOENT):
        made.rmdir()
    assert os.listdir(area.path) == []


def test_a_directory_is_not_a_file(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    (area.path / "d").mkdir()
    with raises(errno.ENOTDIR):
        file.rmdir()
    with raises(errno.EISDIR):
        os.unlink(area.path / "d")
    with raises(errno.EEXIST):
        file.mkdir()
    with raises(errno.EISDIR):
        file.rename(area.path / "d")
    with raises(errno.ENOTDIR):
        (area.path / "d").rename(file)
    with raises(errno.EPERM):
        os.link(area.path / "d", area.path / "link")
    with raises(errno.ENOENT):
        (area.path / "no" / "d").mkdir()


def test_only_an_empty_directory_can_be_removed_from_any_tier(area: Area, file: Path) -> None:
    directory = area.path / "d"
    directory.mkdir()
    inside = directory / file.name
    inside.write_bytes(b"x")
    with raises(errno.ENOTEMPTY):
        directory.rmdir()
    assert inside.read_bytes() == b"x"
    inside.unlink()
    directory.rmdir()
    assert [area.on(tier, "d").exists() for tier in ("fast", "mid")] == [False, False]


def test_a_removed_name_can_be_used_again(area: Area) -> None:
    path = area.path / "name"
    for _ in range(5):
        path.mkdir()
        (path / "000001.log").write_bytes(b"x")
        (path / "000001.log").unlink()
        path.rmdir()
        path.write_bytes(b"file")
        path.unlink()


def test_names_in_a_directory_move_its_times(area: Area, file: Path) -> None:
    """Whichever tier a file is on."""
    other = file.with_name("x-" + file.name)

    def moves(act: object) -> None:
        os.utime(area.path, ns=(5, 5))
        assert area.path.stat().st_mtime_ns == 5
        assert callable(act)
        act()
        assert area.path.stat().st_mtime_ns > 5
        assert area.path.stat().st_ctime_ns > 5

    moves(lambda: file.write_bytes(b"x"))
    moves(lambda: other.hardlink_to(file))
    moves(other.unlink)
    moves(lambda: file.rename(other))
    moves(lambda: other.rename(file))
    moves(file.unlink)
    moves((area.path / "d").mkdir)
    moves((area.path / "d").rmdir)
    moves(lambda: (area.path / "l").symlink_to("x"))


def test_rename_of_a_mirrored_directory(area: Area) -> None:
    old, new = area.path / "old", area.path / "new"
    fill(old)
    area.migrate("old/000002.sst", "mid")
    was, status = contents(old), old.stat()
    with opened(old / "000002.sst", os.O_RDONLY) as fd:
        old.rename(new)
        assert os.read(fd, 100) == b"000002.sst"
    assert contents(new) == was
    assert os.path.samestat(new.stat(), status)
    assert not old.exists()
    assert area.rows() == {"new/000001.log": "fast", "new/000002.sst": "mid", "new/plain": "slow"}
    assert [area.tier_of(name) for name in ("new/000001.log", "new/000002.sst", "new/plain")] == ["fast", "mid", "slow"]
    (new / "000003.log").write_bytes(b"later")
    assert area.tier_of("new/000003.log") == "fast"


def test_rename_of_a_directory_into_another_that_some_tiers_lack(area: Area) -> None:
    fill(area.path / "d")
    (area.path / "a" / "b").mkdir(parents=True)
    (area.path / "d").rename(area.path / "a" / "b" / "c")
    assert len(contents(area.path / "a" / "b" / "c")) == 3
    assert area.tier_of("a/b/c/000001.log") == "fast"
    assert (area.path / "a" / "b").stat().st_nlink == 3
    assert os.path.samestat((area.path / "a" / "b" / "c" / "..").stat(), (area.path / "a" / "b").stat())


@pytest.mark.parametrize("mirrored", [True, False])
def test_an_empty_directory_is_replaced(area: Area, *, mirrored: bool) -> None:
    old, new = area.path / "old", area.path / "new"
    fill(old)
    new.mkdir()
    if mirrored:
        (new / "000009.log").write_bytes(b"gone soon")
        (new / "000009.log").unlink()
    with raises(errno.EEXIST):
        rename2(old, new, RENAME_NOREPLACE)
    old.rename(new)
    assert len(contents(new)) == 3
    assert os.listdir(area.path) == ["new"]


def test_a_directory_with_files_is_not_replaced(area: Area, file: Path) -> None:
    """Whichever tier the file is on: the directory may be empty on the others."""
    old, new = area.path / "old", area.path / "new"
    fill(old)
    new.mkdir()
    (new / file.name).write_bytes(b"keep")
    with raises(errno.ENOTEMPTY, errno.EEXIST):
        old.rename(new)
    assert contents(new) == {file.name: b"keep"}
    assert len(contents(old)) == 3


def test_a_directory_cannot_move_into_itself(area: Area) -> None:
    (area.path / "d" / "e").mkdir(parents=True)
    with raises(errno.EINVAL):
        (area.path / "d").rename(area.path / "d" / "e" / "f")
    with raises(errno.ENOTEMPTY):
        (area.path / "d" / "e").rename(area.path / "d")
    with raises(errno.EINVAL):
        rename2(area.path / "d", area.path / "d" / "e", RENAME_EXCHANGE)


def test_directories_are_exchanged(area: Area) -> None:
    one, other = area.path / "one", area.path / "other"
    fill(one, ("000001.log", "000002.sst"))
    fill(other, ("plain",))
    rename2(one, other, RENAME_EXCHANGE)
    assert sorted(contents(other)) == ["000001.log", "000002.sst"]
    assert sorted(contents(one)) == ["plain"]
    assert area.tier_of("other/000001.log") == "fast"


def test_a_directory_and_a_file_are_exchanged(area: Area, file: Path) -> None:
    fill(area.path / "d")
    file.write_bytes(b"file")
    rename2(area.path / "d", file, RENAME_EXCHANGE)
    assert (area.path / "d").read_bytes() == b"file"
    assert len(contents(file)) == 3
    (area.path / "d").unlink()


def test_a_removed_working_directory(area: Area) -> None:
    (area.path / "d").mkdir()
    with opened(area.path / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (area.path / "d").rmdir()
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        with raises(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        with raises(errno.ENOENT):
            os.mkdir("x", dir_fd=fd)
        with raises(errno.ENOENT):
            os.stat("x", dir_fd=fd)
        os.fsync(fd)
