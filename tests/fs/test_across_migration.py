"""Open files and maps while their file moves to another tier and back."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fusefs.attributes import ROOT_ID, Caller
from fusefs.namespace import Namespace
from keigo import config
from keigo.control import ask
from keigo.policies import make_policy
from keigo.tiers.fds import Fd, open_direct
from keigo.tiers.migration import migrate
from keigo.tiers.opening import open_volume
from keigo.tiers.pace import Pace
from tests.background import Migrating, open_files
from tests.conftest import MIB, World
from tests.fs.support import Area, opened

NAME = "000007.sst"
SIZE = 8 * MIB + 123


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def table(area: Area, data: bytes) -> Path:
    """An SST on the fast tier."""
    path = area.path / NAME
    path.write_bytes(data)
    return path


@contextmanager
def wandering(area: Area, name: str = NAME) -> Iterator[None]:
    """The file moves from tier to tier for as long as the block runs, at least once round."""
    stop = threading.Event()
    moves = 0

    def wander() -> None:
        nonlocal moves
        while not stop.is_set() or moves < 3:
            for tier in ("mid", "slow", "fast"):
                area.migrate(name, tier)
                moves += 1

    thread = threading.Thread(target=wander)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert moves >= 3


def test_attributes_survive(area: Area, table: Path) -> None:
    table.chmod(0o4640)
    os.chown(table, 11, 22)
    table.chmod(0o4640)
    os.utime(table, ns=(10**18 + 1, 10**18 + 2))
    before = table.stat()
    for tier in ("mid", "slow", "fast"):
        area.migrate(NAME, tier)
        assert area.tier_of(NAME) == tier
        after = table.stat()
        for field in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
            assert getattr(after, field) == getattr(before, field), field


def test_an_open_reader_reads_on_from_the_new_home(area: Area, table: Path, data: bytes) -> None:
    with opened(table, os.O_RDONLY | os.O_DIRECT) as fd:  # so that the kernel's cache does not answer
        buffer = mmap.mmap(-1, MIB)
        for number, tier in enumerate(("mid", "slow", "fast", "mid")):
            area.migrate(NAME, tier)
            assert os.preadv(fd, [buffer], number * MIB) == MIB
            assert buffer[:] == data[number * MIB : (number + 1) * MIB]
            assert os.fstat(fd).st_ino == table.stat().st_ino
        # The old copies are gone, not only unlinked: the daemon holds none of them open.
        held = [path for path in open_files(area.world.pids[-1]) if NAME in path]
        assert held
        assert {path for path in held if path != str(area.on("mid", NAME))} == set()


def test_a_reader_reads_throughout(area: Area, table: Path, data: bytes) -> None:
    with opened(table, os.O_RDONLY | os.O_DIRECT) as fd, wandering(area):
        buffer = mmap.mmap(-1, 65536)
        for step in range(2000):
            offset = step * 7919 % 127 * 65536
            assert os.preadv(fd, [buffer], offset) == 65536
            assert buffer[:] == data[offset : offset + 65536]


def test_a_map_reads_throughout(area: Area, table: Path, data: bytes) -> None:
    with opened(table, os.O_RDONLY) as fd:
        table_map = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ)
    with table_map, wandering(area):
        for step in range(40):
            # Drop the kernel's pages now and then: the next look comes to the file system again.
            table_map.madvise(mmap.MADV_DONTNEED)
            with opened(table, os.O_RDONLY) as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            offset = step * MIB // 5
            assert table_map[offset : offset + 50_000] == data[offset : offset + 50_000]
        assert table_map[:] == data


def test_opens_and_whole_reads_throughout(area: Area, table: Path, data: bytes) -> None:
    with wandering(area):
        for _ in range(30):
            assert table.read_bytes() == data


def test_a_thousand_moves_under_readers(area: Area) -> None:
    """Files that are open throughout, read directly and through maps from which the pages are dropped."""
    size, count, rounds = 16 * 4096, 20, 50
    contents = [os.urandom(size) for _ in range(count)]
    for number, content in enumerate(contents):
        (area.path / f"{number}.sst").write_bytes(content)
    stop = threading.Event()
    wrong: list[str] = []
    looks = [0, 0]

    def read_directly(fds: list[int]) -> None:
        buffer = mmap.mmap(-1, size)
        while not stop.is_set():
            for number, fd in enumerate(fds):
                if os.preadv(fd, [buffer], 0) != size or buffer[:] != contents[number]:
                    wrong.append(f"{number}.sst, read directly")
                looks[0] += 1

    def read_maps(fds: list[int]) -> None:
        maps = [mmap.mmap(fd, size, prot=mmap.PROT_READ) for fd in fds]
        while not stop.is_set():
            for number, (table_map, fd) in enumerate(zip(maps, fds, strict=True)):
                table_map.madvise(mmap.MADV_DONTNEED)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if table_map[:] != contents[number]:
                    wrong.append(f"{number}.sst, mapped")
                looks[1] += 1

    with ExitStack() as stack:
        for look, flags in ((read_directly, os.O_DIRECT), (read_maps, 0)):
            fds = [stack.enter_context(opened(area.path / f"{n}.sst", os.O_RDONLY | flags)) for n in range(count)]
            thread = threading.Thread(target=look, args=(fds,))
            stack.callback(thread.join)
            stack.callback(stop.set)
            thread.start()
        moved = 0
        for number in range(rounds):
            tier = ("mid", "fast")[number % 2]
            moved += len(ask(area.world.volume, "migrate", pattern=f"{area.name}/*.sst", tier=tier)["moved"])
            assert not wrong
    assert not wrong
    assert moved >= (rounds - 1) * count  # in the first round the kernel may not have told of every close
    assert min(looks) > rounds


def test_links_move_together(area: Area, table: Path, data: bytes) -> None:
    (area.path / "backup").mkdir()
    link = area.path / "backup" / NAME
    link.hardlink_to(table)
    with opened(link, os.O_RDONLY) as fd:
        area.migrate(NAME, "mid")
        assert (area.tier_of(NAME), area.tier_of(f"backup/{NAME}")) == ("mid", "mid")
        assert link.stat().st_ino == table.stat().st_ino == os.fstat(fd).st_ino
        assert link.stat().st_nlink == 2
        table.unlink()
        assert link.stat().st_nlink == 1
        assert os.pread(fd, 100, SIZE - 100) == data[-100:]


def test_an_unlinked_reader_survives_its_migration_being_cancelled(area: Area, data: bytes) -> None:
    """Names go while the copy is under way; whoever has the file open reads on."""
    for number in range(10):
        path = area.path / f"{number}.sst"
        path.write_bytes(data)
        with opened(path, os.O_RDONLY) as fd:
            os.pread(fd, 1, 0)
            mover = Migrating(area.world, f"{area.name}/{number}.sst", "mid")
            threading.Event().wait(number * 0.002)
            path.unlink()
            mover.result()
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, SIZE, 0) == data
    assert area.rows() == {}
    assert list(area.on("mid", "").glob("*")) == [] or not area.on("mid", "").exists()


def test_what_is_written_during_a_copy_is_kept(area: Area, table: Path, data: bytes) -> None:
    """SSTs do not change, but nothing forbids it: opening one for writing ends its copy."""
    for number in range(10):
        tier = ("mid", "fast")[number % 2]
        mover = Migrating(area.world, f"{area.name}/{NAME}", tier)
        threading.Event().wait(number * 0.002)
        with opened(table, os.O_WRONLY) as fd:
            os.pwrite(fd, b"%010d" % number, number * 10)
        mover.result()
        area.tier_of(NAME)
        expected = b"".join(b"%010d" % n for n in range(number + 1)) + data[(number + 1) * 10 :]
        assert table.read_bytes() == expected
    with opened(table, os.O_RDONLY | os.O_DIRECT) as fd:
        buffer = mmap.mmap(-1, MIB)
        os.preadv(fd, [buffer], 0)
        assert buffer[:100] == expected[:100]


def test_names_change_during_a_copy(area: Area, data: bytes) -> None:
    names = [NAME, "000008.sst"]
    (area.path / NAME).write_bytes(data)
    for number in range(10):
        old, new = names[number % 2], names[1 - number % 2]
        mover = Migrating(area.world, f"{area.name}/{old}", ("mid", "slow", "fast")[number % 3])
        threading.Event().wait(number * 0.002)
        (area.path / old).rename(area.path / new)
        mover.result()
        assert set(area.rows()) == {new}
        area.tier_of(new)
        assert (area.path / new).read_bytes() == data


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_a_migration_that_lands_while_a_reader_opens_takes_its_direct_descriptor_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mount: the move is done at the moment between opening that descriptor and using it."""
    loaded = config.load(world.config)
    volume, _ = open_volume(loaded, world.directory, make_policy(loaded))
    namespace = Namespace(volume)
    try:
        found, writer = namespace.files.create(ROOT_ID, b"000001.sst", 0o644, os.O_WRONLY, Caller(0, 0, os.getpid()))
        namespace.io.write(writer, 0, b"x" * 4096)
        namespace.files.release(writer)
        reader = namespace.files.open(found.id, os.O_RDONLY)
        moved: list[int] = []

        def opened(file: Fd) -> Fd | None:
            direct = open_direct(file)
            if not moved:
                moved.append(migrate(volume, found.id, volume.by_name["slow"], "test", Pace(None)))
            return direct

        monkeypatch.setattr("fusefs.file_handles.open_direct", opened)
        direct = namespace.files.direct_of(reader)
        assert moved == [4096]
        assert direct >= 0
        assert os.path.samefile(f"/proc/self/fd/{direct}", world.tiers["slow"] / "000001.sst")
        namespace.files.release(reader)
    finally:
        namespace.close()
        volume.close()


def test_a_map_that_outlives_its_descriptor_keeps_the_file_where_it_is(table: Path, area: Area) -> None:
    """Of a passthrough file the kernel maps the one on the tier itself: a copy would not get what is written to it."""
    name = str(table.relative_to(area.world.directory))
    libc = ctypes.CDLL(None, use_errno=True)  # Python's own mmap keeps a descriptor
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open(table, os.O_RDWR)
    at = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    os.close(fd)
    try:
        found = ask(area.world.volume, "migrate", pattern=name, tier="mid")
        assert not found["moved"]
        assert "writ" in found["skipped"][name]
        ctypes.memmove(at, b"after", 5)
    finally:
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(4096))
    found = ask(area.world.volume, "migrate", pattern=name, tier="slow")
    assert found["moved"] == [name]
    assert table.read_bytes()[:5] == b"after"
