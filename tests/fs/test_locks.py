"""POSIX and flock locks between processes, as databases use them on LOCK files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fs.support import Area, fork, opened, raises

F_OFD_SETLK = 37
HELD = (errno.EAGAIN, errno.EACCES)

Take = Callable[[int, bool], None]


def posix(fd: int, wait: bool) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def flock(fd: int, wait: bool) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@pytest.fixture(params=[posix, flock], ids=["posix", "flock"])
def take(request: pytest.FixtureRequest) -> Take:
    """Take an exclusive lock of a whole file."""
    found: Take = request.param
    return found


@pytest.fixture
def path(area: Area) -> Path:
    found = area.path / "LOCK"
    found.touch()
    return found


@contextmanager
def holder(path: Path, take: Take) -> Iterator[None]:
    """Another process has the lock while the block runs."""
    taken, say_taken = os.pipe()
    done, say_done = os.pipe()

    def hold() -> None:
        with opened(path, os.O_RDWR) as fd:
            take(fd, False)
            os.write(say_taken, b"x")
            os.read(done, 1)

    wait = fork(hold)
    os.close(say_taken)
    os.close(done)
    assert os.read(taken, 1) == b"x"
    try:
        yield
    finally:
        os.write(say_done, b"x")  # closing would not do: a second holder has the pipe's end too
        os.close(say_done)
        os.close(taken)
        wait()


def test_a_lock_excludes_another_process(path: Path, take: Take) -> None:
    with opened(path, os.O_RDWR) as fd:
        with holder(path, take), raises(*HELD):
            take(fd, False)
        take(fd, False)  # the holder's end gave it back


def test_a_waiter_gets_the_lock(path: Path, take: Take) -> None:
    def wait_for_it() -> float:
        with opened(path, os.O_RDWR) as fd:
            take(fd, True)
            return time.monotonic()

    with holder(path, take):
        waiting = fork(wait_for_it)
        time.sleep(0.1)
        released = time.monotonic()
    assert waiting() >= released


def test_a_lock_ends_with_its_process(path: Path, take: Take) -> None:
    def take_and_die() -> None:
        take(os.open(path, os.O_RDWR), False)

    fork(take_and_die)()
    with opened(path, os.O_RDWR) as fd:
        take(fd, False)


def test_locks_of_ranges(path: Path) -> None:
    def lower_half(fd: int, _wait: bool) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 0)

    with holder(path, lower_half), opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 50)
        with raises(*HELD):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 49)
        who = struct.unpack(
            "hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        )
        assert who[0] == fcntl.F_WRLCK
        assert who[2:4] == (0, 50)
        assert who[4] not in (0, os.getpid())


def test_shared_locks_go_together(path: Path) -> None:
    def read_lock(fd: int, _wait: bool) -> None:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    with holder(path, read_lock), holder(path, read_lock), opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with raises(*HELD):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_locks_of_open_file_descriptions(path: Path) -> None:
    """As LMDB and SQLite may take them: two opens in one process exclude each other."""
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        fcntl.fcntl(one, F_OFD_SETLK, whole)
        with raises(*HELD):
            fcntl.fcntl(other, F_OFD_SETLK, whole)


def test_hard_links_share_locks_and_other_files_do_not(path: Path, take: Take) -> None:
    link, other = path.with_name("link"), path.with_name("other")
    link.hardlink_to(path)
    other.touch()
    with holder(path, take):
        with opened(link, os.O_RDWR) as fd, raises(*HELD):
            take(fd, False)
        with opened(other, os.O_RDWR) as fd:
            take(fd, False)


def test_a_lock_holds_across_a_rename_and_an_unlink(path: Path, take: Take) -> None:
    moved = path.with_name("moved")
    with holder(path, take):
        path.rename(moved)
        with opened(moved, os.O_RDWR) as fd:
            with raises(*HELD):
                take(fd, False)
            moved.unlink()
            with raises(*HELD):
                take(fd, False)
        path.touch()
        with opened(path, os.O_RDWR) as fd:
            take(fd, False)
