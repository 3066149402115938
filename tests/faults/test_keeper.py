"""A daemon that dies under the mount is replaced, and nobody who uses the mount hears of it but by a pause."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keigo.control import ask, is_served
from tests.conftest import World
from tests.engines.processes import StoreProcess
from tests.faults import keeping
from tests.faults.keeping import keeper_of, kept, replace, wait_for

DEATHS = int(os.environ.get("KEIGO_REPLACED", "5"))

pytestmark = pytest.mark.timeout(0 if DEATHS > 5 else 300)
driver, world = keeping.driver, keeping.world


def test_open_files_stay_open(world: World) -> None:
    kept(world)
    at = world.directory
    with (at / "000001.log").open("wb", buffering=0) as wal, (at / "LOG").open("wb", buffering=0) as told:
        wal.write(b"a" * 10)
        told.write(b"one\n")
        with (at / "read").open("xb") as file:
            file.write(b"to be read")
        reader = os.open(at / "read", os.O_RDONLY)
        listing = os.open(at, os.O_RDONLY)
        nodes = {path.name: path.stat().st_ino for path in at.iterdir()}
        for number in range(3):
            replace(world)
            wal.write(b"b" * 10)
            os.fsync(wal.fileno())
            told.write(b"more\n")
            assert os.pread(reader, 100, 0) == b"to be read"
            (at / f"new{number}").write_bytes(b"x")
            os.fsync(listing)
            assert {path.name: path.stat().st_ino for path in at.iterdir() if path.name in nodes} == nodes
        os.close(reader)
        os.close(listing)
    assert (at / "000001.log").read_bytes() == b"a" * 10 + b"b" * 30
    assert (at / "LOG").read_bytes() == b"one\n" + b"more\n" * 3
    assert world.status()["driver_facts"]["passthrough"] == 0
    world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)


def test_files_without_a_name_stay_open(world: World) -> None:
    kept(world)
    at = world.directory
    removed = os.open(at / "removed", os.O_RDWR | os.O_CREAT)
    replaced = os.open(at / "replaced", os.O_RDWR | os.O_CREAT)
    for file in (removed, replaced):
        os.write(file, b"still here")
    (at / "removed").unlink()
    (at / "other").write_bytes(b"other")
    (at / "other").rename(at / "replaced")
    for _ in range(2):
        replace(world)
        for file in (removed, replaced):
            assert os.pread(file, 100, 0) == b"still here"
            assert os.fstat(file).st_nlink == 0
        os.ftruncate(removed, 20)
        os.ftruncate(removed, 10)
    used = sum(tier["used"] for tier in world.status()["tiers"])
    for file in (removed, replaced):
        os.close(file)
    (at / "sync").write_bytes(b"")  # after it the two RELEASEs have been heard of
    wait_for(lambda: sum(tier["used"] for tier in world.status()["tiers"]) == used - 20)
    assert not [name for tier in world.tiers.values() for name in orphans_of(tier)]
    assert (at / "replaced").read_bytes() == b"other"


def orphans_of(tier: Path) -> list[str]:
    place = tier / ".keigo" / "orphans"
    return [path.name for path in place.iterdir()] if place.is_dir() else []


def test_a_mapped_file_is_read_on(world: World) -> None:
    kept(world)
    path = world.directory / "000007.sst"
    data = os.urandom(4 << 20)
    path.write_bytes(data)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:4096] == data[:4096]
        replace(world)
        ask(world.volume, "migrate", pattern="000007.sst", tier="mid")
        replace(world)
        assert mapped[:] == data
    assert path.read_bytes() == data


def test_pages_that_passthrough_went_past_are_dropped_by_the_next_daemon(world: World) -> None:
    """As in tests/fs/test_kernel_driver.py, with a daemon between that has not seen the writes."""
    kept(world)
    path = world.directory / "000001.sst"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"a" * 64 * mmap.PAGESIZE)
    ctypes.CDLL(None).readahead(fd, ctypes.c_int64(0), 64 * mmap.PAGESIZE)
    os.posix_fadvise(fd, 0, 64 * mmap.PAGESIZE, os.POSIX_FADV_WILLNEED)
    assert os.pread(fd, mmap.PAGESIZE, 0) == b"a" * mmap.PAGESIZE
    os.pwrite(fd, b"b" * 64 * mmap.PAGESIZE, 0)
    os.close(fd)
    world.wait_closed()
    replace(world)
    for _ in range(2):
        assert path.read_bytes() == b"b" * 64 * mmap.PAGESIZE


# What changes names: before, the change, and what is to be seen after it. Each is done twice over where a first try got
# so far, so each must tell whether it was done.
def _create(at: Path) -> None:
    with (at / "made").open("xb", buffering=0) as file:
        file.write(b"made")


def _exchange(at: Path) -> None:
    from keigo.tiers.fds import RENAME_EXCHANGE, renameat2

    fd = os.open(at, os.O_RDONLY)
    try:
        renameat2(fd, b"old", fd, b"other", RENAME_EXCHANGE)
    finally:
        os.close(fd)


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": _create,
    "mkdir": lambda at: (at / "made").mkdir(),
    "symlink": lambda at: (at / "made").symlink_to("nowhere/" * 300),
    "fifo": lambda at: os.mkfifo(at / "made"),
    "link": lambda at: os.link(at / "old", at / "made"),
    "unlink": lambda at: (at / "old").unlink(),
    "rmdir": lambda at: (at / "empty").rmdir(),
    "rename": lambda at: (at / "old").rename(at / "made"),
    "rename over": lambda at: (at / "old").rename(at / "other"),
    "rename over another tier's": lambda at: (at / "old").rename(at / "000009.sst"),
    "rename a directory": lambda at: (at / "full").rename(at / "made"),
    "rename over a directory": lambda at: (at / "full").rename(at / "empty"),
    "exchange": _exchange,
}


def tree(at: Path) -> dict[str, tuple[str, bytes]]:
    """What is there, by path."""
    found = {}
    for path in sorted(at.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(at))] = ("link", os.readlink(path).encode())
        elif path.is_file():
            found[str(path.relative_to(at))] = (f"file {path.stat().st_nlink}", path.read_bytes())
        else:
            found[str(path.relative_to(at))] = ("dir" if path.is_dir() else "other", b"")
    return found


def prepare(at: Path) -> None:
    for name in ("old", "other", "000009.sst"):
        (at / name).write_bytes(name.encode())
    (at / "empty").mkdir()
    (at / "full").mkdir()
    (at / "full" / "000011.sst").write_bytes(b"inside")
    (at / "full" / "plain").write_bytes(b"inside")


PREPARED = 6  # names that `prepare` makes


@pytest.mark.parametrize("point", ["names.begun", "names.changed", "names.committed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_names_is_made_once(world: World, tmp_path: Path, change: str, point: str) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    prepare(plain)
    CHANGES[change](plain)
    # The first daemon dies at the change, having made what was prepared.
    kept(world, f"{point}:{PREPARED + 1 + 1}")
    prepare(world.directory)
    known = os.open(world.directory / "full" / "plain", os.O_RDWR)
    stat_before = {name: (world.directory / name).stat().st_ino for name in ("other", "full")}
    before = world.status()["pid"]
    CHANGES[change](world.directory)
    assert tree(world.directory) == tree(plain)
    assert world.status()["pid"] != before, "no daemon died: the failpoint was not met"
    os.pwrite(known, b"!", 0)
    assert os.pread(known, 10, 0) == b"!nside"
    os.close(known)
    if change == "rename a directory":
        assert (world.directory / "made").stat().st_ino == stat_before["full"]
    world.pids.append(world.status()["pid"])
    world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)


@pytest.mark.parametrize("point", ["rename.intent", "rename.step", "rename.steps", "rename.synced", "rename.done"])
def test_a_rename_across_tiers_is_finished(world: World, point: str) -> None:
    kept(world, point)
    at = world.directory
    prepare(at)
    kept_open = os.open(at / "000009.sst", os.O_RDONLY)
    before = world.status()["pid"]
    (at / "old").rename(at / "000009.sst")
    assert world.status()["pid"] != before
    assert (at / "000009.sst").read_bytes() == b"old"
    assert not (at / "old").exists()
    assert os.pread(kept_open, 100, 0) == b"000009.sst"
    os.close(kept_open)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC])
def test_an_open_that_was_not_answered_has_one_handle(world: World, flags: int) -> None:
    kept(world, "open.noted:2")
    (world.directory / "file").write_bytes(b"here")
    opened = os.open(world.directory / "file", flags)
    assert len([row for row in world.ls() if row["open"]]) == 1
    os.close(opened)
    wait_for(lambda: not [row for row in world.ls() if row["open"]])


def test_a_create_that_was_not_answered_has_one_handle(world: World) -> None:
    kept(world, "open.noted")
    opened = os.open(world.directory / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(opened, b"here")
    assert world.status()["driver_facts"]["successions"] == 1
    assert world.status()["open_files"] == 1
    os.close(opened)
    world.wait_closed()
    assert (world.directory / "file").read_bytes() == b"here"


def test_a_close_that_was_not_answered_closes_no_other_file(world: World) -> None:
    """The number of the handle is free for the next file as soon as it is noted to be closed."""
    kept(world, "release.noted")
    files = [world.directory / f"file{number}" for number in range(20)]
    with files[0].open("wb") as first:
        first.write(b"0")
    opened = []
    for number, path in enumerate(files[1:], 1):
        file = path.open("w+b", buffering=0)
        file.write(str(number).encode())
        opened.append(file)
    wait_for(lambda: world.status()["driver_facts"]["successions"] == 1)
    wait_for(lambda: world.status()["open_files"] == len(opened))
    for number, file in enumerate(opened, 1):
        file.seek(0)
        assert file.read() == str(number).encode()
        file.close()


def test_a_migration_that_was_cut_off_leaves_readers_alone(world: World) -> None:
    kept(world, "migrate.switched")
    path = world.directory / "000003.sst"
    path.write_bytes(b"x" * 100_000)
    with path.open("rb") as file:
        with pytest.raises(Exception, match="went away"):
            ask(world.volume, "migrate", pattern="000003.sst", tier="slow")
        assert file.read() == b"x" * 100_000
    assert world.tier_of("000003.sst") in world.tiers


def test_mounted_and_restarted_by_commands(world: World) -> None:
    world.keigo("mount", world.directory, "-d", world.config, "--log-file", world.log_file)
    world.pids.append(world.status()["pid"])
    with (world.directory / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        before = world.status()["pid"]
        said = world.keigo("restart", world.directory).stdout
        assert f"was {before}" in said
        file.write(b" and after")
    assert (world.directory / "file").read_bytes() == b"before and after"
    world.pids.append(world.status()["pid"])


def test_a_restart_that_would_fail_is_refused(world: World) -> None:
    kept(world)
    good = world.config.read_text()
    renamed = good.replace("name: mid", "name: other").replace("mid: [", "other: [")
    for bad, why in (("nonsense\n", "devices.yaml"), (renamed, "tier mid is missing")):
        world.config.write_text(bad)
        refused = world.keigo("restart", world.directory, check=False)
        assert refused.returncode == 1
        assert why in refused.stderr
    assert world.status()["pid"] == world.pids[-1]
    world.config.write_text(good)


def test_a_death_while_devices_yaml_is_written(world: World) -> None:
    kept(world)
    good = world.config.read_text()
    with (world.directory / "file").open("wb", buffering=0) as file:
        for _ in range(2):
            world.config.write_text("nonsense\n")
            replace(world)
            file.write(b"here")
    assert "going on with what it said before" in world.log()
    assert (world.directory / "file").read_bytes() == b"here" * 2
    world.config.write_text(good)
    replace(world)
    assert {tier["name"] for tier in world.status()["tiers"]} == set(world.tiers)


def test_a_mount_without_a_keeper_says_so(world: World) -> None:
    world.mount()
    assert world.status()["keeper"] == "was mounted without a keeper"
    refused = world.keigo("restart", world.directory, check=False)
    assert refused.returncode == 1
    assert "without a keeper" in refused.stderr


def test_the_death_of_the_keeper_ends_nothing(world: World) -> None:
    kept(world)
    (world.directory / "file").write_bytes(b"here")
    os.kill(keeper_of(world.pids[-1]), signal.SIGKILL)
    wait_for(lambda: world.status()["keeper"] == "its keeper is gone")
    assert (world.directory / "file").read_bytes() == b"here"
    assert world.keigo("restart", world.directory, check=False).returncode == 1


def test_a_daemon_that_cannot_start_again_leaves_a_dead_mount(world: World) -> None:
    kept(world)
    opened = os.open(world.directory / "file", os.O_CREAT | os.O_RDWR)
    identity = world.tiers["fast"] / ".keigo" / "tier.json"
    good = identity.read_text()
    identity.write_text("nonsense\n")
    watched = os.pidfd_open(keeper_of(world.pids[-1]))
    world.kill()
    assert select.select([watched], [], [], 120)[0]
    os.close(watched)
    assert not is_served(world.volume)
    with pytest.raises(OSError, match="not connected") as caught:
        os.stat(world.directory)
    assert caught.value.errno == errno.ENOTCONN
    identity.write_text(good)
    refused = world.keigo("mount", world.directory, "-d", world.config, check=False)
    assert f"pid {os.getpid()}" in refused.stderr
    with pytest.raises(OSError, match="not connected"):
        os.close(opened)
    kept(world)


def test_no_operation_of_a_workload_fails(world: World, tmp_path: Path) -> None:
    """kill -9 again and again under YCSB A on RocksDB, which hears of no error."""
    kept(world)
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "keigo", "bench", "ycsb", str(world.directory / "kv"), "--workload", "a"]
    how = ["--records", "20000", "--write-buffer", "1MiB", "--file-size", "1MiB", "--verify"]
    bench = subprocess.Popen(
        [*command, *how, "--seconds", str(2 * DEATHS), "--json", str(result)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        pause = threading.Event()
        for _ in range(DEATHS):
            pause.wait(1.0)
            assert bench.poll() is None, bench.stdout and bench.stdout.read()
            replace(world)
        said, _ = bench.communicate(timeout=300)
    finally:
        bench.kill()
    assert bench.returncode == 0, said
    assert json.loads(result.read_text())
    info = "".join(path.read_text(errors="replace") for path in (world.directory / "kv").glob("LOG*"))
    assert "IO error" not in info


def next_ack(store: StoreProcess, world: World) -> int:
    said = store.next_line()
    assert said is not None, "the store's process ended"
    assert "acked" in said, f"{said}\n{world.log()}"
    return int(said["acked"])


def test_no_key_is_lost_over_many_deaths(world: World) -> None:
    kept(world)
    pause = threading.Event()
    store = StoreProcess("rocksdb", world.directory / "kv", create=True)
    try:
        store.send("stream", first=0, size=20)
        acked = 0
        for _ in range(DEATHS):
            ended = threading.Timer(0.3, pause.set)
            ended.start()
            while not pause.is_set():
                acked = next_ack(store, world)
            pause.clear()
            replace(world)
        acked = next_ack(store, world)
    finally:
        store.kill()
    with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
        found = store.dump()
    assert len(found) >= acked > 0
    assert sorted(found) == list(range(len(found)))
