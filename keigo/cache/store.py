"""All shadows of a volume: `.keigo/cache` on one tier.

    N.data N.map    the shadows (`shadow`)
    clean           there from the end of a mount to the beginning of the next: all shadows are durable as they are

What is found at a mount is checked against its file; what does not fit is deleted. Without `clean` each chunk is to be
checked before a byte of it is trusted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from keigo.cache.shadow import DATA, MAP, Home, Shadow, ShadowError, delete
from keigo.tiers.fds import lstat_or_none, open_dir, write_durably
from keigo.tiers.tier import Tier

log = logging.getLogger(__name__)

CACHE: Final = b"cache"
CLEAN: Final = b"clean"
_NAME: Final = re.compile(rb"([0-9]{1,18})\.(data|map)", re.ASCII)


class Store:
    """See the module's docstring. One thread at a time."""

    def __init__(self, tier: Tier, shift: int) -> None:
        """Raises OSError."""
        try:
            os.mkdir(CACHE, 0o700, dir_fd=tier.state.fd)
            os.fsync(tier.state.fd)
        except FileExistsError:
            pass
        self.directory = open_dir(CACHE, tier.state.fd)
        self._shift = shift
        self.was_clean = lstat_or_none(CLEAN, self.directory.fd) is not None
        self.soil()
        self._next = 0

    def soil(self) -> None:
        """From now on the shadows change. Raises OSError."""
        try:
            os.unlink(CLEAN, dir_fd=self.directory.fd)
        except FileNotFoundError:
            return
        os.fsync(self.directory.fd)

    def load(self, home_of: Callable[[bytes], Home | None]) -> Iterator[Shadow]:
        """The shadows that are of files which are still the same; the others are deleted.

        `home_of` tells what the file of a path is now. Raises OSError where the directory cannot be read.
        """
        names: dict[bytes, set[bytes]] = {}
        for item in os.listdir(self.directory.fd):
            found = _NAME.fullmatch(os.fsencode(item))
            if found is None:
                self._remove_stranger(os.fsencode(item))
            else:
                names.setdefault(found[1], set()).add(found[2])
        for name, kinds in names.items():
            self._next = max(self._next, int(name) + 1)
            try:
                if len(kinds) != len((DATA, MAP)):
                    raise ShadowError("is not whole")
                shadow = Shadow.load(self.directory, name, self._shift)
                if home_of(shadow.head.path) != shadow.head.home:
                    raise ShadowError("is of a file that is not the same any more")
            except (ShadowError, OSError) as error:
                log.info("cache: %s: %s; deleted", name.decode(), error)
                self._delete(name)
            else:
                yield shadow

    def _delete(self, name: bytes) -> None:
        try:
            delete(self.directory, name)
        except OSError as error:
            log.warning("cache: %s: cannot be deleted: %s", name.decode(), error)

    def _remove_stranger(self, name: bytes) -> None:
        try:
            try:
                os.unlink(name, dir_fd=self.directory.fd)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=self.directory.fd)
        except OSError as error:
            log.warning("cache: %s: cannot be deleted: %s", os.fsdecode(name), error)

    def create(self, path: bytes, home: Home) -> Shadow:
        """A new shadow, without chunks. Raises OSError."""
        name = b"%d" % self._next
        self._next += 1
        return Shadow.create(self.directory, name, path, home, self._shift)

    def close(self, shadows: Sequence[Shadow]) -> None:
        """Make all shadows durable and say so. Raises OSError: then nothing was said."""
        for shadow in shadows:
            shadow.sync()
        os.fsync(self.directory.fd)
        write_durably(self.directory.fd, CLEAN, b"")


def remove_store(tier: Tier) -> None:
    """Remove a tier's cache, if there is one. Raises OSError."""
    found = lstat_or_none(CACHE, tier.state.fd)
    if found is not None:
        shutil.rmtree(CACHE, dir_fd=tier.state.fd)
        os.fsync(tier.state.fd)  # after a power loss they would be of files that were written meanwhile
