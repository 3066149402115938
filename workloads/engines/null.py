"""Engines without an engine: what remains of a run's time is the runner's own.

Calls of `null` take 0.05 us. Both hold the GIL, as all Python does; `close` forgets everything, and nothing is on disk.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable

from workloads.engines.options import EngineOptions, refuse_others
from workloads.engines.protocol import Engine, EngineStats

_REASON = "it has no options"


class NullEngine:
    """Takes every write and finds nothing."""

    name = "null"

    def get(self, key: bytes) -> bytes | None:  # noqa: ARG002 - what is asked for is not looked at
        """See `Engine`; always None."""
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """See `Engine`; does nothing, as all that follows."""

    def delete(self, key: bytes) -> None:
        """See `Engine`."""

    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:  # noqa: ARG002
        """See `Engine`; always empty."""
        return []

    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """See `Engine`."""

    def flush(self) -> None:
        """See `Engine`."""

    def sync(self) -> None:
        """See `Engine`."""

    def wait_for_compactions(self) -> None:
        """See `Engine`."""

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return EngineStats((), 0, None)

    def close(self) -> None:
        """See `Engine`."""


class DictEngine:
    """Keeps everything in a dict until it is closed."""

    name = "dict"

    def __init__(self) -> None:
        self._pairs: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []  # sorted
        self._lock = threading.Lock()  # held by whoever changes or walks both

    def get(self, key: bytes) -> bytes | None:
        """See `Engine`."""
        return self._pairs.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """See `Engine`."""
        self.write([(key, value)])

    def delete(self, key: bytes) -> None:
        """See `Engine`."""
        self.write([(key, None)])

    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """See `Engine`."""
        with self._lock:
            first = bisect.bisect_left(self._keys, start)
            return [(key, self._pairs[key]) for key in self._keys[first : first + count]]

    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """See `Engine`."""
        pairs = list(batch)
        with self._lock:
            for key, value in pairs:
                if value is not None:
                    if key not in self._pairs:
                        bisect.insort(self._keys, key)
                    self._pairs[key] = value
                elif self._pairs.pop(key, None) is not None:
                    del self._keys[bisect.bisect_left(self._keys, key)]

    def flush(self) -> None:
        """See `Engine`; nothing to do, as for the two that follow."""

    def sync(self) -> None:
        """See `Engine`."""

    def wait_for_compactions(self) -> None:
        """See `Engine`."""

    def stats(self) -> EngineStats:
        """See `Engine`."""
        with self._lock:
            return EngineStats((), sum(len(key) + len(value) for key, value in self._pairs.items()), None)

    def close(self) -> None:
        """See `Engine`."""
        self._pairs.clear()
        self._keys.clear()


def open_null(path: str, options: EngineOptions, *, create: bool) -> Engine:  # noqa: ARG001 - it has no place
    """An engine that keeps nothing; see `Opener`."""
    refuse_others("null", options, (), _REASON)
    return NullEngine()


def open_dict(path: str, options: EngineOptions, *, create: bool) -> Engine:  # noqa: ARG001
    """An engine that keeps everything in memory; see `Opener`."""
    refuse_others("dict", options, (), _REASON)
    return DictEngine()
