"""How direct requests must be aligned in a file, as the kernel tells it (statx, Linux 6.1)."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000


class _Statx(ctypes.Structure):
    """struct statx, 256 bytes; field names as in statx(2), and 0 in all that is not told."""

    _fields_ = [
        ("_before", ctypes.c_uint8 * 152),
        ("dio_mem_align", ctypes.c_uint32),
        ("dio_offset_align", ctypes.c_uint32),
        ("_after", ctypes.c_uint8 * 96),
    ]


def direct_alignment(fd: int) -> int | None:
    """Bytes of which the offset and length of a direct request in this file must be multiples.

    None where the kernel, the C library or the file system does not tell, or direct requests are not taken. Asked
    rather than tried, because some file systems (btrfs) take a smaller request and send it through the page cache.
    Raises OSError.
    """
    try:
        statx = _libc.statx
    except AttributeError:  # glibc before 2.28, musl before 1.2.5
        return None
    found = _Statx()
    if statx(fd, b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_DIOALIGN), ctypes.byref(found)) != 0:
        error = ctypes.get_errno()
        if error == errno.ENOSYS:
            return None
        raise OSError(error, os.strerror(error))
    return found.dio_offset_align or None
