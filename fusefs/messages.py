"""FUSE messages as Python sees them: a request's parts, and attributes and times as the protocol has them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from fusefs import abi
from fusefs.abi import Op
from fusefs.attributes import Attributes, Caller


class Request:
    """One request: its header's fields and its body."""

    __slots__ = ("body", "gid", "node", "op", "pid", "uid", "unique")

    def __init__(self, raw: bytes) -> None:
        _, self.op, self.unique, self.node, self.uid, self.gid, self.pid, _, _ = abi.IN_HEADER.unpack_from(raw)
        self.body = memoryview(raw)[abi.IN_HEADER.size :]

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return Caller(self.uid, self.gid, self.pid)

    def names(self, offset: int, count: int) -> list[bytes]:
        """`count` NUL-terminated strings from `offset` on. Raises OSError EINVAL where there are fewer."""
        parts = bytes(self.body[offset:]).split(b"\0")
        if len(parts) <= count:
            raise OSError(errno.EINVAL, "malformed request")
        return parts[:count]


Handler = Callable[[Request], bytes | None]
"""Carries out an operation and returns the answer; None: there is to be none."""
RELEASES: Final = frozenset({Op.RELEASE, Op.RELEASEDIR})


def released(request: Request) -> int:
    """The handle that one of `RELEASES` is about."""
    handle: int = abi.RELEASE_IN.unpack_from(request.body)[0]
    return handle


def timeout(seconds: float) -> tuple[int, int]:
    """(whole seconds, nanoseconds) that the kernel may believe an answer."""
    return int(seconds), 0


def seconds_of(ns: int) -> tuple[int, int]:
    """(seconds as the protocol's unsigned 64 bits, nanoseconds)."""
    return (ns // 1_000_000_000) & 0xFFFFFFFFFFFFFFFF, ns % 1_000_000_000


def ns_of(seconds: int, nanoseconds: int) -> int:
    """What `seconds_of` was made of."""
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


def pack_attributes(found: Attributes) -> bytes:
    """struct fuse_attr."""
    atime, atime_ns = seconds_of(found.atime_ns)
    mtime, mtime_ns = seconds_of(found.mtime_ns)
    ctime, ctime_ns = seconds_of(found.ctime_ns)
    return abi.ATTR.pack(
        found.id,
        found.size,
        found.blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev,
        found.blksize,
        0,
    )
