"""Ends a program whose engine waits for ever inside a call, as RocksDB does on a full device.

A write that is stopped waits until RocksDB has recovered from its background error (`DBImpl::DelayWrite`, since
github.com/facebook/rocksdb/pull/11879), and from "no space left" it recovers when somebody makes room. With 9.8.4, 5 of
32 programs that filled a file system of 3 MiB hung so. One of 64 MiB did with 29 MiB free, which was too little for the
compaction, until it was ended after 8 minutes. The binding holds the GIL meanwhile: no thread of Python's runs, and no
handler of Ctrl-C, so only another process can see it, say it, and end it.

The other ways are worse. Writes that fail instead of waiting (`no_slowdown`) fail also where they are only slowed down,
and one that is repeated is charged twice against the rate that writers are slowed down to. None of the options that the
binding has keeps RocksDB from waiting. LevelDB, and Speedb 2.7, which is based on RocksDB 8.1, return an error.

The program writes a byte to the other process twice a second. A call that holds the GIL for long is no fault while the
engine is at work, so it is ended only where it has read, written and computed next to nothing meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from keigo.units import format_size

STUCK_SECONDS: Final = 120
"""Longer than a device takes to come back from a reset."""
_BEAT_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 1.0
_AT_WORK_BYTES: Final = 1 << 20  # since the last beat; RocksDB that waits moved 760 a second, to its LOG
_AT_WORK_CPU: Final = 0.2  # seconds, since the last beat; RocksDB that waits took 0.01 in 30
_ANSWER_SECONDS: Final = 5.0
_SHOW_CURSOR: Final = "\n\x1b[?25h"  # which a progress bar has hidden


@contextmanager
def ended_when_stuck(name: str, places: Sequence[Path], seconds: int = STUCK_SECONDS) -> Iterator[None]:
    """While the block runs, have this process killed once it has been stuck for `seconds`; standard error says why.

    For a program's main function: nothing of the process survives. `name` and `places`: what is said to be stuck, and
    the directories whose lack of room may be the reason.
    """
    listening, beating = os.pipe()
    command = [sys.executable, "-m", __name__, str(os.getpid()), str(seconds), name, *map(str, places)]
    # A process group of its own: Ctrl-C is for the program alone.
    keeper = subprocess.Popen(command, stdin=listening, stdout=subprocess.DEVNULL, process_group=0)
    os.close(listening)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(beating, over), name="bench-heart", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        os.close(beating)
        keeper.wait()


def _beat(pipe: int, over: threading.Event) -> None:
    while not over.wait(_BEAT_SECONDS):
        try:
            os.write(pipe, b".")
        except BrokenPipeError:
            return  # somebody has ended the other process: then nobody is to be watched


@dataclass(frozen=True, slots=True)
class Signs:
    """Of life, of a process: seconds of CPU and bytes of system calls so far, and whether somebody has stopped it."""

    cpu: float
    moved: int
    stopped: bool


def is_at_work(since: Signs, now: Signs) -> bool:
    """Whether a process did something between two moments, or could not."""
    return now.stopped or now.moved - since.moved >= _AT_WORK_BYTES or now.cpu - since.cpu >= _AT_WORK_CPU


def _signs(process: psutil.Process) -> Signs:
    with process.oneshot():
        cpu, moved, status = process.cpu_times(), process.io_counters(), process.status()
    stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return Signs(cpu.user + cpu.system, moved.read_chars + moved.write_chars, stopped)


def _await_stuck(pid: int, seconds: int) -> bool:
    """Whether the process that beats on standard input got stuck; false when it has ended."""
    try:
        process = psutil.Process(pid)
        since: Signs | None = None
        # Counted in looks, not by a clock: that goes on while this process, too, is stopped, or the machine asleep.
        looks = 0.0
        while looks < seconds:
            if select.select([0], [], [], _LOOK_SECONDS)[0]:
                if not os.read(0, 4096):
                    return False
                since = None
                continue
            now = _signs(process)
            if since is None or is_at_work(since, now):
                since, looks = now, 0.0
            else:
                looks += _LOOK_SECONDS
    except psutil.NoSuchProcess:
        return False
    return True


def _room(place: str) -> str:
    """What is free where a directory is."""
    found: list[str] = []

    def ask() -> None:
        try:
            status = os.statvfs(place)
        except OSError as error:
            found.append(f"{place}: {error.strerror}")
            return
        free, whole = (format_size(blocks * status.f_frsize) for blocks in (status.f_bavail, status.f_blocks))
        found.append(f"{place} has {free} of {whole} free")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)  # a file system that hangs may be the reason
    return found[0] if found else f"{place} does not answer"


def main(pid: int, seconds: int, name: str, places: Sequence[str]) -> None:
    """Watch over the process `pid`, which beats on standard input, until it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    if not _await_stuck(pid, seconds):
        return
    rooms = "; ".join(map(_room, places))
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    sys.stderr.write(
        f"Error: {name}: stuck in a call, which did nothing for {seconds} s: ended. {rooms}. "
        f"On a full device RocksDB waits until there is room\n"
    )
    sys.stderr.flush()
    signal.pidfd_send_signal(process, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
