"""How fast copies go: the limit that the user set, and the budget that the devices and databases leave.

A copy asks for its budget anew every 100 ms and, between two chunks, waits for what is left of the period that the
budget asks for (`keigo.placement.budget`). It waits on the event that cancels it, so nothing has to wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from keigo.devices.load import Load, Smoothed
from keigo.placement.budget import CHUNKS, IDLE, Budget, Leg, Use, slowest_read
from keigo.tiers.tier import Tier

if TYPE_CHECKING:
    from keigo.devices.model import DeviceModel
    from keigo.devices.profile import Direction

ASK_EVERY: Final = 0.1  # seconds; a load that rises is seen a second later anyway
_LEAST_WAIT: Final = 2e-4  # seconds; a shorter wait takes longer than it says, and is made up for by a later one

Stage = Sequence[tuple[Tier, "Direction"]]
"""What a copy does with each chunk: where, and which way."""
Ask = Callable[[Stage], Budget]


def unbounded(_stage: Stage) -> Budget:
    """As much as the devices do for one stream."""
    return Budget(CHUNKS[0])


class Pace:
    """The pace of a volume's copies, which are made one at a time, each by the thread that calls this.

    `limit` is in bytes per second, over all copies; None: no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.own: dict[tuple[int, Direction], list[float]] = {}
        """(index of a tier, direction) -> [seconds, bytes] of all requests of copies so far."""
        self._by_limit = 0.0
        """When the next chunk may begin, by the limit."""
        self._ask: Ask = unbounded
        self._stage: Stage = ()
        self._began = 0.0
        """When the last chunk began, or was to begin where that was a little later."""
        self._times: Sequence[float] = ()
        """How long its legs took."""
        self._budget = Budget(CHUNKS[0])
        self._asked = -1.0
        self._speed = Smoothed()
        self._size = 0

    def begin(self, ask: Ask = unbounded) -> None:
        """Another copy begins. What `ask` raises ends it."""
        self._ask = ask
        self._speed = Smoothed()
        self._size = 0
        self._asked = -1.0

    def stage(self, stage: Stage) -> None:
        """What follows is done to each chunk."""
        self._stage = stage
        self._times = ()
        self._asked = -1.0

    @property
    def speed(self) -> float:
        """Bytes per second of the copy that is under way, lately."""
        return self._speed.value or 0.0

    def next(self, stop: threading.Event) -> int:
        """Wait until the next chunk may begin, or until `stop` is set; returns how many bytes it may have."""
        while not stop.is_set():
            now = time.monotonic()
            if now - self._asked >= ASK_EVERY:
                if self._asked > 0:
                    self._speed.add(self._size / (now - self._asked), now - self._asked)
                self._size, self._asked = 0, now
                self._budget = self._ask(self._stage)
            due = max(now, self._by_limit)
            if self._times or self._budget.paused is not None:
                due = max(due, self._began + self._budget.period(self._times))
            if due - now < _LEAST_WAIT:
                self._began = due
                break
            stop.wait(min(due - now, ASK_EVERY))
        return self._budget.chunk

    def moved(self, size: int, *times: float) -> None:
        """A chunk is done; its legs took so many seconds each, in the order of the stage."""
        self._times = times
        self._size += size
        if self.limit is not None:
            self._by_limit = self._began + size / self.limit
        for (tier, direction), seconds in zip(self._stage, times, strict=True):
            counts = self.own.setdefault((tier.index, direction), [0.0, 0.0])
            counts[0] += seconds
            counts[1] += size


class OthersUse:
    """What others do on the tiers' devices: the measured loads without the copies' own requests.

    The copies' are averaged over time as the loads are, or the difference would be neither.
    """

    def __init__(self, devices: Sequence[int], pace: Pace) -> None:
        """`devices`: by tier, the number of the device that it is on. Loads are of devices, not of tiers."""
        self._devices = devices
        self._pace = pace
        self._seen: Sequence[Load] = ()
        self._at: float | None = None
        self._before: dict[tuple[int, Direction], tuple[float, float]] = {}
        self._rates: dict[tuple[int, Direction], tuple[Smoothed, Smoothed]] = {
            (device, direction): (Smoothed(), Smoothed()) for device in set(devices) for direction in ("read", "write")
        }

    def legs(self, stage: Stage, models: Sequence[DeviceModel], loads: Sequence[Load], now: float) -> list[Leg]:
        """The legs of a stage, `loads` being the last that were measured (none yet: nobody does anything)."""
        if loads is not self._seen:
            self._fold(now)
            self._seen = loads
        uses = [self._use(index, loads) for index in range(len(models))]
        slowest = slowest_read(models, uses)
        return [Leg(models[tier.index], uses[tier.index], direction, slowest) for tier, direction in stage]

    def _fold(self, now: float) -> None:
        """A window of the loads has ended: average what the copies did in it."""
        totals = self._totals()
        if self._at is not None and now > self._at:
            dt = now - self._at
            for key, (k, bandwidth) in self._rates.items():
                seconds, size = totals[key]
                k.add((seconds - self._before[key][0]) / dt, dt)
                bandwidth.add((size - self._before[key][1]) / dt, dt)
        self._at, self._before = now, totals

    def _totals(self) -> dict[tuple[int, Direction], tuple[float, float]]:
        totals = dict.fromkeys(self._rates, (0.0, 0.0))
        for (tier, direction), (seconds, size) in self._pace.own.items():
            before = totals[self._devices[tier], direction]
            totals[self._devices[tier], direction] = before[0] + seconds, before[1] + size
        return totals

    def _use(self, tier: int, loads: Sequence[Load]) -> Use:
        if not loads:
            return IDLE
        load, device = loads[tier], self._devices[tier]
        read_k, read_bandwidth = (each.value or 0.0 for each in self._rates[device, "read"])
        write_k, write_bandwidth = (each.value or 0.0 for each in self._rates[device, "write"])
        everybody = Use(
            load.read_k or 0.0, load.write_k or 0.0, load.read_bandwidth or 0.0, load.write_bandwidth or 0.0
        )
        return everybody.less(Use(read_k, write_k, read_bandwidth, write_bandwidth))
