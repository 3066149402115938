"""The daemon dies at each failpoint of the cache, or its device loses what was not synced: only speed is lost."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keigo.control import ControlError, ask
from keigo.failpoints import FAILPOINTS
from tests.cache.support import (
    CHUNK,
    PAGE,
    cache_line,
    cached_world,
    check_room,
    drop,
    facts,
    place_of,
    read,
    read_file,
    settle,
    space_of,
    warm,
    write,
)
from tests.conftest import MakeWorld, World

CAPACITY = 20 * CHUNK
POINTS = [name for name in FAILPOINTS if name.startswith("cache.")]
FIRST, SECOND, PROBE = "000001.sst", "000002.sst", "000009.sst"
SIZES = {FIRST: 12 * CHUNK + 5, SECOND: 10 * CHUNK, PROBE: PAGE}
DATA = {name: random.Random(size).randbytes(size) for name, size in SIZES.items()}


def fill(world: World) -> None:
    for name, data in DATA.items():
        put(world, name, data)


def put(world: World, name: str, data: bytes) -> None:
    """Write a file, and wait until the daemon knows that its writer is done."""
    write(world.directory / name, data)
    world.wait_closed()


def check_all(world: World) -> None:
    """Contents, through both kinds of reads; and room, as reckoned and as taken."""
    for name, data in DATA.items():
        for direct in (False, True):
            assert read_file(world.directory / name, direct=direct) == data
    check_room(world, CAPACITY)


def heat(world: World, name: str, chunks: range) -> None:
    """Read some chunks so often that they displace cold ones."""
    fd = os.open(world.directory / name, os.O_RDONLY | os.O_DIRECT)
    rng = random.Random(name)
    for _ in range(30 * len(chunks)):
        index = rng.choice(chunks)
        assert read(fd, 100, index * CHUNK, direct=True) == DATA[name][index * CHUNK :][:100]
    os.close(fd)


def live(world: World) -> None:
    """All that a cache does: copies, room made by holes and by whole shadows, a file that goes, an orderly end."""
    warm(world, PROBE)
    warm(world, FIRST)
    assert warm(world, SECOND)["why"] == "the cache is full"
    heat(world, SECOND, range(6, 10))
    settle(world, PROBE)
    drop(world, SECOND)
    settle(world, PROBE)
    os.unlink(world.directory / FIRST)
    settle(world, PROBE)
    drop(world, PROBE)
    settle(world, PROBE)
    world.umount()


def crash(world: World, act: Callable[[World], object]) -> bool:
    """Do what ends the daemon; whether it died, and not in an orderly way."""
    try:
        act(world)
    except (OSError, AssertionError, ControlError):
        world.wait_dead()
        return True
    return False


def test_every_failpoint_is_tried() -> None:
    """They are all passed in `live`; where one is renamed, nothing dies there, and its test fails."""
    assert len(POINTS) == 7


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_costs_speed_only(make_world: MakeWorld, driver: str, point: str, number: int) -> None:
    if number > 1 and point in ("cache.closing", "cache.closed"):
        pytest.skip("it is passed once")
    if (number > 1) == (driver == "kernel"):
        pytest.skip("the filler knows no driver: one each will do")
    world = cached_world(make_world, CAPACITY)
    world.mount(env={"KEIGO_FAILPOINT": f"{point}:{number}"})
    fill(world)
    assert crash(world, live) or point in ("cache.closing", "cache.closed"), "it never came there"
    world.wait_dead()
    clean = (place_of(world) / "clean").exists()
    assert clean == (point == "cache.closed")

    world.mount()
    if not (world.directory / FIRST).exists():
        put(world, FIRST, DATA[FIRST])
    check_all(world)
    found = facts(world)
    assert (found["damaged"], found["errors"]) == (0, 0)
    # Life goes on: the cache fills again, and to its capacity.
    drop(world)
    settle_soon(world)
    warm(world, PROBE)
    again = warm(world, FIRST)
    assert again["cached"] == SIZES[FIRST]
    check_all(world)
    world.umount()
    assert (place_of(world) / "clean").exists()
    assert "Traceback" not in world.log()


def settle_soon(world: World) -> None:
    """Let the filler go round, as soon as the probe may be cached."""
    deadline = time.monotonic() + 10
    while warm(world, PROBE)["cached"] < SIZES[PROBE]:
        assert time.monotonic() < deadline


def test_killed_while_it_copies(make_world: MakeWorld) -> None:
    """At no place in particular, several times; what is found is used, and it is never more than there is room for."""
    world = cached_world(make_world, CAPACITY)
    world.mount()
    fill(world)
    rng = random.Random(7)
    for turn in range(4):
        drop(world)

        def go() -> None:
            try:
                while True:
                    warm(world, FIRST)
                    drop(world, FIRST)
                    warm(world, SECOND)
                    drop(world, SECOND)
            except (ControlError, OSError):
                pass  # it was killed

        thread = threading.Thread(target=go)
        thread.start()
        wanted = rng.randrange(5, 60)
        while facts(world)["filled"] < wanted:
            time.sleep(0.001)
        world.kill()
        thread.join()
        world.mount()
        check_all(world)
        assert (turn, facts(world)["damaged"]) == (turn, 0)


# --- the device loses power ---

BIG = "000007.sst"
CHUNKS = 200  # the filler looks at 64 in its first round; readers come before it
LARGE = random.Random(200).randbytes(CHUNKS * CHUNK - 99)


def lose(data: bytes, old: bytes, rng: random.Random) -> bytes:
    """What a device may have of a chunk that was not synced."""
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(len(data))
    if kind == 1:
        return old
    if kind == 2:
        return rng.randbytes(len(data))
    if kind == 3:  # some of its pages
        return bytes(len(data) - PAGE) + data[-PAGE:]
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def shadow_of(world: World) -> tuple[Path, Path]:
    """(data, map) of the only large shadow."""
    (data,) = (path for path in place_of(world).glob("*.data") if path.stat().st_size > CHUNK)
    return data, data.with_suffix(".map")


@pytest.mark.parametrize("reader", ["buffered", "direct", "many", "nobody"])
def test_what_a_power_loss_took_is_never_served(make_world: MakeWorld, reader: str) -> None:
    world = cached_world(make_world, 2 * CHUNKS * CHUNK)
    world.mount()
    path = world.directory / BIG
    put(world, BIG, bytes(reversed(LARGE)))
    warm(world, BIG)
    old = shadow_of(world)[0].read_bytes()
    put(world, BIG, LARGE)
    settle_on(world, BIG)
    assert warm(world, BIG)["cached"] == len(LARGE)
    world.kill()
    rng = random.Random(reader)
    lost = rng.sample(range(CHUNKS), 60)
    with shadow_of(world)[0].open("r+b") as file:
        for index in lost:
            file.seek(index * CHUNK)
            data = file.read(CHUNK)
            file.seek(index * CHUNK)
            file.write(lose(data, old[index * CHUNK :][: len(data)], rng))
    world.mount()
    if reader == "many":
        wrong: list[int] = []

        def look(number: int) -> None:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            for index in random.Random(number).sample(range(CHUNKS), CHUNKS):
                if read(fd, CHUNK, index * CHUNK, direct=True) != LARGE[index * CHUNK :][:CHUNK]:
                    wrong.append(index)
            os.close(fd)

        threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
    elif reader != "nobody":
        assert read_file(path, direct=reader == "direct") == LARGE
    deadline = time.monotonic() + 30
    while (found := facts(world))["unverified"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (found["damaged"], found["errors"]) == (len(lost), 0)
    assert CHUNKS - len(lost) <= found["chunks"] <= CHUNKS  # the filler may have copied some again
    before = found["hit_bytes"]
    assert read_file(path, direct=True) == LARGE
    settle_on(world, BIG)
    kept = len(LARGE) - len(lost) * CHUNK
    assert facts(world)["hit_bytes"] - before >= kept - CHUNK
    assert warm(world, BIG)["cached"] == len(LARGE)  # and all of it can come back
    world.umount()
    assert (place_of(world) / "clean").exists()


def settle_on(world: World, name: str) -> None:
    """`settle`, or as near to it as a file allows that may be too young."""
    for _ in range(2):
        ask(world.volume, "cache", what="warm", pattern=name)


def test_a_map_that_was_lost_is_no_shadow(make_world: MakeWorld) -> None:
    """The map may be older than the data, of another shadow, or zeros; whatever it says must be true of the chunk."""
    world = cached_world(make_world, 2 * CHUNKS * CHUNK)
    world.mount()
    path = world.directory / BIG
    put(world, BIG, LARGE)
    assert warm(world, BIG)["cached"] == len(LARGE)
    rng = random.Random(3)
    for damage in ("head", "sums", "moved", "zeros", "cut"):
        world.kill()
        index = shadow_of(world)[1]
        raw = bytearray(index.read_bytes())
        if damage == "head":
            raw[rng.randrange(12, 60)] ^= 4
        elif damage == "sums":
            for number in range(0, CHUNKS, 3):
                raw[PAGE + 8 * number : PAGE + 8 * number + 8] = rng.randbytes(8)
        elif damage == "moved":
            raw[PAGE : PAGE + 8 * CHUNKS] = raw[PAGE + 8 : PAGE + 8 * CHUNKS] + raw[PAGE : PAGE + 8]
        elif damage == "zeros":
            raw[:] = bytes(len(raw))
        else:
            del raw[PAGE + 40 :]
        index.write_bytes(raw)
        world.mount()
        assert read_file(path, direct=True) == LARGE
        assert read_file(path) == LARGE
        settle_on(world, BIG)
        said = facts(world)
        assert (said["damaged"] == 0) == (damage in ("head", "zeros", "cut"))  # those were found out at the mount
        assert said["errors"] == 0
        assert warm(world, BIG)["cached"] == len(LARGE)
        assert read_file(path, direct=True) == LARGE


def test_a_database_that_was_destroyed_while_nobody_looked(make_world: MakeWorld) -> None:
    """Same names, same sizes, same times, after a clean end: in the bare directory, so no daemon has heard of it."""
    world = cached_world(make_world, CAPACITY)
    world.mount()
    fill(world)
    warm(world, FIRST)
    world.umount()
    assert (place_of(world) / "clean").exists()
    path = world.directory / FIRST
    status = path.stat()
    other = bytes(reversed(DATA[FIRST]))
    path.unlink()
    write(path, other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    world.mount()
    assert read_file(path, direct=True) == other
    assert read_file(path) == other
    assert facts(world)["files"] == 0


def test_a_smaller_cache_at_the_next_mount(make_world: MakeWorld) -> None:
    """What is found is kept as far as there is room, and the rest deleted; other chunks begin anew."""
    world = cached_world(make_world, CAPACITY)
    world.mount()
    fill(world)
    warm(world, PROBE)
    warm(world, FIRST)
    warm(world, SECOND)
    for capacity, chunk in ((15 * CHUNK, CHUNK), (4 * CHUNK, CHUNK), (CAPACITY, 2 * CHUNK)):
        world.umount()
        configure(world, cache_line(capacity, chunk=chunk))
        world.mount()
        found = facts(world)
        assert found["used"] <= capacity
        assert space_of(world) <= capacity
        assert (found["files"] > 0) == (chunk == CHUNK)
        check_read(world)


def test_a_cache_that_is_off_or_elsewhere_leaves_nothing_behind(make_world: MakeWorld) -> None:
    world = cached_world(make_world, CAPACITY)
    world.mount()
    fill(world)
    warm(world, FIRST)
    world.umount()
    configure(world, cache_line(CAPACITY, "mid"))
    world.mount()
    assert not place_of(world).exists()
    assert warm(world, FIRST)["cached"] == SIZES[FIRST]
    check_read(world)
    world.kill()
    configure(world, "cache: off\n")
    world.mount()
    assert not place_of(world, "mid").exists()
    check_read(world)


def check_read(world: World) -> None:
    for name, data in DATA.items():
        assert read_file(world.directory / name, direct=True) == data


def configure(world: World, line: str) -> None:
    """Another line for the cache in devices.yaml."""
    text = world.config.read_text()
    start = text.index("cache:")
    world.config.write_text(text[:start] + line)
