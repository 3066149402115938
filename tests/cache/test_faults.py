"""The cache's device is full, fails or goes away while the volume is mounted: reads go on as if there were none.

The fast tier is an ext4 of its own, on a disk that can be told to fail; or the file system is shut down, and all of it
fails, as when a device is pulled.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cache.support import (
    CHUNK,
    ON_SLOW,
    PAGE,
    cache_line,
    drop,
    facts,
    place_of,
    read,
    read_file,
    settle,
    warm,
    write,
)
from tests.conftest import MIB, MakeWorld, World
from tests.devices.disks import command, mounted
from tests.faults.disks import loops, recorder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

CAPACITY = 8 * MIB
SIZE = 3 * MIB + 12_345
FIRST, SECOND, PROBE = "000001.sst", "000002.sst", "000009.sst"
DATA = {FIRST: random.Random(1).randbytes(SIZE), SECOND: random.Random(2).randbytes(SIZE), PROBE: b"p" * PAGE}
EXT4_SHUTDOWN = 0x8004587D
AT_ONCE = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH


@dataclass
class Device:
    """The device of the fast tier."""

    world: World
    disk: Path

    def fill_tier(self) -> None:
        """A stranger takes all room in the tier's file system."""
        fill(self.world.tiers["fast"] / "stranger")

    def fail(self, how: str) -> None:
        """`how`: read, write, both; or "" for none of them any more."""
        os.setxattr(self.disk.parent, f"user.{self.disk.name}", how.encode())

    def shut_down(self) -> None:
        fd = os.open(self.world.tiers["fast"], os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", AT_ONCE))
        except OSError as error:
            pytest.skip(f"this ext4 cannot be shut down: {error}")
        finally:
            os.close(fd)


def fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (MIB, PAGE):
            with suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


@pytest.fixture
def device(make_world: MakeWorld, tmp_path: Path) -> Iterator[Device]:
    """A mounted world, whose files are on the slow tier and known to be cacheable."""
    world = make_world({"fast": "16MiB", "mid": "64MiB"}, ON_SLOW, cache_line(CAPACITY))
    with ExitStack() as stack:
        disk = stack.enter_context(recorder(tmp_path, tmp_path / "log", 24 * MIB))[0]
        (name,) = stack.enter_context(loops([disk], "--direct-io=on"))
        command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", name)
        stack.enter_context(mounted(name, at=world.tiers["fast"]))
        made = Device(world, disk)

        def end() -> None:
            made.fail("")
            world.destroy_daemon()
            if world.pids:
                world.wait_dead()

        stack.callback(end)
        world.mount()
        for path, data in DATA.items():
            write(world.directory / path, data)
        world.wait_closed()
        yield made


@dataclass
class Readers:
    """Threads that read all the time, in both ways; each byte must be right and no read may fail."""

    world: World
    wrong: list[Any] = field(default_factory=list)
    reads: int = 0
    enough: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def run(self, number: int) -> None:
        rng = random.Random(number)
        direct = number % 2 == 0
        name = (FIRST, SECOND)[number // 2]
        fd = os.open(self.world.directory / name, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            while not self.enough.is_set():
                offset = rng.randrange(0, SIZE - PAGE, PAGE)
                size = rng.choice([PAGE, CHUNK, 5 * CHUNK])
                if read(fd, size, offset, direct=direct) != DATA[name][offset : offset + size]:
                    self.wrong.append((name, offset, size))
                self.reads += 1
        except OSError as error:
            self.wrong.append(error)
        finally:
            os.close(fd)

    def __enter__(self) -> Readers:
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(4)]
        for thread in self.threads:
            thread.start()
        self.go_on()
        return self

    def go_on(self) -> None:
        """Return when some more was read."""
        until = self.reads + 200
        while self.reads < until and not self.wrong:
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join()
        assert self.wrong == []


def check(world: World) -> None:
    for name, data in DATA.items():
        for direct in (True, False):
            assert read_file(world.directory / name, direct=direct) == data


def end(world: World) -> None:
    """All is right to the last, and the volume is closed as ever."""
    check(world)
    assert facts(world)["used"] <= CAPACITY
    world.umount()
    assert "Traceback" not in world.log()
    assert "Exception ignored" not in world.log()


def test_a_stranger_fills_the_device(device: Device) -> None:
    world = device.world
    assert warm(world, PROBE)["cached"] == PAGE
    assert warm(world, FIRST)["cached"] == SIZE
    with Readers(world) as readers:
        device.fill_tier()
        found = warm(world, SECOND)
        assert os.strerror(errno.ENOSPC) in found["why"]
        readers.go_on()
        settle(world, PROBE)
        said = facts(world)
        assert said["errors"] > 0
        assert os.strerror(errno.ENOSPC) in said["last_error"]
        assert said["chunks"] >= SIZE // CHUNK  # what is there stays
        assert said["hits"] > 0
        # What room a copy in vain has taken is given back; dropping makes room on a full device, too.
        drop(world, FIRST)
        settle(world, PROBE)
        readers.go_on()
    check(world)
    assert sum(path.stat().st_blocks * 512 for path in place_of(world).iterdir()) <= CAPACITY
    end(world)


def test_reads_fail(device: Device) -> None:
    world = device.world
    for name, data in DATA.items():
        assert warm(world, name)["cached"] == len(data)
    with Readers(world) as readers:
        settle(world, PROBE)
        before = facts(world)
        assert before["hits"] > 0
        assert before["errors"] == 0
        device.fail("read")
        readers.go_on()
        settle(world, PROBE)
        said = facts(world)
        assert said["errors"] > 0
        assert "cannot be read from the cache" in said["last_error"]
        assert said["misses"] > before["misses"]  # they are served at home
        readers.go_on()
    check(world)
    device.fail("")
    end(world)


def test_writes_fail(device: Device) -> None:
    world = device.world
    assert warm(world, FIRST)["cached"] == SIZE
    device.fail("write")
    with Readers(world) as readers:
        found = warm(world, SECOND)
        assert found["why"] is not None or found["cached"] < SIZE
        readers.go_on()
        settle(world, PROBE)
        said = facts(world)
        assert said["errors"] > 0
        assert os.strerror(errno.EIO) in said["last_error"]
        readers.go_on()
    check(world)
    end(world)


def test_everything_fails_for_a_while(device: Device) -> None:
    """The disk comes back, its file system need not: it may be read-only from then on."""
    world = device.world
    assert warm(world, FIRST)["cached"] == SIZE
    with Readers(world) as readers:
        device.fail("read,write,flush")
        warm(world, SECOND)
        readers.go_on()
        settle(world, PROBE)
        assert facts(world)["errors"] > 0
    check(world)
    device.fail("")
    end(world)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while it copies"])
def test_the_device_goes_away(device: Device, busy: bool) -> None:
    world = device.world
    assert warm(world, PROBE)["cached"] == PAGE
    assert warm(world, FIRST)["cached"] == SIZE
    outcome: list[Any] = []
    with Readers(world) as readers:
        thread = threading.Thread(target=lambda: outcome.append(warm(world, SECOND)))
        if busy:
            filled = facts(world)["filled"]
            thread.start()
            while facts(world)["filled"] < filled + 3:
                pass
        device.shut_down()
        if not busy:
            thread.start()
        thread.join()
        assert outcome[0]["why"] is not None or outcome[0]["cached"] < SIZE or busy
        readers.go_on()
        settle(world, PROBE)
        said = facts(world)
        assert said["errors"] > 0
        assert said["last_error"] is not None
        os.unlink(world.directory / PROBE)  # its shadow cannot be deleted
        write(world.directory / PROBE, DATA[PROBE])
        readers.go_on()
    world.wait_closed()
    settle(world, PROBE)
    end(world)
