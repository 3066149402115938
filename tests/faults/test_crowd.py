"""Hundreds of threads at a few names, while files migrate: each call says what it may say, and no file is torn.

KEIGO_CROWD sets how much each thread does (`scripts/soak` has them do fifty times as much).
"""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keigo.control import ControlError, ask
from keigo.tiers.fds import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.conftest import MakeWorld, World

EACH = int(os.environ.get("KEIGO_CROWD", "10"))
THREADS = 300
NAMES = [f"{number:06}.{kind}" for number in range(1, 5) for kind in ("sst", "log", "dbtmp")]
PLACES = [f"{directory}/{name}" for directory in ("a", "b") for name in NAMES]
ALWAYS = ["a/always.sst", "b/always.dbtmp"]
"""Names that are replaced, and never removed."""
UNIT = struct.Struct("<QII")
MAGIC = 0x5DEECE66D

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
    pytest.mark.timeout(0 if EACH > 10 else 300),
]


def record(number: int, units: int) -> bytes:
    """Contents that tell themselves what they are, in each part."""
    return UNIT.pack(MAGIC, number, units) * units


def check_record(found: bytes, where: str) -> None:
    """One record as a whole, or nothing: it is being written."""
    if not found:
        return
    magic, number, units = UNIT.unpack_from(found)
    assert magic == MAGIC, where
    assert found == record(number, units), f"{where}: {len(found)} bytes of {units * UNIT.size}, of record {number}"


@dataclass
class Crowd:
    """Threads, what they have seen, and what was wrong."""

    world: World
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    done: threading.Event = field(default_factory=threading.Event)
    begin: threading.Barrier = field(default_factory=lambda: threading.Barrier(THREADS))

    def at(self, place: str) -> Path:
        return self.world.directory / place

    @contextmanager
    def may(self, what: str, *allowed: int) -> Iterator[None]:
        """A call that may fail so, and not otherwise."""
        try:
            yield
        except OSError as error:
            self.seen[f"{what}: {errno.errorcode[error.errno or 0]}"] += 1
            # The kernel looks a name up once more where its file was gone: it may be replaced a second time meanwhile.
            if error.errno not in (*allowed, errno.ESTALE):
                self.wrong.append(f"{what}: {error}")
        except AssertionError as error:
            self.wrong.append(f"{what}: {error}")
        else:
            self.seen[what] += 1

    # --- what a thread does ---

    def replace(self, me: int, chance: random.Random) -> None:
        """Write a file of one's own, and give it a name that others use."""
        place = chance.choice(PLACES + ALWAYS)
        mine = self.at(f"{place.partition('/')[0]}/mine-{me}.{place.rpartition('.')[2]}")
        with self.may("write"):
            with mine.open("xb") as file:
                file.write(record(chance.randrange(1 << 30), chance.randrange(1, 1500)))
                file.flush()
                if chance.random() < 0.2:
                    os.fsync(file.fileno())
            os.rename(mine, self.at(place))

    def create(self, _me: int, chance: random.Random) -> None:
        place = chance.choice(PLACES)
        with self.may("create", errno.EEXIST):
            fd = os.open(self.at(place), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                os.write(fd, record(chance.randrange(1 << 30), 200))  # within a page, so never seen in part
                if chance.random() < 0.2:
                    os.fsync(fd)
            finally:
                os.close(fd)

    def read(self, _me: int, chance: random.Random) -> None:
        place = chance.choice(PLACES)
        with self.may("read", errno.ENOENT), self.at(place).open("rb", buffering=0) as file:
            check_record(file.read(), place)
            status = os.fstat(file.fileno())
            assert status.st_size % UNIT.size == 0

    def read_always(self, _me: int, chance: random.Random) -> None:
        place = chance.choice(ALWAYS)
        with self.may("read of what is always there"), self.at(place).open("rb", buffering=0) as file:
            found = file.read()
            assert found
            check_record(found, place)

    def stat_always(self, _me: int, chance: random.Random) -> None:
        with self.may("stat of what is always there"):
            assert os.stat(self.at(chance.choice(ALWAYS))).st_size > 0

    def unlink(self, _me: int, chance: random.Random) -> None:
        with self.may("unlink", errno.ENOENT):
            os.unlink(self.at(chance.choice(PLACES)))

    def rename(self, _me: int, chance: random.Random) -> None:
        old, new = (os.fsencode(self.at(place)) for place in chance.sample(PLACES, 2))
        flags = chance.choice([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
        allowed = (errno.ENOENT, errno.EEXIST) if flags == RENAME_NOREPLACE else (errno.ENOENT,)
        with self.may(f"rename {flags}", *allowed):
            renameat2(-100, old, -100, new, flags)

    def link(self, _me: int, chance: random.Random) -> None:
        old, new = (self.at(place) for place in chance.sample(PLACES, 2))
        with self.may("link", errno.ENOENT, errno.EEXIST):
            os.link(old, new)

    def stat(self, _me: int, chance: random.Random) -> None:
        place = chance.choice(PLACES)
        with self.may("stat", errno.ENOENT):
            status = os.stat(self.at(place))
            assert status.st_size % UNIT.size == 0
            assert 0 <= status.st_nlink <= len(PLACES)

    def chmod(self, _me: int, chance: random.Random) -> None:
        with self.may("chmod", errno.ENOENT):
            os.chmod(self.at(chance.choice(PLACES)), chance.choice([0o600, 0o644]))

    def list(self, _me: int, chance: random.Random) -> None:
        directory = chance.choice("ab")
        with self.may("readdir"):
            names = os.listdir(self.at(directory))
            assert len(names) == len(set(names))
            assert all(name in (*NAMES, "always.sst", "always.dbtmp") or name.startswith("mine-") for name in names), (
                names
            )

    def sync(self, _me: int, chance: random.Random) -> None:
        with self.may("fsync of a directory"):
            fd = os.open(self.at(chance.choice("ab")), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def work(self, me: int) -> None:
        chance = random.Random(me)
        does: Mapping[Callable[[int, random.Random], None], int] = {
            self.replace: 6, self.create: 3, self.read: 6, self.unlink: 2, self.rename: 4, self.link: 1,
            self.read_always: 3, self.stat_always: 2, self.stat: 4, self.chmod: 1, self.list: 2, self.sync: 1,
        }  # fmt: skip
        self.begin.wait()
        for what in chance.choices([*does], [*does.values()], k=EACH):
            what(me, chance)

    def move(self) -> None:
        chance = random.Random(0)
        while not self.done.is_set():
            with suppress(ControlError):  # nothing of that name, just now
                place = chance.choice([*PLACES, ALWAYS[0]])
                said = ask(self.world.volume, "migrate", pattern=place, tier=chance.choice(["fast", "mid", "slow"]))
                self.seen["moved"] += len(said["moved"])

    def run(self) -> None:
        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  told by the test
                self.wrong.append(repr(error))

        movers = [threading.Thread(target=guarded, args=(self.move,)) for _ in range(2)]
        workers = [
            threading.Thread(target=guarded, args=(lambda number=number: self.work(number),))
            for number in range(THREADS)
        ]
        for thread in [*movers, *workers]:
            thread.start()
        for thread in workers:
            thread.join()
        self.done.set()
        for thread in movers:
            thread.join()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(levels="{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}")


def test_a_crowd_at_a_few_names(world: World) -> None:
    world.mount()
    for directory in "ab":
        (world.directory / directory).mkdir()
    for place in ALWAYS:
        (world.directory / place).write_bytes(record(0, 10))
    crowd = Crowd(world)
    crowd.run()
    assert not crowd.wrong, (Counter(text[:60] for text in crowd.wrong), crowd.wrong[:5], crowd.seen)
    stale = sum(count for what, count in crowd.seen.items() if what.endswith("ESTALE"))
    assert stale * 500 < sum(crowd.seen.values()), crowd.seen
    # All of it has happened, and nobody's file was left half-way.
    for what in ("write", "create", "read", "rename 0", "link", "moved", "read: ENOENT", "create: EEXIST"):
        assert crowd.seen[what], crowd.seen
    world.wait_closed()
    found = sorted(f"{directory}/{name}" for directory in "ab" for name in os.listdir(world.directory / directory))
    assert set(ALWAYS) <= set(found) <= {*PLACES, *ALWAYS}
    assert sorted(row["name"] for row in world.ls()) == found
    for place in found:
        contents = (world.directory / place).read_bytes()
        assert contents
        check_record(contents, place)
    world.wait_closed()
    world.umount()
    assert "Traceback" not in world.log()
    for place in found:
        assert sum((tier / place).exists() for tier in world.tiers.values()) == 1, place
    for tier in world.tiers.values():
        for directory in "ab":
            assert {f"{directory}/{path.name}" for path in (tier / directory).glob("*")} <= set(found)
    world.keigo("fsck", world.directory, "-d", world.config)
