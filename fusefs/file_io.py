"""Bytes of open files: read, written, made durable, allocated.

Any thread may call; all methods but `read_nowait` may block on a device. `Volume.lock` is not held while bytes move.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fusefs.handles import Handle, Handles
from fusefs.nodes import count_writes
from keigo.lsm.roles import Role
from keigo.tiers.directories import fail
from keigo.tiers.fds import fallocate
from keigo.tiers.observer import TELLING, Observer
from keigo.tiers.tier import Tier
from keigo.tiers.traffic import Traffic
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from keigo.cache.cache import Cache

_FOLLOWED: Final = TELLING - {Role.INFOLOG}  # an info log is read when an SST is created, which is soon enough


class FileIO:
    """See the module's docstring. Files are named by their handles' numbers."""

    def __init__(self, volume: Volume, handles: Handles, observer: Observer, cache: Cache | None) -> None:
        self._volume = volume
        self._files = handles.files
        self._observer = observer
        self._cache = cache
        self.owe: Callable[[int, bool], None] = lambda _handle, _owed: None
        """Tells a driver whether the next fsync of a handle is to fail, also if another daemon does it."""

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        opened = self._files[handle]
        if opened.chunks is not None:
            return self.read_cached(handle, offset, size)[0]
        flow = self._traffic_of(opened).reads
        data = b""
        began = flow.begin()
        try:
            data = os.pread(opened.file.fd, size, offset)
            while data and len(data) < size:
                more = os.pread(opened.file.fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            flow.end(began, len(data))
        return data

    def read_cached(self, handle: int, offset: int, size: int) -> tuple[bytes, int]:
        """Like `read`, of a handle with chunks; also how many of the bytes were cached."""
        opened = self._files[handle]
        assert opened.chunks is not None  # noqa: S101
        assert self._cache is not None  # noqa: S101
        home, cached = self._traffic_of(opened).reads, self._cache.tier.traffic.reads
        data, served = b"", 0
        began = home.begin()
        try:
            data, served = opened.chunks.read(opened.file.fd, size, offset)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            if served == len(data) and served:
                home.end_elsewhere(cached, began, served)
            else:
                home.end(began, len(data) - served)
                cached.add(served)
        return data, served

    def read_nowait(self, handle: int, offset: int, size: int) -> bytes | None:
        """Like `read`, but None where it would have to wait for a device."""
        opened = self._files[handle]
        buffer = bytearray(size)
        flow = self._traffic_of(opened).reads
        moved = 0
        began = flow.begin()
        try:
            done = os.preadv(opened.file.fd, [buffer], offset, os.RWF_NOWAIT)
            # Short: the end of the file, or the end of what is in memory.
            if done < size and offset + done < os.fstat(opened.file.fd).st_size:
                return None
            moved = done
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        finally:
            flow.end(began, moved)
        return bytes(buffer if done == size else buffer[:done])

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write; returns how many bytes. ENOSPC when the volume or the device is full."""
        opened = self._files[handle]
        file = opened.file
        self._volume.open_files.grow(opened.node, offset, offset + len(data))
        view = memoryview(data)
        done = 0
        flow = self._traffic_of(opened).writes
        began = flow.begin()
        try:
            while done < len(data):
                done += os.pwrite(file.fd, view[done:], offset + done)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            if done == 0:
                raise
            # What was written counts; the error comes again with the rest.
        finally:
            flow.end(began, done)
        if opened.role in _FOLLOWED:
            self._observer.wrote(opened.node)
        return done

    def is_synchronous(self, handle: int) -> bool:
        """Whether writes through a handle wait for the device."""
        return bool(self._files[handle].flags & (os.O_SYNC | os.O_DSYNC))

    def fsync(self, handle: int, *, data_only: bool) -> None:
        """Make a file durable."""
        opened = self._files[handle]
        if opened.doubtful:
            self._check_written_back(opened)
        syncs = self._traffic_of(opened).syncs
        began = syncs.begin()
        try:
            if data_only:
                os.fdatasync(opened.file.fd)
            else:
                os.fsync(opened.file.fd)
        except OSError as error:
            self._tier_of(opened).health.failed(error)
            raise
        finally:
            syncs.end(began, 0)

    def _check_written_back(self, opened: Handle) -> None:
        """Before the first sync of a handle of an earlier daemon's, which may have died over an error of another.

        Linux tells such an error once per open file; the tier's root has been open all the time. Who asks takes the
        error from all others, which are owed it until they have had it. Raises OSError, once.
        """
        tier = self._tier_of(opened)
        try:
            if opened.owed:
                raise fail(errno.EIO)
            tier.check_written_back()
        except OSError as error:
            tier.health.failed(error)
            with self._volume.lock:
                for handle in self._files.values():
                    if handle.doubtful and self._tier_of(handle) is tier:
                        self.owe(handle.number, True)
            raise
        finally:
            opened.doubtful = False

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """Allocate, or with mode flags punch, zero or keep the size, as fallocate(2)."""
        opened = self._files[handle]
        count_writes(self._volume, opened.node, opened.file)
        fallocate(opened.file.fd, mode, offset, length)
        self._volume.open_files.resized(opened.node, os.fstat(opened.file.fd))

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """Find data or a hole (SEEK_DATA, SEEK_HOLE) from an offset on."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.EINVAL)
        return os.lseek(self._files[handle].file.fd, offset, whence)

    def copy_file_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int:
        """Copy between two open files; returns how many bytes, at most what one call of the kernel's copies."""
        opened, into = self._files[source], self._files[target]
        self._volume.open_files.grow(into.node, target_offset, target_offset + length)
        try:
            done = os.copy_file_range(opened.file.fd, into.file.fd, length, offset, target_offset)
            self._traffic_of(opened).reads.add(done, 1)
            self._traffic_of(into).writes.add(done, 1)
            return done
        finally:
            self._volume.open_files.resized(into.node, os.fstat(into.file.fd))
            if into.role in _FOLLOWED:
                self._observer.wrote(into.node)

    def flush(self, handle: int) -> None:
        """One descriptor of the application's was closed: report what closing ours would (NFS and its like)."""
        file = self._files[handle].file
        os.close(os.dup(file.fd))

    def _tier_of(self, opened: Handle) -> Tier:
        """The tier that holds an open file."""
        return self._volume.open_files.by_id[opened.node].tier

    def _traffic_of(self, opened: Handle) -> Traffic:
        return self._tier_of(opened).traffic
