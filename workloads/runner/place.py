"""The directory that a run may use: an empty one, or one with a database that an earlier run made, which a file beside
the database's own says. Any other database is a user's, and is never opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from keigo.errors import KeigoError
from keigo.lsm.roles import Role, role_of
from keigo.mounts import openers_below, real_path

MARKER: Final = "keigo-bench.json"
TABLES: Final = "keigo-bench-tables"
"""In a directory of `db_paths`; its text is the path of the database whose tables are there."""
_IGNORED: Final = frozenset({"lost+found"})  # of a new ext4
_OF_BINDINGS: Final = frozenset({"rocksdict-config.json", "speedict-config.json"})
_DIRECTORIES: Final = frozenset({"archive", "lost"})  # of RocksDB's old logs, of LevelDB's repair


class PlaceError(KeigoError):
    """A directory that a run may not use, or not like this; the text names it."""


class Marker(msgspec.Struct, frozen=True):
    """What a run left in a directory."""

    engine: str
    workload: str
    records: int
    value_seed: int
    """Of `records.Values`, as is what follows."""
    compression_ratio: float
    key_format: str
    """`repr` of it: another one would ask for other keys."""
    loaded: bool
    """Whether the load came to its end."""


def read_marker(directory: Path) -> Marker | None:
    """What an earlier run left; None for a directory that is empty or not there. Raises PlaceError for any other."""
    try:
        names = set(os.listdir(directory)) - _IGNORED
        if MARKER in names:
            return msgspec.json.decode((directory / MARKER).read_bytes(), type=Marker)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PlaceError(f"{directory}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise PlaceError(f"{directory / MARKER}: not written by keigo bench: {error}") from error
    if names:
        raise PlaceError(
            f"{directory}: holds {sorted(names)[0]!r} and no {MARKER}: give a new or empty directory, or one that "
            f"keigo bench has filled"
        )
    return None


def write_marker(directory: Path, marker: Marker) -> None:
    """Say that the database here, or to be made here, is ours."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARKER).write_bytes(msgspec.json.encode(marker) + b"\n")
    except OSError as error:
        raise PlaceError(f"{directory}: {error.strerror}") from error


def check_tables(directory: Path, others: Iterable[str]) -> None:
    """Raises PlaceError unless each of `others` (`db_paths`) is empty or not there, is `directory`, or was claimed for
    it: RocksDB removes every table in them that is not of the database that it opens."""
    for other in _elsewhere(directory, others):
        try:
            names = set(os.listdir(other)) - _IGNORED
            if names and (TABLES not in names or (other / TABLES).read_bytes() != os.fsencode(real_path(directory))):
                raise PlaceError(
                    f"{other}: holds {sorted(names)[0]!r}: --db-path takes a new or empty directory, or one that "
                    f"keigo bench has filled for {directory}"
                )
        except FileNotFoundError:
            continue
        except OSError as error:
            raise PlaceError(f"{error.filename}: {error.strerror}") from error


def claim_tables(directory: Path, others: Iterable[str]) -> None:
    """Say that the tables in `others`, which `check_tables` has passed, are of the database in `directory`."""
    try:
        for other in _elsewhere(directory, others):
            other.mkdir(parents=True, exist_ok=True)
            (other / TABLES).write_bytes(os.fsencode(real_path(directory)))
    except OSError as error:
        raise PlaceError(f"{error.filename}: {error.strerror}") from error


def _elsewhere(directory: Path, others: Iterable[str]) -> list[Path]:
    return [Path(other) for other in others if real_path(Path(other)) != real_path(directory)]


def remove_database(directory: Path, others: tuple[str, ...] = (), daemon: int | None = None) -> None:
    """Remove the database that an earlier run made, and what of it is in `others` (`db_paths`).

    `daemon`: the process that serves the mount, which may have files open that seem to be here: those of the tier in
    place have the same paths.

    Only files that databases make are removed, in `others` only where `check_tables` passes; raises PlaceError for any
    other file, or where a process has one open, before removing any.
    """
    read_marker(directory)
    check_tables(directory, others)
    places = [directory, *_elsewhere(directory, others)]
    for place in places:
        for holder in openers_below(real_path(place)):
            if holder.pid != daemon:
                raise PlaceError(f"{place}: {holder} open")
    doomed = [path for place in places for path in _files(place)]
    try:
        for path in doomed:
            path.unlink()
    except OSError as error:
        raise PlaceError(f"{error.filename}: {error.strerror}") from error


def _files(directory: Path) -> list[Path]:
    found = []
    try:
        for path in sorted(directory.iterdir()):
            if path.name in _IGNORED or path.name in (MARKER, TABLES):
                continue
            if path.is_dir() and path.name in _DIRECTORIES:
                found += _files(path)
            elif path.is_file() and (path.name in _OF_BINDINGS or role_of(os.fsencode(path.name)) is not Role.OTHER):
                found.append(path)
            else:
                raise PlaceError(f"{path}: is not of a database: move it away, or give a new directory")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PlaceError(f"{directory}: {error.strerror}") from error
    return found
