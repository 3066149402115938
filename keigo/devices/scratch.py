"""The file that a device is measured with: without a name, so that no crash leaves anything of it behind.

It is laid out with random data before anything is measured: reads of extents that were never written do not reach the
device, and a device that compresses or drops zeros would look faster than it is.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from keigo.devices.alignment import direct_alignment
from keigo.devices.identity import MEMORY
from keigo.devices.model import SMALL_BLOCK
from keigo.devices.profile import ProfileError
from keigo.units import format_size

STEP: Final = 1 << 20
"""Bytes of a write of the layout; the file's size is a multiple of it."""
LEAST: Final = 8 * STEP
"""A smaller file would be measured in a device's cache."""

_SHARE: Final = 0.25  # of what is free: another's write must not fail because of a measurement
_KEEP_FREE: Final = 0.10  # of the device: a file system that is nearly full is slower than itself


@dataclass(frozen=True, slots=True)
class Scratch:
    """An open, laid-out file."""

    fd: int
    size: int
    direct: bool
    """Whether it can be read and written past the page cache."""
    smallest: int = SMALL_BLOCK
    """Bytes of the smallest requests that reach the device as they are; 4 KiB where that is not known."""

    @property
    def path(self) -> str:
        """Its path for a child process that inherits `fd`."""
        return f"/proc/self/fd/{self.fd}"


def room_for(directory: Path, filesystem: str, wanted: int, reserve: int) -> int:
    """Bytes, at most `wanted`, that may be taken for a while. Raises ProfileError on a nearly full device.

    `reserve`: bytes that the tier must keep free.
    """
    room = os.statvfs(directory)
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    memory = psutil.virtual_memory().available if filesystem in MEMORY else None
    if total == 0:  # a file system without a limit of its own, such as ramfs
        if memory is None:
            return wanted
        total = free = memory
    if memory is not None:
        free = min(free, memory)
    size = min(wanted, int(free * _SHARE)) // STEP * STEP
    keep = max(reserve, int(total * _KEEP_FREE))
    if size < min(LEAST, wanted) or free - size < keep:
        raise ProfileError(
            f"{directory}: is too full to be measured: {format_size(free)} are free, of which "
            f"{format_size(keep)} must stay free, and a measurement needs {format_size(max(size, min(LEAST, wanted)))}"
        )
    return size


@contextlib.contextmanager
def scratch_file(
    directory: Path, size: int, seconds: float, told: Callable[[], None] = lambda: None
) -> Iterator[Scratch]:
    """A file of `size` bytes, or of as many as can be written in `seconds`, but not less than LEAST if asked for.

    `told` is called after each step. Raises ProfileError.
    """
    fd = _unnamed(directory)
    try:
        try:
            direct = _reopened_direct(fd)
            try:
                laid = _lay_out(fd if direct is None else direct, size, seconds, told)
            finally:
                if direct is not None:
                    os.close(direct)
            os.ftruncate(fd, laid)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            yielded = Scratch(fd, laid, *_requests(fd))
        except OSError as error:
            raise ProfileError(f"{directory}: a file to measure with cannot be written: {error.strerror}") from error
        yield yielded
    finally:
        os.close(fd)


def _unnamed(directory: Path) -> int:
    try:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
        fd, name = tempfile.mkstemp(prefix=".keigo-profile-", dir=directory)
        os.unlink(name)
    except OSError as error:
        raise ProfileError(f"{directory}: a file to measure with cannot be made: {error.strerror}") from error
    return fd


def _reopened_direct(fd: int) -> int | None:
    """The same file opened past the page cache; None where the file system has no such thing."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return None


def _requests(fd: int) -> tuple[bool, int]:
    """Whether requests go past the page cache, and the bytes of the smallest."""
    if not _reads_direct(fd):
        return False, SMALL_BLOCK
    return True, min(SMALL_BLOCK, direct_alignment(fd) or SMALL_BLOCK)


def _reads_direct(fd: int) -> bool:
    """Whether 4 KiB can be read past the page cache: some file systems refuse only then."""
    direct = _reopened_direct(fd)
    if direct is None:
        return False
    try:
        with mmap.mmap(-1, 4096) as page:
            return os.preadv(direct, [page], 0) == 4096
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(direct)


def _lay_out(fd: int, size: int, seconds: float, told: Callable[[], None]) -> int:
    """Write random bytes; returns how many."""
    end = time.monotonic() + seconds
    written = 0
    with mmap.mmap(-1, STEP) as page:  # aligned, as O_DIRECT needs it
        while written < size and (written < LEAST or time.monotonic() < end):
            page[:] = os.urandom(STEP)
            done = os.pwrite(fd, page, written)
            if done != STEP:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += STEP
            told()
    return written
