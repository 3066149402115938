"""Memory maps, shared and private."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from tests.background import sync_at
from tests.conftest import MIB
from tests.fs.support import Area, fork, opened, raises

SIZE = 3 * mmap.PAGESIZE


def test_a_shared_map_and_a_handle_see_each_others_writes(file: Path) -> None:
    file.write_bytes(b"." * SIZE)
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, SIZE) as shared:
        shared[5:9] = b"maps"
        assert os.pread(fd, 10, 0) == b".....maps."
        os.pwrite(fd, b"handle", mmap.PAGESIZE)
        assert shared[mmap.PAGESIZE : mmap.PAGESIZE + 6] == b"handle"
        assert file.read_bytes()[:10] == b".....maps."


def test_what_is_written_through_a_shared_map_reaches_the_tier(area: Area) -> None:
    file = area.path / "000001.log"
    file.write_bytes(b"." * SIZE)
    with opened(file, os.O_RDWR) as fd:
        shared = mmap.mmap(fd, SIZE)
    shared[-4:] = b"last"  # the descriptor is closed: only the map holds the file
    shared.flush()
    assert area.on("fast", "000001.log").read_bytes()[-4:] == b"last"
    shared[:5] = b"first"
    shared.close()
    sync_at(area.path)
    assert area.on("fast", "000001.log").read_bytes()[:5] == b"first"
    assert file.read_bytes() == b"first" + b"." * (SIZE - 9) + b"last"


def test_a_private_map_keeps_its_writes(file: Path) -> None:
    file.write_bytes(b"." * SIZE)
    with opened(file, os.O_RDONLY) as fd, mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE) as private:
        private[:4] = b"mine"
        private[mmap.PAGESIZE] = 0
        assert private[:5] == b"mine."
    assert file.read_bytes() == b"." * SIZE


def test_a_map_of_a_reader_cannot_be_written(file: Path) -> None:
    file.write_bytes(b"." * SIZE)
    with opened(file, os.O_RDONLY) as fd, raises(errno.EACCES):
        mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_two_processes_share_a_map(file: Path) -> None:
    file.write_bytes(bytes(SIZE))
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, SIZE) as shared:

        def child() -> bytes:
            with opened(file, os.O_RDWR) as own, mmap.mmap(own, SIZE) as theirs:
                theirs[100:105] = b"child"
                return theirs[:6]

        shared[:6] = b"parent"
        assert fork(child)() == b"parent"
        assert shared[100:105] == b"child"
        assert os.pread(fd, 5, 100) == b"child"


def test_a_map_grows_with_its_file(file: Path) -> None:
    """As LMDB has it: a map larger than the file, which is extended under it."""
    with opened(file, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as shared:
            os.ftruncate(fd, 4 * MIB)
            shared.resize(4 * MIB)
            shared[3 * MIB] = 7
            shared.flush()
    data = file.read_bytes()
    assert len(data) == 4 * MIB
    assert data[3 * MIB] == 7
    assert data.count(0) == 4 * MIB - 1


def test_random_writes_through_a_map(file: Path) -> None:
    model = bytearray(os.urandom(5 * MIB))
    file.write_bytes(model)
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, len(model)) as shared:
        for step in range(500):
            offset = step * 104_729 % (len(model) - 5000)
            size = 1 + step * 37 % 5000
            shared[offset : offset + size] = model[offset : offset + size] = bytes([step % 251]) * size
    assert file.read_bytes() == model


def test_a_map_outlives_the_name(file: Path) -> None:
    file.write_bytes(b"kept" * 5000)
    with opened(file, os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 20_000)
    file.unlink()
    assert shared[10_000:10_004] == b"kept"
    shared[10_000:10_004] = b"more"
    assert shared[9996:10_008] == b"keptmorekept"
    shared.close()
