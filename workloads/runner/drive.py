"""The loop around the operations of one thread, and what it records.

Everything that can be done by the array is done before and after the loop, in chunks of 512 operations: keys, values,
when each is due; latencies, counts per interval. In the loop an operation costs two looks at the clock and four list
accesses. With the null engine the whole takes 0.6 us an operation of YCSB C, 1.0 of A with values of 1000 bytes, and
1.1 of F (`scripts/bench_runner.py`, 2 CPUs, one thread). Latencies contain none of it but one look at the clock; in an
open loop, also that a thread that waited wakes about 20 us late, which the service times do not have.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from workloads.engines.protocol import Engine
from workloads.operations import Batch, Int64s, Op
from workloads.records import KeyFormat, Values
from workloads.runner.histogram import Histogram

CHUNK: Final = 512
_CHUNK_BYTES: Final = 8 << 20  # of values, made before the loop
NEVER: Final = (1 << 63) - 1
_PR_SET_TIMERSLACK: Final = 29
_libc = ctypes.CDLL(None)


class Clock(Protocol):
    """What time it is, and waiting for a moment. Calls may run in parallel."""

    def now(self) -> int:
        """Nanoseconds, since any moment."""

    def wait(self, seconds: float) -> bool:
        """Let that time pass; true, and at once, once `stop` was called."""

    def stop(self) -> None:
        """End all waiting, now and later."""


class RealClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        self._stopped = False
        self.now = time.perf_counter_ns

    def wait(self, seconds: float) -> bool:
        """See Clock. The wait that is under way when `stop` is called takes up to 0.1 s more."""
        # An Event would be told of the stop at once, but 20,000 waits a second took 0.36 CPUs with it, and this 0.2.
        while not self._stopped and seconds > 0.1:
            time.sleep(0.1)
            seconds -= 0.1
        if not self._stopped:
            time.sleep(seconds)
        return self._stopped

    def stop(self) -> None:
        """See Clock."""
        self._stopped = True


def wake_exactly() -> None:
    """Have the kernel end this thread's waits 1 ns late at most instead of 50 us (prctl(2)): they count as latency."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


class Operations:
    """The operations of one thread, from a workload's batches, by the chunk."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._left: Batch | None = None

    def take(self, most: int) -> Batch | None:
        """The next operations, 1 to `most`; None at the end of the workload."""
        batch = self._left if self._left is not None else next((found for found in self._batches if len(found)), None)
        if batch is None:
            return None
        self._left = batch.part(most, len(batch)) if len(batch) > most else None
        return batch.part(0, most)

    def give_back(self, batch: Batch, done: int) -> None:
        """Of the batch taken last only `done` were done."""
        rest = batch.part(done, len(batch))
        if self._left is not None:
            parts = rest, self._left
            at = None if rest.at is None or self._left.at is None else np.concatenate([rest.at, self._left.at])
            rest = Batch(
                np.concatenate([part.op for part in parts]),
                np.concatenate([part.key for part in parts]),
                np.concatenate([part.size for part in parts]),
                np.concatenate([part.length for part in parts]),
                at,
            )
        self._left = rest if len(rest) else None


@dataclass(slots=True)
class Limits:
    """When a thread's loop ends; `until` may be set to 0 by any thread, to end it after the operation under way."""

    until: int = NEVER
    """By the clock."""


@dataclass(slots=True)
class Recorder:
    """What one thread did since `start` (by the clock), in operations that have ended."""

    start: int
    interval: int
    """Nanoseconds."""
    latency: dict[Op, Histogram] = field(default_factory=dict)
    service: dict[Op, Histogram] = field(default_factory=dict)
    per_interval: dict[Op, list[int]] = field(default_factory=dict)
    done: int = 0
    missing: int = 0
    scanned: int = 0
    value_bytes: int = 0
    last: int = 0
    """When the last one ended."""
    behind: int = 0
    """How late the last one began."""

    def record(self, batch: Batch, due: Int64s | None, starts: Int64s, ends: Int64s) -> None:
        """Add the operations of `batch`; `due`: when each was to begin, None where that is when it did."""
        if not len(batch):
            return
        for code in np.flatnonzero(np.bincount(batch.op, minlength=len(Op))).tolist():
            chosen = batch.op == code
            op, ended, began = Op(code), ends[chosen], starts[chosen]
            self._histogram(self.latency, op).record(ended - (began if due is None else due[chosen]))
            if due is not None:
                self._histogram(self.service, op).record(ended - began)
            self._count(op, ended)
        self.done += len(batch)
        self.value_bytes += int(batch.size.sum())
        self.last = int(ends[-1])
        if due is not None:
            self.behind = max(0, int(starts[-1] - due[-1]))

    @staticmethod
    def _histogram(of: dict[Op, Histogram], op: Op) -> Histogram:
        if op not in of:
            of[op] = Histogram()
        return of[op]

    def _count(self, op: Op, ends: Int64s) -> None:
        counts = self.per_interval.setdefault(op, [])
        places = np.maximum(ends - self.start, 0) // self.interval
        first = int(places[0])
        counts.extend([0] * (int(places[-1]) + 1 - len(counts)))
        for place, count in enumerate(np.bincount(places - first).tolist(), first):
            counts[place] += count


def stamped(number: int, size: int) -> int:
    """The version that a value of `size` bytes carries when it is the `number`th: half of each, so that a value cut
    short does not pass for one that was written so."""
    return ((number & 0xFFFF) << 16) | ((size ^ size >> 16) & 0xFFFF)


def await_due(clock: Clock, moment: int, limits: Limits) -> bool:
    """Wait until an operation is due, or until the loop ends, where that comes first or it is stopped: then false."""
    until = limits.until
    left = max(0, min(moment, until) - clock.now())  # the moment may pass while another thread has the GIL
    return not clock.wait(left / 1e9) and moment < until


class Loop(Protocol):
    """Does operations; `PlainLoop`, or one that also checks them."""

    def do(self, batch: Batch, due: list[int], starts: array[int], ends: array[int], limits: Limits) -> None:
        """Do the operations of `batch`, the i-th no earlier than `due[i]` by the clock, noting when each began and
        ended, until all are done or the clock passes `limits.until`. Raises what the engine raises; what has ended by
        then is noted."""

    missing: int
    """Reads that found nothing, so far."""
    scanned: int
    """Records that scans returned, so far."""


class PlainLoop:
    """Does operations and believes what they say."""

    def __init__(self, engine: Engine, keys: KeyFormat, values: Values, clock: Clock) -> None:
        self._engine = engine
        self._keys = keys
        self._values = values
        self._clock = clock
        self._written = 0
        self.missing = 0
        self.scanned = 0

    def _values_of(self, batch: Batch) -> list[bytes | None]:
        value = self._values.value
        number = self._written
        self._written += len(batch)
        return [
            value(key, stamped(number + place, size), size) if size else None
            for place, (key, size) in enumerate(zip(batch.key.tolist(), batch.size.tolist(), strict=True))
        ]

    def do(self, batch: Batch, due: list[int], starts: array[int], ends: array[int], limits: Limits) -> None:
        """See Loop."""
        get, put, scan, delete = self._engine.get, self._engine.put, self._engine.scan, self._engine.delete
        now = self._clock.now
        values = self._values_of(batch)
        rows = zip(batch.op.tolist(), self._keys.keys(batch.key), values, batch.length.tolist(), due, strict=True)
        for place, (op, key, value, length, moment) in enumerate(rows):
            start = now()
            if start < moment:
                if not await_due(self._clock, moment, limits):
                    return
                start = now()
            if op == 0:
                if get(key) is None:
                    self.missing += 1
            elif op <= 2:
                put(key, value)  # type: ignore[arg-type]  # an update and an insert have a size, hence a value
            elif op == 3:
                self.scanned += len(scan(key, length))
            elif op == 4:
                if get(key) is None:
                    self.missing += 1
                put(key, value)  # type: ignore[arg-type]
            else:
                delete(key)
            end = now()
            starts[place] = start
            ends[place] = end
            if end >= limits.until:
                return


Pace = Callable[[Batch, int], Int64s | None]
"""A batch, and how many operations the thread did before -> when each is due, by the clock; None: at once."""


class Driver:
    """One thread's loop: takes operations, does them, records what was measured. `live` may be read by any thread."""

    def __init__(self, operations: Operations, loop: Loop, limits: Limits) -> None:
        self._operations = operations
        self._loop = loop
        self.limits = limits
        self._starts = array("q", bytes(8 * CHUNK))
        self._ends = array("q", bytes(8 * CHUNK))
        self._seen_ends = np.frombuffer(self._ends, np.int64)
        self._recorded = 0

    @property
    def live(self) -> int:
        """About how many operations have ended so far."""
        return self._recorded + int(np.count_nonzero(self._seen_ends))

    def drive(self, most: int | None, pace: Pace, recorder: Recorder) -> bool:
        """Do up to `most` operations, or until `limits`; false when the workload has no more. Raises EngineError,
        VerificationError; what ended before is recorded."""
        done = 0
        missing, scanned = self._loop.missing, self._loop.scanned
        try:
            while most is None or done < most:
                batch = self._take(CHUNK if most is None else min(CHUNK, most - done))
                if batch is None:
                    return False
                ended = self._chunk(batch, pace(batch, done), recorder)
                done += ended
                if ended < len(batch):
                    self._operations.give_back(batch, ended)
                    break
                if self._ends[ended - 1] >= self.limits.until:
                    break
            return True
        finally:
            recorder.missing += self._loop.missing - missing
            recorder.scanned += self._loop.scanned - scanned

    def _take(self, most: int) -> Batch | None:
        batch = self._operations.take(most)
        if batch is None or int(batch.size.sum()) <= _CHUNK_BYTES:
            return batch
        fitting = max(1, int(np.searchsorted(np.cumsum(batch.size, dtype=np.int64), _CHUNK_BYTES, side="right")))
        if fitting < len(batch):
            self._operations.give_back(batch, fitting)
        return batch.part(0, fitting)

    def _chunk(self, batch: Batch, due: Int64s | None, recorder: Recorder) -> int:
        self._seen_ends[:] = 0
        moments = list(itertools.repeat(0, len(batch))) if due is None else due.tolist()
        try:
            self._loop.do(batch, moments, self._starts, self._ends, self.limits)
        finally:
            ended = int(np.count_nonzero(self._seen_ends))
            starts, ends = np.frombuffer(self._starts, np.int64)[:ended], self._seen_ends[:ended].copy()
            self._recorded += ended
            self._seen_ends[:] = 0
            recorder.record(batch.part(0, ended), None if due is None else due[:ended], starts, ends)
        return ended
