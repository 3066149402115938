"""What only the kernel driver can get wrong: modes of an inode, stale pages, and what the kernel does past us."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fusefs import abi
from fusefs.connection import Connection
from fusefs.dispatch import Dispatcher
from fusefs.inodes import Inode, Inodes
from fusefs.namespace import Namespace
from fusefs.opens import Opens
from fusefs.operations import Operations
from fusefs.read_counts import ReadCounts
from keigo.control import ask
from tests.conftest import MIB, MakeWorld, World
from tests.fs.support import freeze, until

PAGE = 4096


@pytest.fixture
def driver() -> str:
    """This file is about one driver."""
    return "kernel"


def facts(world: World) -> dict[str, Any]:
    found: dict[str, Any] = ask(world.volume, "status")
    return found


def test_writers_are_in_passthrough(mounted: World) -> None:
    with (mounted.directory / "000001.log").open("wb", buffering=0) as file:
        file.write(b"x")
        assert facts(mounted)["driver_facts"]["passthrough"] == 1
    until(lambda: facts(mounted)["driver_facts"]["passthrough"] == 0)


@pytest.mark.parametrize("name", ["LOG", "MANIFEST-000001", "CURRENT", "OPTIONS-000003", "IDENTITY"])
def test_what_tells_of_the_lsm_is_not(mounted: World, name: str) -> None:
    with (mounted.directory / name).open("wb", buffering=0) as file:
        file.write(b"line\n")
        assert facts(mounted)["driver_facts"]["passthrough"] == 0
    assert (mounted.directory / name).read_bytes() == b"line\n"


def test_a_reader_beside_a_writer_sees_every_append(mounted: World) -> None:
    path = mounted.directory / "000001.log"
    with path.open("wb", buffering=0) as writer, path.open("rb", buffering=0) as reader:
        for number in range(200):
            line = b"%06d\n" % number
            writer.write(line)
            assert path.stat().st_size == (number + 1) * len(line)
            assert reader.read() == line
        os.truncate(path, 7)
        assert path.stat().st_size == os.fstat(writer.fileno()).st_size == 7
        os.posix_fallocate(writer.fileno(), 0, 3 * PAGE)
        assert path.stat().st_size == 3 * PAGE


def test_readahead_of_a_file_being_written_leaves_no_stale_page(mounted: World) -> None:
    """READ for readahead fills the inode's pages, passthrough writes go past them, the next reader sees neither."""
    path = mounted.directory / "000001.sst"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"a" * 64 * PAGE)
    ctypes.CDLL(None).readahead(fd, ctypes.c_int64(0), 64 * PAGE)
    os.posix_fadvise(fd, 0, 64 * PAGE, os.POSIX_FADV_WILLNEED)
    assert os.pread(fd, PAGE, 0) == b"a" * PAGE
    os.pwrite(fd, b"b" * 64 * PAGE, 0)
    os.close(fd)
    assert path.read_bytes() == b"b" * 64 * PAGE
    assert path.read_bytes() == b"b" * 64 * PAGE


def test_rewritten_by_passthrough_after_it_was_cached(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    for byte in (b"a", b"b", b"c"):
        path.write_bytes(byte * 3 * PAGE)
        for _ in range(2):
            assert path.read_bytes() == byte * 3 * PAGE


def test_a_reader_right_after_the_writer_is_not_pinned(mounted: World) -> None:
    """RocksDB reopens each SST at once; several threads do so here."""

    def work(first: int) -> None:
        for number in range(first, first + 100):
            path = mounted.directory / f"{number:06}.sst"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"x" * PAGE)
            os.close(fd)
            readers.append(os.open(path, os.O_RDONLY))

    readers: list[int] = []
    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(readers) == 400
        assert facts(mounted)["passthrough_readers"] == 0
        until(lambda: facts(mounted)["driver_facts"]["passthrough"] == 0)
        assert all(os.pread(fd, 2 * PAGE, 0) == b"x" * PAGE for fd in readers)
    finally:
        for fd in readers:
            os.close(fd)


def test_a_writer_with_another_descriptor_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that redirects a command's output closes one of two: that looks like a RELEASE on its way."""
    waited: list[str] = []
    inode = Inode()
    inode.passthrough = 1
    inode.handles = {7: (True, True)}
    monkeypatch.setattr("fusefs._datapath.flushed", lambda _handle: True)
    monkeypatch.setattr(inode.changed, "wait_for", lambda *_: waited.append("in vain"))
    for _ in range(3):
        inode.await_release()
    assert waited == ["in vain"]
    inode.handles[8] = (True, True)
    inode.await_release()
    assert waited == ["in vain"], "the first one keeps the file in passthrough anyway"


def test_a_reader_that_came_before_the_writer_left_is_counted(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT)
    reader = os.open(path, os.O_RDONLY)
    os.write(writer, b"x" * PAGE)
    os.close(writer)
    until(lambda: facts(mounted)["passthrough_readers"] == 1)
    assert facts(mounted)["driver_facts"]["pinning_opens"] == 1
    done = mounted.keigo("migrate", mounted.directory, "*.sst", "mid", check=False)
    assert "open by passthrough" in done.stdout
    assert os.pread(reader, PAGE, 0) == b"x" * PAGE
    os.close(reader)
    mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
    assert mounted.tier_of("000001.sst") == "mid"


def test_writing_a_file_that_a_reader_holds(mounted: World) -> None:
    """Passthrough would be refused with EIO: such writes are mediated, shared mappings too."""
    path = mounted.directory / "000001.sst"
    path.write_bytes(b"a" * 2 * PAGE)
    with path.open("rb", buffering=0) as reader:
        assert reader.read(PAGE) == b"a" * PAGE
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, b"b" * PAGE, 0)
        with mmap.mmap(fd, 2 * PAGE) as mapped:
            mapped[PAGE : 2 * PAGE] = b"c" * PAGE
            mapped.flush()
        os.fsync(fd)
        os.close(fd)
        reader.seek(0)
        assert reader.read() == b"b" * PAGE + b"c" * PAGE
    assert (mounted.tiers["fast"] / "000001.sst").read_bytes() == b"b" * PAGE + b"c" * PAGE


def test_a_shared_mapping_of_a_passthrough_file_shows_in_stat(mounted: World) -> None:
    path = mounted.directory / "data.db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGE)
    os.utime(path, ns=(1, 1))
    with mmap.mmap(fd, PAGE) as mapped:
        mapped[:4] = b"text"
        mapped.flush()
        assert path.stat().st_mtime_ns > 1
    os.close(fd)
    assert path.read_bytes()[:4] == b"text"


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently")]


def dirty_pages(path: Path) -> int:
    """Pages of a file that are neither on the device nor on the way (cachestat(2), Linux 6.5)."""
    found = _Cachestat()
    whole = (ctypes.c_uint64 * 2)(0, 0)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert ctypes.CDLL(None).syscall(451, fd, ctypes.byref(whole), ctypes.byref(found), 0) == 0
    finally:
        os.close(fd)
    return int(found.dirty)


def test_what_passthrough_writes_is_written_back(make_world: MakeWorld) -> None:
    """sync_file_range is lost on a passthrough file; without a remedy pages stay dirty for 30 seconds."""
    world = make_world(levels="{fast: [0], mid: [wal, 1, 2, 3], slow: [4]}")
    world.mount()
    with (world.directory / "000001.log").open("wb", buffering=0) as file:
        file.write(b"x" * 32 * MIB)
        began = time.monotonic()
        assert dirty_pages(world.tiers["mid"] / "000001.log") > 0
        until(lambda: dirty_pages(world.tiers["mid"] / "000001.log") == 0)
        assert time.monotonic() - began < 20, "the kernel's own write-back, not ours"


def test_room_counts_what_passthrough_writes(make_world: MakeWorld) -> None:
    world = make_world(capacity={"fast": "8MiB", "mid": "64MiB"})
    world.mount()
    with (world.directory / "000001.log").open("wb", buffering=0) as file:
        file.write(b"x" * 7 * MIB + b"x" * (3 * MIB // 4))
        assert facts(world)["tiers"][0]["used"] == 7 * MIB + 3 * MIB // 4
        (world.directory / "000002.log").write_bytes(b"y" * MIB)
        assert world.tier_of("000002.log") == "mid"


def test_inodes_are_forgotten(mounted: World) -> None:
    for number in range(3000):
        path = mounted.directory / f"{number:06}.sst"
        path.write_bytes(b"x")
        path.unlink()
    until(lambda: facts(mounted)["driver_facts"]["inodes"] < 50)
    mounted.wait_closed()


def test_without_passthrough_auto_falls_back(make_world: MakeWorld) -> None:
    world = make_world()
    refuse = {"KEIGO_FAILPOINT": "init.no-passthrough"}
    world.driver = "kernel"
    with pytest.raises(AssertionError, match="has no passthrough, which came with Linux 6.9"):
        world.mount(env=refuse)
    assert not world.is_mounted()
    world.driver = "auto"
    world.mount(env=refuse)
    status = world.status()
    assert status["driver"] == "pyfuse3"
    assert "has no passthrough" in status["driver_reason"]
    (world.directory / "x").write_bytes(b"works")
    world.umount()
    world.mount()
    assert world.status()["driver"] == "kernel"
    assert (world.directory / "x").read_bytes() == b"works"


def test_two_mounts_at_once(make_world: MakeWorld) -> None:
    one, other = make_world(), make_world()
    one.mount()
    other.mount()
    for world in (one, other):
        (world.directory / "000001.sst").write_bytes(world.volume.encode())
    for world in (one, other):
        assert (world.directory / "000001.sst").read_bytes() == world.volume.encode()
    one.umount()
    assert (other.directory / "000001.sst").read_bytes() == other.volume.encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(world: World, number: signal.Signals) -> None:
    world.mount()
    (world.directory / "000001.log").write_bytes(b"x")
    with (world.directory / "000001.log").open("rb"):
        os.kill(world.pids[-1], number)
        until(lambda: "asked to stop, but" in world.log())
        assert (world.directory / "000001.log").read_bytes() == b"x"  # somebody's files: it goes on
    os.kill(world.pids[-1], number)
    world.wait_dead()
    assert not world.is_mounted()
    assert "is closed" in world.log()


def test_a_process_of_another_pid_namespace_has_no_context(mounted: World) -> None:
    """Its pid is 0 for us: files are placed by name alone."""
    script = f"open({str(mounted.directory / '000001.sst')!r}, 'wb').write(b'x' * 100)"
    subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", script], check=True)
    mounted.wait_closed()
    (row,) = mounted.ls()
    assert (row["size"], row["level"], row["tier"]) == (100, None, "fast")


def test_killed_readers_and_writers_do_no_harm(mounted: World) -> None:
    """SIGKILL in the middle of requests: interrupts, aborted opens; then nothing is left open."""
    script = (
        "import os, itertools\n"
        f"os.chdir({str(mounted.directory)!r})\n"
        "for n in itertools.count():\n"
        "    name = '%d-%d.sst' % (os.getpid(), n % 50)\n"
        "    open(name, 'wb').write(b'x' * 100000)\n"
        "    open(name, 'rb').read()\n"
        "    if n % 3: os.unlink(name)\n"
        "    print(n, flush=True)\n"
    )
    for _ in range(5):
        children = [
            subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        for child in children:
            assert child.stdout is not None
            for _ in range(20):
                child.stdout.readline()
            child.kill()
        for child in children:
            child.communicate()
    until(lambda: facts(mounted)["open_files"] == 0)
    for row in mounted.ls():
        assert (mounted.directory / row["name"]).stat().st_size == row["size"] <= 100000


def test_malformed_requests_get_an_errno() -> None:
    """Any bytes as a request: an answer with an errno, or none; never an exception."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    class Nothing:
        def __getattr__(self, _name: str) -> Nothing:
            return self

        def __call__(self, *_args: object, **_kwargs: object) -> object:
            raise OSError(2, "nothing")

    nothing = cast(Namespace, Nothing())
    inodes = Inodes()
    opens = Opens(nothing, Connection(-1), inodes, ReadCounts(inodes), None)
    answers: list[int] = []
    handlers = Operations(nothing, inodes, opens).handlers()
    dispatcher = Dispatcher(handlers, lambda _unique, error, _data: answers.append(error), nothing, inodes)

    @settings(max_examples=400, deadline=None)
    @given(st.sampled_from([*abi.Op, 0, 7, 19, 99, 2**32 - 1]), st.binary(max_size=120))
    def check(op: int, body: bytes) -> None:
        head = abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), op, 1, 1, 0, 0, 0, 0, 0)
        answers.clear()
        dispatcher.answer(head + body)
        silent = op in (abi.Op.FORGET, abi.Op.BATCH_FORGET, abi.Op.INTERRUPT)
        assert len(answers) == (0 if silent else 1) or (silent and answers in ([], [22]))
        assert all(0 <= error < 200 for error in answers)

    check()


def test_requests_that_a_dead_daemon_leaves_fail_at_once_and_the_next_mount_is_whole(world: World) -> None:
    """One descriptor of /dev/fuse, which dies with the daemon: nobody waits for an answer that cannot come."""
    world.mount()
    path = world.directory / "000001.sst"
    path.write_bytes(b"x" * 64 * PAGE)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    failed: list[int | None] = []

    def act(what: Callable[[], object]) -> None:
        try:
            what()
        except OSError as error:
            failed.append(error.errno)

    try:
        freeze(world.pids[-1])
        waiting = [
            threading.Thread(target=act, args=(what,))
            for what in (
                lambda: os.preadv(fd, [mmap.mmap(-1, PAGE)], 0),
                lambda: os.mkdir(world.directory / "made"),
            )
        ]
        for thread in waiting:
            thread.start()
        until(lambda: all(waits(thread) for thread in waiting))
        world.kill()
        for thread in waiting:
            thread.join(30)
            assert not thread.is_alive()
        assert set(failed) <= {errno.ECONNABORTED, errno.ENOTCONN, errno.EIO}
        assert len(failed) == len(waiting)
    finally:
        world.destroy_daemon()
        act(lambda: os.close(fd))
    world.mount()
    assert path.read_bytes() == b"x" * 64 * PAGE
    assert not (world.directory / "made").exists()


def waits(thread: threading.Thread) -> bool:
    """Whether a thread waits in a system call other than futex(2), as for the GIL."""
    call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    return call not in ("running", "202", "98")
