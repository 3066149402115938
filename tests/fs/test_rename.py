"""rename of files: replace, no-replace, exchange, on one tier and between tiers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from keigo.tiers.fds import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.support import Area, opened, raises, rename2

LOG, PLAIN = "000001.log", "plain"  # on `fast` and on `slow`
PAIRS = [(LOG, "000002.log"), (PLAIN, "other"), (LOG, PLAIN), (PLAIN, LOG), ("1.sst", "2.sst"), ("1.sst", PLAIN)]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def pair(request: pytest.FixtureRequest, area: Area) -> tuple[Path, Path]:
    """Two names, whose files go to one tier or to two."""
    old, new = request.param
    return area.path / old, area.path / new


def test_rename_to_a_new_name(pair: tuple[Path, Path], area: Area) -> None:
    old, new = pair
    old.write_bytes(b"data")
    before, tier = old.stat(), area.tier_of(old.name)
    old.rename(new)
    assert new.read_bytes() == b"data"
    assert os.path.samestat(before, new.stat())
    assert os.listdir(area.path) == [new.name]
    assert area.tier_of(new.name) == tier
    with raises(errno.ENOENT):
        old.stat()


def test_rename_replaces(pair: tuple[Path, Path], area: Area) -> None:
    old, new = pair
    old.write_bytes(b"new")
    new.write_bytes(b"to be replaced")
    moved = old.stat()
    old.rename(new)
    assert new.read_bytes() == b"new"
    assert os.path.samestat(moved, new.stat())
    assert os.listdir(area.path) == [new.name]
    area.tier_of(new.name)  # checks that no second copy is left
    with raises(errno.ENOENT):
        old.stat()


def test_a_replaced_file_lives_while_it_is_open(pair: tuple[Path, Path]) -> None:
    old, new = pair
    old.write_bytes(b"new")
    new.write_bytes(b"replaced")
    with opened(new, os.O_RDWR) as fd:
        old.rename(new)
        assert os.pread(fd, 20, 0) == b"replaced"
        os.pwrite(fd, b"R", 0)
        assert os.pread(fd, 20, 0) == b"Replaced"
        assert os.fstat(fd).st_nlink == 0
        assert new.read_bytes() == b"new"


def test_a_moved_file_stays_open(pair: tuple[Path, Path]) -> None:
    old, new = pair
    new.write_bytes(b"replaced")
    with opened(old, os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
        os.write(fd, b"before ")
        old.rename(new)
        os.write(fd, b"after")
        assert os.fstat(fd).st_nlink == 1
        assert new.read_bytes() == b"before after"


def test_no_replace(pair: tuple[Path, Path]) -> None:
    old, new = pair
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with raises(errno.EEXIST):
        rename2(old, new, RENAME_NOREPLACE)
    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")
    new.unlink()
    rename2(old, new, RENAME_NOREPLACE)
    assert new.read_bytes() == b"old"
    assert not old.exists()


def test_exchange(pair: tuple[Path, Path], area: Area) -> None:
    old, new = pair
    old.write_bytes(b"old")
    new.write_bytes(b"new!")
    ids = old.stat().st_ino, new.stat().st_ino
    tiers = area.rows()
    with opened(old, os.O_RDWR) as fd:
        rename2(old, new, RENAME_EXCHANGE)
        os.pwrite(fd, b"OLD", 0)
    assert (old.read_bytes(), new.read_bytes()) == (b"new!", b"OLD")
    assert (new.stat().st_ino, old.stat().st_ino) == ids
    assert (area.tier_of(new.name), area.tier_of(old.name)) == (tiers[old.name], tiers[new.name])


def test_exchange_needs_both(pair: tuple[Path, Path]) -> None:
    old, new = pair
    old.write_bytes(b"old")
    with raises(errno.ENOENT):
        rename2(old, new, RENAME_EXCHANGE)
    with raises(errno.ENOENT):
        rename2(new, old, RENAME_EXCHANGE)
    assert old.read_bytes() == b"old"


def test_exchange_of_links_and_files(area: Area) -> None:
    link, file = area.path / "link", area.path / LOG
    link.symlink_to("target")
    file.write_bytes(b"file")
    rename2(link, file, RENAME_EXCHANGE)
    assert link.read_bytes() == b"file"
    assert os.readlink(file) == "target"


def test_a_name_renamed_to_itself(file: Path) -> None:
    file.write_bytes(b"same")
    file.rename(file)
    rename2(file, file, RENAME_EXCHANGE)
    with raises(errno.EEXIST):
        rename2(file, file, RENAME_NOREPLACE)
    assert file.read_bytes() == b"same"


def test_links_of_one_file_are_not_renamed(area: Area) -> None:
    """POSIX: where both names are the same file, rename succeeds and does nothing."""
    one, other = area.path / LOG, area.path / "000002.log"
    one.write_bytes(b"both")
    other.hardlink_to(one)
    one.rename(other)
    assert sorted(os.listdir(area.path)) == [LOG, "000002.log"]
    assert one.stat().st_nlink == 2


def test_unknown_flags_are_refused(file: Path) -> None:
    file.write_bytes(b"x")
    for flags in (RENAME_EXCHANGE | RENAME_NOREPLACE, 4, 8, 1 << 20):
        with raises(errno.EINVAL):
            rename2(file, file.with_name("y"), flags)
    assert os.listdir(file.parent) == [file.name]


def test_symlinks_are_renamed_themselves(area: Area, file: Path) -> None:
    file.write_bytes(b"target")
    link = area.path / "link"
    link.symlink_to(file.name)
    link.rename(area.path / "moved")
    assert os.readlink(area.path / "moved") == file.name
    (area.path / "moved").rename(file)
    assert file.is_symlink()
    assert os.listdir(area.path) == [file.name]


def test_rename_between_directories(pair: tuple[Path, Path]) -> None:
    old, new = pair
    before = old.parent / "one" / "deep"
    after = old.parent / "other" / "deep"
    for directory in (before, after):
        directory.mkdir(parents=True)
    (before / old.name).write_bytes(b"data")
    (after / new.name).write_bytes(b"replaced")
    (before / old.name).rename(after / new.name)
    assert os.listdir(before) == []
    assert (after / new.name).read_bytes() == b"data"
    before.rmdir()


def test_rename_changes_ctime_and_the_directories_mtime(pair: tuple[Path, Path]) -> None:
    old, new = pair
    into = old.parent / "into"
    into.mkdir()
    old.write_bytes(b"x")
    os.utime(old.parent, ns=(1, 1))
    os.utime(into, ns=(1, 1))
    old.rename(into / new.name)
    assert old.parent.stat().st_mtime_ns > 1
    assert into.stat().st_mtime_ns > 1


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
def test_a_file_is_renamed_while_it_is_written(area: Area, flags: int) -> None:
    """As a log rotates: its writer does not pause, and its size and time change in the middle of the rename."""
    size, stop = 0, threading.Event()
    path, target = area.path / LOG, area.path / PLAIN

    def write(fd: int) -> None:
        nonlocal size
        while not stop.is_set():
            size += os.write(fd, b"line\n")

    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd, opened(target, os.O_WRONLY | os.O_CREAT) as other:
        os.write(other, b"other")
        writer = threading.Thread(target=write, args=(fd,))
        writer.start()
        try:
            for _ in range(20):
                if not target.exists():
                    target.write_bytes(b"other")
                rename2(path, target, flags)
                assert target.stat().st_ino == os.fstat(fd).st_ino
                if flags:
                    assert path.read_bytes() == b"other"
                rename2(target, path, flags)
        finally:
            stop.set()
            writer.join()
    assert path.read_bytes() == b"line\n" * (size // 5)
    assert area.tier_of(LOG) == "fast"


def test_replacing_a_file_that_is_written(area: Area) -> None:
    """The target goes, whatever is written to it in the middle of the rename."""
    stop = threading.Event()
    target = area.path / LOG

    def write(fd: int) -> None:
        while not stop.is_set():
            os.pwrite(fd, b"late", 0)

    for number in range(20):
        stop.clear()
        with opened(target, os.O_WRONLY | os.O_CREAT) as fd:
            writer = threading.Thread(target=write, args=(fd,))
            writer.start()
            try:
                (area.path / PLAIN).write_bytes(b"%d" % number)
                (area.path / PLAIN).rename(target)
            finally:
                stop.set()
                writer.join()
        assert target.read_bytes() == b"%d" % number
        assert area.tier_of(LOG) == "slow"
        target.unlink()


def test_a_file_is_renamed_while_it_is_written_through_a_map(area: Area) -> None:
    """The kernel holds up write(2) during a rename, but not its own writing back of a map's pages."""
    libc = ctypes.CDLL(None)
    stop = threading.Event()
    path, target = area.path / LOG, area.path / PLAIN
    path.write_bytes(bytes(64 * mmap.PAGESIZE))

    def write(fd: int, shared: mmap.mmap) -> None:
        page = 0
        while not stop.is_set():
            page = (page + 1) % 64
            shared[page * mmap.PAGESIZE] = (shared[page * mmap.PAGESIZE] + 1) % 256
            libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 7)

    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 64 * mmap.PAGESIZE) as shared:
        writer = threading.Thread(target=write, args=(fd, shared))
        writer.start()
        try:
            for flags in [0, RENAME_EXCHANGE] * 30:
                target.write_bytes(b"other")
                rename2(path, target, flags)
                assert target.stat().st_ino == os.fstat(fd).st_ino
                assert path.exists() == bool(flags)
                rename2(target, path, flags)
        finally:
            stop.set()
            writer.join()
        assert path.read_bytes() == shared[:]
    assert area.tier_of(LOG) == "fast"
