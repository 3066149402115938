"""Random operations on the mount and on a plain directory must agree: results, errnos, contents, attributes.

The names fall on different tiers, and files migrate in between. At the end the volume is drained and unmounted, and
the bare directory must be the plain one's equal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from keigo.control import ask
from keigo.tiers.fds import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.conftest import MakeWorld, World
from tests.fs.support import rename2
from tests.fs.trees import OLD, describe, tree

STEPS = 40
PARTS = 3  # of the examples, that processors may share them
LOOK_EVERY = 4
"""Steps between two looks at what files hold: each is most of a step's time, and files that nobody has read for some
steps are a case, too. At the end all of it is compared."""

NAMES = ["000001.sst", "000002.log", "x", "d", "d/000001.sst", "d/000003.log", "d/e", "d/e/y", "d/e/000004.sst", "f"]
LOCKS = ["d/LOCK", "LOCK"]  # where a guard stands in the directory underneath
MARKERS = [*LOCKS, "d/CURRENT"]  # what makes the guard, when a file of this name is made
FILES = ["000001.sst", "000002.log", "x", "d/000001.sst", "d/e/y"]  # what is there at first
FLAGS = [os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC, os.O_APPEND, 0]

names = st.sampled_from(NAMES)
there = st.runner().flatmap(lambda machine: st.sampled_from(machine.present()))  # a name that exists, if any does
some = there | there | there | names
files = some | some | some | st.sampled_from(MARKERS)
movable = some.filter(lambda name: name not in LOCKS)
free = st.runner().flatmap(lambda machine: st.sampled_from(machine.absent())) | names
fds = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.sides[1].open)))
has_open = precondition(lambda machine: machine.sides[1].open)
slots = st.integers(0, 2)
offsets = st.sampled_from([0, 1, 4095, 4096, 70_000, 300_000]) | st.integers(0, 200_000)
data = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.integers(0, 100) | offsets)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2750, 0o1777, 0])


@dataclass
class Side:
    """One of the two directories, with what is open in it."""

    root: Path
    open: dict[int, int] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.root / name


def result(act: Callable[[Side], Any], side: Side) -> Any:
    """What an operation returns, or its errno."""
    try:
        return act(side)
    except OSError as error:
        assert error.errno is not None
        return os.strerror(error.errno)


class Machine(RuleBasedStateMachine):
    """Each rule is one operation, done on both sides."""

    world: World
    plain: Path
    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self.number = str(next(self.numbers))
        self.steps = 0
        self.sides = [Side(self.world.directory / self.number), Side(self.plain / self.number)]
        for side in self.sides:
            side.root.mkdir()
            for name in ("d", "d/e"):
                side.path(name).mkdir()
            for name in FILES:
                side.path(name).write_bytes(name.encode())

    def present(self) -> list[str]:
        return [name for name in NAMES + MARKERS if os.path.lexists(self.sides[1].path(name))] or NAMES

    def absent(self) -> list[str]:
        return [name for name in NAMES if not os.path.lexists(self.sides[1].path(name))] or NAMES

    def agree(self, act: Callable[[Side], Any]) -> Any:
        mounted, plain = (result(act, side) for side in self.sides)
        assert mounted == plain
        return plain

    def teardown(self) -> None:
        for side in self.sides:
            for fd in side.open.values():
                os.close(fd)
            side.open.clear()

    @invariant()
    def same_trees(self) -> None:
        self.steps += 1
        mounted, plain = (tree(side.root, contents=self.steps % LOOK_EVERY == 0) for side in self.sides)
        assert mounted == plain

    # --- names ---

    @rule(name=free, mode=modes)
    def mkdir(self, name: str, mode: int) -> None:
        self.agree(lambda side: os.mkdir(side.path(name), mode))

    @rule(name=some)
    def rmdir(self, name: str) -> None:
        self.agree(lambda side: os.rmdir(side.path(name)))

    @rule(name=files)
    def unlink(self, name: str) -> None:
        self.agree(lambda side: os.unlink(side.path(name)))

    @rule(old=movable, new=movable | free, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.agree(lambda side: rename2(side.path(old), side.path(new), flags))

    @rule(old=there, new=free)
    def link(self, old: str, new: str) -> None:
        self.agree(lambda side: os.link(side.path(old), side.path(new), follow_symlinks=False))

    @rule(name=free, to=names)
    def symlink(self, name: str, to: str) -> None:
        self.agree(lambda side: os.symlink(to, side.path(name)))

    @rule(name=some)
    def readlink(self, name: str) -> None:
        self.agree(lambda side: os.readlink(side.path(name)))

    @rule(name=free)
    def mkfifo(self, name: str) -> None:
        self.agree(lambda side: os.mkfifo(side.path(name), 0o640))

    @rule(name=some)
    def listdir(self, name: str) -> None:
        self.agree(lambda side: sorted(os.listdir(side.path(name))))

    # --- files by name ---

    @rule(name=files, contents=data)
    def write_file(self, name: str, contents: bytes) -> None:
        def act(side: Side) -> int:
            fd = os.open(side.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
            try:
                return os.write(fd, contents)
            finally:
                os.close(fd)

        self.agree(act)

    @rule(name=files, size=offsets)
    def truncate(self, name: str, size: int) -> None:
        self.agree(lambda side: os.truncate(side.path(name), size))

    @rule(name=files, mode=modes)
    def chmod(self, name: str, mode: int) -> None:
        self.agree(lambda side: os.chmod(side.path(name), mode))

    # Not -1 for both: the kernel then asks a local file system to clear setuid, and tells FUSE nothing of it.
    @rule(name=some, uid=st.sampled_from([0, 1]), gid=st.sampled_from([-1, 0, 2]))
    def chown(self, name: str, uid: int, gid: int) -> None:
        self.agree(lambda side: os.chown(side.path(name), uid, gid, follow_symlinks=False))

    @rule(name=files, atime=st.integers(0, OLD - 1), mtime=st.integers(0, OLD - 1))
    def utime(self, name: str, atime: int, mtime: int) -> None:
        self.agree(lambda side: os.utime(side.path(name), ns=(atime, mtime), follow_symlinks=False))

    @rule(name=files)
    def stat(self, name: str) -> None:
        self.agree(lambda side: describe(os.stat(side.path(name))))

    @rule(name=files, key=st.sampled_from(["user.a", "user.b"]), value=st.binary(max_size=20), flags=st.integers(0, 2))
    def setxattr(self, name: str, key: str, value: bytes, flags: int) -> None:
        self.agree(lambda side: os.setxattr(side.path(name), key, value, flags))

    @rule(name=some, key=st.sampled_from(["user.a", "user.b"]))
    def removexattr(self, name: str, key: str) -> None:
        self.agree(lambda side: os.removexattr(side.path(name), key))

    # --- open files ---

    @rule(
        slot=slots, name=some, how=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]), flags=st.sampled_from(FLAGS)
    )
    def open(self, slot: int, name: str, how: int, flags: int) -> None:
        self.close(slot)
        # The kernel opens a FIFO by itself: nobody is left to ask about one that is open and has no name any more.
        if os.path.lexists(self.sides[1].path(name)) and stat.S_ISFIFO(os.lstat(self.sides[1].path(name)).st_mode):
            return

        def act(side: Side) -> None:
            side.open[slot] = os.open(side.path(name), how | flags | os.O_NONBLOCK, 0o640)

        self.agree(act)

    @has_open
    @rule(slot=fds)
    def close(self, slot: int) -> None:
        for side in self.sides:
            if slot in side.open:
                os.close(side.open.pop(slot))

    def with_fd(self, slot: int, act: Callable[[int], Any]) -> None:
        self.agree(lambda side: act(side.open[slot]))

    @has_open
    @rule(slot=fds, contents=data)
    def write(self, slot: int, contents: bytes) -> None:
        self.with_fd(slot, lambda fd: os.write(fd, contents))

    @has_open
    @rule(slot=fds, contents=data, offset=offsets)
    def pwrite(self, slot: int, contents: bytes, offset: int) -> None:
        self.with_fd(slot, lambda fd: os.pwrite(fd, contents, offset))

    @has_open
    @rule(slot=fds, size=offsets)
    def read(self, slot: int, size: int) -> None:
        self.with_fd(slot, lambda fd: os.read(fd, size))

    @has_open
    @rule(slot=fds, size=offsets, offset=offsets)
    def pread(self, slot: int, size: int, offset: int) -> None:
        self.with_fd(slot, lambda fd: os.pread(fd, size, offset))

    @has_open
    @rule(slot=fds, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def seek(self, slot: int, offset: int, whence: int) -> None:
        # Where a directory's listing stands is a number of its file system's own.
        self.with_fd(slot, lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else os.lseek(fd, offset, whence))

    @has_open
    @rule(slot=fds, size=offsets)
    def ftruncate(self, slot: int, size: int) -> None:
        self.with_fd(slot, lambda fd: os.ftruncate(fd, size))

    @has_open
    @rule(slot=fds, sync=st.sampled_from([os.fsync, os.fdatasync]))
    def sync(self, slot: int, sync: Callable[[int], None]) -> None:
        self.with_fd(slot, sync)

    @has_open
    @rule(slot=fds)
    def fstat(self, slot: int) -> None:
        self.with_fd(slot, lambda fd: describe(os.fstat(fd)))

    @has_open
    @rule(slot=fds, mode=modes)
    def fchmod(self, slot: int, mode: int) -> None:
        self.with_fd(slot, lambda fd: os.fchmod(fd, mode))

    @has_open
    @rule(slot=fds, mtime=st.integers(0, OLD - 1))
    def futime(self, slot: int, mtime: int) -> None:
        self.with_fd(slot, lambda fd: os.utime(fd, ns=(mtime, mtime)))

    # --- what only the mount can do ---

    @rule(
        name=st.sampled_from(["*", *(name for name in NAMES if name.endswith(".sst"))]),
        tier=st.sampled_from(["fast", "mid", "slow"]),
    )
    def migrate(self, name: str, tier: str) -> None:
        try:
            ask(self.world.volume, "migrate", pattern=f"{self.number}/{name}", tier=tier)
        except Exception as error:
            if "no file matches" not in str(error):
                raise
        # A migration may show in the times of directories, and only there.
        for side in self.sides:
            for directory, _, _ in os.walk(side.root):
                os.utime(directory)


@pytest.mark.parametrize("part", range(PARTS))
def test_against_a_plain_directory(make_world: MakeWorld, tmp_path: Path, part: int) -> None:
    world = make_world(capacity={"fast": "256MiB", "mid": "256MiB"})
    world.mount()
    plain = tmp_path / "plain"
    plain.mkdir()
    before = os.umask(0)
    machine = type("Machine", (Machine,), {"world": world, "plain": plain})
    try:
        run_state_machine_as_test(
            seed(part)(machine) if settings().derandomize else machine,
            settings=settings(
                max_examples=settings().max_examples * 6 // 10 // PARTS,  # each is many requests through a mount
                stateful_step_count=STEPS,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        os.umask(before)
    assert {"fast", "mid", "slow"} <= world.used_tiers()
    world.keigo("drain", world.directory)
    world.umount()
    assert "Traceback" not in world.log()
    for directory in (world.directory, plain):
        for path, _, _ in os.walk(directory):
            os.utime(path)
    assert tree(world.directory) == tree(plain)
    assert [list(world.tiers[tier].iterdir()) for tier in ("fast", "mid")] == [[], []]
