"""The shadows of a cache taken together: how many there are, what they take on the device, and which are to go.

A shadow that nobody reads any more is doomed, and deleted later, by the filler's thread. Only where its file is written
in place it is made void at once, and durably: after a power loss such a file may look as it did before.

Threads: `_lock` guards all of it, a leaf.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from keigo.cache.shadow import Home, Shadow
from keigo.tiers.descriptors import limit
from keigo.tiers.fds import Fd
from keigo.tiers.tier import Tier

_DESCRIPTORS: Final = 4  # of a shadow: its data and its map, and two in its file's chunks


class Shadows:
    """See the module's docstring."""

    def __init__(self, tier: Tier, directory: Fd) -> None:
        """`directory` is that of the store, on the tier."""
        self._tier = tier
        self._directory = directory
        self._lock = threading.Lock()
        self._doomed: list[Shadow] = []
        """Shadows that nobody reads any more and that are still on the device."""
        self._undurable = True
        """Shadows were deleted, in this mount or the one before, that may be there again after a power loss."""
        self.used = 0
        """Bytes on the device, those of shadows that are to be deleted included."""
        self.count = 0
        """Files that have one."""
        self.most = limit() // 4 // _DESCRIPTORS
        """Files that may have one: most descriptors are for the files that are open."""

    def charge(self, shadow: Shadow, size: int) -> None:
        """A shadow takes, or is about to take, `size` bytes more (negative: less)."""
        with self._lock:
            shadow.charged += size
            self.used += size
            self._tier.cached = self.used

    def began(self) -> None:
        """A file has got one."""
        with self._lock:
            self.count += 1

    def ended(self, shadow: Shadow) -> None:
        """A file has it no more: it is to be deleted."""
        with self._lock:
            self.count -= 1
            self._doomed.append(shadow)

    def doom(self, shadow: Shadow) -> None:
        """A shadow is to be deleted that no file has had."""
        with self._lock:
            self._doomed.append(shadow)

    def doomed(self) -> list[Shadow]:
        """Shadows to be deleted."""
        with self._lock:
            return list(self._doomed)

    def delete(self, shadow: Shadow) -> None:
        """Delete a doomed shadow. Raises OSError; it then stays doomed."""
        shadow.delete()
        with self._lock:
            self._undurable = True
            self._doomed.remove(shadow)
        self.charge(shadow, -shadow.charged)

    def postpone(self, shadow: Shadow) -> None:
        """A doomed shadow could not be deleted: the others come first."""
        with self._lock:
            self._doomed.remove(shadow)
            self._doomed.append(shadow)

    def make_void(self, home: Home, last: Shadow | None) -> None:
        """A file is about to be written in place, and `last` was its shadow: nothing must ever be believed of it again.

        Its time may not be durable when its bytes are (fdatasync). Raises OSError.
        """
        with self._lock:
            same = (home.tier, home.ino)
            old = [each for each in self._doomed if each is last or (each.head.home.tier, each.head.home.ino) == same]
            undurable, self._undurable = self._undurable, False
        try:
            for shadow in old:
                shadow.void()
            if undurable:
                os.fsync(self._directory.fd)
        except OSError:
            self._undurable = True
            raise
