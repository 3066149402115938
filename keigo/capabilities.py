"""Give up the rights of root that a daemon has no use for (capabilities(7)).

Rights belong to threads: `keep_only_used` is for a process that has one yet. What it starts gets no more either.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

USED: Final = {
    "CHOWN": 0,  # files belong to those who make them
    "DAC_OVERRIDE": 1,  # files of any owner; the kernel has checked the caller's rights
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "FSETID": 4,
    "SYS_PTRACE": 19,  # who has files open below the directory
    "SYS_ADMIN": 21,  # mount, umount, passthrough
    "SYS_NICE": 23,  # `io_priority` of another user's database
    "SYS_RESOURCE": 24,  # intents on a device that has only its reserved blocks left
    "LEASE": 28,  # whether a file is mapped for writing
}
"""Name and number (include/uapi/linux/capability.h)."""
MASK: Final = sum(1 << number for number in USED.values())

_VERSION_3: Final = 0x20080522
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def keep_only_used() -> None:
    """Give up all rights but those in USED, as far as there are any. Raises OSError."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    number = 0
    while (bound := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        # Who may not give up what could be got back by exec has nothing that is worth it (a user without SETPCAP).
        if bound and not MASK >> number & 1 and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break
        number += 1
    for half, kept in enumerate((MASK & 0xFFFFFFFF, MASK >> 32)):
        data[half].effective &= kept
        data[half].permitted &= kept
        data[half].inheritable &= kept
    _check(_libc.capset(ctypes.byref(header), data), "capset")
