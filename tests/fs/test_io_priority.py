"""`io_priority`: threads that are named for a job of the background are lowered, and nobody else is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.io_priority import LEVELS, IoPriority
from keigo.devices.scheduler import priority_notes
from keigo.lsm.threads import Job, job_of_comm
from tests.conftest import MakeWorld, World
from tests.fs.support import as_user

NONE = (int(psutil.IOPRIO_CLASS_NONE), 0)
COMPACTION = (int(psutil.IOPRIO_CLASS_BE), 7)
FLUSH = (int(psutil.IOPRIO_CLASS_BE), 5)
USERS = (int(psutil.IOPRIO_CLASS_BE), 1)

# Threads named by the arguments, each doing what a line on standard input asks for: THREAD PATH.
THREADS = """
import ctypes, os, queue, sys, threading

def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))

def work(name, number):
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
    print(threading.get_native_id(), flush=True)
    ready.release()
    while True:
        create(queues[number].get())
        print("done", flush=True)

ready = threading.Semaphore(0)
queues = [queue.Queue() for _ in sys.argv[1:]]
for number, name in enumerate(sys.argv[1:]):
    threading.Thread(target=work, args=(name, number), daemon=True).start()
    ready.acquire()
for line in sys.stdin:
    number, path = line.split()
    queues[int(number)].put(path)
"""


class Threads:
    """Threads of another process, by number."""

    def __init__(self, *names: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", THREADS, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tids = [int(self._line()) for _ in names]

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def create(self, number: int, path: Path) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number} {path}\n")
        self._process.stdin.flush()
        assert self._line() == "done\n"

    def priorities(self) -> list[tuple[int, int]]:
        return [priority_of(tid) for tid in self.tids]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def priority_of(tid: int) -> tuple[int, int]:
    ioclass, value = psutil.Process(tid).ionice()
    return int(ioclass), value


@pytest.fixture
def start() -> Iterator[Callable[..., Threads]]:
    started: list[Threads] = []

    def start_some(*names: str) -> Threads:
        started.append(Threads(*names))
        return started[-1]

    yield start_some
    for threads in started:
        threads.end()


@pytest.fixture
def lowering(make_world: MakeWorld) -> World:
    """A mounted world with `io_priority`."""
    world = make_world(extra="io_priority: true\n")
    world.mount()
    return world


def test_a_tier_that_ignores_priorities_is_noted_at_the_mount(make_world: MakeWorld) -> None:
    for wanted in (True, False):
        world = make_world(extra=f"io_priority: {str(wanted).lower()}\n")
        notes = priority_notes((name, path.stat().st_dev) for name, path in world.tiers.items()) if wanted else []
        done = world.keigo("mount", world.directory, "-d", world.config, "--driver", world.driver)
        assert done.stderr.splitlines() == [f"note: {note}" for note in notes]
        world.pids.append(world.status()["pid"])


NAMES = ("rocksdb:low", "rocksdb:high", "speedb:bottom", "worker", "rocksdb:low")


def test_threads_of_the_background_are_lowered_and_given_back(lowering: World, start: Callable[..., Threads]) -> None:
    threads = start(*NAMES)
    psutil.Process(threads.tids[4]).ionice(*USERS)
    for number in range(len(NAMES)):
        threads.create(number, lowering.directory / f"00000{number}.sst")
    assert threads.priorities() == [COMPACTION, FLUSH, COMPACTION, NONE, USERS]
    assert lowering.status()["io_priority"] == {"lowered": 3, "refused": 0}
    assert "io_priority: 3 thread(s) lowered" in lowering.keigo("status", lowering.directory).stdout
    lowering.umount()
    assert threads.priorities() == [NONE, NONE, NONE, NONE, USERS]


def test_a_thread_is_lowered_once(lowering: World, start: Callable[..., Threads]) -> None:
    """Who takes it back by hand has the last word, also at the unmount."""
    threads = start("rocksdb:low", "rocksdb:low")
    for number in range(2):
        threads.create(number, lowering.directory / f"00000{number}.sst")
    psutil.Process(threads.tids[0]).ionice(psutil.IOPRIO_CLASS_NONE)
    psutil.Process(threads.tids[1]).ionice(*USERS)
    for number in range(2):
        threads.create(number, lowering.directory / f"00001{number}.sst")
    assert threads.priorities() == [NONE, USERS]
    lowering.umount()
    assert threads.priorities() == [NONE, USERS]


def test_nothing_is_lowered_unless_asked_for(mounted: World, start: Callable[..., Threads]) -> None:
    threads = start(*NAMES[:2])
    for number in range(2):
        threads.create(number, mounted.directory / f"00000{number}.sst")
    assert threads.priorities() == [NONE, NONE]
    assert mounted.status()["io_priority"] is None


def test_who_may_not_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    me, other = threading.get_native_id(), threading.Thread(target=threading.Event().wait, daemon=True)
    other.start()

    def lower() -> tuple[dict[str, int], list[str]]:
        priority = IoPriority()
        for tid in (me, other.native_id, me):
            assert tid is not None
            priority.seen(tid, Job.COMPACTION)
        priority.restore()
        return priority.facts(), [record.getMessage() for record in caplog.records]

    facts, told = as_user(tmp_path, lower)
    assert facts == {"lowered": 0, "refused": 2}
    assert told == [
        f"io_priority: thread {me} keeps its own, and so may others: another user's, which takes CAP_SYS_NICE"
    ]
    assert priority_of(me) == NONE


def test_a_thread_that_is_gone_is_no_error() -> None:
    gone = subprocess.Popen(["true"])  # join() of a thread returns before its end
    gone.wait()
    priority = IoPriority()
    priority.seen(gone.pid, Job.FLUSH)
    priority.seen(0, Job.FLUSH)
    assert priority.facts() == {"lowered": 0, "refused": 0}


@contextmanager
def idle_threads(count: int) -> Iterator[list[int]]:
    """Ids of so many threads of ours."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield [thread.native_id or 0 for thread in threads]
    finally:
        end.set()
        for thread in threads:
            thread.join()


COMMS = ("rocksdb:low", "rocksdb:high", "speedb:low", "rocksdb:bg0", "db_bench", "")
STEPS = st.lists(
    st.tuples(st.sampled_from(["seen", "told", "untold", "user", "reset", "restore"]), st.integers(0, len(COMMS) - 1)),
    max_size=30,
)


@given(STEPS)
def test_what_a_thread_ends_up_with(steps: list[tuple[str, int]]) -> None:
    """Against a model; above all: who is of the foreground keeps what it has, and so does whoever was set by hand."""
    priority = IoPriority()
    with idle_threads(len(COMMS)) as tids:
        has = [NONE] * len(tids)
        given_: dict[int, tuple[int, int] | None] = {}

        def give(number: int, level: int) -> None:
            if number not in given_:
                given_[number] = (int(psutil.IOPRIO_CLASS_BE), level) if has[number] == NONE else None
                has[number] = given_[number] or has[number]

        def take(number: int) -> None:
            if given_.pop(number, None) == has[number]:
                has[number] = NONE

        for what, number in steps:
            job = job_of_comm(COMMS[number])
            if what == "seen":
                priority.seen(tids[number], job)
                if job in LEVELS:
                    give(number, LEVELS[job])
            elif what == "told":
                priority.told(tids[number], Job.COMPACTION)
                give(number, LEVELS[Job.FLUSH])
            elif what == "untold":
                priority.told(tids[number], None)
                take(number)
            elif what == "restore":
                priority.restore()
                for known in list(given_):
                    take(known)
            else:
                has[number] = USERS if what == "user" else NONE
                psutil.Process(tids[number]).ionice(*has[number])
            assert [priority_of(tid) for tid in tids] == has
        lowered = sum(level is not None for level in given_.values())
        assert priority.facts() == {"lowered": lowered, "refused": 0}
