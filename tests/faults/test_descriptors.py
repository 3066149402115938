"""A daemon that may have few descriptors: what is one too many is refused, and all else goes on."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest

from keigo.control import ControlServer, Progress, ask, socket_path
from tests.conftest import MakeWorld, World

LIMIT = 300
DATA = bytes(range(256)) * 64
EXTRA = "cache: {tier: fast, capacity: 1MiB, chunk: 16KiB}\n"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture
def few(make_world: MakeWorld) -> Iterator[World]:
    """A mounted world whose daemon may have so many descriptors."""
    world = make_world(extra=EXTRA)
    world.under = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    world.mount()
    yield world
    if world.is_mounted():
        world.umount()
    assert "Traceback" not in world.log()


def descriptors(world: World) -> list[str]:
    """What the daemon has open."""
    found = []
    for path in Path(f"/proc/{world.pids[-1]}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def wait_let_go(world: World, *names: str) -> None:
    """Until the daemon has none of these open: it hears of a close after close(2) has returned."""
    deadline = time.monotonic() + 60
    while left := [path for path in descriptors(world) if path.removesuffix(" (deleted)").endswith(names)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.001)


def make(world: World, name: str) -> Path:
    path = world.directory / name
    path.write_bytes(DATA)
    return path


def open_each(paths: Iterable[Path], flags: int, found: list[int]) -> None:
    for path in paths:
        found.append(os.open(path, flags))


@contextmanager
def opened(paths: Iterable[Path], flags: int) -> Iterator[list[int]]:
    """Descriptors of files, as many as the daemon lets us have."""
    found: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files") as refused:
            open_each(paths, flags, found)
        assert refused.value.errno == errno.ENFILE  # the daemon's limit, not this process's
        assert len(found) > LIMIT // 4
        yield found
    finally:
        for fd in found:
            os.close(fd)


@pytest.mark.parametrize("name", ["000001.sst", "000002.log"])
@pytest.mark.parametrize("how", [os.O_RDONLY, os.O_RDWR], ids=["readers", "writers"])
def test_one_open_too_many(few: World, name: str, how: int) -> None:
    path = make(few, name)
    table = make(few, "000007.sst")
    few.wait_closed()
    for _ in range(3):
        with opened(repeat(path), how) as held:
            # What is open works, each of them.
            for fd in held:
                assert os.pread(fd, 4096, 0) == DATA[:4096]
            if how == os.O_RDWR:
                assert os.pwrite(held[-1], DATA, 0) == len(DATA)
            os.fsync(held[-1])
            # No new one, and nothing is cut or left behind by the attempt.
            for refused in (os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_EXCL):
                at = path if refused & os.O_TRUNC else few.directory / "000009.log"
                with pytest.raises(OSError, match="Too many open files"):
                    os.open(at, refused)
            assert path.stat().st_size == len(DATA)
            # Names, commands and migrations go on.
            (few.directory / "d").mkdir()
            os.rename(table, few.directory / "d" / "x.sst")
            os.chmod(few.directory / "d" / "x.sst", 0o640)
            os.rename(few.directory / "d" / "x.sst", table)
            (few.directory / "d").rmdir()
            few.status()
            for tier in ("slow", "fast"):
                said = ask(few.volume, "migrate", pattern=table.name, tier=tier)
                assert said["skipped"] == {} or "already" in said["skipped"][table.name]
            assert few.tier_of(table.name) == "fast"
        few.wait_closed()
        assert "000009.log" not in os.listdir(few.directory)
        assert not any((tier / "000009.log").exists() for tier in few.tiers.values())
        assert path.read_bytes() == table.read_bytes() == DATA
        make(few, "000009.log").unlink()
        few.wait_closed()
        wait_let_go(few, name, "000009.log")


def test_open_directories_are_counted_too(few: World) -> None:
    for number in range(LIMIT):
        (few.directory / f"d{number}").mkdir()
    few.wait_closed()
    with opened([few.directory / f"d{number}" for number in range(LIMIT)], os.O_RDONLY | os.O_DIRECTORY):
        few.status()
        assert len(os.listdir(few.directory)) == LIMIT  # one that costs none
    for number in range(LIMIT):
        assert os.listdir(few.directory / f"d{number}") == []


def test_tables_closed_while_descriptors_are_short(few: World) -> None:
    """The pages of a table are dropped when its last writer closes it, for which one is needed: there is one."""
    few.wait_closed()
    writers = [os.open(few.directory / f"{number:06}.sst", os.O_RDWR | os.O_CREAT) for number in range(20)]
    for fd in writers:
        os.write(fd, DATA)
    with opened(repeat(make(few, "000099.log")), os.O_RDONLY):
        for fd in writers:
            os.close(fd)
    few.wait_closed()
    assert "cannot be dropped" not in few.log()
    assert all((few.directory / f"{number:06}.sst").read_bytes() == DATA for number in range(20))


def test_more_directories_than_descriptors(few: World) -> None:
    for number in range(LIMIT):
        (few.directory / f"d{number}").mkdir()
        make(few, f"d{number}/000001.log")
    few.wait_closed()
    few.status()
    assert len(descriptors(few)) < LIMIT // 2
    with (few.directory / "d0" / "000001.log").open("rb") as file:
        assert file.read() == DATA


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"t-few-{os.getpid()}"
    yield name
    socket_path(name).unlink(missing_ok=True)


def test_a_client_is_turned_away_and_does_not_stay_in_the_queue(volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_request: object, _progress: Progress) -> object:
        return {}

    server = ControlServer(volume)
    looks = 0
    real = server._server.get_request

    def counted() -> object:
        nonlocal looks
        looks += 1
        return real()

    monkeypatch.setattr(server._server, "get_request", counted)
    server.start({"nothing": nothing})
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as client, ExitStack() as stack:
            client.settimeout(10)
            free = os.dup(0)
            stack.callback(os.close, free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
            try:
                client.connect(str(socket_path(volume)))
                assert b"Too many open files" in client.recv(4096)
                assert client.recv(1) == b""
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert looks == 1
        assert ask(volume, "nothing") == {}
    finally:
        server.stop()
        server.join()
