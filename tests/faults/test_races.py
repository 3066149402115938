"""The data path and the cache's chunks under ThreadSanitizer, on a real mount, with all that changes them going on.

KEIGO_RACES sets how many rounds (`scripts/soak` runs many).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

import pytest

from keigo.control import ControlError, ask
from tests.cache.support import CHUNK, ON_SLOW, PAGE, cache_line, read
from tests.conftest import MakeWorld, World
from tests.faults.sanitized import Sanitized, reports, runtime

ROUNDS = int(os.environ.get("KEIGO_RACES", "4"))
LIBRARY = runtime()
FILES = [f"{number:06}.sst" for number in range(1, 5)]
SIZE = 24 * CHUNK + 777
READERS = 8
READS = 150

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
    pytest.mark.skipif(LIBRARY is None, reason="needs gcc and its ThreadSanitizer"),
    pytest.mark.timeout(0 if ROUNDS > 4 else 300),
]


def contents(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


DATA = {name: contents(name) for name in FILES}


@dataclass
class Load:
    """What goes on in a round: each thing in a thread of its own, over and over until the readers have read enough."""

    world: World
    seed: int
    wrong: list[object] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def _read(self, number: int) -> None:
        chance = random.Random(self.seed * READERS + number)
        direct = number % 2 == 0
        for _ in range(READS // 10):
            name = chance.choice(FILES)
            fd = os.open(self.world.directory / name, os.O_RDONLY | (os.O_DIRECT if direct else 0))
            try:
                for _ in range(10):
                    offset = chance.randrange(0, SIZE - PAGE, PAGE)
                    size = chance.choice([PAGE, CHUNK, 5 * CHUNK])
                    if read(fd, size, offset, direct=direct) != DATA[name][offset : offset + size]:
                        self.wrong.append((name, offset, size))
            finally:
                os.close(fd)

    def _over_and_over(self, what: Callable[[random.Random], object], number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        while not self.done.is_set():
            with suppress(ControlError):  # what is cached or moved by another just now is refused
                what(chance)

    def _move(self, chance: random.Random) -> None:
        ask(self.world.volume, "migrate", pattern=chance.choice(FILES), tier=chance.choice(["mid", "slow", "fast"]))

    def _cache(self, chance: random.Random) -> None:
        ask(self.world.volume, "cache", what=chance.choice(["warm", "drop"]), pattern=chance.choice([*FILES, "*"]))

    def _look(self, _chance: random.Random) -> None:
        self.world.status()
        self.world.ls()

    def _rewrite(self, chance: random.Random) -> None:
        """The same bytes, so that no reader is wrong: but the file is another, or is written in place."""
        name = chance.choice(FILES)
        path = self.world.directory / name
        if chance.random() < 0.5:
            with path.open("r+b") as file:
                file.write(DATA[name])
                os.fsync(file.fileno())
        else:
            made = self.world.directory / f"{name}.tmp"
            made.write_bytes(DATA[name])
            made.rename(path)

    def run(self) -> None:
        """Raises what a reader raised."""

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  told by the test
                self.wrong.append(error)

        readers = [
            threading.Thread(target=guarded, args=(lambda number=number: self._read(number),))
            for number in range(READERS)
        ]
        changes = (self._move, self._cache, self._look, self._rewrite)
        others = [
            threading.Thread(target=guarded, args=(lambda what=what, number=number: self._over_and_over(what, number),))
            for number, what in enumerate(changes)
        ]
        for thread in [*others, *readers]:
            thread.start()
        for thread in readers:
            thread.join()
        self.done.set()
        for thread in others:
            thread.join()
        assert not self.wrong, self.wrong[:5]


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    made = make_world({"fast": "16MiB", "mid": "64MiB"}, ON_SLOW, cache_line(len(FILES) * SIZE * 2 // 3))
    yield made
    if made.is_mounted():
        made.umount()


def sanitized(tmp_path: Path, **faults: tuple[str, str]) -> Sanitized:
    assert LIBRARY is not None
    made = Sanitized(tmp_path / "sanitized", LIBRARY, faults)
    made.build()
    return made


def go(world: World, rounds: Iterable[int]) -> None:
    for name, data in DATA.items():
        (world.directory / name).write_bytes(data)
    world.wait_closed()
    for number in rounds:
        Load(world, number).run()


def test_no_race_is_seen(world: World, tmp_path: Path) -> None:
    sanitized(tmp_path).mount(world)
    go(world, range(ROUNDS))
    world.umount()
    assert reports(world.log()) == []
    assert "Traceback" not in world.log()


BROKEN = {
    "a counter of a slot": (
        "fusefs/_datapath.c",
        "atomic_fetch_add_explicit(&slot->reads[kind], 1, memory_order_relaxed)",
        "*(uint64_t *)&slot->reads[kind] += 1",
    ),
    "the version of chunks": (
        "keigo/cache/chunks.h",
        "uint64_t version = atomic_load_explicit(&chunks->version, memory_order_acquire)",
        "uint64_t version = *(uint64_t *)&chunks->version",
    ),
}


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_a_race_of_the_data_path_would_be_seen(world: World, tmp_path: Path) -> None:
    source, right, wrong = BROKEN["a counter of a slot"]
    sanitized(tmp_path, **{source: (right, wrong)}).mount(world)
    go(world, takewhile(lambda number: number < 100 and not reports(world.log()), count()))
    assert reports(world.log())


CHANGING = ("tests/cache/test_chunks.py", "-k", "all_at_once or doubts")


def test_no_race_is_seen_where_chunks_change_all_the_time(tmp_path: Path) -> None:
    assert reports(sanitized(tmp_path).test(*CHANGING)) == []


def test_a_race_of_chunks_would_be_seen(tmp_path: Path) -> None:
    source, right, wrong = BROKEN["the version of chunks"]
    assert reports(sanitized(tmp_path, **{source: (right, wrong)}).test(*CHANGING, until_seen=True))
