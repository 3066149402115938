"""Migration on a real mount: what may happen to a file while it moves, room, pins and watermarks."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keigo.control import ask, request
from tests.background import Migrating, open_files
from tests.conftest import MIB, MakeWorld, World

DATA = os.urandom(4 * MIB + 5)
SLOWLY = "copy_limit: 4MiB/s\n"


def wait_for(world: World, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Ask the daemon for its status until something is so."""
    deadline = time.monotonic() + 60
    while not condition(status := ask(world.volume, "status")):
        assert time.monotonic() < deadline, status
        time.sleep(0.005)  # the processor is needed by those who are waited for


def migrations(status: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = status["migrations"]
    return found


def copying(world: World, pattern: str, name: str) -> Migrating:
    """A migration to `mid` that has come to the copy of `name`."""
    move = Migrating(world, pattern, "mid")
    wait_for(world, lambda status: move.outcome is not None or migrations(status)["current"] == name)
    assert move.outcome is None, "it ended before its copy was seen"
    return move


@pytest.fixture
def slow(make_world: MakeWorld) -> World:
    """A mounted world that copies slowly, with DATA in 000001.sst on the fast tier."""
    world = make_world(extra=SLOWLY)
    world.mount()
    (world.directory / "000001.sst").write_bytes(DATA)
    return world


def only_on(world: World, name: str, tier: str) -> None:
    assert world.tier_of(name) == tier
    for other, path in world.tiers.items():
        if other != "slow":
            assert (path / name).exists() == (other == tier)
            assert list((path / ".keigo" / "incoming").iterdir()) == []


def test_unlink_cancels(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    (slow.directory / "000001.sst").unlink()
    assert move.result() == {"moved": [], "skipped": {"000001.sst": "is gone"}}
    assert slow.ls() == []
    for name in ("fast", "mid"):
        assert [path.name for path in slow.tiers[name].rglob("*") if path.is_file() and path.suffix == ".sst"] == []
    assert ask(slow.volume, "status")["tiers"][0]["used"] == 0


def test_rename_does_not_disturb(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    (slow.directory / "000001.sst").rename(slow.directory / "000009.sst")
    assert move.result() == {"moved": ["000001.sst"], "skipped": {}}
    only_on(slow, "000009.sst", "mid")
    assert (slow.directory / "000009.sst").read_bytes() == DATA


def test_a_directory_on_the_way_may_be_renamed(slow: World) -> None:
    (slow.directory / "d").mkdir()
    (slow.directory / "000001.sst").rename(slow.directory / "d" / "000001.sst")
    move = copying(slow, "d/*", "d/000001.sst")
    (slow.directory / "d").rename(slow.directory / "e")
    move.result()
    only_on(slow, "e/000001.sst", "mid")
    assert (slow.directory / "e" / "000001.sst").read_bytes() == DATA


def test_writing_wins(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    with (slow.directory / "000001.sst").open("r+b") as file:
        file.write(b"changed")
        file.flush()
        assert "open for writing" in str(move.result())
    assert (slow.directory / "000001.sst").read_bytes() == b"changed" + DATA[7:]
    only_on(slow, "000001.sst", "fast")


def test_a_changed_attribute_is_not_lost(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    (slow.directory / "000001.sst").chmod(0o640)
    assert move.result() == {"moved": ["000001.sst"], "skipped": {}}
    assert (slow.directory / "000001.sst").stat().st_mode & 0o777 == 0o640


def test_a_new_link_moves_too(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    os.link(slow.directory / "000001.sst", slow.directory / "000002.sst")
    move.result()
    only_on(slow, "000001.sst", "mid")
    only_on(slow, "000002.sst", "mid")
    assert (slow.tiers["mid"] / "000001.sst").stat().st_nlink == 2


def test_umount_ends_a_copy(slow: World) -> None:
    move = copying(slow, "*.sst", "000001.sst")
    slow.umount()
    assert "being closed" in str(move.result())
    assert (slow.tiers["fast"] / "000001.sst").read_bytes() == DATA
    assert not (slow.tiers["mid"] / "000001.sst").exists()


def test_open_readers_follow(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for tier in ("mid", "slow", "fast", "mid"):
            mounted.keigo("migrate", mounted.directory, "*.sst", tier)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, len(DATA), 0) == DATA
            # What is on the new tier is what the open file reads: no byte comes from the old one.
            only_on(mounted, "000001.sst", tier)
    finally:
        os.close(fd)
        os.close(direct)


def test_the_next_read_comes_from_the_new_home(mounted: World) -> None:
    """Seen by changing the bytes on the tier behind the mount's back."""
    path = mounted.directory / "000001.sst"
    path.write_bytes(b"a" * 8192)
    fd = os.open(path, os.O_RDONLY)
    try:
        mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
        (mounted.tiers["mid"] / "000001.sst").write_bytes(b"b" * 8192)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 4096, 4096) == b"b" * 4096
    finally:
        os.close(fd)


def test_space_of_the_source_is_freed_under_an_open_reader(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert (mounted.tiers["fast"] / "000001.sst").exists()
        mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
        assert not (mounted.tiers["fast"] / "000001.sst").exists()
        pid = mounted.status()["pid"]
        fast = str(mounted.tiers["fast"])
        assert not any("(deleted)" in name and name.startswith(fast) for name in open_files(pid))
    finally:
        os.close(fd)


def test_attributes_and_xattrs_move_too(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    path.write_bytes(DATA)
    os.setxattr(path, "user.note", b"kept")
    os.chown(path, 1234, 2345)
    path.chmod(0o604)
    os.utime(path, ns=(10**18 + 123, 10**18 + 456))
    inode = path.stat().st_ino
    mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 2345, 0o604)
    assert (found.st_mtime_ns, found.st_ino) == (10**18 + 456, inode)
    assert os.getxattr(path, "user.note") == b"kept"


def test_a_sparse_file_stays_sparse(mounted: World) -> None:
    path = mounted.directory / "000001.sst"
    with path.open("wb") as file:
        file.seek(40 * MIB)
        file.write(b"end")
    mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
    moved = (mounted.tiers["mid"] / "000001.sst").stat()
    assert moved.st_size == 40 * MIB + 3
    assert moved.st_blocks * 512 < MIB
    assert path.read_bytes() == b"\0" * 40 * MIB + b"end"


def test_only_closed_tables_move_by_command(mounted: World) -> None:
    (mounted.directory / "CURRENT").write_text("MANIFEST-000001\n")
    with (mounted.directory / "000001.sst").open("wb") as file:
        file.write(b"x")
        done = mounted.keigo("migrate", mounted.directory, "*", "mid", check=False)
    assert done.returncode == 1
    assert "000001.sst: not moved: is open for writing" in done.stdout
    assert "CURRENT: not moved: only SST and blob files move" in done.stdout


def test_a_file_with_unknown_links_does_not_move(mounted: World) -> None:
    (mounted.directory / "000001.sst").write_bytes(DATA)
    os.link(mounted.tiers["fast"] / "000001.sst", mounted.tiers["fast"].parent / "foreign")
    done = mounted.keigo("migrate", mounted.directory, "*", "mid", check=False)
    assert "2 links on its tier and 1 in the volume" in done.stdout
    only_on(mounted, "000001.sst", "fast")


class TestRoom:
    """Capacity, reserve, watermarks, a device that is full."""

    def test_a_full_tier_passes_new_files_on(self, make_world: MakeWorld) -> None:
        world = make_world(capacity={"fast": "4MiB", "mid": "64MiB"}, levels="{fast: [0, 1], mid: [2, 3], slow: [4]}")
        world.mount()
        for number in range(4):
            (world.directory / f"{number:06}.log").write_bytes(DATA[: 3 * MIB])
            world.wait_closed()  # what a closed one took tells what the next will take
        assert [world.tier_of(f"{number:06}.log") for number in range(4)] == ["fast", "mid", "mid", "mid"]
        (row,) = [row for row in world.ls() if row["name"] == "000001.log"]
        assert "full" in row["reason"]

    def test_above_the_mark_the_oldest_tables_move_down(self, make_world: MakeWorld) -> None:
        world = make_world(capacity={"fast": "8MiB", "mid": "64MiB"})
        world.mount()
        for number in (1, 2):
            (world.directory / f"{number:06}.sst").write_bytes(DATA[: 2 * MIB])
        # A writer that outgrows what its tier has: placement could not know.
        (world.directory / "000003.sst").write_bytes(DATA)
        wait_for(world, lambda status: migrations(status)["done"] != 0 and status["tiers"][0]["room"] > 0)
        assert world.tier_of("000001.sst") == "mid"
        assert world.tier_of("000003.sst") == "fast"
        for number in (1, 2):
            assert (world.directory / f"{number:06}.sst").read_bytes() == DATA[: 2 * MIB]
        assert (world.directory / "000003.sst").read_bytes() == DATA

    def test_a_full_volume_says_enospc_and_recovers(self, make_world: MakeWorld) -> None:
        world = make_world(capacity={"fast": "2MiB", "mid": "2MiB", "slow": "4MiB"})
        world.mount()
        written = []
        full = None
        for number in range(20):
            path = world.directory / f"{number:06}.sst"
            try:
                path.write_bytes(DATA[:MIB])
            except OSError as error:
                full = error
                break
            written.append(path)
            world.wait_closed()  # what went past the daemon is counted by then
        assert full is not None
        assert full.errno == errno.ENOSPC
        assert 6 <= len(written) <= 8
        assert os.statvfs(world.directory).f_bavail * 4096 < 2 * MIB
        for path in written:
            assert path.read_bytes() == DATA[:MIB]
        world.wait_closed()  # an open file keeps its room when it is unlinked
        for path in written[:4]:
            path.unlink()
        (world.directory / "000100.sst").write_bytes(DATA[:MIB])
        assert (world.directory / "000100.sst").read_bytes() == DATA[:MIB]

    @contextmanager
    def tiny(self, world: World) -> Iterator[None]:
        """A real file system of 1 MiB under the fast tier."""
        fast = os.fsencode(world.tiers["fast"])
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"tiny", fast, b"tmpfs", 0, b"size=1m") == 0
        try:
            yield
        finally:
            world.destroy()
            libc.umount2(fast, 2)

    def test_a_full_device_falls_back_at_create(self, make_world: MakeWorld) -> None:
        world = make_world(capacity={"mid": "64MiB"})
        with self.tiny(world):
            world.mount()
            filler = world.tiers["fast"] / ".keigo" / "filler"
            try:
                filler.write_bytes(b"x" * 2 * MIB)
            except OSError:
                pass
            (world.directory / "000001.log").write_bytes(DATA)
            assert world.tier_of("000001.log") == "mid"
            assert (world.directory / "000001.log").read_bytes() == DATA
            done = world.keigo("migrate", world.directory, "*.log", "fast", check=False)
            assert done.returncode == 1
            (world.directory / "000002.sst").write_bytes(DATA)
            done = world.keigo("migrate", world.directory, "*.sst", "fast", check=False)
            assert "has no room" in done.stdout
            assert (world.directory / "000002.sst").read_bytes() == DATA

    def test_a_device_that_fills_under_a_writer_says_enospc(self, make_world: MakeWorld) -> None:
        world = make_world(capacity={"mid": "64MiB"})
        with self.tiny(world):
            world.mount()
            with pytest.raises(OSError, match="No space left"):
                (world.directory / "000001.log").write_bytes(DATA)
            written = (world.directory / "000001.log").read_bytes()
            assert DATA.startswith(written)


class TestPins:
    """Pins at create, by command, and across mounts."""

    def test_configured_pins_decide_at_create(self, make_world: MakeWorld) -> None:
        world = make_world(extra='pins: {"archive/*": mid}\n')
        world.mount()
        (world.directory / "archive").mkdir()
        (world.directory / "archive" / "000001.log").write_bytes(b"x")
        (world.directory / "archive" / "anything").write_bytes(b"x")
        assert world.tier_of("archive/000001.log") == "mid"
        assert world.tier_of("archive/anything") == "mid"
        done = world.keigo("unpin", world.directory, "archive/*", check=False)
        assert "is pinned by" in done.stderr

    def test_pin_moves_what_is_there_and_survives(self, mounted: World) -> None:
        path = mounted.directory / "000001.sst"
        path.write_bytes(DATA)
        done = mounted.keigo("pin", mounted.directory, "*1.sst", "mid")
        assert "1 file(s) match now" in done.stdout
        wait_for(mounted, lambda status: migrations(status)["done"] == 1)
        assert mounted.tier_of("000001.sst") == "mid"
        mounted.umount()
        mounted.mount()
        assert mounted.status()["pins"] == {"*1.sst": "mid"}
        (mounted.directory / "000011.sst").write_bytes(b"x")
        assert mounted.tier_of("000011.sst") == "mid"
        mounted.keigo("unpin", mounted.directory, "*1.sst")
        (mounted.directory / "000021.sst").write_bytes(b"x")
        assert mounted.tier_of("000021.sst") == "fast"

    @pytest.mark.parametrize(
        ("args", "fragment"),
        [
            (("pin", "*", "none"), "none: no such tier (tiers: fast, mid, slow)"),
            (("unpin", "*"), "*: no such pin"),
            (("migrate", "*", "none"), "none: no such tier"),
            (("migrate", "nothing*", "mid"), "nothing*: no file matches"),
        ],
    )
    def test_mistakes(self, mounted: World, args: tuple[str, ...], fragment: str) -> None:
        done = mounted.keigo(args[0], mounted.directory, *args[1:], check=False)
        assert done.returncode != 0
        assert fragment in done.stderr
        assert done.stderr.count("\n") == 1


def test_hundreds_of_moves_under_readers(make_world: MakeWorld) -> None:
    """A process checks blocks of files that are moved to and fro all the time; no byte is ever wrong."""
    world = make_world()
    world.mount()
    blocks = {number: hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(6)}
    for number, block in blocks.items():
        (world.directory / f"{number:06}.sst").write_bytes(block)
    reader = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "check_blocks.py", world.directory, "6"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for _ in range(12):
            for tier in ("mid", "slow", "fast"):
                *_, result = request(world.volume, "migrate", pattern="*.sst", tier=tier)
                assert len(result["moved"]) == 6, result
        out, _ = reader.communicate("stop\n", timeout=60)
        assert reader.returncode == 0, out
    finally:
        reader.kill()
        reader.wait()
