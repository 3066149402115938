"""One run: its worker process is started, followed and, whatever happens, gone at the end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

import msgspec

from workloads.compare.hierarchy import Hierarchy
from workloads.compare.job import DB_BENCH, Job
from workloads.compare.results import Run
from workloads.compare.tools import environment, last_words, module
from workloads.compare.traffic import Recorder, counters_of
from workloads.compare.worker import Began, Done, Ended, Event, Refused
from workloads.runner.result import Result

_END_SECONDS: Final = 30
STALLED_SECONDS: Final = 120
"""Without an operation's end a run is given up: on a full device RocksDB stops writes until somebody makes room."""
_STEP_SECONDS: Final = 4 * 3600
"""The same for a step that does not tell how far it is."""
_decoder: Final = msgspec.json.Decoder(Event)
_Watch = Callable[[Began | Done], None]


def run_job(job: Job, hierarchy: Hierarchy, key: tuple[str, str, int], watch: _Watch) -> Run:
    """Run a job; `key` is workload, setup and repetition, `watch` hears how it gets on. What fails is in the Run.

    Raises KeyboardInterrupt on Ctrl-C; the process is gone then, too.
    """
    counters = counters_of(hierarchy.tiers)
    recorder = None if counters is None else Recorder(hierarchy.tiers, counters)
    zero = time.monotonic()
    began: dict[str, float] = {}
    result: Result | None = None
    error: str | None = None
    with _counting(recorder, job.settings.interval), tempfile.TemporaryFile(mode="w+", errors="replace") as complaints:
        with _started(job, complaints) as process:
            for event in _events(process, native=job.workload == DB_BENCH):
                match event:
                    case Began(what, at):
                        began.setdefault(what, at - zero)
                        watch(event)
                    case Done():
                        watch(event)
                    case Ended(found):
                        result, error = found, found.error
                    case Refused(why):
                        error = why
        if result is None and error is None:
            complaints.seek(0)
            code = process.returncode
            how = f"ended by signal {-code}" if code < 0 else f"exit {code}"
            error = f"the run's process failed, {how}: {last_words(complaints.read())}"
    if result is not None and result.interrupted:
        error = error or "interrupted"
    workload, setup, repetition = key
    return Run(workload, setup, repetition, result, began, None if recorder is None else recorder.moved(), error)


def _events(process: subprocess.Popen[bytes], *, native: bool) -> Iterator[Event]:
    """What the worker tells, until it ends; one that gets nowhere is ended, and Refused is the last event."""
    assert process.stdout is not None  # noqa: S101
    pipe, rest = process.stdout.fileno(), b""
    patience, done, last = float(_STEP_SECONDS), 0, time.monotonic()
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, last + patience - time.monotonic()))
        # Nothing at all comes where a call of the engine that does not return holds the GIL.
        if not ready or time.monotonic() > last + patience:
            os.killpg(process.pid, signal.SIGKILL)
            yield Refused(f"no operation ended for {patience:.0f} s: given up (is the device full?)")
            return
        found = os.read(pipe, 1 << 20)
        if not found:
            return
        *lines, rest = (rest + found).split(b"\n")
        for event in map(_decoder.decode, lines):
            if isinstance(event, Began):
                ticks = event.what in ("load", "run") and not native
                patience, done, last = float(STALLED_SECONDS if ticks else _STEP_SECONDS), 0, time.monotonic()
            elif isinstance(event, Done) and event.operations > done:
                done, last = event.operations, time.monotonic()
            yield event


@contextmanager
def _started(job: Job, complaints: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The worker, in a session of its own: Ctrl-C reaches it through us only."""
    with tempfile.TemporaryFile() as told:
        told.write(msgspec.json.encode(job))
        told.seek(0)
        process = subprocess.Popen(
            module("workloads.compare.worker"),
            stdin=told,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment(),
            start_new_session=True,
        )
    try:
        yield process
        process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.communicate(timeout=_END_SECONDS)  # what it still writes must not block it
            except subprocess.TimeoutExpired:
                continue
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def _counting(recorder: Recorder | None, interval: float) -> Iterator[None]:
    """Note the devices' counts every `interval` seconds, at the beginning, and at the end."""
    if recorder is None:
        yield
        return
    recorder.note()
    over = threading.Event()

    def count() -> None:
        while not over.wait(interval):
            recorder.note()

    thread = threading.Thread(target=count, name="traffic", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        recorder.note()
