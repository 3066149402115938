"""What the kernel writes past us is measured without the lock, and whatever happens meanwhile each byte counts once.

Without a mount: a write to the backing file itself is what passthrough does.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusefs.attributes import ROOT_ID, Caller, Changes
from fusefs.namespace import Namespace
from keigo.config import load as load_config
from keigo.policies import make_policy
from keigo.tiers.fds import Fd
from keigo.tiers.opening import open_volume
from tests.conftest import World
from tests.fs.test_stall import Task

pytestmark = pytest.mark.parametrize("driver", ["kernel"], indirect=True)

Step = tuple[str, int]
MOST = 20_000


class Writers:
    """Files on the tier `fast` that the kernel writes past us, and how much it wrote."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.volume = namespace.volume
        self.meter = namespace.meter
        self.open: list[tuple[int, int, Fd]] = []
        self.sizes: dict[int, int] = {}
        self.written = 0
        self.seen = 0
        self._numbers = itertools.count(1)

    def do(self, step: Step) -> None:
        what, amount = step
        if what == "create":
            name = b"%06d.log" % next(self._numbers)
            found, handle = self.namespace.files.create(ROOT_ID, name, 0o644, os.O_RDWR, Caller(0, 0, os.getpid()))
            self.volume.open_files.pin(found.id, 1)
            self.open.append((found.id, handle, self.namespace.handles.files[handle].file))
            self.sizes[found.id] = 0
        elif self.open:
            place = amount % len(self.open)
            node, handle, file = self.open[place]
            if what == "append":
                os.pwrite(file.fd, b"x" * amount, self.sizes[node])
                self.sizes[node] += amount
                self.written += amount
            elif what == "through us":
                assert self.namespace.io.write(handle, self.sizes[node], b"y" * amount) == amount
                self.sizes[node] += amount
                self.written += amount
            elif what == "cut":
                self.sizes[node] = amount * self.sizes[node] // MOST  # also to nothing
                self.namespace.nodes.setattr(node, Changes(size=self.sizes[node]), handle)
            elif what == "close":
                del self.open[place], file
                self.volume.open_files.pin(node, -1)
                self.namespace.files.release(handle)

    def traffic(self) -> int:
        """Bytes written, which is never less than it was, and never more than it is."""
        ((_, writes),) = self.meter.traffic(["fast"])
        assert self.seen <= writes.bytes <= self.written
        self.seen = writes.bytes
        return self.seen

    def end(self) -> None:
        while self.open:
            self.do(("close", 0))


@contextmanager
def writers_of(world: World) -> Iterator[Writers]:
    config = load_config(world.config)
    volume, _ = open_volume(config, world.directory, make_policy(config))
    writers = Writers(Namespace(volume))
    try:
        yield writers
    finally:
        writers.open.clear()
        writers.namespace.close()
        volume.close()


@contextmanager
def asked(writers: Writers, meanwhile: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `meanwhile` happens after the meter has asked for a file, before it hears the answer."""

    def fstat(fd: int) -> os.stat_result:
        assert not writers.volume.lock._is_owned()  # type: ignore[attr-defined]
        status = os.fstat(fd)
        meanwhile()
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusefs.meter.os", SimpleNamespace(fstat=fstat))
        yield


names = st.sampled_from(["create", "append", "append", "through us", "cut", "close", "measure", "traffic"])
steps = st.tuples(names, st.sampled_from([0, 1, 1000, 4097, MOST]))
plans = st.lists(st.tuples(steps, st.lists(steps, max_size=3)), max_size=12)
APPEND = ("append", 1000), list[Step]()


def test_each_byte_counts_once_whatever_happens_meanwhile(world: World) -> None:
    """Each step of a plan comes with others that happen while a file is being asked for, if one is."""
    with writers_of(world) as writers:
        fast = writers.volume.by_name["fast"]

        def perform(first: Step, within: list[Step]) -> None:
            left = iter([first, *within])
            measuring = False

            def go_on() -> None:
                nonlocal measuring
                for what, amount in left:
                    if what == "measure" and not measuring:  # two never measure at once
                        measuring = True
                        writers.meter.measure_writers()
                        measuring = False
                    elif what in ("measure", "traffic"):
                        writers.traffic()
                    else:
                        writers.do((what, amount))

            with asked(writers, go_on):
                go_on()

        @settings(max_examples=300)
        @given(plan=plans)
        @example(plan=[APPEND, (("measure", 0), [("cut", 0)])])  # and then it is charged for as much as before
        @example(plan=[APPEND, (("traffic", 0), [("cut", 0)])])
        @example(plan=[APPEND, (("measure", 0), [("through us", 4097)])])
        @example(plan=[APPEND, (("traffic", 0), [("through us", 1)])])
        def check(plan: list[tuple[Step, list[Step]]]) -> None:
            writers.do(("create", 0))
            for first, within in plan:
                perform(first, within)
                assert writers.traffic() == writers.written
            writers.meter.measure_writers()
            assert fast.used == sum(writers.sizes.values())
            writers.end()
            assert fast.used == sum(writers.sizes.values())
            assert writers.traffic() == writers.written

        check()


@pytest.mark.parametrize("what", ["measure_writers", "traffic"])
def test_a_device_that_hangs_when_asked_holds_up_nobody_else(what: str, world: World) -> None:
    waits, answer = threading.Event(), threading.Event()

    def hang() -> None:
        waits.set()
        assert answer.wait(60)

    with writers_of(world) as writers:
        writers.do(("create", 0))
        writers.do(("append", 1000))
        with asked(writers, hang):
            call = writers.meter.measure_writers if what == "measure_writers" else writers.traffic
            measuring = Task(call)
            try:
                assert waits.wait(60)
                for step in (("create", 0), ("append", 999), ("cut", 1), ("close", 0)):
                    Task(writers.do, step).finish()
                Task(writers.namespace.names.lookup, ROOT_ID, b"000002.log").finish()
                assert measuring.is_alive()
            finally:
                answer.set()
            measuring.finish()
        assert writers.traffic() == writers.written
        writers.end()
