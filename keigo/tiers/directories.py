"""Directories of a volume: where each is, and descriptors of its mirrors on the tiers.

The caller holds `Volume.lock`.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from keigo.tiers.catalog import ROOT, Catalog
from keigo.tiers.descriptors import share
from keigo.tiers.fds import O_DIR, Fd
from keigo.tiers.tier import Tier

_DIR_FDS: Final = 4096  # descriptors kept, at most; databases have tens of directories, backups some hundred


def shown(path: bytes) -> str:
    """A name or path for people and for JSON, where bytes that are no UTF-8 cannot stand."""
    return path.decode(errors="backslashreplace")


def fail(code: int, name: bytes = b"") -> OSError:
    """An OSError to raise."""
    return OSError(code, os.strerror(code), shown(name) or None)


class Directories:
    """See the module's docstring."""

    def __init__(self, catalog: Catalog, tiers: Sequence[Tier]) -> None:
        self._catalog = catalog
        self._tiers = tuple(tiers)
        self._fds: OrderedDict[tuple[int, int], Fd] = OrderedDict()
        self._most = share(8, _DIR_FDS)

    def find(self, directory: int, tier: Tier) -> Fd | None:
        """Descriptor of a directory's mirror on a tier; None where there is none. Raises OSError."""
        return self._open(directory, tier, make=False)

    def at(self, directory: int, tier: Tier) -> Fd:
        """Like `find`, but a mirror that should exist and does not is an error (ENOENT)."""
        found = self._open(directory, tier, make=False)
        if found is None:
            raise fail(errno.ENOENT)
        return found

    def make(self, directory: int, tier: Tier) -> Fd:
        """Like `find`, but makes the mirror; it is durable, with all above it, when this returns. Raises OSError."""
        made = self._open(directory, tier, make=True)
        if made is None:
            raise fail(errno.ENOENT)
        return made

    def _open(self, directory: int, tier: Tier, *, make: bool) -> Fd | None:
        if directory == ROOT:
            return tier.root
        key = (directory, tier.index)
        found = self._fds.get(key)
        if found is not None:
            self._fds.move_to_end(key)
            return found
        where = self._catalog.parent(directory)
        if where is None:
            raise fail(errno.ENOENT)
        parent = self._open(where[0], tier, make=make)
        if parent is None:
            return None
        try:
            opened = Fd(os.open(where[1], O_DIR, dir_fd=parent.fd))
        except FileNotFoundError:
            if not make:
                return None
            opened = _make_mirror(parent, where[1])
        self._fds[key] = opened
        while len(self._fds) > self._most:
            self._fds.popitem(last=False)
        return opened

    def mirrors(self, directory: int) -> list[tuple[Tier, Fd]]:
        """The tiers on which a directory exists."""
        found = ((tier, self.find(directory, tier)) for tier in self._tiers)
        return [(tier, fd) for tier, fd in found if fd is not None]

    def path(self, directory: int, name: bytes = b"") -> bytes:
        """Path of a name in the volume, without a leading slash."""
        parts = [name] if name else []
        while directory != ROOT:
            where = self._catalog.parent(directory)
            if where is None:
                raise fail(errno.ENOENT)
            directory, part = where
            parts.append(part)
        return b"/".join(reversed(parts))

    def forget(self, directory: int) -> None:
        """Let go of a removed directory's descriptors."""
        for tier in self._tiers:
            self._fds.pop((directory, tier.index), None)

    def clear(self) -> None:
        """Let go of all descriptors."""
        self._fds.clear()


def _make_mirror(parent: Fd, name: bytes) -> Fd:
    """Make a directory, durably, and without a trace in the times that the mount shows (the newest of all mirrors)."""
    before = os.fstat(parent.fd)
    os.mkdir(name, 0o700, dir_fd=parent.fd)
    made = Fd(os.open(name, O_DIR, dir_fd=parent.fd))
    os.utime(made.fd, ns=(0, 0))
    os.utime(parent.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.fsync(parent.fd)
    return made
