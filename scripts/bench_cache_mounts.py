"""Databases that are loaded once in memory and copied to where they are wanted, and Keigo mounts over such copies."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench_cache_plan import CHUNK, FAST, SLOW

from keigo.control import ControlError, ask
from keigo.devices.profile import profile_path
from workloads.compare.hierarchy import Hierarchy, Tier
from workloads.compare.setups import made
from workloads.compare.tools import CompareError, keigo, undisturbed

_EVERY: Final = 0.5  # seconds between two looks at the daemon
_QUIET: Final = 3.0  # seconds without a new chunk after which the filler has nothing more to do
_REST: Final = 40.0  # seconds in which it should have done it
_GONE: Final = 30.0  # seconds after which a killed daemon is thought to hang
_ALL: Final = ["wal", 0, 1, 2, 3, 4, 5, 6]


def filled(tier: Tier, database: Path) -> Path:
    """A durable copy of a database in a new directory on a tier. Raises CompareError."""
    target = made(tier, "db")
    for path in sorted(database.iterdir()):
        if not path.is_file():
            continue
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return target


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume that is mounted."""

    directory: Path
    volume: str
    config: Path

    def status(self) -> dict[str, Any]:
        """Of the cache. Raises ControlError."""
        found: dict[str, Any] = ask(self.volume, "status")["cache"]
        return found

    def warm(self) -> None:
        """Copy all into the cache. Raises CompareError."""
        keigo("cache", self.directory, "warm")

    def rest(self) -> None:
        """Let the filler copy, with nobody reading, until it has nothing more to do. Raises ControlError."""
        keep, limit = threading.Event(), time.monotonic() + _REST
        filled, quiet = -1, 0.0
        while time.monotonic() < limit and quiet < _QUIET:
            facts = self.status()
            quiet = quiet + _EVERY if facts["filled"] == filled else 0.0
            filled = facts["filled"]
            keep.wait(_EVERY)

    def pin(self, names: list[str]) -> None:
        """Move tables to the fast tier, and keep them there. Raises CompareError, ControlError."""
        for name in names:
            keigo("pin", self.directory, name, FAST)
        keep = threading.Event()
        limit = time.monotonic() + 120
        while self._tables_on(SLOW) & set(names):
            if time.monotonic() > limit:
                raise CompareError("pinned tables were not moved in time")
            keep.wait(0.2)

    def _tables_on(self, tier: str) -> set[str]:
        rows = ask(self.volume, "ls")
        return {Path(row["name"]).name for row in rows if row["role"] == "sst" and row["tier"] == tier}

    def drain(self) -> None:
        """Bring all files back to the tier in place. Raises CompareError."""
        keigo("drain", self.directory)

    def check_homes(self, but: frozenset[str] = frozenset()) -> None:
        """Raises CompareError unless all tables but those are on the slow tier."""
        strayed = self._tables_on(FAST) - but
        if strayed:
            raise CompareError(
                f"{len(strayed)} tables are on {FAST}, where none should be: what was measured is nothing"
            )

    def mount(self) -> None:
        """Mount it. Raises CompareError."""
        keigo("mount", self.directory, "-d", self.config, "--log-file", self.config.with_name("log"))

    def umount(self) -> None:
        """Unmount it. Raises CompareError."""
        keigo("umount", self.directory)

    def kill(self) -> None:
        """End the daemon as a crash does, and wait until it is gone. Raises CompareError, ControlError."""
        pid = int(ask(self.volume, "status")["pid"])
        gone = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(gone, signal.SIGKILL)
            if not select.select([gone], [], [], _GONE)[0]:
                raise CompareError(f"daemon {pid} did not end")
        finally:
            os.close(gone)


@contextmanager
def mounted(hierarchy: Hierarchy, database: Path, profile: Path | None, cache: int | None) -> Iterator[Mounted]:
    """A volume with the database on the slow tier, and nothing to move it; `cache`: capacity, None: none."""
    tiers = [{"name": FAST, "path": str(made(hierarchy.fastest, "tier"))}, {"name": SLOW, "in_place": True}]
    config: dict[str, Any] = {"tiers": tiers, "placement": {"policy": "levels", "levels": {SLOW: _ALL}}}
    if cache is not None:
        config["cache"] = {"tier": FAST, "capacity": cache, "chunk": CHUNK}
    with _mounted(hierarchy, hierarchy.slowest, database, profile, config) as found:
        yield found


@contextmanager
def mounted_fast(hierarchy: Hierarchy, database: Path, profile: Path | None) -> Iterator[Mounted]:
    """A volume with the fast tier alone."""
    config: dict[str, Any] = {
        "tiers": [{"name": FAST, "in_place": True}],
        "placement": {"policy": "levels", "levels": {FAST: _ALL}},
    }
    with _mounted(hierarchy, hierarchy.fastest, database, profile, config) as found:
        yield found


@contextmanager
def _mounted(
    hierarchy: Hierarchy, home: Tier, database: Path, profile: Path | None, config: dict[str, Any]
) -> Iterator[Mounted]:
    path = made(home, "config") / "devices.yaml"
    path.write_text(json.dumps({"volume": hierarchy.scratch, **config}, indent=1))  # JSON is YAML
    if profile is not None:
        shutil.copyfile(profile, profile_path(path))
    found = Mounted(filled(home, database), hierarchy.scratch, path)
    with undisturbed():
        found.mount()
    try:
        yield found
    finally:
        found.umount()


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon said of the cache at a moment; counts are since the mount."""

    at: float
    """By CLOCK_MONOTONIC."""
    foreground: int
    hits: int
    """Of the foreground's reads."""
    used: int
    filled: int
    evicted: int

    @classmethod
    def of(cls, at: float, facts: dict[str, Any]) -> Sample:
        """From `keigo status`."""
        foreground = int(facts["foreground_reads"])
        hits = round(foreground * (facts["hit_ratio"] or 0.0))
        return cls(at, foreground, hits, int(facts["used"]), int(facts["filled"]), int(facts["evicted"]))


@contextmanager
def sampled(volume: Mounted) -> Iterator[list[Sample]]:
    """What the cache says while the context lasts, each time that its counts have changed."""
    found: list[Sample] = []
    over = threading.Event()

    def run() -> None:
        while not over.wait(_EVERY):
            try:
                sample = Sample.of(time.monotonic(), volume.status())
            except ControlError:
                continue
            if not found or sample.foreground != found[-1].foreground:
                found.append(sample)

    thread = threading.Thread(target=run, name="sample", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def hit_ratio(samples: list[Sample], begin: float, end: float) -> tuple[float, float, float]:
    """Hit ratio of the foreground between the first sample from `begin` on and the last before `end`; their times.

    Raises CompareError where there are no two of them.
    """
    inside = [sample for sample in samples if begin <= sample.at <= end]
    if len(inside) < 2 or inside[-1].foreground == inside[0].foreground:
        raise CompareError("the cache has counted no reads")
    first, last = inside[0], inside[-1]
    return (last.hits - first.hits) / (last.foreground - first.foreground), first.at, last.at
