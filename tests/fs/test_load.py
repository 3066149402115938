"""What goes through a mount is counted for the tier that it goes to, and `status` shows the tiers' load."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.attributes import ROOT_ID, Caller, Changes
from fusefs.namespace import Namespace
from keigo.config import load as load_config
from keigo.control import ask
from keigo.policies import make_policy
from keigo.tiers.fds import fallocate
from keigo.tiers.opening import open_volume
from tests.conftest import MakeWorld, World
from tests.fs.support import Area, opened, until

PAGE = 4096
MIB = 1 << 20


def loads(world: World) -> dict[str, dict[str, Any]]:
    """Tier -> its load."""
    return {tier["name"]: tier["load"] for tier in ask(world.volume, "status")["tiers"]}


def moved(world: World, tier: str = "fast") -> tuple[int, int]:
    """Bytes read from a tier and written to it."""
    load = loads(world)[tier]
    return load["read_bytes"], load["written_bytes"]


def read_past_the_cache(path: Path, offset: int, size: int) -> None:
    """Read whole pages that the page cache does not serve."""
    with mmap.mmap(-1, size) as buffer, opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        assert os.preadv(fd, [buffer], offset) == size


def test_status_shows_the_load_of_each_tier(mounted: World) -> None:
    found = {tier["name"]: tier["load"] for tier in mounted.status()["tiers"]}
    assert list(found) == ["fast", "mid", "slow"]
    for load in found.values():
        assert set(load) >= {"read_k", "write_k", "read_bandwidth", "write_bandwidth"}
    assert found["fast"]["source"] == "counted"  # tmpfs
    on_disk = mounted.tiers["mid"].stat().st_dev
    if Path(f"/sys/dev/block/{os.major(on_disk)}:{os.minor(on_disk)}/stat").exists():
        assert found["mid"]["source"] == found["slow"]["source"] == "device"
        assert found["mid"]["read_bytes"] == found["slow"]["read_bytes"]
    assert "reads" in mounted.keigo("status", mounted.directory).stdout


def closed(area: Area, name: str) -> bool:
    """Whether the file system has heard that a file was closed."""
    rows = ask(area.world.volume, "ls")
    return not next(row["open"] for row in rows if row["name"] == f"{area.name}/{name}")


def test_bytes_written_through_the_mount_are_the_tiers(area: Area) -> None:
    """While a file is being written and when it is closed, each byte once."""
    reads, writes = moved(area.world)
    with opened(area.path / "000001.log", os.O_WRONLY | os.O_CREAT) as fd:
        for _ in range(3):
            os.write(fd, b"x" * MIB)
        assert moved(area.world) == (reads, writes + 3 * MIB)
        os.write(fd, b"last!")
        assert moved(area.world) == (reads, writes + 3 * MIB + 5)
    until(lambda: closed(area, "000001.log"))
    assert moved(area.world) == (reads, writes + 3 * MIB + 5)
    (area.path / "000002.log").write_bytes(b"y" * 100)
    until(lambda: closed(area, "000002.log"))
    assert moved(area.world) == (reads, writes + 3 * MIB + 105)


def test_bytes_read_through_the_mount_are_the_tiers(area: Area) -> None:
    path = area.path / "000001.log"
    path.write_bytes(b"x" * 64 * PAGE)
    until(lambda: closed(area, path.name))
    reads, writes = moved(area.world)
    with mmap.mmap(-1, 8 * PAGE) as buffer, opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        assert os.preadv(fd, [buffer], 0) == 8 * PAGE
        assert moved(area.world) == (reads + 8 * PAGE, writes)
        assert os.preadv(fd, [buffer], 8 * PAGE) == 8 * PAGE
    until(lambda: closed(area, path.name))
    assert moved(area.world) == (reads + 16 * PAGE, writes)
    read_past_the_cache(path, 0, 16 * PAGE)
    assert moved(area.world) == (reads + 32 * PAGE, writes)


def test_writes_that_the_kernel_is_not_trusted_with_count_too(make_world: MakeWorld) -> None:
    """What tells of the LSM's levels is never in passthrough."""
    world = make_world(extra='pins: {"MANIFEST-*": fast}\n')
    world.mount()
    path = world.directory / "MANIFEST-000001"
    path.write_bytes(b"x" * 1000)
    assert world.tier_of(path.name) == "fast"
    assert moved(world)[1] == 1000
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"y" * 500, 0)
    assert moved(world)[1] == 1500


def test_concurrency_is_known_where_all_requests_are_seen(area: Area, driver: str) -> None:
    """The kernel driver does not see how long passthrough writes take."""
    path = area.path / "000001.log"
    path.write_bytes(b"x" * 32 * MIB)
    until(lambda: closed(area, path.name))

    def reading() -> bool:  # the time that reads took counts by the ms, and memory takes less for one
        read_past_the_cache(path, 0, MIB)
        return bool(loads(area.world)["fast"]["read_k"] > 0)

    until(reading)
    load = loads(area.world)["fast"]
    assert load["write_bandwidth"] > 0
    assert load["write_k"] is None if driver == "kernel" else load["write_k"] > 0


def test_a_migration_reads_the_one_tier_and_writes_the_other(area: Area) -> None:
    """It reads back what it wrote."""
    size = 3 * MIB + 1
    path = area.path / "000001.sst"
    path.write_bytes(b"x" * size)
    until(lambda: closed(area, path.name))
    if area.tier_of(path.name) == "fast":
        area.migrate(path.name, "mid")
    reads, writes = moved(area.world)
    area.migrate(path.name, "fast")
    assert moved(area.world) == (reads + size, writes + size)
    area.migrate(path.name, "mid")
    assert moved(area.world) == (reads + 2 * size, writes + size)


def test_reads_follow_an_open_file_to_its_new_tier(area: Area) -> None:
    path = area.path / "000001.sst"
    path.write_bytes(b"x" * 64 * PAGE)
    until(lambda: closed(area, path.name))
    if area.tier_of(path.name) == "fast":
        area.migrate(path.name, "mid")
    reads, writes = moved(area.world)
    with mmap.mmap(-1, 4 * PAGE) as buffer, opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        os.preadv(fd, [buffer], 0)
        assert moved(area.world) == (reads, writes)
        area.migrate(path.name, "fast")
        reads, writes = moved(area.world)
        os.preadv(fd, [buffer], 4 * PAGE)
        assert moved(area.world) == (reads + 4 * PAGE, writes)


steps = st.lists(
    st.tuples(st.sampled_from(["append", "overwrite", "read", "reopen"]), st.integers(1, 200_000)), max_size=12
)


def test_any_mixture_is_counted_to_the_byte(area: Area, driver: str) -> None:
    """Past the daemon the kernel's writes are known by growth alone: overwriting is free there, and is said to be."""
    number = 0

    @given(steps=steps)
    def check(steps: list[tuple[str, int]]) -> None:
        nonlocal number
        number += 1
        path = area.path / f"{number:06}.log"
        before = moved(area.world)
        size = read = written = 0
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            for what, amount in steps:
                if what == "append":
                    os.pwrite(fd, b"a" * amount, size)
                    size, written = size + amount, written + amount
                elif what == "overwrite" and size:
                    os.pwrite(fd, b"o" * min(amount, size), 0)
                    written += min(amount, size) if driver == "pyfuse3" else 0
                elif what == "read" and size >= PAGE and driver == "pyfuse3":
                    pages = min(amount, size) // PAGE * PAGE or PAGE
                    read_past_the_cache(path, 0, pages)
                    read += pages
                elif what == "reopen":
                    os.close(fd)
                    fd = os.open(path, os.O_RDWR)
                assert moved(area.world) == (before[0] + read, before[1] + written)
        finally:
            os.close(fd)
        path.unlink()
        assert moved(area.world) == (before[0] + read, before[1] + written)

    check()


def test_what_was_written_before_a_cut_stays_counted(area: Area) -> None:
    reads, writes = moved(area.world)
    with opened(area.path / "000001.log", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * MIB)
        assert moved(area.world) == (reads, writes + MIB)
        os.write(fd, b"x" * MIB)
        os.ftruncate(fd, 0)
        assert moved(area.world) == (reads, writes + 2 * MIB)
        os.pwrite(fd, b"x" * 3 * MIB, 0)
        os.ftruncate(fd, MIB)
    until(lambda: closed(area, "000001.log"))
    assert moved(area.world) == (reads, writes + 5 * MIB)


def test_room_that_is_set_aside_is_not_written(area: Area) -> None:
    before = moved(area.world)
    with opened(area.path / "000001.log", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * MIB)
        try:
            fallocate(fd, 0, 0, 8 * MIB)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP
            pytest.skip("this driver has no fallocate")
        assert moved(area.world) == (before[0], before[1] + MIB)
    until(lambda: closed(area, "000001.log"))
    assert moved(area.world) == (before[0], before[1] + MIB)


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_what_the_kernel_writes_counts_before_it_is_charged_and_never_goes_back(world: World) -> None:
    """Without a mount: a write to the backing file itself is what passthrough does."""
    config = load_config(world.config)
    volume, _ = open_volume(config, world.directory, make_policy(config))
    namespace = Namespace(volume)
    try:
        found, handle = namespace.files.create(ROOT_ID, b"000001.log", 0o644, os.O_WRONLY, Caller(0, 0, os.getpid()))
        volume.open_files.pin(found.id, 1)

        def written() -> int:
            ((_, writes),) = namespace.meter.traffic(["fast"])
            return writes.bytes

        file = namespace.handles.files[handle].file
        os.pwrite(file.fd, b"x" * 1000, 0)
        assert written() == 1000
        namespace.meter.measure_writers()
        assert written() == 1000
        os.pwrite(file.fd, b"x" * 500, 1000)
        assert written() == 1500
        namespace.nodes.setattr(found.id, Changes(size=0), handle)
        assert written() == 1500
        volume.open_files.pin(found.id, -1)
        namespace.files.release(handle)
        assert written() == 1500
    finally:
        namespace.close()
        volume.close()
