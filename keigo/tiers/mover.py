"""The mover: one thread that carries out migrations, those that the policy plans and those that a user asks for.

One at a time: two copies at once would only share the devices' bandwidth, and leave twice the work undone in a
crash. Its tables are guarded by `_wake`, a condition on its own lock, which may be taken under `Volume.lock`; the
other way round never.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keigo.lsm.roles import Role
from keigo.tiers.directories import shown
from keigo.tiers.migration import DamagedError, NotMovableError, Pace, migrate
from keigo.tiers.volume import CancelledError, Volume

log = logging.getLogger(__name__)

_TRIES: Final = 3  # a file that changes during each of so many copies is left alone until the next plan
_PLAN_EVERY: Final = 0.5  # seconds at least between two plans: a plan reads the whole catalog
_RETRY_AFTER: Final = 30.0  # seconds until a file whose move failed is tried again

Done = Callable[[str | None], None]


@dataclass(slots=True)
class Request:
    """One file to be moved."""

    file: int
    target: str
    reason: str
    done: Done | None = None
    """Hears None when the file has moved, else why not; in the mover's thread, without locks."""
    keep: bool = False
    """Whether the file is to stay there whatever the policy wants: a user asked for it."""


@dataclass(slots=True)
class Progress:
    """What the mover has done since the mount; read without a lock, for status only."""

    current: str | None = None
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0
    last_error: str | None = None
    waiting: int = 0


@dataclass(slots=True)
class _Queue:
    asked: deque[Request] = field(default_factory=deque)
    planned: deque[Request] = field(default_factory=deque)
    failed_at: dict[int, float] = field(default_factory=dict)


class Mover:
    """See the module's docstring."""

    def __init__(self, volume: Volume, copy_limit: int | None) -> None:
        self.volume = volume
        self.progress = Progress()
        self._pace = Pace(copy_limit)
        self._wake = threading.Condition()
        self._queue = _Queue()
        self._dirty = True
        self._stopping = False
        self._paused = False
        self._busy = False
        self._planned_at = 0.0
        self._plan_cost = 0.0
        self._moved = 0
        self._thread = threading.Thread(target=self._run, name="keigo-mover", daemon=True)
        volume.file_closed = self.poke

    def start(self) -> None:
        """Begin to move files."""
        self._thread.start()

    def stop(self) -> None:
        """End: a copy is cancelled, a landing is finished. Returns when the thread is gone."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._cancel_copies()
        if self._thread.is_alive():
            self._thread.join()
        for request in [*self._queue.asked]:
            if request.done is not None:
                request.done("the volume is being closed")

    def pause(self) -> None:
        """Cancel a copy, finish a landing, and move nothing until `resume`. Returns when nothing is under way."""
        with self._wake:
            self._paused = True
        self._cancel_copies()
        with self._wake:
            self._wake.wait_for(lambda: not self._busy)

    def resume(self) -> None:
        """Undo `pause`."""
        with self._wake:
            self._paused = False
            self._wake.notify_all()

    def _cancel_copies(self) -> None:
        with self.volume.lock:
            for stop in self.volume.cancelled.values():
                stop.set()

    def poke(self) -> None:
        """Something changed: plan anew."""
        with self._wake:
            self._dirty = True
            self._wake.notify_all()

    def submit(self, request: Request) -> None:
        """Queue a move that somebody asked for; it goes before those that are planned."""
        with self._wake:
            if not self._stopping:
                self._queue.asked.append(request)
                self._wake.notify_all()
                return
        if request.done is not None:
            request.done("the volume is being closed")

    def wait_change(self, timeout: float) -> None:
        """Wait until a move ended or something else changed, at most `timeout` seconds."""
        with self._wake:
            seen = self._moved
            self._wake.wait_for(lambda: self._stopping or self._moved != seen, timeout)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def _run(self) -> None:
        while (request := self._next()) is not None:
            outcome = self._move(request)
            with self._wake:
                self._busy = False
                self._moved += 1
                self.progress.waiting = len(self._queue.asked) + len(self._queue.planned)
                self._wake.notify_all()
            if request.done is not None:
                request.done(outcome)

    def _next(self) -> Request | None:
        """The next request; None when stopping. Plans when nothing is queued and something changed."""
        while True:
            with self._wake:
                while True:
                    if self._stopping:
                        return None
                    if self._paused:
                        self._wake.wait()
                        continue
                    if self._queue.asked or self._queue.planned:
                        self._busy = True
                        return (self._queue.asked or self._queue.planned).popleft()
                    # A plan may take 5% of the time: 20 times its cost passes before the next.
                    due = self._planned_at + max(_PLAN_EVERY, 20 * self._plan_cost)
                    left = due - time.monotonic()
                    if self._dirty and left <= 0:
                        break
                    self._wake.wait(left if self._dirty else _RETRY_AFTER if self._queue.failed_at else None)
                    if self._queue.failed_at:
                        self._dirty = True
                self._dirty = False
            began = time.monotonic()
            planned = self.plan()
            with self._wake:
                self._planned_at = time.monotonic()
                self._plan_cost = self._planned_at - began
                self._queue.planned.extend(planned)

    def plan(self) -> list[Request]:
        """What should move now: to the primary tier when draining, else what the policy says."""
        volume = self.volume
        now = time.monotonic()
        failed = self._queue.failed_at
        for file in [file for file, at in failed.items() if now - at > _RETRY_AFTER]:
            del failed[file]
        states = [state for state in volume.file_states() if state.id not in failed]
        if volume.draining:
            primary = volume.primary
            return [
                Request(state.id, primary.name, "drained")
                for state in states
                if state.tier != primary.index and not self._stays(state.id, state.role)
            ]
        moves = volume.policy.plan(states, volume.tier_states())
        return [Request(move.file, volume.tiers[move.target].name, move.reason) for move in moves]

    def _stays(self, file: int, role: Role) -> bool:
        """Whether a file is the LOCK of a guarded database, which goes in place together with the guard."""
        if role is not Role.LOCK:
            return False
        record = self.volume.catalog_file(file)
        return record is not None and any(directory in self.volume.guarded for directory, _ in record.links)

    def _move(self, request: Request) -> str | None:
        """Carry out one request; returns None or why it did not move."""
        volume = self.volume
        target = volume.by_name[request.target]
        for _ in range(_TRIES):
            if self._stopping or self._paused:
                return "the volume is being closed"
            try:
                self.progress.current = volume.show(request.file)
                self.progress.bytes += migrate(volume, request.file, target, request.reason, self._pace)
                if request.keep:
                    volume.keep(request.file, target.name)
            except NotMovableError as error:
                if request.keep:
                    volume.keep(request.file, target.name)  # it may be there already
                return str(error)
            except CancelledError:
                self.progress.cancelled += 1
                continue
            except FileNotFoundError:
                return "is gone"
            except (OSError, DamagedError) as error:
                what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self.progress.failed += 1
                self.progress.last_error = f"{self.progress.current}: {what}"
                log.warning("cannot move %s to %s: %s", self.progress.current, target.name, what)
                self._queue.failed_at[request.file] = time.monotonic()
                return what
            else:
                self.progress.done += 1
                log.info("moved %s to %s: %s", self.progress.current, target.name, request.reason)
                return None
            finally:
                self.progress.current = None
        return "changed while it was copied"

    def run_all(self, report: Callable[[str], None] = lambda _line: None) -> list[str]:
        """Without a thread: carry out one plan to its end; returns what could not be moved, a line each."""
        failures = []
        for request in self.plan():
            name = self.volume.show(request.file)
            why = self._move(request)
            if why is None:
                report(name)
            else:
                failures.append(f"{name}: {why}")
        return failures


def elsewhere(volume: Volume) -> list[tuple[str, int, bool]]:
    """(path, bytes, open for writing) of every file off the primary tier, but for the LOCKs beside guards."""
    found = []
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.special or record.home == volume.primary.name:
                continue
            if record.role is Role.LOCK and any(directory in volume.guarded for directory, _ in record.links):
                continue
            known = volume.open_files.get(file)
            path = shown(volume.path(*record.links[0]))
            found.append((path, record.size, known is not None and known.writers > 0))
    return found
