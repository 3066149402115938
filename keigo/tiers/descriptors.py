"""Who gets the last of the descriptors that this process may have.

Each open file of the mount costs one or two of ours, so applications decide how many there are. What they open is
refused (ENFILE) while some are left: without those nothing could be moved, looked up, asked for by a command, or even
closed properly, and what failed in the middle for want of one would have to be undone for want of one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from typing import Final

TOO_MANY: Final = frozenset((errno.EMFILE, errno.ENFILE))
_KEPT: Final = 128  # as many system calls of ours may need one at once
_EVER: Final = 1 << 20  # where there is no limit the kernel has one of about so many (fs.nr_open)


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _EVER if soft == resource.RLIM_INFINITY else soft


def leave_some(beside: int) -> None:
    """Before an application gets one more. Raises OSError: ENFILE when only those are left that are for ourselves.

    `beside` is any open descriptor. The kernel gives out the lowest free number, so one that is high says that all
    below are taken; asking so takes 1 us.
    """
    try:
        number = fcntl.fcntl(beside, fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE)) from None
        raise
    os.close(number)
    if is_among_last(number):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))


def is_among_last(number: int) -> bool:
    """Whether a descriptor has one of the numbers that are for ourselves."""
    most = limit()
    return number >= most - min(_KEPT, most // 4)


def share(part: int, wanted: int) -> int:
    """Of `wanted` descriptors that make something faster, how many may be kept: at most one in `part`."""
    return min(wanted, limit() // part)
