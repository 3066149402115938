"""The filler: one thread that copies warm chunks into the cache, takes cold ones out, and clears up.

Once a second, or after what a plan wants was done, it reckons anew what is worth caching (`choosing`) and copies it,
run by run (`copier`), making room for it (`room`). What a user asks for (`warming`) goes first. After failures
(`progress`) readers read at home.

Threads: all of that is of the filler's thread, but for requests of users, which `_wake` guards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from keigo import clock
from keigo.cache.cache import Cache
from keigo.cache.choosing import Choosing
from keigo.cache.copier import RUN, Copier, PausedError
from keigo.cache.plan import Plan
from keigo.cache.progress import REST, Failures, Progress
from keigo.cache.room import Room
from keigo.cache.warming import Warming
from keigo.decisions import decided

log = logging.getLogger(__name__)

_EVERY: Final = 1.0  # seconds between two plans
_SHARE: Final = 20  # times what a round took pass before the next: at most 5% of the time
_CHECKED: Final = 64  # doubtful chunks that are looked at unasked in a round
_RECENT: Final = 60.0  # seconds that the recent hit ratio is of


class Filler:
    """See the module's docstring."""

    def __init__(self, cache: Cache, limit: int | None) -> None:
        """`limit`: bytes per second that are copied at most; None: no limit."""
        self.cache = cache
        self.progress = Progress()
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._failures = Failures(cache, self.progress)
        self._room = Room(cache, self.progress, self._failures)
        self._choosing = Choosing(cache, self._failures)
        self._copier = Copier(cache, limit, self.progress, self._failures, self._room, self._stop)
        self.warming = Warming(cache, self.progress, self._failures, self._copier, self._wake, self._stop)
        self._held = False
        """What users ask for cannot be done now. Guarded by `_wake`."""
        self._counted_at = clock.now()
        self._thread = threading.Thread(target=self._run, name="keigo-cache", daemon=True)

    # --- life ---

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a chunk that is being copied is given up. Returns when the thread is gone."""
        self._stop.set()
        self.poke()
        if self._thread.is_alive():
            self._thread.join()
        self.warming.give_up("the volume is being closed")

    def poke(self) -> None:
        """There is something to do."""
        with self._wake:
            self._wake.notify_all()

    def _run(self) -> None:
        self._copier.begin()
        wait = _EVERY
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                wait = self._round()
            except Exception as error:  # a fault of ours: readers need none of this
                log.exception("the cache is not filled")
                self.progress.note(repr(error))
                self.warming.give_up(f"the daemon failed: {error!r}; see its log")
                wait = REST
            with self._wake:
                left = max(0.0, wait - (time.monotonic() - began))
                self._held = self.progress.paused is not None
                self._wake.wait_for(self._is_called, left)

    def _is_called(self) -> bool:
        """Whether something is to be done at once. `_wake` is held."""
        return self._stop.is_set() or (self.warming.is_asked and not self._held)

    # --- a round ---

    def _round(self) -> float:
        """Clear up, plan, copy; returns the seconds from the beginning of this to that of the next."""
        began = time.thread_time()
        self._room.clear_up()
        self.cache.verify_some(_CHECKED)
        self._count()
        self._choosing.cool()
        cost = time.thread_time() - began
        self.progress.paused = None
        try:
            if not self.warming.carry_out(max(_EVERY, _SHARE * cost)):
                began = time.thread_time()
                planned = self._plan()
                cost += time.thread_time() - began
                self.progress.waiting = len(planned.admit)
                self._carry_out(planned)
        except PausedError as pause:
            self.progress.paused = str(pause)
        self.progress.speed = 0.0
        self.progress.waiting = 0
        self.progress.warming = self.warming.files_left()
        return max(_EVERY, _SHARE * cost)

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
                self._failures.failed(cached, "cannot be read from the cache")
            if counts.hits or counts.misses:
                more += counts
                seconds = counts.hits * self._choosing.saving(cached.file)
                cached.seconds += seconds
                progress.saved += seconds
            if cached.rehomed and cached.shadow is not None:
                try:
                    self.cache.refresh_head(cached)
                except OSError as error:
                    self._failures.failed(cached, str(error.strerror))
        self._choosing.saw(more)
        progress.counts += more
        progress.recent_hits = progress.recent_hits * kept + more.foreground_hits
        progress.recent = progress.recent * kept + more.foreground

    def _plan(self) -> Plan:
        """What should be copied next, and what should make room for it."""
        if self._failures.is_resting or self.cache.volume.evacuation.draining:
            return Plan((), ())
        self._failures.try_again()
        return self._choosing.plan(self._room.free())

    def _carry_out(self, planned: Plan) -> None:
        """Copy what is planned; what goes for it goes when its room is needed."""
        out = deque(planned.evict)
        if planned.admit:
            decided("cache", chunks=len(planned.admit), instead_of=len(planned.evict), free=self._room.free())
        deadline = time.monotonic() + _EVERY
        left = len(planned.admit)
        for file, numbers in _by_file(planned.admit):
            self._copier.admit(file, numbers, out)
            left -= len(numbers)
            self.progress.waiting = left
            if self._stop.is_set() or time.monotonic() > deadline or self._failures.is_resting:
                return


def _by_file(chunks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Chunks of a plan, those of one file together, but not too many."""
    file, numbers = -1, list[int]()
    for one, number in chunks:
        if (one != file or len(numbers) == RUN) and numbers:
            yield file, numbers
            numbers = []
        file = one
        numbers.append(number)
    if numbers:
        yield file, numbers
