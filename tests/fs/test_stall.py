"""A device that hangs holds up those who wait for it, and nobody else.

The device is a directory in a second volume, whose daemon is stopped (SIGSTOP): what goes there hangs until it is
continued, as on a disk that is being reset. Each request that must not wait is one that the kernel cannot answer from
its own caches. What a local disk answers from memory but this device does not (stat, statfs) is not asked of it.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keigo.control import ask
from tests.conftest import MIB, MakeWorld, World, write_config
from tests.fs.support import Act, freeze, opened, raises

LEVELS = "{fast: [0, 1], mid: [wal], slow: [2]}"
DIRECT = os.O_RDONLY | os.O_DIRECT
LONG = 30.0  # seconds; nothing below takes one unless it waits for the device


class Task(threading.Thread):
    """A call in a thread of its own, whose exception is not lost."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call: Act = lambda: function(*args)
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            self.error = error

    def hangs(self) -> bool:
        """Whether it is still at work after a while in which it would have ended."""
        self.join(0.3)
        return self.is_alive()

    def finish(self) -> None:
        self.join(LONG)
        assert not self.is_alive(), "still waiting"
        if self.error is not None:
            raise self.error


@dataclass
class Setup:
    """A mounted world whose tier `mid` is on the device."""

    world: World
    device: World

    @property
    def directory(self) -> Path:
        return self.world.directory

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The device answers nothing while the block runs."""
        for path in (self.world.tiers["mid"], *self.world.tiers["mid"].rglob("*")):
            os.stat(path)  # from now on known to the kernel, as inodes in use on a local disk are
        try:
            freeze(self.device.pids[-1])
            yield
        finally:
            os.kill(self.device.pids[-1], signal.SIGCONT)

    def others_are_served(self) -> None:
        """Do, with files on the other tiers, what reaches the file system every time."""

        def read(name: str) -> None:
            with opened(self.directory / name, DIRECT) as fd:
                buffer = mmap.mmap(-1, 4096)
                assert os.preadv(fd, [buffer], 0) == 4096
                assert buffer[:4] == b"data"

        def write(name: str) -> None:
            with opened(self.directory / name, os.O_WRONLY) as fd:
                os.pwrite(fd, b"data", 4096)
                os.pwrite(fd, b"x" * MIB, 8192)
                os.fsync(fd)

        def look() -> None:
            with raises(2):
                os.stat(self.directory / f"absent-{time.monotonic_ns()}")
            assert os.listdir(self.directory / "sub") == ["file"]
            assert ask(self.world.volume, "ls")

        def rename() -> None:
            os.rename(self.directory / "plain", self.directory / "renamed")
            os.chmod(self.directory / "renamed", 0o600)
            os.rename(self.directory / "renamed", self.directory / "plain")

        for act in (
            lambda: read("1.sst"),
            lambda: read("plain"),
            look,
            rename,
            lambda: write("plain"),
        ):
            Task(act).finish()


@pytest.fixture
def setup(make_world: MakeWorld) -> Iterator[Setup]:
    world = make_world()
    device = make_world(names=("slow",), levels="{slow: [wal, 0]}")
    device.driver = "pyfuse3"
    device.mount()
    world.tiers["mid"] = device.directory / "tier"
    world.tiers["mid"].mkdir()
    capacity = {"fast": "64MiB", "mid": "256MiB"}
    write_config(world.config, world.volume, world.tiers, capacity, LEVELS, "copy_limit: 8MiB/s\n")
    world.mount()
    for name in ("1.sst", "plain"):
        (world.directory / name).write_bytes(b"data" * MIB)
    (world.directory / "000001.log").write_bytes(b"data" * MIB)
    (world.directory / "sub").mkdir()
    (world.directory / "sub" / "file").touch()
    # With a mirror that the daemon has open, nobody asks the device whether there is one: the kernel may have forgotten
    # that there is none, when another test drops its caches.
    (world.directory / "sub" / "000002.log").touch()
    (world.directory / "sub" / "000002.log").unlink()
    assert (world.tiers["mid"] / "sub").is_dir()
    assert [world.tier_of(name) for name in ("1.sst", "000001.log", "plain")] == ["fast", "mid", "slow"]
    world.wait_closed()  # what a close does asks the device for the file's size
    yield Setup(world, device)
    world.umount()
    world.wait_dead()  # its tier is on the other
    device.umount()


def test_nothing_hangs_by_itself(setup: Setup) -> None:
    setup.others_are_served()


def test_reads_of_the_device_do_hang(setup: Setup) -> None:
    """Else this file would prove nothing."""
    with opened(setup.directory / "000001.log", DIRECT) as fd:
        buffer = mmap.mmap(-1, MIB)
        with setup.hanging():
            reader = Task(os.preadv, fd, [buffer], 0)
            assert reader.hangs()
            setup.others_are_served()
            assert reader.is_alive()
        reader.finish()
        assert buffer[:] == b"data" * (MIB // 4)


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_fsync(setup: Setup, sync: Callable[[int], None]) -> None:
    with opened(setup.directory / "000001.log", os.O_RDWR) as fd:
        os.write(fd, b"x" * MIB)
        with setup.hanging():
            waiting = Task(sync, fd)
            assert waiting.hangs()
            setup.others_are_served()
            assert waiting.is_alive()
        waiting.finish()


def test_many_fsyncs(setup: Setup) -> None:
    """More than any handful of threads would bear."""
    count = 40
    fds = [os.open(setup.directory / f"{number:06}.log", os.O_RDWR | os.O_CREAT) for number in range(2, 2 + count)]
    try:
        for fd in fds:
            os.write(fd, b"x" * 1000)
        with setup.hanging():
            waiting = [Task(os.fsync, fd) for fd in fds]
            assert all(task.hangs() for task in waiting[:3])
            setup.others_are_served()
            assert all(task.is_alive() for task in waiting)
        for task in waiting:
            task.finish()
    finally:
        for fd in fds:
            os.close(fd)


def test_large_writes(setup: Setup) -> None:
    with opened(setup.directory / "000001.log", os.O_RDWR) as fd:
        with setup.hanging():
            writer = Task(os.pwrite, fd, b"new!" * MIB, 0)
            assert writer.hangs()
            setup.others_are_served()
            assert writer.is_alive()
        writer.finish()
        assert os.pread(fd, 8, 0) == b"new!new!"


def test_a_migration_to_the_device(setup: Setup) -> None:
    """The copy hangs half-way; its file can be read, and changed, which ends the copy."""
    table = setup.directory / "1.sst"
    mover = Task(lambda: ask(setup.world.volume, "migrate", pattern="1.sst", tier="mid"))
    copy = setup.world.tiers["mid"] / ".keigo" / "incoming"
    deadline = time.monotonic() + LONG
    while not list(copy.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with setup.hanging():
        assert mover.hangs()
        setup.others_are_served()
        Task(lambda: table.chmod(0o600)).finish()
        assert mover.is_alive()
    mover.finish()
    assert table.read_bytes() == b"data" * MIB
    setup.world.tier_of("1.sst")
