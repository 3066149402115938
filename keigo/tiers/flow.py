"""What comes to a tier and goes from it: inflow, growth and swing of `TierState`.

Threads: none of its own. `came` is called under `Volume.lock`, `sample` by the sampler alone; what they leave is read
without a lock, and may be a sample old.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

LATELY: Final = 10.0
"""Seconds of growth, and half-life of inflow: long enough to have flushes and compactions in it, short enough that no
room is kept free long after a burst."""
MINUTE: Final = 60.0
"""Seconds of swing."""
_WINDOW: Final = LATELY / math.log(2)


class Flow:
    """Of one tier. `now` in seconds; a clock that goes back stands still."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0
        self._rooms: deque[tuple[float, int]] = deque()
        """(when, room), both rising: the first is the least of the last minute."""
        self._used: deque[tuple[float, int]] = deque()
        """(when, bytes in use), the first LATELY ago."""

    def came(self, size: int, now: float) -> None:
        """A file of `size` bytes was written."""
        self._rate, self._at = self.inflow(now) + size / _WINDOW, max(now, self._at)

    def inflow(self, now: float) -> float:
        """Bytes per second that are created here, decayed."""
        return self._rate * math.exp2(min(0.0, self._at - now) / LATELY)

    def sample(self, room: int, used: int, now: float) -> None:
        """Take in the tier's room and the bytes in use."""
        rooms = self._rooms
        while rooms and rooms[-1][1] >= room:
            rooms.pop()
        rooms.append((now, room))
        while rooms[0][0] < now - MINUTE:
            rooms.popleft()
        self._used.append((now, used))
        while self._used[0][0] < now - LATELY:
            self._used.popleft()

    def growth(self, used: int) -> int:
        """Bytes that are more in use now than LATELY ago."""
        known = self._used
        return used - known[0][1] if known else 0

    def swing(self, room: int) -> int:
        """How much less room there was at the least in the last minute."""
        rooms = self._rooms
        return max(0, room - rooms[0][1]) if rooms else 0
