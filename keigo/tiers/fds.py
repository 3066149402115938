"""File descriptors that close themselves, and the system calls that Python's `os` lacks.

Everything on a tier is reached relative to a directory descriptor and without following symbolic links, so that a
link planted on a tier leads nowhere and the daemon never walks into its own mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import Final

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
UTIME_OMIT: Final = (1 << 30) - 2

O_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
KEEP_FLAGS: Final = os.O_SYNC | os.O_DSYNC
"""Of the flags with which an application opens a file, those that count on the tier, too."""

_libc = ctypes.CDLL(None, use_errno=True)


class Fd:
    """Owns one file descriptor, which is closed when the last reference to this object goes.

    Whoever uses the number holds a reference for as long, so that a descriptor swapped out by another thread is not
    closed, and its number not reused, under a system call.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __repr__(self) -> str:
        return f"Fd({self.fd})"


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def _check(result: int, name: bytes = b"") -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fsdecode(name))


def renameat2(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
    """Call renameat2(2); `flags` are RENAME_NOREPLACE or RENAME_EXCHANGE. Raises OSError."""
    if flags == 0:
        os.rename(src, dst, src_dir_fd=src_dir, dst_dir_fd=dst_dir)
        return
    _check(_libc.renameat2(src_dir, src, dst_dir, dst, ctypes.c_uint(flags)), src)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2) with its mode flags (os.posix_fallocate has none). Raises OSError."""
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def start_write_back(fd: int) -> None:
    """Begin to write a file's dirty pages to its device, and do not wait (sync_file_range(2)). Raises OSError."""
    sync_file_range_write = 2
    _check(_libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(sync_file_range_write)))


def write_back(fd: int, offset: int, length: int) -> None:
    """Write a range's dirty pages and wait for the device, but not its cache (sync_file_range(2)). Raises OSError."""
    before_write_after = 7
    _check(_libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(before_write_after)))


def sync_file_system(fd: int) -> int:
    """Call syncfs(2) for the file system of a descriptor; returns 0 or the errno."""
    return 0 if _libc.syncfs(fd) == 0 else ctypes.get_errno()


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set one or both times of an open object (O_PATH suffices); None leaves a time as it is. Raises OSError."""

    def spec(ns: int | None) -> _Timespec:
        return _Timespec(0, UTIME_OMIT) if ns is None else _Timespec(*divmod(ns, 1_000_000_000))

    times = (_Timespec * 2)(spec(atime_ns), spec(mtime_ns))
    _check(_libc.utimensat(-100, magic_link(fd), times, 0))


def copy_attributes(source: Fd, target: Fd, status: os.stat_result) -> None:
    """Give a copy its original's owner, extended attributes, mode and times, which are in `status`. Raises OSError."""
    os.fchown(target.fd, status.st_uid, status.st_gid)  # first: it clears setuid and security.capability
    for name in os.listxattr(source.fd):
        os.setxattr(target.fd, name, os.getxattr(source.fd, name))
    os.fchmod(target.fd, stat.S_IMODE(status.st_mode))
    os.utime(target.fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def own(fd: int, parent: os.stat_result, mode: int, uid: int, gid: int, *, is_dir: bool) -> None:
    """Give a new object its owner and mode: the caller's, and a setgid directory's group, as on ext4.

    Raises OSError.
    """
    if parent.st_mode & stat.S_ISGID:
        gid = parent.st_gid
        if is_dir:
            mode |= stat.S_ISGID
    if (uid, gid) != (os.geteuid(), os.getegid()) or parent.st_mode & stat.S_ISGID:
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode & 0o7777)


def magic_link(fd: int) -> bytes:
    """A path that leads to the object behind a descriptor itself, for calls that take only paths."""
    return b"/proc/self/fd/%d" % fd


def open_dir(name: bytes, dir_fd: int) -> Fd:
    """Open directory `name` below `dir_fd`; ENOTDIR or ELOOP where it is something else."""
    return Fd(os.open(name, O_DIR, dir_fd=dir_fd))


def open_regular(name: bytes, flags: int, dir_fd: int) -> Fd:
    """Open what should be a regular file; a FIFO in its place is not waited for. Raises OSError."""
    how = flags | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return Fd(os.open(name, how | os.O_NONBLOCK, dir_fd=dir_fd))
    except BlockingIOError:
        # Somebody has a lease of the file, as the mover for a moment (`writers.py`): the kernel tells him to let go,
        # and who opens it waits for that.
        return Fd(os.open(name, how, dir_fd=dir_fd))


def open_path(root: Fd, path: bytes) -> tuple[Fd, bytes]:
    """Walk `path` ("a/b/c") from `root` without following links: (descriptor of "a/b", "c")."""
    *parents, name = path.split(b"/")
    at = root
    for part in parents:
        at = open_dir(part, at.fd)
    return at, name


def open_direct(file: Fd) -> Fd | None:
    """The same file opened for reading with O_DIRECT; None where its file system has no direct I/O."""
    try:
        return Fd(os.open(magic_link(file.fd), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def lstat_or_none(name: bytes, dir_fd: int) -> os.stat_result | None:
    """lstat relative to `dir_fd`; None where there is no such name."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def proc_path(dir_fd: int, name: bytes) -> bytes:
    """A path to `name` in `dir_fd` for calls that take no directory descriptor (xattrs, LMDB)."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def write_durably(dir_fd: int, name: bytes, data: bytes) -> None:
    """Replace file `name` by `data`, atomically, and return only when both file and name are on the device."""
    temporary = name + b".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    os.fsync(dir_fd)


def read_file(dir_fd: int, name: bytes, limit: int = 1 << 24) -> bytes:
    """The bytes of a small file of ours; FileNotFoundError where there is none, ValueError above `limit`."""
    fd = Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd))
    with os.fdopen(os.dup(fd.fd), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{os.fsdecode(name)}: longer than {limit} bytes")
    return data
