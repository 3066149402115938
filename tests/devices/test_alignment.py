"""What the kernel says of direct requests, on real file systems."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from keigo.devices import alignment
from keigo.devices.alignment import direct_alignment
from tests.devices.disks import MIB, ext4, mounted


def alignment_in(directory: Path) -> int | None:
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR)
    try:
        return direct_alignment(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_disk_s_sectors(sector: int, tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB, sector) as place:
        assert alignment_in(place) == sector


def test_requests_of_that_size_are_taken_and_smaller_ones_are_not(tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as place:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        try:
            page = mmap.mmap(-1, 4096)
            os.pwrite(fd, page, 0)
            assert os.pwrite(fd, memoryview(page)[:512], 512) == 512
            assert os.preadv(fd, [memoryview(page)[:512]], 512) == 512
            with pytest.raises(OSError, match="Invalid argument"):
                os.preadv(fd, [memoryview(page)[:256]], 512)
        finally:
            os.close(fd)


def test_memory_has_none(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "tmpfs", at=tmp_path / "m") as place:
        assert alignment_in(place) is None


def test_a_c_library_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_libc", object())
    assert alignment_in(tmp_path) is None


def test_a_kernel_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def statx(*_args: object) -> int:
            ctypes.set_errno(38)  # ENOSYS
            return -1

    monkeypatch.setattr(alignment, "_libc", Old)
    assert alignment_in(tmp_path) is None


def test_a_descriptor_that_is_none() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        direct_alignment(-1)
