"""Files: create, open, read, write, append, truncate."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.fs.support import NAMES, Area, opened, pause, raises

CREATE = os.O_RDWR | os.O_CREAT
GIB = 1 << 30


@pytest.mark.parametrize("tier", NAMES)
def test_names_choose_the_tier(area: Area, tier: str) -> None:
    """The other tests rely on this."""
    (area.path / NAMES[tier]).write_bytes(b"x")
    assert area.tier_of(NAMES[tier]) == tier


def test_an_sst_starts_on_the_fast_tier_and_migrates(area: Area) -> None:
    (area.path / "1.sst").write_bytes(b"x")
    assert area.tier_of("1.sst") == "fast"
    area.migrate("1.sst", "mid")
    assert area.tier_of("1.sst") == "mid"


def test_create_makes_an_empty_file(file: Path) -> None:
    before = os.umask(0)
    try:
        with opened(file, CREATE, 0o640) as fd:
            status = os.fstat(fd)
    finally:
        os.umask(before)
    assert (status.st_size, status.st_nlink, status.st_blocks) == (0, 1, 0)
    assert status.st_mode == stat.S_IFREG | 0o640
    assert os.path.samestat(status, file.stat())


def test_create_obeys_the_umask(file: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(file, CREATE, 0o666))
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_create_of_a_file_that_is_there_opens_it(file: Path) -> None:
    file.write_bytes(b"here")
    with opened(file, CREATE) as fd:
        assert os.read(fd, 10) == b"here"


def test_exclusive_create(file: Path) -> None:
    with opened(file, CREATE | os.O_EXCL) as fd:
        os.write(fd, b"mine")
    with raises(errno.EEXIST):
        os.open(file, CREATE | os.O_EXCL)
    with raises(errno.EEXIST):
        os.open(file, CREATE | os.O_EXCL | os.O_TRUNC)
    assert file.read_bytes() == b"mine"


def test_exclusive_create_does_not_follow_a_link(file: Path) -> None:
    file.symlink_to("nowhere")
    with raises(errno.EEXIST):
        os.open(file, CREATE | os.O_EXCL)


def test_a_read_only_create_can_write_nothing(file: Path) -> None:
    with opened(file, os.O_RDONLY | os.O_CREAT, 0o444) as fd, raises(errno.EBADF):
        os.write(fd, b"x")
    with opened(file, os.O_RDONLY) as fd:
        assert os.read(fd, 1) == b""


def test_a_file_created_without_write_permission_is_written_through_its_descriptor(file: Path) -> None:
    with opened(file, CREATE | os.O_EXCL, 0o400) as fd:
        os.write(fd, b"once")
    assert file.read_bytes() == b"once"


def test_truncate_at_open(file: Path) -> None:
    file.write_bytes(b"x" * 10_000)
    with opened(file, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"new")
    assert file.read_bytes() == b"new"


def test_truncate_shrinks_and_extends_with_zeros(file: Path) -> None:
    file.write_bytes(b"abcdef" * 1000)
    with opened(file, os.O_RDONLY) as reader:
        assert os.pread(reader, 9, 0) == b"abcdefabc"
        os.truncate(file, 4)
        assert os.fstat(reader).st_size == 4
        os.truncate(file, 9)
        assert os.pread(reader, 100, 0) == b"abcd\0\0\0\0\0"
    with opened(file, os.O_RDWR) as fd:
        os.ftruncate(fd, 2)
        assert os.pread(fd, 100, 0) == b"ab"
        os.ftruncate(fd, 3)
    assert file.read_bytes() == b"ab\0"


def test_truncate_moves_the_modification_time(file: Path) -> None:
    file.write_bytes(b"abc")
    os.utime(file, ns=(1, 1))
    os.truncate(file, 1)
    assert file.stat().st_mtime_ns > 1


def test_truncate_through_a_reader_is_refused(file: Path) -> None:
    file.write_bytes(b"abc")
    with opened(file, os.O_RDONLY) as fd, raises(errno.EINVAL, errno.EBADF):
        os.ftruncate(fd, 0)
    with raises(errno.EINVAL):
        os.truncate(file, -1)
    assert file.read_bytes() == b"abc"


def test_two_handles_append_in_turn(file: Path) -> None:
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with opened(file, append) as one, opened(file, append) as other:
        for number in range(50):
            os.write(one, b"one %d\n" % number)
            os.write(other, b"other %d\n" % number)
            os.lseek(one, 0, os.SEEK_SET)  # of no account
    assert file.read_bytes() == b"".join(b"one %d\nother %d\n" % (number, number) for number in range(50))


def test_append_goes_to_the_end_after_a_truncate(file: Path) -> None:
    with opened(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:
        os.write(fd, b"x" * 5000)
        os.truncate(file, 3)
        os.write(fd, b"end")
    assert file.read_bytes() == b"xxxend"


def test_pread_and_pwrite_at_any_offset(file: Path) -> None:
    model = bytearray(3 * MIB)
    with opened(file, CREATE) as fd:
        for step in range(200):
            offset = step * 7919 * 31 % (2 * MIB)
            data = bytes([step % 256]) * (1 + step * 613 % 300_000)
            assert os.pwrite(fd, data, offset) == len(data)
            model[offset : offset + len(data)] = data
        end = os.fstat(fd).st_size
        assert bytes(model[end:]).count(0) == len(model) - end
        assert os.pread(fd, len(model), 0) == model[:end]
        assert os.pread(fd, 10, end - 3) == model[end - 3 : end]
        assert os.pread(fd, 10, end) == b""
        assert os.pread(fd, 10, end + GIB) == b""
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    assert file.read_bytes() == model[:end]


def test_what_one_handle_writes_another_reads_at_once(file: Path) -> None:
    with opened(file, CREATE) as writer, opened(file, os.O_RDONLY) as reader:
        for number in range(100):
            os.write(writer, b"%04d" % number)
            assert os.read(reader, 10) == b"%04d" % number


def test_large_writes_and_reads(file: Path) -> None:
    data = os.urandom(20 * MIB + 3)
    file.write_bytes(data)
    assert file.read_bytes() == data


def test_offsets_beyond_4_gib(file: Path) -> None:
    """A sparse file: its size is not what it takes, on the tier and in the volume's accounts."""
    with opened(file, CREATE) as fd:
        for gib in (5, 3, 100):
            os.pwrite(fd, b"at %d GiB" % gib, gib * GIB)
        status = os.fstat(fd)
        assert status.st_size == 100 * GIB + 10
        assert status.st_blocks * 512 < MIB
        assert os.pread(fd, 9, 5 * GIB - 1) == b"\0at 5 GiB"
        assert os.pread(fd, 8, 3 * GIB) == b"at 3 GiB"
        os.ftruncate(fd, 5 * GIB + 2)
    assert file.stat().st_size == 5 * GIB + 2
    with opened(file, os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 5 * GIB) == b"at"


def test_writing_moves_mtime_and_ctime(file: Path) -> None:
    with opened(file, CREATE) as fd:
        before = os.fstat(fd)
        pause()
        os.write(fd, b"x")
        after = os.fstat(fd)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_direct_io(file: Path) -> None:
    """O_DIRECT is a wish about caches; alignment is asked for where the kernel asks for it."""
    import mmap

    block = mmap.mmap(-1, 8192)
    block.write(b"d" * 8192)
    with opened(file, CREATE | os.O_DIRECT) as fd:
        assert os.pwritev(fd, [block], 4096) == 8192
        back = mmap.mmap(-1, 8192)
        assert os.preadv(fd, [back], 4096) == 8192
        assert back[:] == block[:]
    assert file.read_bytes() == bytes(4096) + b"d" * 8192


def test_a_directory_cannot_be_opened_for_writing(area: Area) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_TRUNC):
        with raises(errno.EISDIR):
            os.open(area.path, flags)
    with opened(area.path, os.O_RDONLY) as fd, raises(errno.EISDIR):
        os.read(fd, 1)


def test_a_file_is_not_a_directory(file: Path) -> None:
    file.write_bytes(b"x")
    with raises(errno.ENOTDIR):
        os.open(file, os.O_RDONLY | os.O_DIRECTORY)
    with raises(errno.ENOTDIR):
        os.open(file / "below", CREATE)
    with raises(errno.ENOTDIR):
        os.listdir(file)


def test_what_is_not_there(area: Area) -> None:
    missing = area.path / "000009.log"
    for act in (
        lambda: os.open(missing, os.O_RDONLY),
        lambda: os.open(missing / "below", CREATE),
        lambda: os.truncate(missing, 0),
        lambda: os.unlink(missing),
        lambda: os.stat(missing),
        lambda: os.chmod(missing, 0o600),
        lambda: os.utime(missing),
    ):
        with raises(errno.ENOENT):
            act()
