"""A durable, verified copy of a file in `incoming` of another tier: the first step of a migration.

Chunk by chunk, at the pace that it is given, and past the page cache. Each write reaches the device before the next
chunk is read, so the fsync at the end has little left to do: a fsync of a whole file floods the device's queue, and
whoever else syncs waits behind it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import xxhash

from keigo import failpoints
from keigo.placement.budget import CHUNKS
from keigo.tiers.fds import Fd, copy_attributes
from keigo.tiers.intents import Ident
from keigo.tiers.pace import Pace
from keigo.tiers.tier import Tier, space_of
from keigo.tiers.uncached import Buffer, Uncached

_CHUNK: Final = CHUNKS[0]


class CancelledError(Exception):
    """A migration was overtaken by a change of its file."""


class DamagedError(Exception):
    """A device gave back other bytes than were written to it; the text says which."""


@dataclass(slots=True)
class Copy:
    """A finished, durable, verified copy in `incoming` of the target."""

    name: bytes
    ident: Ident
    checksum: int
    space: int


def copy(
    source: Fd,
    status: os.stat_result,
    home: Tier,
    target: Tier,
    name: bytes,
    pace: Pace,
    stop: threading.Event,
    copied: Callable[[int], None],
) -> Copy:
    """Copy the file of `status`. Raises CancelledError once `stop` is set, DamagedError or OSError.

    The caller removes what this made in `incoming`, also after an error. `copied` hears of each chunk.
    """
    how = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    new = Fd(os.open(name, how, 0o600, dir_fd=target.incoming.fd))
    sparse = status.st_blocks * 512 < status.st_size
    if sparse:
        os.ftruncate(new.fd, status.st_size)
    elif status.st_size:
        os.posix_fallocate(new.fd, 0, status.st_size)  # ENOSPC now rather than half-way, and one extent
    buffer = Buffer(_CHUNK)
    pace.stage(((home, "read"), (target, "write")))
    reads, writes = Uncached(source, os.O_RDONLY), Uncached(new, os.O_WRONLY)
    digest = xxhash.xxh3_64()
    offset = 0
    while offset < status.st_size:
        chunk, reading = _read(reads, home, buffer, offset, pace, stop)
        chunk = chunk[: status.st_size - offset]
        digest.update(chunk)
        writing = 0.0
        if not sparse or chunk.tobytes().count(0) < len(chunk):
            began = target.traffic.writes.begin()
            try:
                writes.write(chunk, offset)
            except OSError as error:
                target.health.failed(error)
                raise
            finally:
                target.traffic.writes.end(began, len(chunk))
            writing = (time.monotonic_ns() - began) / 1e9
        offset += len(chunk)
        pace.moved(len(chunk), reading, writing)
        copied(len(chunk))
        failpoints.hit("migrate.copying")
    copy_attributes(source, new, status)
    try:
        os.fsync(new.fd)
    except OSError as error:
        target.health.failed(error)
        raise
    failpoints.hit("migrate.copied")
    back = _read_back(new, target, buffer, pace, stop)
    made = os.fstat(new.fd)
    if made.st_size != status.st_size or back != digest.intdigest():
        raise DamagedError(f"the copy on tier {target.name} differs from what was written")
    return Copy(name, Ident.of(made), back, space_of(made))


def _read_back(new: Fd, target: Tier, buffer: Buffer, pace: Pace, stop: threading.Event) -> int:
    """XXH3-64 of what the device has."""
    # Clean pages dropped, so that where there is no direct I/O the device is asked, too.
    os.posix_fadvise(new.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    pace.stage(((target, "read"),))
    reads = Uncached(new, os.O_RDONLY)
    digest = xxhash.xxh3_64()
    offset, size = 0, os.fstat(new.fd).st_size
    while offset < size:
        chunk, reading = _read(reads, target, buffer, offset, pace, stop)
        digest.update(chunk)
        offset += len(chunk)
        pace.moved(len(chunk), reading)
    return digest.intdigest()


def _read(
    reads: Uncached, tier: Tier, buffer: Buffer, offset: int, pace: Pace, stop: threading.Event
) -> tuple[memoryview, float]:
    """The next chunk, when it is due, and the seconds that reading it took. CancelledError where there is nothing."""
    size = pace.next(stop)
    if stop.is_set():
        raise CancelledError
    began = tier.traffic.reads.begin()
    done = 0
    try:
        done = reads.read(buffer.view[:size], offset)
    except OSError as error:
        tier.health.failed(error)
        raise
    finally:
        tier.traffic.reads.end(began, done)
    if not done:
        raise CancelledError
    return buffer.view[:done], (time.monotonic_ns() - began) / 1e9


def checksum(file: Fd, stop: threading.Event | None = None) -> int:
    """XXH3-64 of an open file's contents. Raises OSError, or CancelledError once `stop` is set."""
    buffer, reads = Buffer(_CHUNK), Uncached(file, os.O_RDONLY)
    digest = xxhash.xxh3_64()
    offset = 0
    while done := reads.read(buffer.view, offset):
        if stop is not None and stop.is_set():
            raise CancelledError
        digest.update(buffer.view[:done])
        offset += done
        if done < _CHUNK:
            break
    return digest.intdigest()
