"""Random operations on a mount with a small cache; every byte that is read is compared with what was written.

Each file has the role that is cached. What is cached comes and goes by heat, by command, and with the files; the mount
ends in an orderly way or by kill -9.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from keigo.control import ControlError, ask
from keigo.tiers.fds import RENAME_EXCHANGE
from tests.cache.support import CHUNK, PAGE, cached_world, check_room, drop, facts, place_of, read, settle, warm, write
from tests.conftest import MakeWorld, World
from tests.fs.support import rename2

EXAMPLES = 8
STEPS = 90
CAPACITY = 10 * CHUNK  # one file and a half
AGE = 0.06
"""Seconds after which a file that was changed may be cached."""
PROBE = "000099.sst"
NAMES = ["000001.sst", "000002.sst", "000003.sst", "d/000004.sst", "d/000005.sst", "d/000006.blob"]
MOST_OPEN = 6

names = st.sampled_from(NAMES)
there = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.names)))
sizes = st.sampled_from([8 * CHUNK, 8 * CHUNK - 1, 5 * CHUNK + 1, CHUNK, PAGE, 1]) | st.integers(1, 8 * CHUNK)
offsets = st.integers(0, 8).map(lambda index: index * CHUNK) | st.integers(0, 8 * CHUNK)
lengths = st.sampled_from([1, PAGE, CHUNK, 3 * CHUNK]) | st.integers(1, 4 * CHUNK)
seeds = st.integers(0, 1 << 30)
some_file = precondition(lambda machine: machine.names)
some_open = precondition(lambda machine: machine.opened)
rarely = st.integers(0, 3).map(lambda number: number == 1)


@dataclass
class Opened:
    """An open descriptor, of a file that may have lost its names."""

    fd: int
    file: int
    direct: bool
    writes: bool


class Machine(RuleBasedStateMachine):
    """Each rule does one thing to the mount, and the same to byte strings."""

    world: World
    seen: Counter[str]
    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self.root = self.world.directory / str(next(self.numbers))
        (self.root / "d").mkdir(parents=True)
        self.names: dict[str, int] = {}
        self.contents: dict[int, bytearray] = {}
        self.opened: list[Opened] = []
        self.files = count()
        self.changed = time.monotonic()
        for number, name in enumerate(NAMES[1:5]):
            self.write(name, random.Random(number).randbytes(8 * CHUNK - number))

    def teardown(self) -> None:
        if not self.world.is_mounted():
            return
        for name in self.names:
            self.compare(name)
        self.close_all()
        for name in self.names:
            (self.root / name).unlink()

    # --- help ---

    def path(self, name: str) -> str:
        return str(self.root / name)

    def pattern(self, name: str) -> str:
        return f"{self.root.name}/{name}"

    def close_all(self) -> None:
        for each in self.opened:
            with suppress(OSError):  # of a daemon that was killed
                os.close(each.fd)
        self.opened.clear()

    def check(self, opened: Opened, offset: int, size: int) -> None:
        if opened.direct:  # as databases read: whole pages
            end = -(-(offset + size) // PAGE) * PAGE
            offset = offset // PAGE * PAGE
            size = end - offset
        expected = bytes(self.contents[opened.file][offset : offset + size])
        assert read(opened.fd, size, offset, direct=opened.direct) == expected

    def compare(self, name: str, *, direct: bool = False) -> None:
        fd = os.open(self.path(name), os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            self.check(Opened(fd, self.names[name], direct, writes=False), 0, 9 * CHUNK)
        finally:
            os.close(fd)

    def count_up(self) -> None:
        """Note what the cache has done in this mount; the filler has gone round since."""
        settle(self.world, PROBE)
        found = facts(self.world)
        for what in ("hits", "misses", "filled", "evicted", "damaged", "errors"):
            self.seen[what] += found[what]
        assert (found["damaged"], found["errors"]) == (0, 0), found
        check_room(self.world, CAPACITY)

    # --- files ---

    @some_file
    @rule(kind=st.sampled_from(["anew", "over", "mapped", "cut", "by an open one"]), draw=st.data())
    def change(self, kind: str, draw: st.DataObject) -> None:
        """The contents of a file change, in place."""
        self.changed = time.monotonic()
        name, offset, size = draw.draw(there), draw.draw(offsets), draw.draw(sizes)
        data = random.Random(draw.draw(seeds)).randbytes(size)
        if kind == "anew":
            self.write(name, data)
        elif kind == "over":
            fd = os.open(self.path(name), os.O_RDWR)
            os.pwrite(fd, data, offset)
            os.close(fd)
            self.put(self.names[name], offset, data)
        elif kind == "mapped":
            self.write_mapped(name, offset)
        elif kind == "cut":
            os.truncate(self.path(name), offset)
            self.cut(self.names[name], offset)
        else:
            for found in self.opened:
                if found.writes:
                    os.pwrite(found.fd, data, offset)
                    self.put(found.file, offset, data)
        self.check_opened()

    def check_opened(self) -> None:
        """Who had a file open before it changed reads what it is now, and at once."""
        for each in self.opened:
            self.check(each, 0, 9 * CHUNK)

    def write(self, name: str, data: bytes) -> None:
        """A new file, or one that is there is cut and written anew."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, data)
        os.close(fd)
        file = self.names.setdefault(name, next(self.files))
        self.contents.setdefault(file, bytearray())[:] = data

    def write_mapped(self, name: str, offset: int) -> None:
        whole = self.contents[self.names[name]]
        if not whole:
            return
        fd = os.open(self.path(name), os.O_RDWR)
        with mmap.mmap(fd, len(whole)) as memory:
            os.close(fd)
            memory[offset % len(whole)] ^= 0xFF
            memory.flush()
        whole[offset % len(whole)] ^= 0xFF

    def put(self, file: int, offset: int, data: bytes) -> None:
        self.cut(file, max(offset, len(self.contents[file])))
        self.contents[file][offset : offset + len(data)] = data

    def cut(self, file: int, size: int) -> None:
        whole = self.contents[file]
        whole.extend(bytes(max(0, size - len(whole))))
        del whole[size:]

    @rule(
        kind=st.sampled_from(["new", "replace", "again", "unlink", "rename", "exchange", "link"]),
        one=names,
        other=names,
        size=sizes,
        seed=seeds,
        direct=st.booleans(),
    )
    def name(self, kind: str, one: str, other: str, size: int, seed: int, direct: bool) -> None:
        """A name stands for another file from now on."""
        self.changed = time.monotonic()
        data = random.Random(seed).randbytes(size)
        if one not in self.names:
            self.write(one, data)
        elif kind == "replace":  # as databases do
            write(self.root / "new.sst", data)
            os.rename(self.path("new.sst"), self.path(one))
            self.names[one] = next(self.files)
            self.contents[self.names[one]] = bytearray(data)
        elif kind == "again":  # as when a database is created anew, with the same numbers
            same = len(self.contents[self.names[one]])
            self.unlink(one)
            self.write(one, random.Random(seed).randbytes(same or 1))
        elif kind == "unlink":
            self.unlink(one)
            self.check_opened()
            return
        elif kind == "rename":
            os.rename(self.path(one), self.path(other))
            if self.names.get(other) != self.names[one]:  # else nothing happens
                self.names[other] = self.names.pop(one)
            return
        elif kind == "exchange" and other in self.names:
            rename2(self.root / one, self.root / other, RENAME_EXCHANGE)
            self.names[one], self.names[other] = self.names[other], self.names[one]
            self.compare(other, direct=direct)
        elif kind == "link" and other not in self.names:
            os.link(self.path(one), self.path(other))
            self.names[other] = self.names[one]
        self.compare(one, direct=direct)
        self.check_opened()

    def unlink(self, name: str) -> None:
        os.unlink(self.path(name))
        del self.names[name]

    def age(self) -> None:
        """Wait until the time has come at which all files may be cached."""
        time.sleep(max(0.0, self.changed + AGE - time.monotonic()))

    # --- open files ---

    @some_file
    @rule(name=there, how=st.sampled_from(["buffered", "direct", "write"]))
    def open(self, name: str, how: str) -> None:
        self.opens(name, how)

    def opens(self, name: str, how: str) -> None:
        if len(self.opened) == MOST_OPEN:
            os.close(self.opened.pop(0).fd)
        flags = {"buffered": os.O_RDONLY, "direct": os.O_RDONLY | os.O_DIRECT, "write": os.O_RDWR}[how]
        self.opened.append(
            Opened(os.open(self.path(name), flags), self.names[name], how == "direct", writes=how == "write")
        )

    @some_open
    @rule(which=st.integers(0, MOST_OPEN - 1))
    def close(self, which: int) -> None:
        self.changed = time.monotonic()
        os.close(self.opened.pop(which % len(self.opened)).fd)

    @some_open
    @rule(which=st.integers(0, MOST_OPEN - 1), offset=offsets, size=lengths)
    def read_open(self, which: int, offset: int, size: int) -> None:
        self.check(self.opened[which % len(self.opened)], offset, size)

    @some_file
    @rule(name=there, direct=st.booleans())
    def read_all(self, name: str, direct: bool) -> None:
        self.compare(name, direct=direct)

    # --- the cache ---

    @some_file
    @rule(name=there, seed=seeds, direct=st.booleans())
    def heat(self, name: str, seed: int, direct: bool) -> None:
        """Some chunks are read so often that they are worth a copy, and what they displace may go."""
        file, rng = self.names[name], random.Random(seed)
        whole = self.contents[file]
        fd = os.open(self.path(name), os.O_RDONLY | (os.O_DIRECT if direct else 0))
        hot = rng.sample(range(9), 4)
        self.age()
        for _ in range(60):
            self.check(Opened(fd, file, direct, writes=False), rng.choice(hot) * CHUNK % (len(whole) or 1), 100)
        os.close(fd)
        settle(self.world, PROBE)

    @some_file
    @rule(name=there, direct=st.booleans())
    def warm(self, name: str, direct: bool) -> None:
        self.age()
        try:
            found = warm(self.world, self.pattern(name), enough=0)
        except ControlError as error:
            assert "nothing to cache" in str(error)
            return
        self.seen["warmed"] += found["cached"] == found["of"] > 0
        self.opens(name, "direct" if direct else "buffered")
        self.check(self.opened[-1], 0, 9 * CHUNK)

    @rule(name=names | st.just("*"), sure=rarely)
    def drop(self, name: str, sure: bool) -> None:
        if not sure:
            return
        try:
            self.seen["dropped"] += drop(self.world, self.pattern(name))
        except ControlError as error:
            assert "matches" in str(error)

    @some_file
    @rule(name=there | st.just("*"), tier=st.sampled_from(["fast", "mid", "slow", "slow", "slow"]), look=st.booleans())
    def migrate(self, name: str, tier: str, look: bool) -> None:
        self.changed = time.monotonic()
        for each in [each for each in self.opened if each.writes]:
            os.close(each.fd)
            self.opened.remove(each)
        moved = ask(self.world.volume, "migrate", pattern=self.pattern(name), tier=tier)["moved"]
        self.seen[f"moved to {tier}"] += len(moved)
        if look and name in self.names:
            self.compare(name)

    # --- ends ---

    @rule(sure=rarely)
    def remount(self, sure: bool) -> None:
        """The ends take turns, over all examples: each kind comes often enough."""
        if not sure:
            return
        self.count_up()
        turn = self.seen["killed"] + self.seen["unmounted"]
        if turn % 2 == 0:
            # What nobody has closed may be in the kernel only.
            for each in self.opened:
                if each.writes:
                    os.fsync(each.fd)
            self.world.kill()
            self.close_all()
            self.seen["killed"] += 1
        else:
            self.close_all()
            self.world.umount()
            self.seen["clean"] += (place_of(self.world) / "clean").exists()
            self.seen["unmounted"] += 1
            if turn % 4 == 1:
                self.change_unmounted()
        self.world.mount()
        self.seen["adopted"] += facts(self.world)["files"]
        assert facts(self.world)["used"] <= CAPACITY

    def change_unmounted(self) -> None:
        """Somebody writes to the bare directory, and has the times say that he did not."""
        for name, file in self.names.items():
            path, whole = self.root / name, self.contents[file]
            if not path.exists():
                continue
            status = path.stat()
            with path.open("r+b") as bare:
                for at in range(0, len(whole), CHUNK):
                    whole[at] ^= 0xFF
                    os.pwrite(bare.fileno(), whole[at : at + 1], at)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            self.seen["changed unmounted"] += 1


def test_every_byte_is_what_was_written(make_world: MakeWorld) -> None:
    world = cached_world(make_world, CAPACITY)
    world.mount()
    write(world.directory / PROBE, os.urandom(PAGE))
    seen: Counter[str] = Counter()
    machine = type("Machine", (Machine,), {"world": world, "seen": seen})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, settings().max_examples * EXAMPLES // 100),
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a mount's state is not for shrinking
        ),
    )
    world.umount()
    print(seen)
    assert "Traceback" not in world.log()
    # What is drawn differs with the version of hypothesis; what everything else here hangs on must have happened.
    for what in ("hits", "misses", "filled", "evicted", "moved to slow", "moved to fast"):
        assert seen[what] > 0, seen
    assert seen["killed"] > 0 < seen["adopted"], seen
    assert seen["clean"] > 0 < seen["changed unmounted"], seen
