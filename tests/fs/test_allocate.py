"""Space: fallocate, holes, copy_file_range, statfs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keigo.tiers.fds import fallocate
from tests.conftest import MIB
from tests.fs.support import Area, needs, opened, raises

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
CREATE = os.O_RDWR | os.O_CREAT


def test_allocation_keeps_the_size_when_asked(file: Path, driver: str) -> None:
    needs(driver, "fallocate")
    with opened(file, CREATE) as fd:
        os.write(fd, b"data")
        fallocate(fd, KEEP_SIZE, 0, MIB)
        status = os.fstat(fd)
        assert (status.st_size, status.st_blocks * 512 >= MIB) == (4, True)
        fallocate(fd, 0, 0, 2 * MIB)
        assert os.fstat(fd).st_size == 2 * MIB
        assert os.pread(fd, 8, 0) == b"data\0\0\0\0"


def test_a_hole_reads_as_zeros_and_frees_space(file: Path, driver: str) -> None:
    needs(driver, "fallocate")
    with opened(file, CREATE) as fd:
        os.write(fd, b"x" * MIB)
        os.fsync(fd)
        before = os.fstat(fd)
        assert os.pread(fd, 4, 65536) == b"xxxx"
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 65536, 131072)
        after = os.fstat(fd)
        assert after.st_size == before.st_size
        assert (before.st_blocks - after.st_blocks) * 512 == 131072
        assert os.pread(fd, 131074, 65535) == b"x" + bytes(131072) + b"x"


def test_allocation_is_refused_rather_than_faked(file: Path) -> None:
    """A driver without fallocate says so, and databases then write without it."""
    with opened(file, CREATE) as fd:
        os.write(fd, b"data")
        try:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP
            assert os.pread(fd, 10, 0) == b"data"
        else:
            assert os.pread(fd, 10, 0) == bytes(4)
        with raises(errno.EINVAL):
            fallocate(fd, 0, 0, 0)
    with opened(file, os.O_RDONLY) as fd, raises(errno.EBADF):
        fallocate(fd, 0, 0, 4096)


def test_posix_fallocate_works_on_every_driver(file: Path) -> None:
    with opened(file, CREATE) as fd:
        os.write(fd, b"data")
        os.posix_fallocate(fd, 0, MIB)
        assert os.fstat(fd).st_size == MIB
        assert os.pread(fd, 8, 0) == b"data\0\0\0\0"


def test_holes_are_found(file: Path, driver: str) -> None:
    needs(driver, "lseek")
    with opened(file, CREATE) as fd:
        os.pwrite(fd, b"data", 4 * MIB)
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB
        with raises(errno.ENXIO):
            os.lseek(fd, 5 * MIB, os.SEEK_DATA)


def test_seeking_data_never_skips_any(file: Path) -> None:
    """Without lseek in the driver the kernel takes the whole file for data, which is allowed."""
    with opened(file, CREATE) as fd:
        os.pwrite(fd, b"data", 4 * MIB)
        assert os.lseek(fd, 0, os.SEEK_DATA) <= 4 * MIB
        assert os.lseek(fd, 4 * MIB, os.SEEK_DATA) == 4 * MIB
        assert os.lseek(fd, 4 * MIB, os.SEEK_HOLE) == 4 * MIB + 4
        assert os.lseek(fd, 0, os.SEEK_END) == 4 * MIB + 4
        assert os.lseek(fd, -4, os.SEEK_CUR) == 4 * MIB


@pytest.mark.parametrize("target", ["000002.log", "other"])
def test_copy_file_range(area: Area, file: Path, target: str) -> None:
    """Between files on one tier, and on two."""
    data = os.urandom(3 * MIB)
    file.write_bytes(data)
    other = area.path / target
    with opened(file, os.O_RDONLY) as source, opened(other, CREATE) as into:
        left = len(data) - 100
        offset = 100
        while left:
            done = os.copy_file_range(source, into, left, offset, offset + 400)
            assert done > 0
            left, offset = left - done, offset + done
    assert other.read_bytes() == bytes(500) + data[100:]


def test_sendfile(area: Area, file: Path) -> None:
    data = os.urandom(MIB)
    file.write_bytes(data)
    copy = area.path / "000002.log"
    with opened(file, os.O_RDONLY) as source, opened(copy, CREATE) as into:
        offset = 0
        while done := os.sendfile(into, source, offset, len(data)):
            offset += done
    assert copy.read_bytes() == data


def test_statfs_is_that_of_the_whole_volume(area: Area) -> None:
    """The tiers' capacities count, and a device that two tiers share counts once, as `mid` and `slow` do here."""
    memory = area.world.status()["tiers"][0]["capacity"]

    def beside_the_disk(path: Path) -> tuple[int, int]:
        volume, disk = os.statvfs(path), os.statvfs(area.world.base)
        assert (volume.f_namemax, volume.f_bsize, volume.f_frsize) == (255, 4096, 4096)
        assert 0 < volume.f_bavail <= volume.f_bfree <= volume.f_blocks
        assert 0 < volume.f_favail <= volume.f_ffree <= volume.f_files
        return tuple(  # type: ignore[return-value]
            a * volume.f_frsize - b * disk.f_frsize
            for a, b in ((volume.f_blocks, disk.f_blocks), (volume.f_bavail, disk.f_bavail))
        )

    size, free = beside_the_disk(area.path)
    assert size == memory
    file = area.path / "000001.log"
    file.write_bytes(b"x" * 64 * MIB)
    area.world.wait_closed()  # what went past the daemon is counted by then
    size, less = beside_the_disk(file)
    assert size == memory
    # Others write to the disk meanwhile: between the two calls, not by the third of this.
    assert abs(free - less - 64 * MIB) < 20 * MIB
