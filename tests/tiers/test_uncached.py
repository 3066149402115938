"""Reads and writes that leave no pages behind, with direct I/O and where a file system has none."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keigo.tiers import uncached
from keigo.tiers.fds import Fd
from keigo.tiers.uncached import Buffer, Uncached

KIB = 1 << 10
PAGE = mmap.PAGESIZE
CHUNK = 64 * KIB

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // PAGE)
    fd = os.open(path, os.O_RDONLY)
    at = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    present = ctypes.create_string_buffer(pages)
    assert _libc.mincore(at, size, present) == 0, os.strerror(ctypes.get_errno())
    _libc.munmap(at, size)
    return PAGE * sum(byte & 1 for byte in present.raw[:pages])


def opened(path: Path, how: int) -> Fd:
    return Fd(os.open(path, how | os.O_CREAT, 0o600))


def refuse_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncached, "_reopen", lambda _file, _how: None)


def refuse_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """O_DIRECT can be opened and then not be used, as on some file systems with data=journal or compression."""
    fail_direct(monkeypatch, errno.EINVAL)


def fail_direct(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def checked(call: Callable[..., int]) -> Callable[..., int]:
        def use(fd: int, *args: object) -> int:
            if _flags(fd) & os.O_DIRECT:
                raise OSError(code, "refused")
            return call(fd, *args)

        return use

    monkeypatch.setattr(os, "preadv", checked(os.preadv))
    monkeypatch.setattr(os, "pwritev", checked(os.pwritev))


def _flags(fd: int) -> int:
    line = next(line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line.startswith("flags"))
    return int(line.split()[1], 8)


def leave(_monkeypatch: pytest.MonkeyPatch) -> None:
    pass


WAYS = pytest.mark.parametrize("way", [leave, refuse_open, refuse_use])


@WAYS
@pytest.mark.parametrize("size", [1, PAGE, CHUNK - 1, CHUNK, 3 * CHUNK + 5000])
def test_what_is_written_is_read(
    way: Callable[[pytest.MonkeyPatch], None], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    data = os.urandom(size)
    file = opened(tmp_path / "f", os.O_RDWR)
    os.posix_fallocate(file.fd, 0, size)
    buffer, writes = Buffer(CHUNK), Uncached(file, os.O_WRONLY)
    for offset in range(0, size, CHUNK):
        piece = data[offset : offset + CHUNK]
        buffer.view[: len(piece)] = piece
        writes.write(buffer.view[: len(piece)], offset)
    assert (tmp_path / "f").read_bytes() == data
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    reads, found, offset = Uncached(file, os.O_RDONLY), b"", 0
    while done := reads.read(buffer.view, offset):
        found += bytes(buffer.view[:done])
        offset += done
        if done < CHUNK:
            break
    assert found == data


def cold(path: Path, size: int) -> Fd:
    """A file with no page in the cache."""
    path.write_bytes(os.urandom(size))
    assert resident(path) > 0
    file = opened(path, os.O_RDWR)
    os.fsync(file.fd)
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert resident(path) == 0
    return file


@WAYS
def test_reading_leaves_nothing_in_the_page_cache(
    way: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    size = 8 * CHUNK + 100
    file = cold(tmp_path / "f", size)
    buffer, reads = Buffer(CHUNK), Uncached(file, os.O_RDONLY)
    for offset in range(0, size, CHUNK):
        reads.read(buffer.view, offset)
    assert resident(tmp_path / "f") == 0


@WAYS
def test_writing_leaves_nothing_in_the_page_cache(
    way: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    size = 8 * CHUNK + 100
    file = cold(tmp_path / "f", size)
    buffer, writes = Buffer(CHUNK), Uncached(file, os.O_WRONLY)
    for offset in range(0, size, CHUNK):
        writes.write(buffer.view[: size - offset], offset)
    assert resident(tmp_path / "f") <= PAGE, "the last, partial block"


def test_direct_to_the_end(tmp_path: Path) -> None:
    """On the file system of these tests; without direct I/O they would test the page cache only."""
    file = cold(tmp_path / "f", CHUNK + 5)
    buffer, reads, writes = Buffer(CHUNK), Uncached(file, os.O_RDONLY), Uncached(file, os.O_WRONLY)
    for offset in (0, CHUNK):
        writes.write(buffer.view[: CHUNK + 5 - offset], offset)
        reads.read(buffer.view, offset)
    assert (reads.direct, writes.direct) == (True, True)


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct I/O that fails is not tried in another way."""
    file = opened(tmp_path / "f", os.O_RDWR)
    both = Uncached(file, os.O_RDONLY), Uncached(file, os.O_WRONLY)
    fail_direct(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="refused"):
        both[0].read(Buffer(CHUNK).view, 0)
    with pytest.raises(OSError, match="refused"):
        both[1].write(Buffer(CHUNK).view, 0)


@given(st.integers(0, 20 * KIB), st.integers(0, 4).map(lambda n: 4 * KIB * n), st.sampled_from([4 * KIB, 16 * KIB]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_read_stops_at_the_end(tmp_path: Path, size: int, offset: int, length: int) -> None:
    path = tmp_path / "f"
    data = os.urandom(size)
    path.write_bytes(data)
    buffer = Buffer(16 * KIB)
    done = Uncached(opened(path, os.O_RDONLY), os.O_RDONLY).read(buffer.view[:length], offset)
    assert bytes(buffer.view[:done]) == data[offset : offset + length]
