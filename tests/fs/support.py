"""What the file-system tests share: an area in a mount, processes of other users, and what Python's `os` lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from keigo.control import ask
from keigo.tiers.fds import renameat2
from tests.conftest import World

T = TypeVar("T")
Act = Callable[[], object]

# What a driver cannot do. The kernel emulates or refuses it there, and the tests of it are skipped.
CANNOT = {"pyfuse3": {"fallocate", "lseek"}}

USER, GROUP = 12345, 23456  # ids that nothing else has


def needs(driver: str, feature: str) -> None:
    """Skip a test of what a driver is known not to do."""
    if feature in CANNOT.get(driver, ()):
        pytest.skip(f"{driver} has no {feature}")


@dataclass(frozen=True)
class Area:
    """A directory of its own in a mount that tests share. By its name a file goes to a tier: see `NAMES`."""

    world: World
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(self.world.directory).as_posix()

    def rows(self) -> dict[str, str]:
        """Name -> tier of every regular file in the area, as the daemon sees it."""
        inside = f"{self.name}/"
        rows = ask(self.world.volume, "ls")
        return {str(row["name"]).removeprefix(inside): row["tier"] for row in rows if row["name"].startswith(inside)}

    def tier_of(self, name: str) -> str:
        """Where a file is: where `ls` says, and nowhere else."""
        tier = self.rows()[name]
        found = [other for other in ("fast", "mid") if self.on(other, name).exists()]
        assert found == [tier for tier in (tier,) if tier != "slow"]
        return tier

    def on(self, tier: str, name: str) -> Path:
        """A file's path on a tier other than the one in place, which the mount hides."""
        assert tier != "slow"
        return self.world.tiers[tier] / self.name / name

    def migrate(self, name: str, tier: str) -> None:
        """Move one SST, and be sure that it moved."""
        path = f"{self.name}/{name}"
        answer = ask(self.world.volume, "migrate", pattern=path, tier=tier)
        assert answer["moved"] == [path], answer


NAMES = {"fast": "000001.log", "slow": "plain"}
"""Names that a foreground thread's files need to be created on a tier, and to stay there; `*.sst` can migrate."""


@contextmanager
def raises(*codes: int) -> Iterator[None]:
    """The block fails with one of these errnos."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  the number is looked at below
        yield
    names = [errno.errorcode[code] for code in codes]
    assert caught.value.errno in codes, f"{errno.errorcode[caught.value.errno or 0]}, not {' or '.join(names)}"


@contextmanager
def opened(path: Path | bytes, flags: int, mode: int = 0o644) -> Iterator[int]:
    """An open descriptor."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def rename2(old: Path | bytes, new: Path | bytes, flags: int) -> None:
    renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)


def fork(function: Callable[[], T], before: Callable[[], None] = lambda: None) -> Callable[[], T]:
    """Run a function in a child process, after `before`; what is returned waits for its value or its exception."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            before()
            answer: tuple[bool, object] = (True, function())
        except BaseException as error:  # noqa: BLE001  told to the parent
            answer = (False, error)
        with os.fdopen(send, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(send)

    def wait() -> T:
        with os.fdopen(receive, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        good, value = pickle.loads(told)
        if not good:
            assert isinstance(value, BaseException)
            raise value
        return value  # type: ignore[no-any-return]

    return wait


def as_user(directory: Path, function: Callable[[], T], uid: int = USER, gid: int = GROUP) -> T:
    """Run a function as an ordinary user whose working directory is `directory` and whose umask is 022.

    The paths above pytest's directories are root's alone, so the function names files relative to it.
    """

    def drop() -> None:
        os.chdir(directory)
        os.umask(0o022)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    return fork(function, drop)()


class _CacheStat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def _pages(path: Path) -> _CacheStat:
    """Pages of a file by their state: cachestat(2), Linux 6.5."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = _CacheStat()
    whole = (ctypes.c_uint64 * 2)(0, 0)
    with opened(path, os.O_RDONLY) as fd:
        if libc.syscall(451, fd, ctypes.byref(whole), ctypes.byref(found), 0) != 0:
            if ctypes.get_errno() == errno.ENOSYS:
                pytest.skip("this kernel has no cachestat")
            raise OSError(ctypes.get_errno(), "cachestat")
    return found


def unwritten_pages(path: Path) -> int:
    """Pages of a file that are in memory but not yet on the device."""
    found = _pages(path)
    return int(found.dirty) + int(found.writeback)


def cached_pages(path: Path) -> int:
    """Pages of a file that are in memory."""
    return int(_pages(path).cache)


def pause() -> None:
    """Let the clock that file systems stamp with move on: it ticks every few milliseconds."""
    time.sleep(0.02)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the kernel or the daemon does in its own time."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # the processor is needed by those who are waited for


def freeze(pid: int) -> None:
    """Stop a process. Until the last of its threads has obeyed, a request may still be answered."""
    os.kill(pid, signal.SIGSTOP)

    def obeyed() -> bool:
        try:
            stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        except FileNotFoundError:  # a thread that ends instead
            return False
        return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}

    until(obeyed)
