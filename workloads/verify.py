"""What a database must answer: an oracle beside it, and the checks of every read, every scan, and every key at the end.

A record's *state* is one integer that only grows: twice the number of its writes, plus 1 where the last one left a
value. The oracle has two states for each record: `begun`, set before a write, and `done`, set after it. Writers of one
record take turns (a lock for each of 1024 stripes of records); readers take no lock. A reader notes `done` before it
asks and `begun` after it was answered: what it may see is any state from the one to the other. Between two writes that
is one value only; a value older than that, or one that nobody wrote, is wrong.

A value names its record, half of the number of its write, and half of its size (`stamped`), and its bytes follow from
these (`records.Values`). No value is empty; one of less than 12 bytes has room for less, so more can pass for it.

A scan is checked against the keys in order: a record that was there before it began, and that nobody deleted
meanwhile, must be in it if its key lies within; all that it returns must be states that could be seen, in order.

Checking takes 2 us a read or write and 4 us a record that is scanned, all of it the GIL's. The times that are told are
of the engine's calls; in an open loop, whose latencies count from when an operation was due, they contain it.
"""

from __future__ import annotations

import bisect
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Final

import numpy as np

from keigo.errors import KeigoError
from workloads.engines.protocol import Engine
from workloads.operations import Batch, Int64s
from workloads.records import KeyFormat, Values
from workloads.runner.drive import Clock, Limits, await_due, stamped

_STRIPES: Final = 1024
_PAGE: Final = 1000
_BLOCK: Final = 1 << 16
_SHOWN: Final = 10

_HEADER: Final = Struct("<IQ")  # of `records.Values`

Pair = tuple[bytes, bytes]


class VerificationError(KeigoError):
    """The database answered wrongly; the text has the key, what was expected and what came."""


def told_of(value: bytes) -> str:
    """A value as a message shows it."""
    stamp = Values.stamp(value)
    shown = f"{len(value)} bytes {value[:16].hex()}{'...' if len(value) > 16 else ''}"
    if stamp is None:
        return shown
    return f"{shown}, whose header says record {stamp.key}, write {stamp.version >> 16} (modulo 65536)"


class Oracle:
    """What was written, by record number. Any method may be called by any thread, but those that say otherwise.

    `numbers`: all record numbers that there can be, ascending, where they are not simply 0, 1, 2, ...
    """

    def __init__(self, keys: KeyFormat, values: Values, numbers: Int64s | None = None) -> None:
        self.keys = keys
        self.values = values
        self._numbers = numbers
        self._begun = array("q")
        self._done = array("q")
        self._locks = [threading.Lock() for _ in range(_STRIPES)]
        self._growing = threading.Lock()
        self._base_keys = np.empty(0, f"S{keys.size}")  # in order, with the numbers beside them
        self._base_numbers = np.empty(0, np.int64)
        self._deletes = False
        self._settled = False
        self._late: list[bytes] = []  # in order: keys that came after `settle`
        self._late_numbers: dict[bytes, int] = {}

    def slots(self, numbers: Int64s) -> list[int]:
        """Where the states of records are; makes room for new ones."""
        places = numbers if self._numbers is None else np.searchsorted(self._numbers, numbers)
        need = int(places.max(initial=-1)) + 1
        if need > len(self._done):
            with self._growing:
                # Other threads go on reading: under the GIL an array grows in place, between two of their looks.
                fresh = array("q", bytes(8 * max(0, need + need // 2 - len(self._done))))
                self._begun.extend(fresh)
                self._done.extend(fresh)
        found: list[int] = places.tolist()
        return found

    def before(self, slot: int) -> int:
        """To be asked before a read."""
        return self._done[slot]

    def after(self, slot: int) -> int:
        """To be asked after a read was answered."""
        return self._begun[slot]

    def lock(self, slot: int) -> threading.Lock:
        """To be held from `begin` to `end` of a write."""
        return self._locks[slot % _STRIPES]

    def begin(self, slot: int, alive: bool) -> int:
        """A write begins, which leaves a value or none; returns its state."""
        self._deletes = self._deletes or not alive
        state = (self._done[slot] | 1) + 1 + alive
        self._begun[slot] = state
        return state

    def end(self, slot: int, state: int) -> None:
        """The write is done."""
        self._done[slot] = state

    def value(self, number: int, state: int, size: int) -> bytes:
        """What that write writes."""
        return self.values.value(number, stamped(state >> 1, size), size)

    def announce(self, number: int, slot: int, key: bytes) -> None:
        """To be called before each write, under its lock: a record's first one since `settle` makes its key known."""
        if self._settled and self._done[slot] == 0:
            self._late_numbers[key] = number

    def insert(self, key: bytes, state: int) -> None:
        """To be called after each write was done, with what `begin` returned."""
        if state >> 1 == 1 and key in self._late_numbers:
            with self._growing:
                bisect.insort(self._late, key)

    def written(self) -> Int64s:
        """The numbers of all records that were ever written, ascending. Runs alone."""
        places = np.flatnonzero(np.array(self._done, np.int64))
        return np.asarray(places if self._numbers is None else self._numbers[places])

    def settle(self) -> None:
        """Sort the keys of all that was written so far; scans can be checked from now on. Runs alone."""
        numbers = self.written()
        keys = np.empty(len(numbers), f"S{self.keys.size}")
        for start in range(0, len(numbers), _BLOCK):
            keys[start : start + _BLOCK] = self.keys.keys(numbers[start : start + _BLOCK])
        order = np.argsort(keys, kind="stable")
        self._base_keys, self._base_numbers = keys[order], numbers[order]
        self._late.clear()
        self._late_numbers.clear()
        self._settled = True

    def adopt(self, slot: int, version: int) -> None:
        """A database of an earlier run has this value: from here on it is what was written. Runs alone."""
        self._begun[slot] = self._done[slot] = (version >> 16 or 1 << 16) * 2 + 1

    def knows(self, numbers: Int64s) -> bool:
        """Whether these numbers can be."""
        return self._numbers is None or bool(np.isin(numbers, self._numbers).all())

    def _place(self, key: bytes) -> int:
        return int(np.searchsorted(self._base_keys, np.array([key], self._base_keys.dtype))[0])

    def number_of(self, key: bytes) -> int | None:
        """The record with this key, if it was ever written."""
        late = self._late_numbers.get(key)
        if late is not None:
            return late
        place = self._place(key)
        if place < len(self._base_keys) and self._base_keys[place] == key:
            return int(self._base_numbers[place])
        return None

    def check(self, key: bytes, number: int, before: int, after: int, value: bytes | None) -> str | None:
        """What is wrong with an answer, or None. `before` and `after`: see the module."""
        if value is None:
            deleted_between = self._deletes and (after >> 1) - (before >> 1) > 1
            may_be_none = deleted_between or not before & after & 1
            return None if may_be_none else f"lost: {self._wanted(key, number, before, after)}, got no value"
        least, most = (before >> 1) + (not before & 1), (after >> 1) - (not after & 1)
        size = len(value)
        for write in range(least, most + 1):
            if value and value == self.values.value(number, stamped(write, size), size):
                return None
        return f"wrong: {self._wanted(key, number, before, after)}, got {told_of(value)}"

    def _wanted(self, key: bytes, number: int, before: int, after: int) -> str:
        def told(state: int) -> str:
            return f"write {state >> 1}" if state & 1 else "no value" if state else "nothing (never written)"

        states = told(before) if before == after else f"{told(before)} to {told(after)}"
        return f"key {key.decode(errors='backslashreplace')} (record {number}): expected {states}"

    def expected_from(self, start: bytes, count: int) -> tuple[dict[bytes, tuple[int, int]], list[bytes]]:
        """To be called before a scan: key -> (number, state) of the records from `start` on, deleted ones too, as far
        as the first `count` that are there lie; and the keys of these in order."""
        known: dict[bytes, tuple[int, int]] = {}
        for pages in (self._base_pages(start, count), self._late_pages(start, count)):
            there = 0
            while there < count and (page := next(pages, None)) is not None:
                states = self._states(*page)
                there += sum(state & 1 for _, state in states.values())
                known.update(states)
        return known, sorted(key for key, (_, state) in known.items() if state & 1)[:count]

    def _base_pages(self, start: bytes, count: int) -> Iterator[tuple[list[bytes], Int64s]]:
        for place in range(self._place(start), len(self._base_keys), count):
            yield self._base_keys[place : place + count].tolist(), self._base_numbers[place : place + count]

    def _late_pages(self, start: bytes, count: int) -> Iterator[tuple[list[bytes], Int64s]]:
        with self._growing:
            first = bisect.bisect_left(self._late, start)
            keys = self._late[first : first + count]
        while keys:
            yield keys, np.array([self._late_numbers[key] for key in keys], np.int64)
            with self._growing:
                first = bisect.bisect_right(self._late, keys[-1])
                keys = self._late[first : first + count]

    def _states(self, keys: list[bytes], numbers: Int64s) -> dict[bytes, tuple[int, int]]:
        done, slots = self._done, self.slots(numbers)
        rows = zip(keys, numbers.tolist(), slots, strict=True)
        return {key: (number, done[slot]) for key, number, slot in rows}

    def check_scan(
        self, start: bytes, count: int, expected: tuple[dict[bytes, tuple[int, int]], list[bytes]], got: Sequence[Pair]
    ) -> str | None:
        """What is wrong with what a scan returned, or None; `expected` is from before it began."""
        known, order = expected
        shown = start.decode(errors="backslashreplace")
        if len(got) > count:
            return f"scan of {count} from {shown}: expected {count} records at most, got {len(got)}"
        last = start
        for place, (key, value) in enumerate(got):
            if key < last or (place and key == last):
                return f"scan of {count} from {shown}: expected keys in order, got {key!r} after {last!r}"
            last = key
            number, before = known.get(key, (None, 0))
            number = self.number_of(key) if number is None else number
            if number is None:
                return f"scan of {count} from {shown}: expected no such key, got {key!r} with {told_of(value)}"
            (slot,) = self.slots(np.array([number], np.int64))
            if wrong := self.check(key, number, before, self._begun[slot], value):
                return f"scan of {count} from {shown}: {wrong}"
        seen = {key for key, _ in got}
        for key in order:
            if len(got) == count and key > last:
                break
            if key not in seen:
                number, before = known[key]
                (slot,) = self.slots(np.array([number], np.int64))
                if wrong := self.check(key, number, before, self._begun[slot], None):
                    return f"scan of {count} from {shown}: {wrong}"
        return None


class CheckedLoop:
    """Does operations and checks every answer; times are of the engine's calls alone."""

    def __init__(self, engine: Engine, oracle: Oracle, clock: Clock) -> None:
        self._engine = engine
        self._oracle = oracle
        self._clock = clock
        self.missing = 0
        self.scanned = 0
        self.reads = 0
        self.scans = 0

    def do(self, batch: Batch, due: list[int], starts: array[int], ends: array[int], limits: Limits) -> None:
        """See `drive.Loop`. Raises VerificationError."""
        now = self._clock.now
        numbers, keys, slots = batch.key.tolist(), self._oracle.keys.keys(batch.key), self._oracle.slots(batch.key)
        rows = zip(batch.op.tolist(), numbers, keys, slots, batch.size.tolist(), batch.length.tolist(), strict=True)
        for place, (op, number, key, slot, size, length) in enumerate(rows):
            moment = due[place]
            if now() < moment and not await_due(self._clock, moment, limits):
                return
            if op == 3:
                took = self._scan(key, length)
            else:
                took = self._read(number, key, slot) if op in (0, 4) else (0, 0)
                if op:
                    wrote = self._write(number, key, slot, size, op)
                    took = (wrote[0] - (took[1] - took[0]), wrote[1])
            starts[place], ends[place] = took
            if took[1] >= limits.until:
                return

    def _read(self, number: int, key: bytes, slot: int) -> tuple[int, int]:
        before = self._oracle.before(slot)
        start = self._clock.now()
        value = self._engine.get(key)
        end = self._clock.now()
        after = self._oracle.after(slot)
        self.missing += value is None
        self.reads += 1
        if wrong := self._oracle.check(key, number, before, after, value):
            raise VerificationError(wrong)
        return start, end

    def _write(self, number: int, key: bytes, slot: int, size: int, op: int) -> tuple[int, int]:
        oracle, now = self._oracle, self._clock.now
        with oracle.lock(slot):
            oracle.announce(number, slot, key)
            state = oracle.begin(slot, op != 5)
            value = oracle.value(number, state, size)
            start = now()
            if op == 5:
                self._engine.delete(key)
            else:
                self._engine.put(key, value)
            end = now()
            oracle.end(slot, state)
            oracle.insert(key, state)
        return start, end

    def _scan(self, key: bytes, length: int) -> tuple[int, int]:
        expected = self._oracle.expected_from(key, length)
        start = self._clock.now()
        got = self._engine.scan(key, length)
        end = self._clock.now()
        self.scans += 1
        self.scanned += len(got)
        if wrong := self._oracle.check_scan(key, length, expected, got):
            raise VerificationError(wrong)
        return start, end


def check_all(engine: Engine, oracle: Oracle, on_progress: Callable[[int], None]) -> tuple[int, list[str]]:
    """Check every key by a read, and by a scan of everything that also finds keys that should not be there.

    Returns how many keys were checked, and what is wrong, at most ten of each kind. Nobody may write meanwhile.
    """
    oracle.settle()
    numbers = oracle.written()
    wrong: list[str] = []
    for start in range(0, len(numbers), _PAGE):
        block = numbers[start : start + _PAGE]
        for number, key, slot in zip(block.tolist(), oracle.keys.keys(block), oracle.slots(block), strict=True):
            state = oracle.before(slot)
            if found := oracle.check(key, number, state, state, engine.get(key)):
                wrong.append(found)
                if len(wrong) >= _SHOWN:
                    return start, wrong
        on_progress(start)
    return len(numbers), [*wrong, *_check_order(engine, oracle)]


def _check_order(engine: Engine, oracle: Oracle) -> list[str]:
    start = b""
    while True:
        expected = oracle.expected_from(start, _PAGE)
        got = engine.scan(start, _PAGE)
        if found := oracle.check_scan(start, _PAGE, expected, got):
            return [found]
        if len(got) < _PAGE:
            return []
        start = got[-1][0]  # which comes again, as the first of the next page


def adopt(engine: Engine, oracle: Oracle, loaded: Iterable[Batch]) -> None:
    """Take what a database of an earlier run has as what was written, if each value fits its key and itself.

    `loaded`: batches whose records must all be there. Raises VerificationError.
    """
    start, fresh = b"", True
    while True:
        pairs = engine.scan(start, _PAGE)
        _adopt_pairs(oracle, pairs if fresh else pairs[1:])
        if len(pairs) < _PAGE:
            break
        start, fresh = pairs[-1][0], False
    for batch in loaded:
        slots = oracle.slots(batch.key)
        for place, slot in enumerate(slots):
            if not oracle.before(slot):
                number = int(batch.key[place])
                (key,) = oracle.keys.keys(batch.key[place : place + 1])
                raise VerificationError(
                    f"lost: key {key.decode(errors='backslashreplace')} (record {number}): expected what the load "
                    f"wrote, got no value"
                )
    oracle.settle()


def _adopt_pairs(oracle: Oracle, pairs: Sequence[Pair]) -> None:
    # A value too short to hold the whole header lacks the high bytes of the number, which are 0 but for huge ones.
    stamps = [_HEADER.unpack(value[: _HEADER.size].ljust(_HEADER.size, b"\0")) for _, value in pairs]
    numbers = np.array([number & ((1 << 63) - 1) for _, number in stamps], np.int64)
    ours = oracle.keys.keys(numbers)
    for (key, value), (version, number), expected in zip(pairs, stamps, ours, strict=True):
        size = len(value)
        known = key == expected and oracle.knows(np.array([number & ((1 << 63) - 1)], np.int64))
        if not known or value != oracle.values.value(number, stamped(version >> 16, size), size):
            raise VerificationError(
                f"wrong: key {key.decode(errors='backslashreplace')}: expected a value that an earlier run wrote for "
                f"it, got {told_of(value)}"
            )
    for slot, (version, _) in zip(oracle.slots(numbers), stamps, strict=True):
        oracle.adopt(slot, version)
