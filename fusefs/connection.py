"""The connection to the kernel: /dev/fuse mounted, what was agreed on at INIT, answers, and backing files.

Any thread may call: each call is one system call, and the kernel keeps them apart.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import struct
from typing import Final

from fusefs import abi
from fusefs.abi import Op
from fusefs.driver import DriverError
from fusefs.messages import Request

log = logging.getLogger(__name__)

MAX_WRITE: Final = 1 << 20
LONGEST: Final = MAX_WRITE + 8192
"""Bytes that a request has at most."""
_MS_NOSUID_NODEV: Final = 6
_libc = ctypes.CDLL(None, use_errno=True)


class Connection:
    """See the module's docstring. The descriptor is closed by `close` alone."""

    def __init__(self, device: int) -> None:
        self.device = device

    def negotiate(self, *, refuse_passthrough: bool, resend: bool) -> bool:
        """Answer INIT, the kernel's first request; returns whether it can send requests again, where that is asked for.

        Raises DriverError where the kernel has no passthrough.
        """
        request = Request(os.read(self.device, LONGEST))
        if request.op != Op.INIT:
            raise DriverError(f"the kernel began with operation {request.op}")
        major, minor, readahead, flags = abi.INIT_IN.unpack_from(request.body)
        if flags & abi.INIT_EXT and len(request.body) >= abi.INIT_IN.size + 4:
            flags |= struct.unpack_from("=I", request.body, abi.INIT_IN.size)[0] << 32
        if major != abi.MAJOR or not flags & abi.PASSTHROUGH or refuse_passthrough:
            self.reply(request.unique, errno.EPROTO)
            raise DriverError(f"this kernel (FUSE {major}.{minor}) has no passthrough, which came with Linux 6.9")
        wanted = (
            abi.ASYNC_READ
            | abi.ATOMIC_O_TRUNC
            | abi.BIG_WRITES
            | abi.DO_READDIRPLUS
            | abi.READDIRPLUS_AUTO
            | abi.ASYNC_DIO
            | abi.PARALLEL_DIROPS
            | abi.MAX_PAGES
            | abi.CACHE_SYMLINKS
            | abi.HANDLE_KILLPRIV_V2
            | abi.INIT_EXT
            | abi.PASSTHROUGH
            | (abi.HAS_RESEND if resend else 0)
        ) & flags
        self.reply(
            request.unique,
            0,
            abi.INIT_OUT.pack(
                abi.MAJOR,
                min(minor, abi.MINOR),
                readahead,
                wanted & 0xFFFFFFFF,
                64,  # background requests at most: readahead of many files at once
                48,
                MAX_WRITE,
                1,
                MAX_WRITE // 4096,
                0,
                wanted >> 32,
                1,  # depth of file systems below: 1 is any but a stacked one
                0,
            ),
        )
        return bool(wanted & abi.HAS_RESEND)

    def reply(self, unique: int, error: int, data: bytes = b"") -> None:
        """Answer a request."""
        head = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(data), -error, unique)
        try:
            os.writev(self.device, [head, data] if data else [head])
        except OSError as failed:
            # ENOENT: the caller was interrupted; ENODEV: unmounted meanwhile. Nobody waits for the answer.
            if failed.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("reply to request %d: %s", unique, failed)

    def backing_open(self, fd: int) -> int | None:
        """Register a file with the kernel; None where it refuses (then the file is mediated)."""
        found: int = _libc.ioctl(self.device, ctypes.c_ulong(abi.DEV_IOC_BACKING_OPEN), abi.BACKING_MAP.pack(fd, 0, 0))
        if found >= 0:
            return found
        log.warning("the kernel refuses a backing file: %s", os.strerror(ctypes.get_errno()))
        return None

    def backing_close(self, backing: int) -> None:
        """Let go of a backing file by its id, which may stand for another one from now on."""
        fcntl.ioctl(self.device, abi.DEV_IOC_BACKING_CLOSE, abi.BACKING_ID.pack(backing))

    def close(self) -> None:
        """Let go of the device."""
        os.close(self.device)


def mount(
    path: str, source: str, *, allow_other: bool, refuse_passthrough: bool = False, resend: bool = False
) -> tuple[Connection, bool]:
    """Mount at `path`, and agree with the kernel (see `negotiate`). Raises DriverError with nothing mounted."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DriverError(f"/dev/fuse: {error.strerror}") from error
    connection = Connection(device)
    options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    if allow_other:
        options += ",allow_other"
    raw = (source.encode(), os.fsencode(path), b"fuse.keigo", _MS_NOSUID_NODEV, options.encode())
    if _libc.mount(*raw) != 0:
        code = ctypes.get_errno()
        connection.close()
        raise DriverError(f"{path}: cannot mount: {os.strerror(code)}")
    try:
        return connection, connection.negotiate(refuse_passthrough=refuse_passthrough, resend=resend)
    except DriverError:
        _libc.umount2(os.fsencode(path), 0)
        connection.close()
        raise


def try_out(path: str) -> None:
    """Mount over a directory for a moment. Raises DriverError where the kernel driver cannot be used here."""
    connection, _ = mount(path, "keigo-trial", allow_other=False)
    _libc.umount2(os.fsencode(path), 0)
    connection.close()
