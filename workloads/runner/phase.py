"""The threads of one phase, load or run: begun together, ended together, and what they recorded taken together."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

import numpy as np

from workloads.operations import Batch, Int64s, Op, share
from workloads.runner.drive import NEVER, Clock, Driver, Limits, Loop, Operations, Pace, Recorder, wake_exactly
from workloads.runner.histogram import Histogram

_TICK: Final = 0.2  # seconds between two looks at how far the threads are
# Seconds after which a thread that runs Python lets go of the GIL, 5 ms by default. An operation whose engine let go of
# it may have to wait so long, and that counts. LevelDB, YCSB A, 2 threads: 119,000 operations/s with 99.9% of reads
# below 3.6 ms by default, 157,000 and 0.5 ms with this; 50 us cost RocksDB a quarter of its speed.
_SWITCH: Final = 0.0005


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """What the threads of a phase do."""

    batches: Sequence[Iterator[Batch]]
    """Of each thread."""
    operations: int | None = None
    """Of all threads together, after the warm-up; None: until the workload or the time ends."""
    seconds: float | None = None
    """After the warm-up."""
    warm_up: float = 0.0
    """Seconds of operations that come first and are not counted."""
    rate: float | None = None
    """Operations per second of all threads, each due at its time (open loop); None: as the batches say, or as soon as
    the one before is done."""
    interval: float = 1.0


@dataclass(slots=True)
class Measured:
    """What all threads of a phase recorded."""

    seconds: float
    operations: int
    missing: int
    scanned: int
    value_bytes: int
    behind: float
    latency: dict[Op, Histogram]
    service: dict[Op, Histogram]
    per_interval: dict[Op, list[int]]
    interrupted: bool
    error: BaseException | None
    """What ended a thread early."""


class PhaseRun:
    """One phase. `run` may be called once."""

    def __init__(self, spec: PhaseSpec, loops: Sequence[Loop], clock: Clock) -> None:
        self._spec = spec
        self._clock = clock
        self._threads = len(spec.batches)
        self._lock = threading.Lock()  # of `_stopping`, and of the limits while it may change
        self._stopping = False
        self._warm = spec.warm_up <= 0
        self._origin = 0  # by the clock: when the first operation, of the warm-up if there is one, could begin
        self._start = 0  # by the clock: when measuring began
        self._began = threading.Event()
        self._barrier = threading.Barrier(self._threads, self._begin)
        self._drivers = [
            Driver(Operations(batches), loop, Limits()) for batches, loop in zip(spec.batches, loops, strict=True)
        ]
        self._recorders: list[Recorder] = []

    def _begin(self) -> None:
        """All threads are at the barrier: before the warm-up, and before what is measured."""
        now = self._clock.now()
        self._origin = self._origin or now
        if self._warm:
            self._start = now
            self._recorders = [Recorder(now, round(self._spec.interval * 1e9)) for _ in range(self._threads)]
            self._began.set()
        self._warm = True

    def stop(self) -> None:
        """End the phase: each thread after the operation under way. Any thread may call it."""
        with self._lock:
            self._stopping = True
            for driver in self._drivers:
                driver.limits.until = 0
        self._clock.stop()
        self._barrier.abort()

    def _limit(self, driver: Driver, until: int) -> None:
        with self._lock:
            driver.limits.until = 0 if self._stopping else until

    def _work(self, thread: int) -> None:
        wake_exactly()
        driver, spec = self._drivers[thread], self._spec
        try:
            if spec.warm_up > 0:
                self._barrier.wait()
                self._limit(driver, self._origin + round(spec.warm_up * 1e9))
                driver.drive(None, self._pace(thread, self._origin), Recorder(self._origin, 1 << 60))
            self._barrier.wait()
        except threading.BrokenBarrierError:
            return  # the phase was stopped, and whoever did it says why
        until = NEVER if spec.seconds is None else self._start + round(spec.seconds * 1e9)
        self._limit(driver, until)
        most = None if spec.operations is None else share(spec.operations, thread, self._threads)
        recorder = self._recorders[thread]
        driver.drive(most, self._pace(thread, self._start), recorder)
        if self._clock.now() >= until:
            recorder.last = max(recorder.last, until)  # in an open loop nothing may have been due for long

    def _pace(self, thread: int, start: int) -> Pace:
        rate, threads, origin = self._spec.rate, self._threads, self._origin

        def due(batch: Batch, done: int) -> Int64s | None:
            if rate is not None:
                numbers = np.arange(done, done + len(batch), dtype=np.int64) * threads + thread
                return np.asarray(start + (numbers * (1e9 / rate)).astype(np.int64))
            if batch.at is not None:
                return np.asarray(origin + (batch.at * 1e9).astype(np.int64))
            return None

        return due

    @property
    def live(self) -> int:
        """About how many operations have ended, those of the warm-up among them."""
        return sum(driver.live for driver in self._drivers)

    @property
    def elapsed(self) -> float:
        """Seconds since measuring began; 0 before."""
        return (self._clock.now() - self._start) / 1e9 if self._began.is_set() else 0.0

    def run(self, sample: Callable[[], None], on_tick: Callable[[], None]) -> Measured:
        """Run it to its end. `sample` is called when measuring begins, in each interval, and at the end; `on_tick`
        five times a second. Ctrl-C (KeyboardInterrupt) ends the phase as `stop` does; a second one ends the waiting
        for its threads, too."""
        interrupted = False
        if self._spec.warm_up <= 0:
            sample()
        switch = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="bench")
        futures: list[Future[None]] = []
        try:
            try:
                for thread in range(self._threads):
                    futures.append(pool.submit(self._work, thread))
                    futures[-1].add_done_callback(self._ended)
                self._watch(futures, sample, on_tick)
            except KeyboardInterrupt:
                interrupted = True
                self.stop()
                pool.shutdown()  # not `wait`: it may have come before a thread was among the futures
            errors = [error for future in futures if (error := future.exception()) is not None]
        finally:
            self.stop()
            pool.shutdown(wait=False)
            sys.setswitchinterval(switch)
        sample()
        return self._measured(interrupted, errors[0] if errors else None)

    def _ended(self, future: Future[None]) -> None:
        if future.exception() is not None:
            self.stop()

    def _watch(self, futures: list[Future[None]], sample: Callable[[], None], on_tick: Callable[[], None]) -> None:
        left = set(futures)
        while not self._began.wait(_TICK):
            on_tick()
            if not wait(left, 0).not_done:
                return
        if self._spec.warm_up > 0:
            sample()
        samples = 1
        while left:
            until_sample = samples * self._spec.interval - self.elapsed
            _, left = wait(left, max(0.001, min(_TICK, until_sample)), FIRST_EXCEPTION)
            if left and self.elapsed >= samples * self._spec.interval:
                sample()
                samples = int(self.elapsed / self._spec.interval) + 1
            on_tick()

    def _measured(self, interrupted: bool, error: BaseException | None) -> Measured:
        recorders = self._recorders
        last = max((recorder.last for recorder in recorders), default=0)
        found = Measured(
            seconds=max(0, last - self._start) / 1e9,
            operations=sum(recorder.done for recorder in recorders),
            missing=sum(recorder.missing for recorder in recorders),
            scanned=sum(recorder.scanned for recorder in recorders),
            value_bytes=sum(recorder.value_bytes for recorder in recorders),
            behind=max((recorder.behind for recorder in recorders), default=0) / 1e9,
            latency={},
            service={},
            per_interval={},
            interrupted=interrupted,
            error=error,
        )
        for recorder in recorders:
            for into, histograms in ((found.latency, recorder.latency), (found.service, recorder.service)):
                for op, histogram in histograms.items():
                    into.setdefault(op, Histogram()).merge(histogram)
        columns = max((len(counts) for recorder in recorders for counts in recorder.per_interval.values()), default=0)
        columns = max(columns, math.ceil(found.seconds / self._spec.interval))
        for recorder in recorders:
            for op, counts in recorder.per_interval.items():
                summed = found.per_interval.setdefault(op, [0] * columns)
                for place, count in enumerate(counts):
                    summed[place] += count
        return found
