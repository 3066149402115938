"""A daemon that gets no more memory: the cache does without, who asks for too much hears it, and the mount goes on."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cache.support import CHUNK, ON_SLOW, cache_line, facts, read_file, settle, warm, write
from tests.conftest import MIB, MakeWorld, World

CHUNKS = 1 << 24
"""As many as a file may have: its tables take 20 MiB."""
DATA = bytes(range(256)) * 1000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    made = make_world({"fast": "16MiB", "mid": "64MiB"}, ON_SLOW, cache_line(8 * MIB))
    # What is large is mapped, and not taken from address space that the allocator has already.
    made.mount(env={"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"})
    yield made
    if made.is_mounted():
        made.umount()
    assert "Traceback" not in made.log()


@contextmanager
def no_more_than(world: World, size: int) -> Iterator[None]:
    """The daemon gets so much more address space than it has."""
    pid = world.pids[-1]
    has = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.prlimit(pid, resource.RLIMIT_AS, (has + size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def test_chunks_that_find_no_memory(world: World) -> None:
    large, small = world.directory / "000001.sst", world.directory / "000002.sst"
    for path in (large, small):
        write(path, DATA)
    os.truncate(large, CHUNKS * CHUNK)
    world.wait_closed()
    with no_more_than(world, 14 * MIB):
        for _ in range(3):
            with large.open("rb") as file:
                assert file.read(len(DATA)) == DATA
            assert read_file(small) == DATA
        assert "no memory for the chunks" in world.log()
    with large.open("rb") as file:
        assert file.read(len(DATA)) == DATA
    assert world.log().count("no memory for the chunks") == 3
    assert warm(world, small.name)["cached"] == len(DATA)
    assert read_file(small) == DATA
    settle(world, small.name)
    assert facts(world)["hits"] > 0
    world.wait_closed()


def write_error(fd: int, data: bytes) -> int:
    """The error of a write, 0 for none. A thread of its own, which may wait for ever, without us."""
    outcome: list[int] = []

    def attempt() -> None:
        try:
            os.write(fd, data)
        except OSError as error:
            outcome.append(error.errno or -1)
        else:
            outcome.append(0)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome, "nobody answers"
    return outcome[0]


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)  # the other has libfuse read requests
def test_a_request_that_is_too_large_for_what_is_left(world: World) -> None:
    """Whoever sent it gets an answer, and others theirs."""
    told = os.open(world.directory / "IDENTITY", os.O_WRONLY | os.O_CREAT)  # a file that the daemon writes itself
    other = world.directory / "000003.log"
    refused = 0
    try:
        with no_more_than(world, MIB // 2):
            for _ in range(20):
                refused += write_error(told, bytes(MIB)) == errno.ENOMEM
                write(other, b"x")
                assert os.stat(other).st_size == 1
        assert refused
        assert os.write(told, bytes(MIB)) == MIB
    finally:
        os.close(told)
    world.wait_closed()
