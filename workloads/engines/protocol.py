"""What an engine does. Keys and values are bytes; keys are ordered as `bytes` are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from keigo.errors import KeigoError
from workloads.engines.options import EngineOptions


class EngineError(KeigoError):
    """What an engine could not do, in one line: the engine, the database, the engine's own words."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree that has files."""

    level: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine tells of itself at one moment."""

    levels: tuple[Level, ...]
    """Levels that have files, topmost first; none where the engine has no levels."""
    bytes: int
    """Bytes of all live tables (no WAL), or of all keys and values where there are no tables."""
    stall_micros: int | None
    """Time for which writes were slowed down or stopped, since the database was opened; None where it does not tell."""


class Engine(Protocol):
    """An open database.

    Threads: all calls may be made in parallel but `close`, which runs alone. Whether they then run in parallel is up to
    the binding: see the engine's own module for what was measured.

    Errors: EngineError, with the engine's own words, also for data whose checksum is wrong; after one from a write the
    database may refuse further writes. Nothing else is raised for what happens to files. On a full device a write of
    RocksDB may wait instead, until there is room.
    """

    name: str
    """The engine's name, as in `OPEN`."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, its checksum verified; None where there is none."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Write one pair. With `sync` in the options it survives a crash of the machine once this returns."""
        ...

    def delete(self, key: bytes) -> None:
        """Delete a key, there or not; as durable as `put`."""
        ...

    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The first `count` pairs from key `start` on, in key order, as of one moment; fewer at the end."""
        ...

    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write all pairs, in order and at once: all or none is seen and survives. A value of None deletes the key."""
        ...

    def flush(self) -> None:
        """Write what is in memory into tables; they are on the device on return."""
        ...

    def sync(self) -> None:
        """Everything written before survives a crash of the machine once this returns."""
        ...

    def wait_for_compactions(self) -> None:
        """Flush, then wait until no compaction runs or is due: without further writes the tables stay as they are."""
        ...

    def stats(self) -> EngineStats:
        """What the engine tells of itself now. May take milliseconds for thousands of files."""
        ...

    def close(self) -> None:
        """Close; every file of the database is closed on return. No other call may run or follow."""
        ...


class Opener(Protocol):
    """Opens an engine's databases."""

    def __call__(self, path: str, options: EngineOptions, *, create: bool) -> Engine:
        """Open the database at `path`. With `create`, directory and database are made where there are none.

        Raises OptionError where an option cannot be set or is not in effect, EngineError where the database cannot be
        opened: it is not there, in use, or damaged, or the engine's Python package is not installed.
        """
        ...
