"""Extended attributes: user.* and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.fs.support import Area, as_user, opened, raises


@pytest.fixture(params=["file", "directory"])
def target(request: pytest.FixtureRequest, area: Area, file: Path) -> Path:
    """A file on the tier of the parameter, or a directory with one in it."""
    if request.param == "file":
        file.write_bytes(b"x")
        return file
    (area.path / "d").mkdir()
    (area.path / "d" / file.name).write_bytes(b"x")
    return area.path / "d"


def test_set_get_list_remove(target: Path) -> None:
    assert os.listxattr(target) == []
    values = {"user.one": b"1", "user.empty": b"", "user.binary": bytes(range(256)), "user.ünïcode": b"x" * 1000}
    for name, value in values.items():
        os.setxattr(target, name, value)
    assert sorted(os.listxattr(target)) == sorted(values)
    for name, value in values.items():
        assert os.getxattr(target, name) == value
    os.setxattr(target, "user.one", b"replaced")
    assert os.getxattr(target, "user.one") == b"replaced"
    os.removexattr(target, "user.one")
    assert "user.one" not in os.listxattr(target)
    with raises(errno.ENODATA):
        os.getxattr(target, "user.one")
    with raises(errno.ENODATA):
        os.removexattr(target, "user.one")


def test_create_and_replace_only(target: Path) -> None:
    with raises(errno.ENODATA):
        os.setxattr(target, "user.x", b"1", os.XATTR_REPLACE)
    os.setxattr(target, "user.x", b"1", os.XATTR_CREATE)
    with raises(errno.EEXIST):
        os.setxattr(target, "user.x", b"2", os.XATTR_CREATE)
    os.setxattr(target, "user.x", b"2", os.XATTR_REPLACE)
    assert os.getxattr(target, "user.x") == b"2"


def test_other_attributes_are_not_there(target: Path) -> None:
    """No ACLs, no capabilities, nothing of the tier's own: those would not survive a migration unnoticed."""
    for name in ("trusted.x", "security.capability", "system.posix_acl_access", "security.x"):
        with raises(errno.ENODATA, errno.EOPNOTSUPP):
            os.getxattr(target, name)
        with raises(errno.EOPNOTSUPP, errno.EINVAL):  # the kernel looks at ACLs and capabilities first
            os.setxattr(target, name, b"x")
        with raises(errno.EOPNOTSUPP, errno.ENODATA):
            os.removexattr(target, name)


def test_they_belong_to_the_file(area: Area, file: Path) -> None:
    """Not to the name, the descriptor or the tier."""
    file.write_bytes(b"x")
    os.setxattr(file, "user.x", b"1")
    (area.path / "link").hardlink_to(file)
    assert os.getxattr(area.path / "link", "user.x") == b"1"
    with opened(file, os.O_RDWR) as fd:
        os.setxattr(fd, "user.y", b"2")
        file.rename(area.path / "renamed")
        (area.path / "link").unlink()
        (area.path / "renamed").unlink()
        os.setxattr(fd, "user.z", b"3")
        assert sorted(os.listxattr(fd)) == ["user.x", "user.y", "user.z"]


def test_they_migrate(area: Area) -> None:
    path = area.path / "1.sst"
    path.write_bytes(b"x")
    os.setxattr(path, "user.x", b"1")
    area.migrate("1.sst", "mid")
    assert os.getxattr(path, "user.x") == b"1"
    os.setxattr(path, "user.y", b"2")
    area.migrate("1.sst", "slow")
    assert sorted(os.listxattr(path)) == ["user.x", "user.y"]


def test_symbolic_links_have_none(area: Area) -> None:
    (area.path / "l").symlink_to("x")
    assert os.listxattr(area.path / "l", follow_symlinks=False) == []
    with raises(errno.EPERM):
        os.setxattr(area.path / "l", "user.x", b"1", follow_symlinks=False)


def test_permissions(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    os.setxattr(file, "user.x", b"1")
    file.chmod(0o644)
    name = file.name

    def reads_only() -> None:
        assert os.getxattr(name, "user.x") == b"1"
        with raises(errno.EACCES):
            os.setxattr(name, "user.x", b"2")

    as_user(area.path, reads_only)
    file.chmod(0o600)

    def nothing() -> None:
        with raises(errno.EACCES):
            os.getxattr(name, "user.x")

    as_user(area.path, nothing)
