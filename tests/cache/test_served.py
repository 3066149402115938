"""Through a mount: what is counted, what a file's way through the tiers does to its chunks, and what heats."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

from keigo.control import ControlError, ask
from tests.cache.support import (
    CHUNK,
    PAGE,
    cached_world,
    drop,
    facts,
    place_of,
    read,
    read_file,
    settle,
    warm,
    write,
)
from tests.conftest import MakeWorld, World

FIRST, SECOND, PROBE = "000001.sst", "000002.sst", "000009.sst"
CAPACITY = 40 * CHUNK
SIZE = 12 * CHUNK
DATA = {FIRST: random.Random(1).randbytes(SIZE), SECOND: random.Random(2).randbytes(SIZE), PROBE: b"p" * PAGE}


def made(make_world: MakeWorld) -> World:
    """A mounted world with the files, the first of which is cached."""
    world = cached_world(make_world, CAPACITY)
    world.mount()
    for name, data in DATA.items():
        write(world.directory / name, data)
    world.wait_closed()
    assert warm(world, FIRST)["cached"] == SIZE
    return world


def row(world: World, name: str) -> dict[str, Any]:
    (found,) = (row for row in world.ls() if row["name"] == name)
    return found


def test_every_byte_is_counted_once(make_world: MakeWorld) -> None:
    world = made(make_world)
    rng = random.Random(3)
    reads, sizes = {FIRST: 0, SECOND: 0}, {FIRST: 0, SECOND: 0}
    for name in reads:
        fd = os.open(world.directory / name, os.O_RDONLY | os.O_DIRECT)
        for _ in range(57):
            offset, size = rng.randrange(0, SIZE, PAGE), rng.choice([PAGE, 2 * PAGE, 2 * CHUNK])
            reads[name] += 1
            sizes[name] += len(read(fd, size, offset, direct=True))
        os.close(fd)
    # As `ls` has them, by file, at once; a round of the filler later in all.
    first, second = row(world, FIRST)["cache"], row(world, SECOND)["cache"]
    assert (first["hits"], first["hit_bytes"]) == (reads[FIRST], sizes[FIRST])
    assert (first["misses"], first["miss_bytes"]) == (0, 0)
    assert (second["hits"], second["hit_bytes"]) == (0, 0)
    assert (second["misses"], second["miss_bytes"]) == (reads[SECOND], sizes[SECOND])
    settle(world, PROBE)
    found = facts(world)
    assert (found["hits"], found["hit_bytes"]) == (reads[FIRST], sizes[FIRST])
    assert (found["misses"], found["miss_bytes"]) == (reads[SECOND], sizes[SECOND])
    assert found["foreground_reads"] == sum(reads.values())
    assert found["hit_ratio"] == 0.5
    assert found["seconds_saved"] > 0
    os.unlink(world.directory / FIRST)  # what was counted of a file that is gone stays counted
    settle(world, PROBE)
    assert facts(world)["hit_bytes"] == sizes[FIRST]


def test_a_file_keeps_its_chunks_between_slow_tiers(make_world: MakeWorld) -> None:
    world = made(make_world)
    fd = os.open(world.directory / FIRST, os.O_RDONLY | os.O_DIRECT)

    def is_served() -> bool:
        before = row(world, FIRST)["cache"]
        assert read(fd, SIZE, 0, direct=True) == DATA[FIRST]
        after = row(world, FIRST).get("cache")
        return after is not None and after["hit_bytes"] == before["hit_bytes"] + SIZE

    assert is_served()
    assert ask(world.volume, "migrate", pattern=FIRST, tier="mid")["moved"] == [FIRST]
    assert is_served()
    os.rename(world.directory / FIRST, world.directory / "000008.sst")
    os.rename(world.directory / "000008.sst", world.directory / FIRST)
    assert is_served()
    os.close(fd)
    world.umount()
    world.mount()
    assert facts(world)["chunks"] == SIZE // CHUNK  # at its new home, known to be the same
    fd = os.open(world.directory / FIRST, os.O_RDONLY | os.O_DIRECT)
    assert is_served()
    assert ask(world.volume, "migrate", pattern=FIRST, tier="fast")["moved"] == [FIRST]
    assert read(fd, SIZE, 0, direct=True) == DATA[FIRST]
    settle(world, PROBE)
    assert row(world, FIRST).get("cached_bytes", 0) in (0, None)
    assert [path.stat().st_size for path in place_of(world).glob("*.data")] == [PAGE]  # the probe's
    try:
        warm(world, FIRST)
    except ControlError as error:
        assert "nothing to cache" in str(error)
    else:
        raise AssertionError("a file of the cache's own tier was cached")
    assert ask(world.volume, "migrate", pattern=FIRST, tier="slow")["moved"] == [FIRST]
    assert read(fd, SIZE, 0, direct=True) == DATA[FIRST]
    os.close(fd)
    assert warm(world, FIRST)["cached"] == SIZE
    assert read_file(world.directory / FIRST, direct=True) == DATA[FIRST]


def test_a_scan_does_not_displace_what_is_hot(make_world: MakeWorld) -> None:
    """Twice as much as the cache holds is read from end to end, oftener than any chunk that is hot."""
    world = made(make_world)
    drop(world)
    rng = random.Random(4)
    hot = range(12)
    for name in (FIRST, SECOND):
        fd = os.open(world.directory / name, os.O_RDONLY | os.O_DIRECT)
        for _ in range(300):
            read(fd, 100, rng.choice(hot) * CHUNK + rng.randrange(4) * PAGE, direct=True)
        os.close(fd)
    settle(world, PROBE)
    before = facts(world)
    assert before["chunks"] >= 24
    big = random.Random(5).randbytes(80 * CHUNK)
    write(world.directory / "000007.sst", big)
    world.wait_closed()
    warm(world, "000007.sst")  # as much of it as there is room for, when it is old enough
    drop(world, "000007.sst")
    fd = os.open(world.directory / "000007.sst", os.O_RDONLY | os.O_DIRECT)
    for offset in [*range(0, len(big), CHUNK)] * 60:
        assert read(fd, CHUNK, offset, direct=True) == big[offset : offset + CHUNK]
    os.close(fd)
    settle(world, PROBE)
    assert facts(world)["evicted"] == before["evicted"]
    for name in (FIRST, SECOND):
        assert row(world, name)["cached_bytes"] == SIZE
    assert row(world, "000007.sst")["cached_bytes"] <= 8 * CHUNK


def test_readers_see_no_wrong_byte_while_chunks_come_and_go(make_world: MakeWorld) -> None:
    """Eight threads on one file and its neighbour, while both are warmed, dropped and moved, and chunks are evicted."""
    world = made(make_world)
    enough = threading.Event()
    wrong: list[object] = []

    def run(number: int) -> None:
        rng = random.Random(number)
        name = FIRST if number < 6 else SECOND
        direct = number % 2 == 0
        fd = os.open(world.directory / name, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            while not enough.is_set():
                offset, size = rng.randrange(0, SIZE, PAGE), rng.choice([PAGE, CHUNK, 3 * CHUNK])
                if read(fd, size, offset, direct=direct) != DATA[name][offset : offset + size]:
                    wrong.append((name, offset, size))
        except OSError as error:
            wrong.append(error)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        rng = random.Random(9)
        for _ in range(100):
            name = rng.choice([FIRST, FIRST, SECOND])
            act = rng.choice(["warm", "warm", "drop", "drop", "mid", "slow", "slow", "settle"])
            if act == "warm":
                ask(world.volume, "cache", what="warm", pattern=name)
            elif act == "drop":
                drop(world, name)
            elif act == "settle":
                settle(world, PROBE)
            else:
                ask(world.volume, "migrate", pattern=name, tier=act)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    settle(world, PROBE)
    found = facts(world)
    assert min(found["hits"], found["misses"]) > 0
    assert (found["errors"], found["damaged"]) == (0, 0), found
    world.umount()
    assert "Traceback" not in world.log()
