"""What the cache's tests with mounts share: worlds whose SSTs are on the slow tier, and reads that reach the daemon."""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from keigo.control import ControlError, ask
from tests.conftest import MakeWorld, World

PAGE = 4096
CHUNK = 16 << 10
ON_SLOW = "{fast: [wal], mid: [6], slow: [0, 1, 2, 3, 4, 5]}"
"""Levels with which a new SST of nobody knows which level is on the slow tier."""


def cache_line(capacity: int, tier: str = "fast", chunk: int = CHUNK) -> str:
    """What a devices.yaml says of a cache."""
    return f"cache: {{tier: {tier}, capacity: {capacity}, chunk: {chunk}}}\n"


def cached_world(make_world: MakeWorld, capacity: int = 1 << 20, tier: str = "fast") -> World:
    """A world with a cache on a tier, not mounted."""
    return make_world(levels=ON_SLOW, extra=cache_line(capacity, tier))


def place_of(world: World, tier: str = "fast") -> Path:
    """Where the shadows are."""
    return world.tiers[tier] / ".keigo" / "cache"


def space_of(world: World, tier: str = "fast") -> int:
    """Bytes that the shadows take on their device."""
    total = 0
    for path in place_of(world, tier).iterdir():
        with suppress(FileNotFoundError):  # the filler deletes meanwhile
            total += path.stat().st_blocks * 512
    return total


def check_room(world: World, capacity: int) -> None:
    """The cache never takes more than it has, nor, as soon as the filler rests, more than it reckons."""
    deadline = time.monotonic() + 10
    while True:
        used, space = facts(world)["used"], space_of(world)
        assert max(used, space) <= capacity
        if space <= used:
            return
        assert time.monotonic() < deadline, (space, used)


def facts(world: World) -> dict[str, Any]:
    """What status says of the cache."""
    found: dict[str, Any] = world.status()["cache"]
    return found


def warm(world: World, pattern: str = "*", enough: float = 10.0) -> dict[str, Any]:
    """Have files cached as wholes, when they are old enough; ends early where that cannot be."""
    deadline = time.monotonic() + enough
    while True:
        found: dict[str, Any] = ask(world.volume, "cache", what="warm", pattern=pattern)
        if found["cached"] >= found["of"] or found["why"] is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.002)


def drop(world: World, pattern: str = "*") -> int:
    """Let go of what is cached of files."""
    found: int = ask(world.volume, "cache", what="drop", pattern=pattern)["dropped"]
    return found


def settle(world: World, probe: str) -> None:
    """Let the filler go round once, from counting to the end of its plan: a warm-up is done in the middle of a round.

    `probe` is a file that may be cached.
    """
    for _ in range(2):
        try:
            ask(world.volume, "cache", what="warm", pattern=probe)
        except ControlError as error:
            raise AssertionError(f"{probe}: {error}") from error


def write(path: Path, data: bytes) -> None:
    """Make a file, or write it anew."""
    with path.open("wb") as file:
        file.write(data)


def read(fd: int, size: int, offset: int, *, direct: bool = False) -> bytes:
    """Read by a request to the daemon, not from the kernel's page cache."""
    if not direct:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, size, offset)
    first = offset // PAGE * PAGE
    with mmap.mmap(-1, max(PAGE, -(-(offset + size - first) // PAGE) * PAGE)) as memory:
        done = 0
        while done < len(memory):
            with memoryview(memory) as whole, whole[done:] as rest:
                got = os.preadv(fd, [rest], first + done)
            done += got
            if got == 0 or got % PAGE:
                break
        return memory[:done][offset - first : offset - first + size]


def read_file(path: Path, *, direct: bool = False) -> bytes:
    """All of a file, likewise."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        size, found = os.fstat(fd).st_size, b""
        while len(found) < size:
            found += read(fd, size - len(found), len(found), direct=direct)
        return found
    finally:
        os.close(fd)
