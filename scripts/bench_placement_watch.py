"""What happens on the tiers while a part runs: bandwidth and concurrency of each, room, moves, and where levels are.

All columns have one value a second. Devices are counted by the kernel, the same for every setup; the rest is what
Keigo's daemon says, where there is one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from keigo.control import ControlError, ask
from workloads.compare.hierarchy import Tier
from workloads.compare.traffic import counters_of

_EVERY: Final = 1.0
_LEVELS_EVERY: Final = 5  # samples; a listing costs the daemon some microseconds a file
_SECTOR: Final = 512  # bytes, in these files whatever the device's own sector is (Documentation/block/stat.rst)
_FIELDS: Final = (2, 6, 3, 7)  # sectors read and written, and milliseconds of all requests of either kind


class TierColumns(msgspec.Struct):
    """A tier, second by second."""

    read_bandwidth: list[float] = []
    """Bytes per second."""
    write_bandwidth: list[float] = []
    read_k: list[float] = []
    """Mean number of reads under way."""
    write_k: list[float] = []
    used: list[int] = []
    """Bytes on its file system beyond those at the beginning."""
    room: list[int | None] = []
    """Bytes that Keigo may still place there; None without a daemon."""
    price: list[float | None] = []
    """What Keigo's policy found room there to be worth, where it tells."""


class Timeline(msgspec.Struct):
    """All tiers, second by second, and what Keigo did."""

    tiers: dict[str, TierColumns]
    seconds: list[float] = []
    moved: list[int | None] = []
    """Bytes that migrations have copied by then."""
    moving: list[bool] = []
    """Whether one was under way."""
    stalled: list[bool] = []
    """Whether Keigo took a database's writers to be stalled."""
    levels: list[tuple[float, dict[str, dict[str, int]]]] = []
    """Now and then: tier -> level (or role) -> bytes."""
    marks: list[tuple[float, str]] = []
    """When a step began."""


class Watch:
    """Fills a Timeline from a thread of its own. `mark` may be called from another."""

    def __init__(self, tiers: Sequence[Tier], volume: str | None) -> None:
        self._tiers = tiers
        self._volume = volume
        self._counters = counters_of(tiers) or {}
        self._began = self._last = time.monotonic()
        self._before = self._counts()
        self._used = {tier.name: used_of(tier.directory) for tier in tiers}
        self.timeline = Timeline({tier.name: TierColumns() for tier in tiers})

    def mark(self, what: str) -> None:
        """A step begins."""
        self.timeline.marks.append((time.monotonic() - self._began, what))

    def peaks_since(self, moment: float) -> dict[str, int]:
        """The most bytes in use on each tier, and on `all` together, from `moment` of the timeline on."""
        found = self.timeline
        columns = {name: tier.used for name, tier in found.tiers.items()}
        columns["all"] = [sum(used) for used in zip(*columns.values(), strict=False)]
        return {
            name: max((size for at, size in zip(found.seconds, used, strict=False) if at >= moment), default=0)
            for name, used in columns.items()
        }

    def _counts(self) -> dict[str, tuple[int, ...]]:
        return {name: counts_of(path) for name, path in self._counters.items()}

    def sample(self) -> None:
        """Note one second."""
        now, counts, found = time.monotonic(), self._counts(), self.timeline
        passed = max(now - self._last, 1e-6)
        status = self._ask("status")
        told = {} if status is None else {tier["name"]: tier for tier in status["tiers"]}
        placement = {} if status is None else status.get("placement", {})
        prices = dict(zip(told, placement.get("prices") or (), strict=False))
        for tier in self._tiers:
            columns = found.tiers[tier.name]
            if tier.name in counts:
                steps = [
                    after - before for before, after in zip(self._before[tier.name], counts[tier.name], strict=True)
                ]
                columns.read_bandwidth.append(steps[0] * _SECTOR / passed)
                columns.write_bandwidth.append(steps[1] * _SECTOR / passed)
                columns.read_k.append(steps[2] / 1e3 / passed)
                columns.write_k.append(steps[3] / 1e3 / passed)
            columns.used.append(used_of(tier.directory) - self._used[tier.name])
            columns.room.append(told[tier.name]["room"] if told else None)
            columns.price.append(prices.get(tier.name))
        moves = None if status is None else status["migrations"]
        found.moved.append(None if moves is None else moves["bytes"])
        found.moving.append(bool(moves and moves["current"]))
        found.stalled.append(bool((placement.get("pressure") or {}).get("stalled")))
        if (len(found.seconds) + 1) % _LEVELS_EVERY == 0 and (rows := self._ask("ls")) is not None:
            found.levels.append((now - self._began, levels_of(rows)))
        found.seconds.append(now - self._began)
        self._last, self._before = now, counts

    def _ask(self, what: str) -> Any:  # noqa: ANN401
        """None where no daemon answers: it may come later, or have ended."""
        if self._volume is None:
            return None
        try:
            return ask(self._volume, what)
        except ControlError:
            return None


def counts_of(stat: Path) -> tuple[int, ...]:
    """Sectors read and written, milliseconds of reads and of writes, by a block device's `stat`."""
    fields = stat.read_text().split()
    return tuple(int(fields[number]) for number in _FIELDS)


def used_of(directory: Path) -> int:
    """Bytes in use on the file system of a directory."""
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def levels_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Rows of `keigo ls --json` -> tier -> level, or role of what has none -> bytes."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["role"] == "sst":
            name = "L?" if row["level"] is None else f"L{row['level']}"
        else:
            name = row["role"] if row["role"] == "wal" else "other"
        of = found.setdefault(row["tier"], {})
        of[name] = of.get(name, 0) + row["size"]
    return found


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Sample once a second for as long as the context lasts."""
    over = threading.Event()

    def run() -> None:
        due = time.monotonic() + _EVERY
        while not over.wait(max(0.0, due - time.monotonic())):
            watch.sample()
            due = max(due + _EVERY, time.monotonic())

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
