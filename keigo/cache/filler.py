"""The filler: one thread that copies warm chunks into the cache, takes cold ones out, and clears up.

Once a second, or after what a plan wants was done, it reckons anew what is worth caching (`plan`) and copies it, run by
run, as fast as `pace` and the budget let it: foreground reads go first. Whatever goes wrong on the cache's device costs
the shadow that it happened to, and after some times in a row a rest; readers read at home.

What a user asks for (`warm`) goes first, as far as there is room, and is not judged.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from keigo import clock, failpoints
from keigo.cache.cache import SETTLED_NS, Cache, CachedFile, Counts, source_of
from keigo.cache.plan import HALF_LIFE, Candidate, Plan, plan
from keigo.cache.shadow import Home, Shadow, base_space, chunk_space
from keigo.decisions import decided
from keigo.placement.budget import Budget, budget
from keigo.tiers.fds import Fd
from keigo.tiers.pace import OthersUse, Pace, Stage
from keigo.tiers.tier import Tier
from keigo.tiers.uncached import ALIGNMENT, Buffer, Uncached
from keigo.tiers.writers import Writers

log = logging.getLogger(__name__)

_EVERY: Final = 1.0  # seconds between two plans
_SHARE: Final = 20  # times what a round took pass before the next: at most 5% of the time
_MOST: Final = 512  # chunks of a plan: some seconds of copying
_RUN: Final = 64  # chunks of a file that are copied before anything else is looked at
_CHECKED: Final = 64  # doubtful chunks that are looked at unasked in a round
_REST: Final = 30.0  # seconds for which a file, or all, is left alone after a failure
_PATIENCE: Final = 3  # failures in a row until all is left alone
_TELLING: Final = 64  # reads per chunk; two that are equally warm then differ by an eighth as a rule
_LONGEST: Final = 600.0  # seconds until heat is halved, however few reads there were
_RECENT: Final = 60.0  # seconds that the recent hit ratio is of


class _PausedError(Exception):
    """Nothing is to be copied now."""


class _HomeError(Exception):
    """A file cannot be read at its home: its shadow is none the worse for that."""


@dataclass(slots=True)
class Warm:
    """Files that a user wants in the cache as a whole."""

    files: deque[int]
    done: Callable[[str | None], None]
    """Hears None at the end, or why it ended early; in the filler's thread."""
    told: Callable[[int], None] = lambda _size: None
    """Hears the bytes of each chunk that was copied."""
    at: int = 0
    """Chunk of the first of the files that is next."""


@dataclass(slots=True)
class Progress:
    """What the filler has done since the mount; read without a lock, for status only."""

    filled: int = 0
    """Chunks."""
    filled_bytes: int = 0
    evicted: int = 0
    """Chunks that made room."""
    waiting: int = 0
    """Chunks of the plan that are not copied yet."""
    warming: int = 0
    """Files that a user wants and that are not copied yet."""
    speed: float = 0.0
    paused: str | None = None
    errors: int = 0
    last_error: str | None = None
    saved: float = 0.0
    """Seconds of the devices' time that hits have saved."""
    counts: Counts = field(default_factory=Counts)
    recent_hits: float = 0.0
    """Foreground reads served from the cache, decayed."""
    recent: float = 0.0
    """Foreground reads, decayed."""


class Filler:
    """See the module's docstring."""

    def __init__(self, cache: Cache, limit: int | None) -> None:
        """`limit`: bytes per second that are copied at most; None: no limit."""
        self.cache = cache
        self.progress = Progress()
        self._volume = cache.volume
        self._pace = Pace(limit)
        self._others = OthersUse([os.fstat(tier.root.fd).st_dev for tier in self._volume.tiers], self._pace)
        self._buffer = Buffer(1 << cache.shift)
        self._stage: tuple[Tier, Tier] | None = None
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._warm: deque[Warm] = deque()
        """What users asked for; guarded by `_wake`."""
        self._refused: dict[int, float] = {}
        """Files that are left alone -> until when. The thread's own, as all below."""
        self._resting = 0.0
        self._failures = 0
        self._writers = Writers()
        self._unsettled = False
        """The file that was looked at last may be cached in a moment."""
        self._held = False
        """What users ask for cannot be done now."""
        self._limit = cache.capacity
        self._halved = clock.now()
        self._halved_reads = 0
        self._before = HALF_LIFE
        """Seconds that what was left of the heat, when it was last halved, was of."""
        self._counted_at = clock.now()
        self._read_size = 4096.0
        self._thread = threading.Thread(target=self._run, name="keigo-cache", daemon=True)

    # --- life ---

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a chunk that is being copied is given up. Returns when the thread is gone."""
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._give_up_warming("the volume is being closed")

    def _give_up_warming(self, why: str) -> None:
        with self._wake:
            given_up = list(self._warm)
            self._warm.clear()
        for warm in given_up:
            warm.done(why)

    def poke(self) -> None:
        """There is something to do."""
        with self._wake:
            self._wake.notify_all()

    def warm(self, warm: Warm) -> None:
        """Copy files as a whole."""
        with self._wake:
            if not self._stop.is_set():
                self._warm.append(warm)
                self._wake.notify_all()
                return
        warm.done("the volume is being closed")

    def _run(self) -> None:
        self._pace.begin(self._budget)
        wait = _EVERY
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                wait = self._round()
            except Exception as error:  # a fault of ours: readers need none of this
                log.exception("the cache is not filled")
                self._note(repr(error))
                self._give_up_warming(f"the daemon failed: {error!r}; see its log")
                wait = _REST
            with self._wake:
                left = max(0.0, wait - (time.monotonic() - began))
                self._held = self.progress.paused is not None
                self._wake.wait_for(self._is_called, left)

    def _is_called(self) -> bool:
        """Whether something is to be done at once. `_wake` is held."""
        return self._stop.is_set() or (bool(self._warm) and not self._held)

    def _round(self) -> float:
        """Clear up, plan, copy; returns the seconds from the beginning of this to that of the next."""
        began = time.thread_time()
        self._clear_up()
        self.cache.verify_some(_CHECKED)
        self._count()
        if self._is_stale():
            self._halve()
        cost = time.thread_time() - began
        self.progress.paused = None
        try:
            if not self._warm_up(max(_EVERY, _SHARE * cost)):
                began = time.thread_time()
                planned = self.plan()
                cost += time.thread_time() - began
                self.progress.waiting = len(planned.admit)
                self._carry_out(planned)
        except _PausedError as pause:
            self.progress.paused = str(pause)
        self.progress.speed = 0.0
        self.progress.waiting = 0
        self.progress.warming = len(self._warm[0].files) if self._warm else 0
        return max(_EVERY, _SHARE * cost)

    # --- what is there ---

    def _clear_up(self) -> None:
        """Delete what nobody reads any more."""
        for cached, shadow, index in self.cache.take_holes():
            if cached.shadow is not shadow:
                continue
            if cached.chunks.is_present(index):  # it was copied again meanwhile, and is counted twice
                self.cache.charge(shadow, -chunk_space(shadow.size, shadow.shift, index))
            else:
                self._punch(cached, shadow, index)
        for shadow in self.cache.doomed():
            try:
                failpoints.hit("cache.deleting")
                self.cache.delete(shadow)
            except OSError as error:
                self.cache.postpone(shadow)
                self._note(f"a shadow cannot be deleted: {error.strerror}")
                break

    def _count(self) -> None:
        """Take in what was read, and drop the shadows that could not be."""
        now = clock.now()
        kept = 0.5 ** ((now - self._counted_at) / _RECENT)
        self._counted_at = now
        progress = self.progress
        more = self.cache.take_gone()
        for cached in self.cache.files():
            counts = self.cache.take_counts(cached)
            if counts.errors:
                self._failed(cached, "cannot be read from the cache")
            if counts.hits or counts.misses:
                more += counts
                seconds = counts.hits * self._saving(cached.file)
                cached.seconds += seconds
                progress.saved += seconds
            if cached.rehomed and cached.shadow is not None:
                try:
                    self.cache.refresh_head(cached)
                except OSError as error:
                    self._failed(cached, str(error.strerror))
        reads = more.hits + more.misses
        if reads:
            self._read_size = 0.7 * self._read_size + 0.3 * (more.hit_bytes + more.miss_bytes) / reads
        progress.counts += more
        progress.recent_hits = progress.recent_hits * kept + more.foreground_hits
        progress.recent = progress.recent * kept + more.foreground

    def _is_stale(self) -> bool:
        """Whether the heat is to be halved: it is of a minute, and of reads enough to tell chunks apart."""
        age = clock.now() - self._halved
        reads = self.progress.counts.foreground - self._halved_reads
        chunks = sum(cached.chunks.count for cached in self.cache.files())
        return age >= HALF_LIFE and (reads >= _TELLING * chunks or age >= _LONGEST)

    def _halve(self) -> None:
        now = clock.now()
        self._before = (self._before + now - self._halved) / 2
        self._halved = now
        self._halved_reads = self.progress.counts.foreground
        most = self.cache.most_shadows
        enough = 7 * most // 8 if self.cache.shadows >= most else most
        for cached in self.cache.files():
            warm = cached.chunks.halve()
            cached.ghosts = None
            shadow = cached.shadow
            if shadow is not None and not warm and (not cached.chunks.cached or self.cache.shadows > enough):
                self.cache.drop(cached)
            elif shadow is not None:
                try:
                    shadow.write_heat(cached.chunks.heat())
                except OSError as error:
                    self._failed(cached, str(error.strerror))
            elif not warm:
                self.cache.forget(cached)

    def _home(self, file: int) -> Tier | None:
        record = self._volume.catalog_file(file)
        return None if record is None else self._volume.tier_of(record)

    def _read_time(self, tier: Tier) -> float:
        rates = self._volume.placing.rates[tier.index]
        return rates.read + max(0.0, self._read_size - 4096) * rates.read_byte

    def _saving(self, file: int) -> float:
        """Seconds that a read of a file takes less from the cache."""
        home = self._home(file)
        return 0.0 if home is None else max(0.0, self._read_time(home) - self._read_time(self.cache.tier))

    # --- plan ---

    def plan(self) -> Plan:
        """What should be copied next, and what should make room for it."""
        now = clock.now()
        if now < self._resting or self._volume.evacuation.draining:
            return Plan((), ())
        self._limit = self.cache.capacity
        self._refused = {file: until for file, until in self._refused.items() if until > now}
        candidates = (found for cached in self.cache.files() if (found := self._candidate(cached)) is not None)
        return plan(
            candidates, self._free() >> self.cache.shift, _MOST, max(0.0, self._before - HALF_LIFE + now - self._halved)
        )

    def _candidate(self, cached: CachedFile) -> Candidate | None:
        chunks = cached.chunks
        heat = np.frombuffer(chunks.heat(), np.uint16)
        if not chunks.size or (not chunks.cached and not heat.any()):
            return None
        home = self._home(cached.file)
        if home is None or home.index <= self.cache.tier.index:
            return None
        there = _unpacked(chunks.present(), chunks.count) | _unpacked(chunks.doubtful(), chunks.count)
        ghosts = _unpacked(bytes(cached.ghosts or bytes(-(-chunks.count // 8))), chunks.count)
        cannot = cached.shadow is None and self.cache.shadows >= self.cache.most_shadows
        refused = cannot or cached.file in self._refused
        rates = self._volume.placing.rates
        copy = (1 << self.cache.shift) * (rates[home.index].stream + rates[self.cache.tier.index].write(0))
        saving = 0.0 if refused else self._saving(cached.file)
        return Candidate(cached.file, heat, there, ghosts, saving, copy, self._volume.placing.life(cached.file))

    def _free(self) -> int:
        """Bytes that may still be cached."""
        return max(0, self._limit - self.cache.used)

    # --- in and out ---

    def _carry_out(self, planned: Plan) -> None:
        """Copy what is planned; what goes for it goes when its room is needed."""
        out = deque(planned.evict)
        if planned.admit:
            decided("cache", chunks=len(planned.admit), instead_of=len(planned.evict), free=self._free())
        deadline = time.monotonic() + _EVERY
        left = len(planned.admit)
        for file, numbers in _by_file(planned.admit):
            self._admit(file, numbers, out)
            left -= len(numbers)
            self.progress.waiting = left
            if self._stop.is_set() or time.monotonic() > deadline or clock.now() < self._resting:
                return

    def _make_room(self, size: int, out: deque[tuple[int, int]], keep: CachedFile) -> bool:
        """Have `size` bytes free; False where that cannot be. The shadow of `keep` stays, even without a chunk."""
        while self._free() < size:
            if not out:
                return False
            file, index = out.popleft()
            cached = self.cache.known(file)
            if cached is not None:
                self._evict(cached, index, keep)
        return True

    def _evict(self, cached: CachedFile, index: int, keep: CachedFile) -> None:
        shadow = self.cache.take_out(cached, index)
        if shadow is None:
            return
        self.progress.evicted += 1
        if not cached.chunks.cached and cached is not keep:
            self.cache.drop(cached)
            self._clear_up()
            return
        self._punch(cached, shadow, index)

    def _punch(self, cached: CachedFile, shadow: Shadow, index: int) -> None:
        try:
            shadow.punch(index)
        except OSError as error:
            self._failed(cached, str(error.strerror))
            return
        failpoints.hit("cache.punched")
        self.cache.charge(shadow, -chunk_space(shadow.size, shadow.shift, index))

    def _admit(
        self,
        file: int,
        numbers: Sequence[int],
        out: deque[tuple[int, int]],
        told: Callable[[int], None] = lambda _size: None,
    ) -> bool:
        """Copy chunks of a file, in their order; False where there was no room for all."""
        opened = self._open(file)
        if opened is None and self._unsettled and not self._stop.wait(SETTLED_NS / 1e9):
            opened = self._open(file)
        if opened is None or not numbers:
            return True
        source, home, cached, path, tier = opened
        unreadable = 0
        try:
            shadow = cached.shadow
            if shadow is not None and home.is_changed(shadow.head.home, moved=cached.rehomed):
                self._failed(cached, "was changed past the mount")
                return True
            if shadow is None:
                if self.cache.shadows >= self.cache.most_shadows:
                    return False
                need = base_space(home.size, self.cache.shift) + chunk_space(home.size, self.cache.shift, numbers[0])
                if not self._make_room(need, out, cached):
                    return False
                shadow = self._begin(cached, path, home)
                if shadow is None:
                    return True
            self._set_stage(tier)
            reads, writes = Uncached(source, os.O_RDONLY), Uncached(shadow.data, os.O_WRONLY)
            for index in numbers:
                if cached.chunks.is_present(index) or cached.chunks.is_doubtful(index):
                    continue
                space = chunk_space(home.size, self.cache.shift, index)
                if not self._make_room(space, out, cached):
                    return False
                if cached.shadow is not shadow:  # it went meanwhile, and its room with it
                    return True
                try:
                    if not self._copy(cached, shadow, reads, writes, index, space):
                        return True
                except _HomeError as error:
                    self._note(f"{self._volume.show(file)}: {error}")
                    self._refused[file] = clock.now() + _REST
                    unreadable += 1
                    if unreadable == _PATIENCE:
                        return True
                    continue
                told(shadow.length(index))
                self._failures = 0
        except OSError as error:
            self._failed(cached, str(error.strerror or error), full=error.errno in (errno.ENOSPC, errno.EDQUOT))
            return not self._is_resting()
        return True

    def _open(self, file: int) -> tuple[Fd, Home, CachedFile, bytes, Tier] | None:
        """A file's contents at its home, if it may be cached now."""
        self._unsettled = False
        with self._volume.lock:
            record = self._volume.catalog.file(file)
            if record is None or not record.links:
                return None
            try:
                source = Fd(source_of(self._volume, file))
            except OSError as error:
                self._note(f"{self._volume.show(file)}: {error.strerror}")
                return None
            status, tier = os.fstat(source.fd), self._volume.tier_of(record)
            if self.cache.chunks_for(file, status.st_size) is None:
                return None
            cached = self.cache.known(file)
            self._unsettled = 0 <= time.time_ns() - status.st_ctime_ns < SETTLED_NS
            if cached is None or self._unsettled or self._writers.has(source, tier):
                return None
            path = self._volume.path(*record.links[0])
            return source, Home.of(tier.name, status), cached, path, tier

    def _begin(self, cached: CachedFile, path: bytes, home: Home) -> Shadow | None:
        """Make a shadow for a file; None where the file is not the same any more. Raises OSError."""
        shadow = self.cache.store.create(path, home)
        self.cache.charge(shadow, base_space(home.size, self.cache.shift))
        failpoints.hit("cache.created")
        installed = False
        try:
            installed = self.cache.install(cached, shadow)
        finally:
            if not installed:
                self.cache.doom(shadow)
        return shadow if installed else None

    def _copy(
        self, cached: CachedFile, shadow: Shadow, reads: Uncached, writes: Uncached, index: int, space: int
    ) -> bool:
        """Copy one chunk, piece by piece; False where it is not wanted any more. Raises OSError, _PausedError."""
        start, length = index << shadow.shift, shadow.length(index)
        self.cache.charge(shadow, space)
        sealed = False
        try:
            done = 0
            while done < length:
                size = min(self._pace.next(self._stop), -(-(length - done) // ALIGNMENT) * ALIGNMENT)
                if self._stop.is_set() or not self.cache.holds(cached):
                    return False
                got, reading = self._read(reads, size, done, start + done)
                if got < min(size, length - done):
                    raise OSError(errno.EIO, "is shorter than it was")
                whole = -(-got // ALIGNMENT) * ALIGNMENT
                self._buffer.view[done + got : done + whole] = bytes(whole - got)
                began = self.cache.tier.traffic.writes.begin()
                try:
                    writes.write(self._buffer.view[done : done + whole], start + done)
                finally:
                    self.cache.tier.traffic.writes.end(began, whole)
                self._pace.moved(got, reading, (time.monotonic_ns() - began) / 1e9)
                done += got
            failpoints.hit("cache.written")
            shadow.seal(index, self._buffer.view[:length])
            failpoints.hit("cache.sealed")
            sealed = self.cache.fill(cached, shadow, index)
        finally:
            if not sealed:
                self._take_back(cached, shadow, index)
        self.progress.filled += 1
        self.progress.filled_bytes += length
        self.progress.speed = self._pace.speed
        return True

    def _read(self, reads: Uncached, size: int, at: int, offset: int) -> tuple[int, float]:
        """Read into the buffer: (how many bytes, seconds). Raises _HomeError."""
        assert self._stage is not None  # noqa: S101
        flow = self._stage[0].traffic.reads
        got = 0
        began = flow.begin()
        try:
            got = reads.read(self._buffer.view[at : at + size], offset)
        except OSError as error:
            raise _HomeError(str(error.strerror)) from error
        finally:
            flow.end(began, got)
        return got, (time.monotonic_ns() - began) / 1e9

    def _take_back(self, cached: CachedFile, shadow: Shadow, index: int) -> None:
        """A chunk was not copied: give its room back, unless its shadow is to go anyway."""
        if cached.shadow is shadow:
            self._punch(cached, shadow, index)

    def _set_stage(self, home: Tier) -> None:
        if self._stage != (home, self.cache.tier):
            self._stage = home, self.cache.tier
            self._pace.stage(((home, "read"), (self.cache.tier, "write")))

    def _budget(self, stage: Stage) -> Budget:
        """What a copy may do now. Raises _PausedError where that is nothing."""
        placing = self._volume.placing
        legs = self._others.legs(stage, placing.models, placing.loads, time.monotonic())
        found = budget(legs, placing.pressure)
        if found.paused is not None:
            raise _PausedError(found.paused)
        return found

    # --- what a user asks for ---

    def _warm_up(self, most: float) -> bool:
        """Carry out what users asked for, for about `most` seconds; whether some is left, as after _PausedError."""
        deadline = time.monotonic() + most
        while True:
            with self._wake:
                warm = self._warm[0] if self._warm else None
            if warm is None or self._stop.is_set():
                return False
            why: str | None = None
            while warm.files and why is None and not self._stop.is_set():
                if time.monotonic() > deadline:
                    return True
                self.progress.warming = len(warm.files)
                numbers = range(warm.at, min(warm.at + _RUN, self._chunks_of(warm.files[0])))
                if self._is_resting():
                    why = self.progress.last_error or "the cache rests after failures"
                elif not self._admit(warm.files[0], numbers, deque(), warm.told):
                    why = self._why_not()
                elif len(numbers) == _RUN:
                    warm.at += _RUN
                else:
                    warm.files.popleft()
                    warm.at = 0
            if self._stop.is_set():
                return False
            with self._wake:
                self._warm.popleft()
            warm.done(why)

    def _why_not(self) -> str:
        """Why there was no room for all of a file."""
        if self._is_resting():
            return self.progress.last_error or "the cache rests after failures"
        if self.cache.shadows >= self.cache.most_shadows:
            return f"it has {self.cache.shadows} files, as many as the limit of open files allows"
        return "the cache is full"

    def _chunks_of(self, file: int) -> int:
        cached = self.cache.known(file)
        if cached is not None:
            return cached.chunks.count
        record = self._volume.catalog_file(file)
        return 0 if record is None else -(-record.size >> self.cache.shift)

    # --- failures ---

    def _failed(self, cached: CachedFile, what: str, *, full: bool = False) -> None:
        """Something went wrong with a shadow: it goes, unless only the device is full."""
        self._note(f"{self._volume.show(cached.file)}: {what}")
        until = clock.now() + _REST
        if full:
            self._limit = self.cache.used
        else:
            self.cache.drop(cached)
            self._refused[cached.file] = until
        self._failures += 1
        if full or self._failures >= _PATIENCE:
            self._resting = until

    def _is_resting(self) -> bool:
        return clock.now() < self._resting

    def _note(self, what: str) -> None:
        self.progress.errors += 1
        if self.progress.last_error != what:
            log.warning("cache: %s", what)
        self.progress.last_error = what


def _unpacked(bitmap: bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=count, bitorder="little")
    return found.astype(np.bool_)


def _by_file(chunks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Chunks of a plan, those of one file together, but not too many."""
    file, numbers = -1, list[int]()
    for one, number in chunks:
        if (one != file or len(numbers) == _RUN) and numbers:
            yield file, numbers
            numbers = []
        file = one
        numbers.append(number)
    if numbers:
        yield file, numbers
