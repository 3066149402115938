"""How much Keigo itself moves on a tier: for the load of tiers that are on no block device, where nobody else counts.

Counts only grow. Whoever serves a read or a write says `begin` and `end`; bytes whose time is not known (those that
the kernel or the data path moved) are added by `add`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """One direction of a tier, at one moment."""

    requests: int
    bytes: int
    nanoseconds: int | None
    """Time that the requests took, summed; None where not all of them are timed."""
    under_way: int

    def __add__(self, other: Moved) -> Moved:
        unknown = self.nanoseconds is None or other.nanoseconds is None
        return Moved(
            self.requests + other.requests,
            self.bytes + other.bytes,
            None if unknown else (self.nanoseconds or 0) + (other.nanoseconds or 0),
            self.under_way + other.under_way,
        )


class Flow:
    """One direction of a tier. Its lock is a leaf: nothing is called under it."""

    __slots__ = ("_lock", "bytes", "nanoseconds", "requests", "under_way")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes = 0
        self.nanoseconds = 0
        """Time that the requests took, summed, of those that were timed."""
        self.under_way = 0

    def begin(self) -> int:
        """A request begins; returns what `end` wants."""
        with self._lock:
            self.under_way += 1
        return time.monotonic_ns()

    def end(self, began: int, size: int) -> None:
        """A request ends, having moved `size` bytes: 0 where it failed."""
        took = time.monotonic_ns() - began
        with self._lock:
            self.under_way -= 1
            self.requests += 1
            self.bytes += size
            self.nanoseconds += took

    def end_elsewhere(self, other: Flow, began: int, size: int) -> None:
        """A request ends that has turned out to be the other flow's."""
        took = time.monotonic_ns() - began
        with self._lock:
            self.under_way -= 1
        with other._lock:
            other.requests += 1
            other.bytes += size
            other.nanoseconds += took

    def add(self, size: int, requests: int = 0) -> None:
        """Bytes were moved by requests that were not timed, nor perhaps counted."""
        with self._lock:
            self.requests += requests
            self.bytes += size

    def moved(self) -> Moved:
        """What was counted so far."""
        with self._lock:
            return Moved(self.requests, self.bytes, self.nanoseconds, self.under_way)


class Traffic:
    """Both directions of a tier, and its syncs, which move nothing by themselves."""

    __slots__ = ("reads", "syncs", "writes")

    def __init__(self) -> None:
        self.reads = Flow()
        self.writes = Flow()
        self.syncs = Flow()
