"""What a file of an LSM store is, by its name alone.

N stands for a decimal number, which the stores pad with zeros to six digits and read with any number of them.

    N.log                           wal        all (RocksDB file/filename.cc, LevelDB db/filename.cc)
    N-M.log                         wal        Pebble wal/wal.go: part M of a log that failed over
    N.sst                           sst        all; LevelDB before 1.14 only
    N.ldb                           sst        LevelDB since; RocksDB and Speedb read it
    N_CHECKSUM_SIZE.sst, and .blob  sst, blob  RocksDB backup engine, shared_checksum/ (or N_sSESSION_SIZE)
    anything.sst                    sst        made for ingestion, or exported
    N.blob                          blob       RocksDB, Speedb, Pebble internal/base/filenames.go
    MANIFEST-N                      manifest   all
    REMOTE-OBJ-CATALOG-N            manifest   Pebble remoteobjcat/catalog.go: a log of edits, like MANIFEST
    CURRENT                         current    all but new Pebble
    marker.NAME.N.VALUE             current    Pebble vfs/atomicfs/marker.go: empty, its name is the pointer
    OPTIONS-N                       options    RocksDB, Speedb, Pebble
    LOG, LOG.old                    infolog    LevelDB
    LOG, LOG.old.MICROSECONDS       infolog    RocksDB, Speedb
    a_path_LOG, and .old likewise   infolog    the same in `db_log_dir`, after the database's path
    LOCK                            lock       all
    IDENTITY                        identity   RocksDB, Speedb
    N.dbtmp                         temporary  all but Pebble: becomes CURRENT or IDENTITY
    CURRENT.N.dbtmp, CURRENT.dbtmp  temporary  Pebble before it had markers; Speedb, restoring a backup
    temporary.N.dbtmp               temporary  Pebble: becomes CURRENT or OPTIONS-N
    OPTIONS-N.dbtmp                 temporary  RocksDB, Speedb
    anything.tmp                    temporary  RocksDB backup engine: `.N.sst.tmp`, formerly `N.sst.tmp`
    anything.trash                  temporary  RocksDB file/delete_scheduler.cc: truncated piece by piece

Everything else, such as RocksDB's METADB-N and COMPACTION_PROGRESS-N, is `other`. An archived log
(archive/N.log) is a wal too: the directory is not part of the name.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a file is to the database that it belongs to."""

    WAL = "wal"
    SST = "sst"
    BLOB = "blob"
    MANIFEST = "manifest"
    CURRENT = "current"
    OPTIONS = "options"
    INFOLOG = "infolog"
    LOCK = "lock"
    IDENTITY = "identity"
    TEMPORARY = "temporary"
    OTHER = "other"


IMMUTABLE: Final = frozenset({Role.SST, Role.BLOB})
"""Roles of files that never change again once their writer has closed them."""

DATABASE_MARKERS: Final = frozenset({Role.LOCK, Role.CURRENT, Role.MANIFEST})
"""Roles of files whose presence makes a directory a database."""

_EXACT: Final = {
    b"CURRENT": Role.CURRENT,
    b"LOCK": Role.LOCK,
    b"IDENTITY": Role.IDENTITY,
    b"LOG": Role.INFOLOG,
}

# Twenty digits hold every 64-bit number; a longer run is not a file number.
_N: Final = rb"(?P<number>[0-9]{1,20})"

_GRAMMAR: Final = tuple(
    (re.compile(pattern, re.DOTALL), role)
    for pattern, role in (
        (_N + rb"(?:_.+)?\.sst", Role.SST),
        (_N + rb"(?:-[0-9]{1,20})?\.log", Role.WAL),
        (_N + rb"\.ldb", Role.SST),
        (_N + rb"(?:_.+)?\.blob", Role.BLOB),
        (rb".+\.sst", Role.SST),
        (rb"MANIFEST-" + _N, Role.MANIFEST),
        (rb"OPTIONS-" + _N, Role.OPTIONS),
        (rb"(?:CURRENT\.|temporary\.|OPTIONS-)?" + _N + rb"\.dbtmp", Role.TEMPORARY),
        (rb".+\.(?:dbtmp|tmp|trash)", Role.TEMPORARY),
        (rb"(?:[A-Za-z0-9._-]+_)?LOG(?:\.old(?:\.[0-9]+)?)?", Role.INFOLOG),
        (rb"marker\.[^.]+\.[0-9]+\..*", Role.CURRENT),
        (rb"REMOTE-OBJ-CATALOG-" + _N, Role.MANIFEST),
    )
)


def _parse(name: bytes) -> tuple[Role, int | None]:
    exact = _EXACT.get(name)
    if exact is not None:
        return exact, None
    for pattern, role in _GRAMMAR:
        found = pattern.fullmatch(name)
        if found is not None:
            number = found.groupdict().get("number")
            return role, None if number is None else int(number)
    return Role.OTHER, None


def role_of(name: bytes) -> Role:
    """The role of a file whose last path component is `name`."""
    return _parse(name)[0]


def file_number(name: bytes) -> int | None:
    """The number that the store gave the file; None where the name has none or the time of day instead.

    Numbers grow within a database: of two SSTs, the one with the lower number was begun first.
    """
    return _parse(name)[1]
