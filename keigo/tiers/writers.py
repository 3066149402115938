"""Whether somebody can still write a file that nobody has open through the mount.

A shared mapping of a file in passthrough outlives the file's last close: the kernel maps the backing file itself. And a
tier can be written past the mount. The kernel grants a read lease (fcntl(2), F_SETLEASE) only of a file that nobody has
open or mapped for writing; it is asked for, and given back at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from keigo.tiers.fds import Fd, magic_link
from keigo.tiers.tier import Tier


class Writers:
    """Asks tiers. Called by one thread at a time."""

    def __init__(self) -> None:
        self._lends: dict[int, bool] = {}
        """Tier's index -> whether its file system lends a file that nobody writes; network file systems may not."""

    def has(self, file: Fd, tier: Tier) -> bool:
        """Whether somebody can write a file of a tier, of which this is a fresh descriptor, only to be read."""
        if not _is_refused(file):
            return False
        if tier.index not in self._lends:
            self._lends[tier.index] = _lends(tier)
        return self._lends[tier.index]


def _is_refused(file: Fd) -> bool:
    # The signal of a lease that is broken meanwhile: SIGIO would end the process, this one is ignored.
    fcntl.fcntl(file.fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _lends(tier: Tier) -> bool:
    """Whether a lease is granted of a new file that nobody writes."""
    try:
        made = Fd(os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=tier.incoming.fd))
        found = Fd(os.open(magic_link(made.fd), os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    del made
    return not _is_refused(found)
