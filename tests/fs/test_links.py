"""Hard links, symbolic links, files without a name, FIFOs and sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.fs.support import Area, fork, opened, raises

libc = ctypes.CDLL(None, use_errno=True)


def test_hard_links_are_one_file(file: Path) -> None:
    file.write_bytes(b"one file")
    other = file.with_name("x-" + file.name)
    other.hardlink_to(file)
    one, two = file.stat(), other.stat()
    assert os.path.samestat(one, two)
    assert (one.st_nlink, two.st_nlink) == (2, 2)
    with opened(other, os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b", two names")
    assert file.read_bytes() == b"one file, two names"
    file.chmod(0o600)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    file.unlink()
    assert other.stat().st_nlink == 1
    assert other.read_bytes() == b"one file, two names"


def test_a_link_stays_with_its_file(area: Area) -> None:
    """Whatever tier its own name would choose."""
    (area.path / "000001.log").write_bytes(b"wal")
    (area.path / "plain").hardlink_to(area.path / "000001.log")
    assert (area.tier_of("000001.log"), area.tier_of("plain")) == ("fast", "fast")
    assert os.path.samefile(area.on("fast", "000001.log"), area.on("fast", "plain"))


def test_links_in_other_directories(area: Area, file: Path) -> None:
    """As a checkpoint of a database has them: in a directory that the file's tier does not have yet."""
    file.write_bytes(b"x")
    directory = area.path / "checkpoint" / "db"
    directory.mkdir(parents=True)
    links = [directory / f"{number}-{file.name}" for number in range(20)]
    for link in links:
        link.hardlink_to(file)
    assert file.stat().st_nlink == 21
    assert len({path.stat().st_ino for path in [file, *links]}) == 1
    file.unlink()
    (area.path / "checkpoint").rename(area.path / "renamed")
    for link in links[1:]:
        (area.path / "renamed" / "db" / link.name).unlink()
    assert (area.path / "renamed" / "db" / links[0].name).read_bytes() == b"x"
    assert (area.path / "renamed" / "db" / links[0].name).stat().st_nlink == 1


def test_what_cannot_be_linked(area: Area, file: Path) -> None:
    with raises(errno.ENOENT):
        (area.path / "y").hardlink_to(file)
    file.write_bytes(b"x")
    (area.path / "y").write_bytes(b"y")
    with raises(errno.EEXIST):
        (area.path / "y").hardlink_to(file)
    with raises(errno.ENOENT):
        (area.path / "no" / "y").hardlink_to(file)
    assert file.stat().st_nlink == 1


def test_symbolic_links(area: Area, file: Path) -> None:
    file.write_bytes(b"target")
    link = area.path / "000007.sst"  # the name of an SST makes no difference to a link
    link.symlink_to(file.name)
    assert os.readlink(link) == file.name
    assert link.read_bytes() == b"target"
    status = link.lstat()
    assert stat.S_ISLNK(status.st_mode)
    assert (status.st_size, status.st_nlink) == (len(file.name), 1)
    with opened(link, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"new")
    assert file.read_bytes() == b"new"
    with raises(errno.ELOOP):
        os.open(link, os.O_RDONLY | os.O_NOFOLLOW)
    with raises(errno.EEXIST):
        link.symlink_to("other")
    with raises(errno.EINVAL):
        os.readlink(file)
    link.unlink()
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("target", [b"x" * 4095, b"/absolute/\xff\xfe", b"../..", b".keigo", b"a b\nc"])
def test_symbolic_links_hold_any_target(area: Area, target: bytes) -> None:
    link = os.fsencode(area.path / "link")
    os.symlink(target, link)
    assert os.readlink(link) == target


def test_dangling_and_circular_links(area: Area) -> None:
    (area.path / "dangling").symlink_to("000001.log")
    with raises(errno.ENOENT):
        (area.path / "dangling").read_bytes()
    (area.path / "dangling").write_bytes(b"made through the link")
    assert (area.path / "000001.log").read_bytes() == b"made through the link"
    (area.path / "circle").symlink_to("circle")
    with raises(errno.ELOOP):
        (area.path / "circle").read_bytes()


def test_links_to_links(area: Area) -> None:
    (area.path / "symbolic").symlink_to("target")
    os.link(area.path / "symbolic", area.path / "hard", follow_symlinks=False)
    assert os.readlink(area.path / "hard") == "target"
    assert (area.path / "symbolic").lstat().st_nlink == 2
    assert (area.path / "symbolic").lstat().st_ino == (area.path / "hard").lstat().st_ino


def test_an_unlinked_file_lives_while_it_is_open(file: Path) -> None:
    with opened(file, os.O_RDWR | os.O_CREAT) as fd, opened(file, os.O_RDONLY) as reader:
        os.write(fd, b"before")
        file.unlink()
        with raises(errno.ENOENT):
            file.stat()
        assert os.fstat(fd).st_nlink == 0
        os.write(fd, b" after")
        assert os.pread(reader, 100, 0) == b"before after"
        os.ftruncate(fd, 3)
        assert os.fstat(reader).st_size == 3
        os.ftruncate(fd, MIB)
        assert os.pread(reader, 5, 0) == b"bef\0\0"
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(7, 8))
        status = os.fstat(reader)
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 8)
        os.fsync(fd)
        with opened(Path(f"/proc/self/fd/{fd}"), os.O_RDONLY) as again:
            assert os.read(again, 3) == b"bef"
        # AT_SYMLINK_FOLLOW; os.link has no way to say it
        assert libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(file), 0x400) == -1
        assert ctypes.get_errno() == errno.ENOENT


def test_a_new_file_under_the_name_of_an_unlinked_one(file: Path) -> None:
    with opened(file, os.O_RDWR | os.O_CREAT) as old:
        os.write(old, b"old")
        file.unlink()
        file.write_bytes(b"new")
        assert os.pread(old, 10, 0) == b"old"
        assert file.read_bytes() == b"new"
        assert os.fstat(old).st_ino != file.stat().st_ino


def test_an_unlinked_file_gives_its_space_back(area: Area) -> None:
    def used() -> int:
        return sum(int(tier["used"]) for tier in area.world.status()["tiers"])

    area.world.wait_closed()
    before = used()
    with opened(area.path / "000001.log", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * MIB)
        assert used() == before + MIB
        (area.path / "000001.log").unlink()
        assert used() == before + MIB
    area.world.wait_closed()
    assert used() == before
    assert list(area.on("fast", "").iterdir()) == []


def test_fifo(area: Area) -> None:
    pipe = area.path / "000001.log"  # the name of a WAL makes no difference to a FIFO
    os.mkfifo(pipe, 0o640)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_IMODE(pipe.stat().st_mode) == 0o640

    def child() -> bytes:
        return pipe.read_bytes()

    wait = fork(child)
    pipe.write_bytes(b"through the pipe")
    assert wait() == b"through the pipe"
    pipe.rename(area.path / "moved")
    (area.path / "moved").unlink()


def test_unix_socket(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(area.path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(Path("s").stat().st_mode)
        client.connect("s")
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
        with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_UNIX) as other:
            other.bind("s")
    Path("s").unlink()


def test_device_files_are_refused(area: Area) -> None:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with raises(errno.EPERM):
            os.mknod(area.path / "device", kind | 0o600, os.makedev(1, 3))
    assert os.listdir(area.path) == []


def test_mknod_makes_regular_files(file: Path) -> None:
    os.mknod(file, stat.S_IFREG | 0o600)
    assert file.stat().st_mode == stat.S_IFREG | 0o600
    file.write_bytes(b"x")
    with raises(errno.EEXIST):
        os.mknod(file, stat.S_IFREG | 0o600)
