"""The mover: one thread that carries out migrations, those that the policy plans and those that a user asks for.

One at a time: two copies at once would only share the devices' bandwidth, and leave twice the work undone in a
crash. A plan is a wish of a moment: of each plan only the first moves are taken, those that make room before others,
and each is looked at again when its turn comes. What is left of a plan that has grown old is thrown away, and the next
one is made. How fast a copy goes, and whether it must pause, `pace` and the budget say, ten times a second.

Files that a compaction reads will be gone in a moment: their copy is not begun, or ends, unless room is needed.

The mover's tables are guarded by `_wake`, a condition on its own lock, which may be taken under `Volume.lock`; the
other way round never. `_bounces`, `_refused` and `_others` are changed by the mover's thread alone
(`held` looks at the first two).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from keigo import clock
from keigo.decisions import decided
from keigo.lsm.roles import Role
from keigo.placement.budget import Budget, budget, paused_by
from keigo.placement.policy import Move
from keigo.tiers.bounces import Bounces
from keigo.tiers.copying import CancelledError, DamagedError
from keigo.tiers.directories import shown
from keigo.tiers.migration import ForeignLinksError, NotMovableError, migrate
from keigo.tiers.pace import OthersUse, Pace, Stage
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_TRIES: Final = 3  # a file that changes during each of so many copies is left alone until the next plan
_PLAN_EVERY: Final = 0.5  # seconds at least between two plans
_PLAN_SHARE: Final = 20  # times what the last plan took pass before the next: planning takes at most 5% of the time
_STALE: Final = 5.0  # seconds after which the rest of a plan is not carried out
_MOST_PLANNED: Final = 64  # moves of a plan that are queued
_RETRY_AFTER: Final = 30.0  # seconds until a file whose move failed, or was refused, may be in a plan again
_STALLED_WAIT: Final = 0.5  # seconds until a mover that pauses looks again
_COMPACTED: Final = "a compaction reads it, and will replace it"

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
    source: str | None = None
    """Where the policy that planned it saw the file; None: it was not planned by one."""
    urgent: bool = True
    """Whether it never rests, however much others use the devices: room is needed, or somebody waits for it."""


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
    paused: str | None = None
    """Why it does nothing although something is to be done."""
    speed: float = 0.0
    """Bytes per second of the copy that is under way, lately."""


class _MakeWayError(NotMovableError):
    """Another move goes first; this one may be planned again."""


@dataclass(slots=True)
class _Queue:
    asked: deque[Request] = field(default_factory=deque)
    planned: deque[Request] = field(default_factory=deque)
    planned_at: float = 0.0


class Mover:
    """See the module's docstring."""

    def __init__(self, volume: Volume, copy_limit: int | None) -> None:
        self.volume = volume
        self.progress = Progress()
        self._pace = Pace(copy_limit)
        self._others = OthersUse([os.fstat(tier.root.fd).st_dev for tier in volume.tiers], self._pace)
        self._bounces = Bounces()
        self._refused: dict[int, tuple[float, str]] = {}
        """Files that are not to be planned now -> when they may be again, and why not now."""
        self._wake = threading.Condition()
        self._queue = _Queue()
        self._dirty = True
        self._stopping = False
        self._paused = False
        self._busy = False
        self._plan_cost = 0.0
        self._moved = 0
        self._thread = threading.Thread(target=self._run, name="keigo-mover", daemon=True)
        volume.hooks.file_closed = self.poke

    # --- life ---

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
            try:
                outcome = self._move(request)
            except Exception as error:  # a fault of ours: whoever waits is told, and others still move
                log.exception("file %d does not move", request.file)
                outcome = self._failed(request, repr(error))
            with self._wake:
                self._busy = False
                self._moved += 1
                self.progress.waiting = len(self._queue.asked) + len(self._queue.planned)
                self._wake.notify_all()
            if request.done is not None:
                request.done(outcome)

    # --- what comes next ---

    def _next(self) -> Request | None:
        """The next request; None when stopping. Plans when nothing is queued and something calls for it."""
        while True:
            with self._wake:
                if self._stopping:
                    return None
                if self._paused:
                    self._wake.wait()
                    continue
                request = self._take(time.monotonic())
                if request is not None:
                    self._busy = True
                    return request
                left = _STALLED_WAIT if self._queue.planned else self._due()
                if left is None or left > 0:
                    self._wake.wait(left)
                    continue
                self._dirty = False
            self._plan_anew()

    def _plan_anew(self) -> None:
        """Replace what is planned."""
        began = time.monotonic()
        try:
            planned = self.plan()
        except Exception as error:  # a fault of ours, or of a policy's: what is asked for still moves
            planned = []
            if self.progress.last_error != (told := f"no plan: {error!r}"):
                log.exception("no plan")
                self.progress.failed += 1
                self.progress.last_error = told
        with self._wake:
            self._queue.planned = deque(planned)
            self._queue.planned_at = time.monotonic()
            self._plan_cost = self._queue.planned_at - began
            self.progress.waiting = len(self._queue.asked) + len(planned)

    def _take(self, now: float) -> Request | None:
        """What is to be done now, of what is queued. `_wake` is held."""
        queue, draining = self._queue, self.volume.evacuation.draining
        if queue.asked:
            return queue.asked.popleft()
        if queue.planned and ((queue.planned[0].source is None) is not draining or self._is_stale(now)):
            queue.planned.clear()
            self._dirty = True
        stalled = paused_by(self.volume.placing.pressure)
        for request in queue.planned:
            if request.urgent or stalled is None:
                queue.planned.remove(request)
                self._dirty = self._dirty or not queue.planned  # the plan may have been cut
                self.progress.paused = None
                return request
        self.progress.paused = stalled if queue.planned else None
        return None

    def _is_stale(self, now: float) -> bool:
        """Whether the rest of the plan is too old to be carried out. `_wake` is held."""
        age = now - self._queue.planned_at
        return not self.volume.evacuation.draining and age > max(_STALE, _PLAN_SHARE * self._plan_cost)

    def _due(self) -> float | None:
        """Seconds until the next plan; None: nothing calls for one. `_wake` is held."""
        least = max(_PLAN_EVERY, _PLAN_SHARE * self._plan_cost)
        waits = [least] if self._dirty else []
        if self.volume.placing.policy.period is not None:
            waits.append(max(least, self.volume.placing.policy.period))
        if self._refused:
            waits.append(max(least, _RETRY_AFTER))
        return self._queue.planned_at + min(waits) - time.monotonic() if waits else None

    def plan(self) -> list[Request]:
        """What should move now: to the primary tier when draining, else the first of what the policy says."""
        volume, placing = self.volume, self.volume.placing
        now = time.monotonic()
        for file in [file for file, (until, _) in self._refused.items() if until <= now]:
            del self._refused[file]
        view = placing.view(clock.now(), frozenset(() if volume.evacuation.draining else self._refused))
        if volume.evacuation.draining:
            primary = volume.primary
            return [
                Request(state.id, primary.name, "drained")
                for state in view
                if state.tier != primary.index and not self._stays(state.id, state.role)
            ]
        placing.priced(placing.policy.prices(view, placing.tier_states()), now)
        states = placing.tier_states()
        ill = {tier.index for tier in volume.tiers if tier.health.is_degraded or tier is volume.evacuation.leaving}
        moves = [move for move in placing.policy.plan(view, states) if not {move.source, move.target} & ill]
        chosen = self._first(moves, [tier.room for tier in states])
        return [self._request(move) for move in chosen]

    def _first(self, moves: Sequence[Move], room: list[int]) -> list[Move]:
        """The moves to begin with: those that make room first, as far as nothing else must make room for them."""
        urgent, others = [], []
        for move in moves:
            known = self.volume.placing.index.known(move.file) if move.urgent else None
            if known is None or known.size > room[move.target]:
                others.append(move)
                continue
            room[move.target] -= known.size
            urgent.append(move)
        return [*urgent, *others][:_MOST_PLANNED]

    def _request(self, move: Move) -> Request:
        source, target = self.volume.tiers[move.source].name, self.volume.tiers[move.target].name
        return Request(move.file, target, move.reason, source=source, urgent=move.urgent)

    def _stays(self, file: int, role: Role) -> bool:
        """Whether a file is the LOCK of a guarded database, which goes in place together with the guard."""
        if role is not Role.LOCK:
            return False
        record = self.volume.catalog_file(file)
        return record is not None and any(directory in self.volume.guards.guarded for directory, _ in record.links)

    # --- one move ---

    def _move(self, request: Request) -> str | None:
        """Carry out one request; returns None or why it did not move."""
        volume = self.volume
        target = volume.by_name[request.target]
        for _ in range(_TRIES):
            if self._stopping or self._paused:
                return "the volume is being closed"
            why = self._overtaken(request)
            if why is not None:
                decided("stay", path=volume.show(request.file), tier=request.source, target=target.name, reason=why)
                self._refuse(request.file, _STALE, why)
                return why
            try:
                record = volume.record(request.file)
                home = record.home
                decided("move", path=volume.show(request.file), tier=home, target=target.name, reason=request.reason)
                self.progress.current = volume.show(request.file)
                self._pace.begin(lambda stage: self._budget(request, stage))
                self.progress.bytes += migrate(volume, request.file, target, request.reason, self._pace)
                if request.keep:
                    volume.keep(request.file, target.name)
            except NotMovableError as error:
                if request.keep:
                    volume.keep(request.file, target.name)  # it may be there already
                if isinstance(error, ForeignLinksError) and volume.evacuation.draining:
                    return self._failed(request, str(error))  # it would never end
                if request.source is not None and not isinstance(error, _MakeWayError):
                    self._refuse(request.file, _RETRY_AFTER, str(error))
                return str(error)
            except CancelledError:
                self.progress.cancelled += 1
                continue
            except FileNotFoundError:
                if volume.catalog_file(request.file) is None:
                    return "is gone"
                return self._failed(request, "is not on its tier")
            except (OSError, DamagedError) as error:
                what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                return self._failed(request, what)
            else:
                self._bounces.moved(request.file, home, target.name, time.monotonic())
                self.progress.done += 1
                log.info("moved %s to %s: %s", self.progress.current, target.name, request.reason)
                return None
            finally:
                self.progress.current = self.progress.paused = None
                self.progress.speed = 0.0
        return "changed while it was copied"

    def _failed(self, request: Request, what: str) -> str:
        """Count and tell a failure; returns what it was."""
        name = self.volume.show(request.file)
        self.progress.failed += 1
        self.progress.last_error = f"{name}: {what}"
        log.warning("cannot move %s to %s: %s", name, request.target, what)
        self._refuse(request.file, _RETRY_AFTER, f"the last move failed: {what}")
        return what

    def _overtaken(self, request: Request) -> str | None:
        """Why a move that was planned is not to be carried out any more."""
        if request.source is None:
            return None
        volume, target = self.volume, self.volume.by_name[request.target]
        record = volume.catalog_file(request.file)
        if record is None:
            return "is gone"
        if record.home != request.source:
            return f"is on {record.home} now"
        if record.space > target.room():
            return f"tier {target.name} has no room any more"
        if request.urgent:
            return None
        if request.file in volume.hooks.doomed():
            return _COMPACTED
        if target.health.is_degraded:
            return f"tier {target.name} is degraded"
        until = self._bounces.until(request.file, request.target)
        if time.monotonic() < until and not self._is_pinned_to(request):
            return f"has come from {request.target} a short while ago"
        return None

    def _is_pinned_to(self, request: Request) -> bool:
        volume = self.volume
        with volume.lock:
            record = volume.catalog.file(request.file)
            pinned = None if record is None else volume.pins.tier_for(volume.path(*record.links[0]))
        return pinned is not None and pinned[1] == request.target

    def _refuse(self, file: int, seconds: float, why: str) -> None:
        """Leave a file out of plans for a while: its move could not be carried out, and would be planned again."""
        self._refused[file] = time.monotonic() + seconds, why

    def held(self, file: int) -> str | None:
        """Why a file that a plan may want to move does not move now, but for what `Volume` knows; None: nothing."""
        if file in self.volume.hooks.doomed():
            return _COMPACTED
        _, why = self._refused.get(file, (0.0, None))
        if why is not None:
            return why
        now = time.monotonic()
        held = [tier.name for tier in self.volume.tiers if now < self._bounces.until(file, tier.name)]
        return f"has come from {', '.join(held)} a short while ago, and does not go back yet" if held else None

    def _budget(self, request: Request, stage: Stage) -> Budget:
        """What the copy that is under way may do now. Raises NotMovableError where it is not to go on."""
        if self._stopping or self._paused:
            raise _MakeWayError("the volume is being closed")
        if not request.urgent:
            if request.file in self.volume.hooks.doomed():
                raise NotMovableError(_COMPACTED)
            self._make_way()
        placing = self.volume.placing
        legs = self._others.legs(stage, placing.models, placing.loads, time.monotonic())
        found = budget(legs, placing.pressure, urgent=request.urgent)
        self.progress.paused, self.progress.speed = found.paused, self._pace.speed
        return found

    def _make_way(self) -> None:
        """End a copy that may take its time where somebody waits for another one. Raises _MakeWayError."""
        if self.volume.evacuation.draining:
            raise _MakeWayError("the volume is being drained")
        with self._wake:
            if self._queue.asked:
                raise _MakeWayError("a user asked for another move")
            if not self._is_stale(time.monotonic()):
                return
        self._plan_anew()
        if any(request.urgent for request in self._queue.planned):
            raise _MakeWayError("room is needed first")

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
            if record.role is Role.LOCK and any(directory in volume.guards.guarded for directory, _ in record.links):
                continue
            known = volume.open_files.by_id.get(file)
            path = shown(volume.path(*record.links[0]))
            found.append((path, record.size, known is not None and known.writers > 0))
    return found
