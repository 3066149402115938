"""What a driver and the namespace tell each other of nodes, and of who asks: plain data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from keigo.tiers.catalog import ROOT

ROOT_ID: Final = ROOT


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ids for ownership of what is created, thread id for context."""

    uid: int
    gid: int
    tid: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows of a node; times in nanoseconds since the epoch."""

    id: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Attributes to set; None leaves one as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_privileges: bool = False
    """Clear set-user-id, and set-group-id of what a group may execute, as a write by another user does."""


@dataclass(frozen=True, slots=True)
class Space:
    """statfs of the volume: blocks of `block` bytes, and inodes."""

    block: int
    blocks: int
    free: int
    inodes: int
    inodes_free: int


def attributes_of(node: int, status: os.stat_result, nlink: int) -> Attributes:
    """Attributes of a node as its file's status has them."""
    return Attributes(
        node,
        status.st_mode,
        nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blksize,
        status.st_blocks,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
