"""All files of a volume as a policy may know them, kept up to date as they change: nothing walks all of them unasked.

Columns, not objects: a file is a row of some arrays, about 230 bytes in all with the table that finds it by id. Files
that are alike are in one bucket, a list through two of the columns in the order of arrival, with their count and bytes.

A bucket holds the files of one tier, group, pin and k (see `heat`).

Threads: `_lock` is a leaf, taken under `Volume.lock` and alone; nothing is called under it. Long walks take it for a
few rows at a time.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

from keigo.placement.heat import COLD, COLDEST, GROWN_UP, WINDOW, class_of, heat_of, rate_of, score_of, shift
from keigo.placement.policy import FileState, Group

WRITTEN: Final = -(1 << 41)
"""k of a file that is open for writing."""

_NO_NUMBER: Final = (1 << 64) - 1
_NIL: Final = (1 << 32) - 1  # no row
_FIRST_CHUNK: Final = 32  # rows per hold of the lock; a planner mostly wants few
_CHUNK: Final = 1024

Key = tuple[int, Group, int, int]
"""Of a bucket: tier, group, pin (-1: none), k."""


class Known(NamedTuple):
    """What the index had of a file before a change."""

    group: Group
    size: int
    score: float
    """See `heat`."""


class Rows:
    """The rows of one bucket, a list by head, tail and the index's columns."""

    __slots__ = ("bytes", "files", "head", "key", "number", "tail")

    def __init__(self, key: Key, number: int) -> None:
        self.key = key
        self.number = number
        self.head = self.tail = _NIL
        self.files = 0
        self.bytes = 0


class FileIndex:
    """See the module's docstring.

    `movable(id)` says whether a file can move now; asked without locks, so its answer may be old when it comes.
    """

    def __init__(self, movable: Callable[[int], bool] = lambda _file: True) -> None:
        self._movable = movable
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._buckets: dict[Key, Rows] = {}
        self._by_number: list[Rows | None] = []
        self._free_numbers: list[int] = []
        self._arrivals = 0
        self._due: dict[int, list[int]] = {}
        """Second at which the heat of young files is to be looked at again -> their ids."""
        # One element a row. A row without a file has id 0.
        self._id = array("Q")
        self._size = array("q")
        self._number = array("Q")
        self._created = array("d")
        self._moved = array("d")
        self._score = array("d")
        self._expected = array("f")
        self._listed = array("d")
        """When it was first closed; inf: not yet."""
        self._arrived = array("Q")
        self._bucket = array("I")
        self._next = array("I")
        self._before = array("I")

    def __len__(self) -> int:
        """Files, those being written included."""
        return len(self._rows)

    # --- changes ---

    def put(
        self,
        file: int,
        tier: int,
        group: Group,
        size: int,
        *,
        number: int | None = None,
        pinned: int | None = None,
        created: float = 0.0,
        moved: float = 0.0,
        now: float = 0.0,
        written: bool = False,
        score: float = 0.0,
        expected: float = 0.0,
        age: float = 0.0,
    ) -> Known | None:
        """Set what is known of a file; returns what was known before.

        `written`: somebody has it open for writing. When it is put for the first time without, `score` is its heat so
        far, `expected` the reads per second that its like have, and `age` the seconds since it could be read.
        """
        with self._lock:
            row = self._rows.get(file)
            known = row is not None
            if row is None:
                row = self._new_row(file)
            self._number[row] = _NO_NUMBER if number is None or number >= _NO_NUMBER else number
            self._created[row] = created
            self._moved[row] = moved
            if not written and self._listed[row] == math.inf:
                self._listed[row] = now - age
                self._score[row] = max(score, self._score[row])
                self._expected[row] = expected
                if age < GROWN_UP:
                    self._due.setdefault(int(now + 1), []).append(file)
            k = WRITTEN if written else self._class(row, size, now)
            key = (tier, group, -1 if pinned is None else pinned, k)
            if not known:
                self._size[row] = size
                self._put_in(row, key)
                return None
            bucket = self._bucket_of(row)
            before = Known(bucket.key[1], self._size[row], self._score[row])
            if bucket.key == key:
                bucket.bytes += size - before.size
                self._size[row] = size
            else:
                self._take_out(row, bucket)
                self._size[row] = size
                self._put_in(row, key)
            return before

    def drop(self, file: int) -> Known | None:
        """Forget a file; returns what was known of it."""
        with self._lock:
            row = self._rows.pop(file, None)
            if row is None:
                return None
            bucket = self._bucket_of(row)
            known = Known(bucket.key[1], self._size[row], self._score[row])
            self._take_out(row, bucket)
            self._id[row] = 0
            self._free.append(row)
            return known

    def begin_write(self, file: int) -> None:
        """Somebody has opened a file for writing: policies do not see it until it is `put` again."""
        with self._lock:
            row = self._rows.get(file)
            if row is not None:
                bucket = self._bucket_of(row)
                if bucket.key[3] != WRITTEN:
                    self._take_out(row, bucket)
                    self._put_in(row, (*bucket.key[:3], WRITTEN))

    def pin(self, file: int, pinned: int | None) -> None:
        """Set the tier that the user wants a file on."""
        with self._lock:
            row = self._rows.get(file)
            if row is not None:
                bucket = self._bucket_of(row)
                tier, group, before, k = bucket.key
                after = -1 if pinned is None else pinned
                if before != after:
                    self._take_out(row, bucket)
                    self._put_in(row, (tier, group, after, k))

    def read(self, file: int, reads: int, now: float) -> Known | None:
        """Count foreground reads of a file; returns what is known of it, None where that is nothing."""
        with self._lock:
            row = self._rows.get(file)
            if row is None:
                return None
            bucket = self._bucket_of(row)
            if reads <= 0:
                return Known(bucket.key[1], self._size[row], self._score[row])
            rate = rate_of(self._score[row], now) + reads / WINDOW
            self._score[row] = score = score_of(rate, now)
            tier, group, pinned, k = bucket.key
            size = self._size[row]
            if k != WRITTEN:
                after = self._class(row, size, now)
                if after != k:
                    self._take_out(row, bucket)
                    self._put_in(row, (tier, group, pinned, after))
            return Known(group, size, score)

    def look_again(self, now: float) -> None:
        """Put young files where their heat is by now. Asked every second, it looks at each when its age has doubled."""
        for second in list(self._due):
            if second > now:
                continue
            with self._lock:
                files = self._due.pop(second)
            for start in range(0, len(files), _CHUNK):
                with self._lock:
                    for file in files[start : start + _CHUNK]:
                        self._look_at(file, now)

    def _look_at(self, file: int, now: float) -> None:
        row = self._rows.get(file)
        if row is None:
            return
        bucket = self._bucket_of(row)
        tier, group, pinned, k = bucket.key
        if k != WRITTEN:
            after = self._class(row, self._size[row], now)
            if after != k:
                self._take_out(row, bucket)
                self._put_in(row, (tier, group, pinned, after))
        age = now - self._listed[row]
        if age < GROWN_UP:
            self._due.setdefault(int(now + max(1.0, age)), []).append(file)

    def cool(self, now: float, most: int = 1024) -> None:
        """Put files that were read once, and are cold by now, with those never read: at most so many at a time.

        Asked to from time to time, it keeps the number of buckets small. It changes no answer but their order.
        """
        left = most
        sunk = shift(now)
        with self._lock:
            cold = [bucket for bucket in self._buckets.values() if COLD < bucket.key[3] < COLDEST + sunk]
            for bucket in cold:
                key = (*bucket.key[:3], COLD)
                while bucket.files and left:
                    row = bucket.head
                    self._take_out(row, bucket)
                    self._put_in(row, key)
                    left -= 1

    # --- questions ---

    def known(self, file: int) -> Known | None:
        """Group and size of a file."""
        with self._lock:
            row = self._rows.get(file)
            return None if row is None else Known(self._bucket_of(row).key[1], self._size[row], self._score[row])

    def state(self, file: int, now: float) -> FileState | None:
        """A file as policies see it; None where there is none, or somebody is writing it."""
        with self._lock:
            row = self._rows.get(file)
            return None if row is None else self._state_of(row, now)

    def heat(self, file: int, now: float) -> float:
        """Foreground reads per second of a file, decayed."""
        with self._lock:
            row = self._rows.get(file)
            return 0.0 if row is None else self._heat(row, now)

    def warm(self, now: float) -> list[int]:
        """Ids of the files that are not cold."""
        sunk = shift(now)
        with self._lock:
            buckets = [bucket for bucket in self._buckets.values() if bucket.key[3] >= COLDEST + sunk]
            end = self._arrivals
        return [self._id[row] for bucket in buckets for row in self._walk(bucket.key, end)]

    def ids(self) -> Iterator[int]:
        """All files, those being written included; those that come meanwhile, or not."""
        start = 0
        while start < len(self._id):
            with self._lock:
                chunk = [file for file in self._id[start : start + _CHUNK] if file]
            start += _CHUNK
            yield from chunk

    # --- for views ---

    def snapshot(self) -> list[Rows]:
        """The buckets that policies see, in the order of their first file's arrival. Their counts go on changing."""
        with self._lock:
            return [bucket for bucket in self._buckets.values() if bucket.key[3] != WRITTEN]

    def states(self, key: Key, now: float, without: Collection[int]) -> Iterator[FileState]:
        """The files of one bucket that can move now, the first to arrive first."""
        with self._lock:
            end = self._arrivals
        for row in self._walk(key, end):
            state = self._state(row, key, end, now)
            if state is not None and state.id not in without and self._movable(state.id):
                yield state

    def all_states(self, now: float, without: Collection[int]) -> Iterator[FileState]:
        """All files that can move now, by row."""
        start = 0
        while start < len(self._id):
            with self._lock:
                end = min(start + _CHUNK, len(self._id))
                states = [self._state_of(row, now) for row in range(start, end) if self._id[row]]
            start = end
            for state in states:
                if state is not None and state.id not in without and self._movable(state.id):
                    yield state

    def _walk(self, key: Key, end: int) -> Iterator[int]:
        """Rows of a bucket that have arrived until `end`, in chunks."""
        chunk: list[int] = []
        seen = 0
        """Arrival up to which all has been met."""
        most = _FIRST_CHUNK
        while True:
            with self._lock:
                bucket = self._buckets.get(key)
                if bucket is None:
                    return
                row = bucket.head
                # On from the last one met that is still in its place.
                for met in reversed(chunk):
                    if self._id[met] and self._bucket[met] == bucket.number and self._arrived[met] <= seen:
                        row = self._next[met]
                        break
                chunk = []
                while row != _NIL and len(chunk) < most and self._arrived[row] <= end:
                    if self._arrived[row] > seen:
                        chunk.append(row)
                    row = self._next[row]
                if not chunk:
                    return
                seen = self._arrived[chunk[-1]]
            most = min(2 * most, _CHUNK)
            yield from chunk

    def _state(self, row: int, key: Key, end: int, now: float) -> FileState | None:
        """The file of a row, if it is in that bucket since before `end`."""
        with self._lock:
            bucket = self._buckets.get(key)
            here = bucket is not None and self._bucket[row] == bucket.number and self._arrived[row] <= end
            if not here or not self._id[row]:
                return None
            return self._state_of(row, now)

    def _state_of(self, row: int, now: float) -> FileState | None:
        tier, group, pinned, k = self._bucket_of(row).key
        if k == WRITTEN:
            return None
        number = self._number[row]
        return FileState(
            self._id[row],
            tier,
            self._size[row],
            group.role,
            group.level,
            None if number == _NO_NUMBER else number,
            None if pinned < 0 else pinned,
            group,
            self._created[row],
            self._moved[row],
            self._heat(row, now),
        )

    # --- rows and buckets; the lock is held ---

    def _new_row(self, file: int) -> int:
        if self._free:
            row = self._free.pop()
            self._id[row] = file
            self._score[row] = self._expected[row] = 0.0
            self._listed[row] = math.inf
        else:
            row = len(self._id)
            self._id.append(file)
            self._size.append(0)
            self._number.append(_NO_NUMBER)
            self._created.append(0.0)
            self._moved.append(0.0)
            self._score.append(0.0)
            self._expected.append(0.0)
            self._listed.append(math.inf)
            self._arrived.append(0)
            self._bucket.append(_NIL)
            self._next.append(_NIL)
            self._before.append(_NIL)
        self._rows[file] = row
        return row

    def _heat(self, row: int, now: float) -> float:
        return heat_of(rate_of(self._score[row], now), self._expected[row], now - self._listed[row])

    def _class(self, row: int, size: int, now: float) -> int:
        return class_of(self._heat(row, now), size, now)

    def _bucket_of(self, row: int) -> Rows:
        bucket = self._by_number[self._bucket[row]]
        assert bucket is not None  # noqa: S101
        return bucket

    def _put_in(self, row: int, key: Key) -> None:
        """Append a row to the bucket of a key."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._new_bucket(key)
        self._arrivals += 1
        self._arrived[row] = self._arrivals
        self._bucket[row] = bucket.number
        self._next[row] = _NIL
        self._before[row] = bucket.tail
        if bucket.tail == _NIL:
            bucket.head = row
        else:
            self._next[bucket.tail] = row
        bucket.tail = row
        bucket.files += 1
        bucket.bytes += self._size[row]

    def _take_out(self, row: int, bucket: Rows) -> None:
        before, after = self._before[row], self._next[row]
        if before == _NIL:
            bucket.head = after
        else:
            self._next[before] = after
        if after == _NIL:
            bucket.tail = before
        else:
            self._before[after] = before
        bucket.files -= 1
        bucket.bytes -= self._size[row]
        if not bucket.files:
            del self._buckets[bucket.key]
            self._by_number[bucket.number] = None
            self._free_numbers.append(bucket.number)

    def _new_bucket(self, key: Key) -> Rows:
        if self._free_numbers:
            number = self._free_numbers.pop()
        else:
            number = len(self._by_number)
            self._by_number.append(None)
        bucket = self._buckets[key] = self._by_number[number] = Rows(key, number)
        return bucket
