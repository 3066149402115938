"""A file of a tier that somebody has a lease of (fcntl(2)), as the mover has for a moment before it copies."""

from __future__ import annotations

import fcntl
import os
import signal
import threading

import pytest

from tests.conftest import World

DATA = b"x" * 1000


def reopen(world: World) -> None:
    with (world.directory / "000001.sst").open("r+b") as file:
        file.write(b"y")


def cut(world: World) -> None:
    os.truncate(world.directory / "000001.sst", 1)


@pytest.mark.parametrize("change", [reopen, cut])
def test_a_writer_waits_until_it_is_given_back(mounted: World, change: object) -> None:
    assert callable(change)
    path = mounted.directory / "000001.sst"
    path.write_bytes(DATA)
    mounted.wait_closed()
    outcome: list[BaseException | None] = []

    def guarded() -> None:
        try:
            change(mounted)
        except OSError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    fd = os.open(mounted.tiers[mounted.tier_of("000001.sst")] / "000001.sst", os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored, where SIGIO would end us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        writer = threading.Thread(target=guarded)
        writer.start()
        while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            pass  # until the kernel asks for it back
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        writer.join()
    finally:
        os.close(fd)
    assert outcome == [None]
    assert path.read_bytes()[:1] in (b"x", b"y")
