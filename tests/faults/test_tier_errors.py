"""A tier whose device errs or hangs: who uses its files hears it, others go on, nothing is lost when it returns."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keigo.control import socket_path
from tests.conftest import World, write_config
from tests.devices.disks import command, mounted
from tests.faults.disks import NAMES, fail, loops, recorder

SIZE = 32 << 20
DATA = bytes(range(256)) * 400
LEVELS = "{fast: [wal, 0], mid: [1], slow: [2, 3, 4, 5, 6]}"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")


class Bed:
    """A mounted volume on three disks, each of which can be told to fail."""

    def __init__(self, world: World, disks: dict[str, Path]) -> None:
        self.world = world
        self._disks = disks

    def fail(self, name: str, how: str) -> None:
        fail(self._disks[name], how)

    def tier(self, name: str) -> Any:
        return next(tier for tier in self.world.status()["tiers"] if tier["name"] == name)

    def wait(self, so: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not so():
            assert time.monotonic() < deadline, self.world.status()["tiers"]
            time.sleep(0.05)

    def make(self, name: str, tier: str) -> Path:
        """A file on a tier, durable, that nobody has in memory."""
        path = self.world.directory / name
        with path.open("wb") as file:
            file.write(DATA)
            file.flush()
            os.fsync(file.fileno())
        self.world.wait_closed()
        if tier != self.world.tier_of(name):
            self.world.keigo("migrate", self.world.directory, name, tier)
        assert self.world.tier_of(name) == tier
        return path

    def forget(self, path: Path) -> None:
        """Drop what is in memory of a file, through the mount and on its tier."""
        for place in (path, *(tier / path.name for tier in self.world.tiers.values())):
            if place.exists():
                fd = os.open(place, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


@pytest.fixture
def bed(tmp_path: Path, driver: str) -> Iterator[Bed]:
    log = tmp_path / "log"
    with ExitStack() as stack:
        files = stack.enter_context(recorder(tmp_path, log, SIZE))
        disks = dict(zip(NAMES, files, strict=True))
        devices = stack.enter_context(loops(files, "--direct-io=on"))
        for name, device in zip(NAMES, devices, strict=True):
            command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", device)
            stack.enter_context(mounted(device, at=tmp_path / name))
            (tmp_path / name / "t").mkdir(mode=0o700)
        tiers = {name: tmp_path / name / "t" for name in NAMES}
        write_config(tmp_path / "devices.yaml", f"t-errs-{os.getpid()}-{driver}", tiers, {}, LEVELS)
        world = World(
            tmp_path, tiers["slow"], tiers, f"t-errs-{os.getpid()}-{driver}", tmp_path / "devices.yaml", driver
        )

        def end() -> None:
            for disk in disks.values():
                fail(disk, "")
            world.destroy_daemon()
            if world.is_mounted():
                command("umount", "-l", world.directory)
            socket_path(world.volume).unlink(missing_ok=True)

        stack.callback(end)
        world.mount()
        yield Bed(world, disks)


def test_reads_that_fail(bed: Bed) -> None:
    ill, well = bed.make("000001.sst", "mid"), bed.make("000002.sst", "slow")
    bed.forget(ill)
    bed.fail("mid", "read")
    with pytest.raises(OSError, match="Input/output") as error:
        ill.read_bytes()
    assert error.value.errno == errno.EIO
    assert well.read_bytes() == DATA
    bed.wait(lambda: bed.tier("mid")["degraded_for"] is not None)
    found = bed.tier("mid")
    assert found["errors"] >= 1
    assert found["last_error"] == "Input/output error"
    assert bed.tier("fast")["degraded_for"] is None
    assert "tier mid is degraded" in bed.world.keigo("status", bed.world.directory).stdout
    bed.fail("mid", "")
    bed.wait(lambda: bed.tier("mid")["degraded_for"] is None)
    assert ill.read_bytes() == DATA


def test_a_sync_that_fails_is_told_and_new_files_go_elsewhere(bed: Bed) -> None:
    kept = bed.make("000001.sst", "mid")
    path = bed.world.directory / "000003.log"  # on fast
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, DATA)
    os.fsync(fd)
    bed.fail("fast", "write flush")
    os.write(fd, DATA)
    with pytest.raises(OSError, match="Input/output|Read-only"):
        os.fsync(fd)
    os.close(fd)
    bed.wait(lambda: bed.tier("fast")["degraded_for"] is not None)
    other = bed.world.directory / "000004.log"
    other.write_bytes(DATA)
    fd = os.open(other, os.O_WRONLY)
    os.fsync(fd)
    os.close(fd)
    assert bed.world.tier_of("000004.log") != "fast"
    assert other.read_bytes() == kept.read_bytes() == DATA
    assert path.read_bytes()[: len(DATA)] == DATA  # what was synced before


def test_a_device_that_vanishes_and_returns(bed: Bed) -> None:
    """Nothing that is asked of it works; afterwards its file system may be read-only, but what it had is there."""
    ill, well = bed.make("000001.sst", "mid"), bed.make("000002.sst", "slow")
    bed.forget(ill)
    bed.fail("mid", "read write flush")
    with pytest.raises(OSError, match="Input/output"):
        ill.read_bytes()
    bed.wait(lambda: bed.tier("mid")["degraded_for"] is not None)
    refused = bed.world.keigo("migrate", bed.world.directory, "000002.sst", "mid", check=False)
    assert "000002.sst" in refused.stdout + refused.stderr
    assert bed.world.tier_of("000002.sst") == "slow"
    bed.forget(well)
    assert well.read_bytes() == DATA
    (bed.world.directory / "000003.log").write_bytes(DATA)
    bed.fail("mid", "")
    assert ill.read_bytes() == DATA
    bed.world.umount()
    assert (bed.world.tiers["mid"] / "000001.sst").read_bytes() == DATA


def test_a_device_that_hangs_holds_up_its_own_files_only(bed: Bed) -> None:
    ill, well = bed.make("000001.sst", "mid"), bed.make("000002.sst", "slow")
    bed.forget(ill)
    read: list[bytes] = []
    bed.fail("mid", "hang")
    waiting = threading.Thread(target=lambda: read.append(ill.read_bytes()))
    waiting.start()
    for _ in range(20):
        bed.forget(well)
        assert well.read_bytes() == DATA
    (bed.world.directory / "000005.log").write_bytes(DATA)
    assert not read
    bed.wait(lambda: bed.tier("mid")["degraded_for"] is not None)
    assert "no request has ended" in bed.tier("mid")["last_error"]
    assert bed.tier("slow")["degraded_for"] is None
    bed.fail("mid", "")
    waiting.join(60)
    assert read == [DATA]
    assert bed.tier("mid")["errors"] == 0
    bed.wait(lambda: bed.tier("mid")["degraded_for"] is None)
