"""Modes, owners and times, and who may do what: the kernel checks by the attributes it is shown."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.fs.support import GROUP, USER, Act, Area, as_user, opened, pause, raises


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(area: Area) -> Path:
    """A directory that everybody may write to."""
    area.path.chmod(0o777)
    return area.path


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o4755, 0o2755, 0o1777, 0o7777])
def test_chmod(area: Area, file: Path, mode: int) -> None:
    file.write_bytes(b"x")
    file.chmod(mode)
    assert mode_of(file) == mode
    with opened(file, os.O_RDONLY) as fd:
        os.fchmod(fd, 0o600)
    assert mode_of(file) == 0o600
    (area.path / "d").mkdir()
    (area.path / "d").chmod(mode)
    assert mode_of(area.path / "d") == mode


def test_chown(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    file.chmod(0o6755)
    os.chown(file, 11, 22)
    status = file.stat()
    assert (status.st_uid, status.st_gid) == (11, 22)
    assert stat.S_IMODE(status.st_mode) == 0o755  # who gets a file does not get its privileges
    os.chown(file, -1, 33)
    assert (file.stat().st_uid, file.stat().st_gid) == (11, 33)
    os.chown(file, 44, -1)
    assert (file.stat().st_uid, file.stat().st_gid) == (44, 33)
    (area.path / "link").symlink_to(file.name)
    os.chown(area.path / "link", 55, 66, follow_symlinks=False)
    assert (area.path / "link").lstat().st_uid == 55
    assert file.stat().st_uid == 44
    os.chown(area.path, 77, 88)
    assert (area.path.stat().st_uid, area.path.stat().st_gid) == (77, 88)


def test_what_a_user_makes_is_theirs(shared: Path) -> None:
    def make() -> None:
        for name in ("000001.log", "plain"):
            Path(name).write_bytes(b"x")
        Path("d").mkdir()
        Path("l").symlink_to("x")
        os.mkfifo("p")
        Path("hard").hardlink_to("plain")

    as_user(shared, make)
    for path in shared.iterdir():
        assert (path.lstat().st_uid, path.lstat().st_gid) == (USER, GROUP), path.name
    assert [mode_of(shared / name) for name in ("000001.log", "plain", "d", "p")] == [0o644, 0o644, 0o755, 0o644]


def test_permissions_of_files(shared: Path, file: Path) -> None:
    file.write_bytes(b"secret")
    file.chmod(0o640)
    name = file.name

    def outside() -> None:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with raises(errno.EACCES):
                os.open(name, flags)
        with raises(errno.EACCES):
            os.truncate(name, 0)
        acts: list[Act] = [
            lambda: os.chmod(name, 0o777),
            lambda: os.chown(name, USER, -1),
            lambda: os.utime(name, (1, 1)),
        ]
        for act in acts:
            with raises(errno.EPERM):
                act()
        with raises(errno.EACCES):
            os.utime(name)
        assert not os.access(name, os.R_OK)
        assert os.access(name, os.F_OK)

    def inside() -> None:
        assert Path(name).read_bytes() == b"secret"
        with raises(errno.EACCES):
            os.open(name, os.O_WRONLY)
        assert os.access(name, os.R_OK)
        assert not os.access(name, os.W_OK)
        assert not os.access(name, os.X_OK)

    as_user(shared, outside)
    os.chown(file, 0, GROUP)
    as_user(shared, inside)
    assert file.read_bytes() == b"secret"


def test_permissions_of_directories(shared: Path, file: Path) -> None:
    (shared / "d").mkdir(0o755)
    (shared / "d" / file.name).write_bytes(b"x")
    inside = f"d/{file.name}"

    def may_read() -> None:
        assert os.listdir("d") == [file.name]
        acts: list[Act] = [
            lambda: os.unlink(inside),
            lambda: os.rename(inside, "taken"),
            lambda: os.open("d/new.log", os.O_CREAT | os.O_WRONLY),
            lambda: os.mkdir("d/new"),
            lambda: os.rmdir("d"),
        ]
        for act in acts:
            with raises(errno.EACCES, errno.ENOTEMPTY):
                act()

    def may_search() -> None:
        assert Path(inside).read_bytes() == b"x"
        with raises(errno.EACCES):
            os.listdir("d")

    def may_nothing() -> None:
        with raises(errno.EACCES):
            os.stat(inside)

    as_user(shared, may_read)
    (shared / "d").chmod(0o711)
    as_user(shared, may_search)
    (shared / "d").chmod(0o700)
    as_user(shared, may_nothing)
    assert (shared / inside).read_bytes() == b"x"


def test_the_owner_may_change_modes_and_give_groups_away_to_none(shared: Path) -> None:
    def act() -> None:
        path = Path("000001.log")
        path.write_bytes(b"x")
        path.chmod(0o600)
        os.utime(path, ns=(5, 6))
        assert path.stat().st_mtime_ns == 6
        with raises(errno.EPERM):
            os.chown(path, 0, -1)
        with raises(errno.EPERM):
            os.chown(path, -1, 0)
        os.chown(path, USER, GROUP)
        path.chmod(0)
        with raises(errno.EACCES):
            path.read_bytes()

    as_user(shared, act)


def test_a_write_by_another_takes_setuid_away(shared: Path, file: Path) -> None:
    file.write_bytes(b"x")
    file.chmod(0o6777)

    def act() -> None:
        with opened(Path(file.name), os.O_WRONLY) as fd:
            os.write(fd, b"y")

    as_user(shared, act)
    assert mode_of(file) == 0o777


def test_a_setgid_directory_hands_its_group_down(shared: Path) -> None:
    directory = shared / "d"
    directory.mkdir()
    os.chown(directory, USER, 999)
    directory.chmod(0o2775)

    def act() -> None:
        for name in ("000001.log", "plain"):
            Path(name).write_bytes(b"x")
        Path("below").mkdir()
        Path("l").symlink_to("x")
        os.mkfifo("p")

    as_user(directory, act)
    for path in directory.iterdir():
        assert (path.lstat().st_uid, path.lstat().st_gid) == (USER, 999), path.name
    assert mode_of(directory / "below") == 0o2755
    assert mode_of(directory / "plain") == 0o644


def test_a_sticky_directory_protects_what_others_made(shared: Path) -> None:
    shared.chmod(0o1777)

    def make() -> None:
        for name in ("000001.log", "plain"):
            Path(name).write_bytes(b"mine")

    def take() -> None:
        Path("000002.log").write_bytes(b"other")
        for name in ("000001.log", "plain"):
            with raises(errno.EPERM):
                os.unlink(name)
            with raises(errno.EPERM):
                os.rename(name, "taken")
            with raises(errno.EPERM):
                os.rename("000002.log", name)
        os.unlink("000002.log")

    as_user(shared, make)
    as_user(shared, take, uid=54321, gid=54321)
    assert (shared / "plain").read_bytes() == b"mine"
    as_user(shared, lambda: os.unlink("plain"))


def test_times_have_nanoseconds(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    (area.path / "d").mkdir()
    (area.path / "d" / file.name).write_bytes(b"x")
    for path in (file, area.path / "d"):
        for times in ((1_234_567_890_123_456_789, 987_654_321_987_654_321), (0, 0), (4_000_000_000_000_000_001, 1)):
            os.utime(path, ns=times)
            status = path.stat()
            assert (status.st_atime_ns, status.st_mtime_ns) == times
    with opened(file, os.O_RDWR) as fd:
        os.utime(fd, ns=(11, 12))
        assert os.fstat(fd).st_mtime_ns == 12
    (area.path / "l").symlink_to(file.name)
    os.utime(area.path / "l", ns=(21, 22), follow_symlinks=False)
    assert (area.path / "l").lstat().st_mtime_ns == 22
    assert file.stat().st_mtime_ns == 12


def test_times_are_set_to_now(file: Path) -> None:
    file.write_bytes(b"x")
    os.utime(file, ns=(1, 1))
    os.utime(file)
    status = file.stat()
    assert abs(status.st_mtime_ns - status.st_ctime_ns) < 1_000_000_000
    assert abs(status.st_atime_ns - status.st_ctime_ns) < 1_000_000_000


def test_ctime_moves_with_every_change_of_attributes(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    last = file.stat().st_ctime_ns
    acts: list[Act] = [
        lambda: file.chmod(0o600),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file, ns=(1, 1)),
        lambda: (area.path / "link").hardlink_to(file),
        (area.path / "link").unlink,
        lambda: os.truncate(file, 10),
        lambda: os.setxattr(file, "user.x", b"y"),
    ]
    for act in acts:
        pause()
        act()
        assert file.stat().st_ctime_ns > last
        last = file.stat().st_ctime_ns
