"""The guard: what keeps a bare data directory from being opened while some of its files are elsewhere.

With the WAL on another tier, RocksDB and LevelDB open the bare directory without an error and lose its keys; with
CURRENT elsewhere they make a new database and delete the tables left in place. So beside each database on the
in-place tier a *directory* named LOCK stands where they expect a file: opening it fails with EISDIR before they
touch anything but their info log. The mount shows the database's own LOCK instead, which lives on another tier.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from typing import Final

from keigo import failpoints
from keigo.tiers.fds import RENAME_EXCHANGE, Fd, copy_attributes, lstat_or_none, open_dir, renameat2
from keigo.tiers.tier import Tier

log = logging.getLogger(__name__)

LOCK: Final = b"LOCK"
NOTE: Final = b"KEIGO-READ-ME"
_TEXT: Final = b"""\
Some files of this database are on other tiers, managed by Keigo. Opening it here would lose data, so this
directory stands in the way. Mount it (keigo mount), or bring every file back first:

    keigo drain --offline -d devices.yaml DIR
"""


def is_guard(directory: Fd) -> bool:
    """Whether LOCK in this directory of the in-place tier is a guard."""
    found = lstat_or_none(LOCK, directory.fd)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return False
    inside = open_dir(LOCK, directory.fd)
    return lstat_or_none(NOTE, inside.fd) is not None


def put(tier: Tier, directory: Fd) -> None:
    """Set a guard in a directory of the in-place tier, durably; a LOCK file there is replaced in one step.

    The caller has put the database's own LOCK on another tier before. Raises OSError with nothing changed.
    """
    name = _build(tier)
    failpoints.hit("guard.built")
    existing = lstat_or_none(LOCK, directory.fd)
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise OSError(errno.EEXIST, "a directory named LOCK is in the way of the guard")
    flags = 0 if existing is None else RENAME_EXCHANGE
    renameat2(tier.incoming.fd, name, directory.fd, LOCK, flags)
    failpoints.hit("guard.exchanged")
    try:
        os.fsync(directory.fd)
    except OSError:
        renameat2(directory.fd, LOCK, tier.incoming.fd, name, flags)
        raise
    failpoints.hit("guard.done")
    _clear_later(tier, name)


def _build(tier: Tier) -> bytes:
    """Make a guard among the incoming files; returns its name there."""
    name = b"guard"
    _clear(tier, name)
    os.mkdir(name, 0o755, dir_fd=tier.incoming.fd)
    inside = open_dir(name, tier.incoming.fd)
    note = os.open(NOTE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=inside.fd)
    try:
        os.write(note, _TEXT)
        os.fsync(note)
    finally:
        os.close(note)
    os.fsync(inside.fd)
    return name


def _clear(tier: Tier, name: bytes) -> None:
    """Remove what a failure left among the incoming files. Raises OSError."""
    found = lstat_or_none(name, tier.incoming.fd)
    if found is not None and stat.S_ISDIR(found.st_mode):
        shutil.rmtree(name, dir_fd=tier.incoming.fd)
    elif found is not None:
        os.unlink(name, dir_fd=tier.incoming.fd)


def _clear_later(tier: Tier, name: bytes) -> None:
    """Like `_clear`, where all is done: what stays is removed before the name is used again, or by the next mount."""
    try:
        _clear(tier, name)
    except OSError as error:
        log.warning("tier %s: .keigo/incoming/%s: %s", tier.name, name.decode(), error.strerror)


def copy_lock(source: Fd, target: Fd, name: bytes) -> None:
    """Copy LOCK from one directory to `name` in another, with all its attributes; the file is synced."""
    old = Fd(os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source.fd))
    status = os.fstat(old.fd)
    new = Fd(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target.fd))
    while chunk := os.read(old.fd, 1 << 20):
        view = memoryview(chunk)
        while view:
            view = view[os.write(new.fd, view) :]
    copy_attributes(old, new, status)
    os.fsync(new.fd)


def remove(tier: Tier, directory: Fd, elsewhere: Fd | None) -> None:
    """Take the guard away, durably.

    In its place comes a copy of the LOCK that stands in directory `elsewhere` of another tier, or nothing. Raises
    OSError with the guard in place.
    """
    name = b"unguard"
    _clear(tier, name)
    flags = 0 if elsewhere is None else RENAME_EXCHANGE
    if elsewhere is not None:
        copy_lock(elsewhere, tier.incoming, name)
    renameat2(directory.fd, LOCK, tier.incoming.fd, name, flags)
    failpoints.hit("unguard.exchanged")
    try:
        os.fsync(directory.fd)
    except OSError:
        renameat2(tier.incoming.fd, name, directory.fd, LOCK, flags)
        raise
    _clear_later(tier, name)
