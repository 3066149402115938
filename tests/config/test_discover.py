"""`keigo init`'s proposal."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo import discover
from keigo.config import load
from keigo.discover import KINDS, MountInfo, disk_of, find_mounts, kind_of, propose

GIB = 1 << 30


def mount(path: str, kind: str, free: int, device_id: int) -> MountInfo:
    return MountInfo(Path(path), f"dev{device_id}", kind, free, device_id)


def test_devices_are_ordered_fast_to_slow_and_the_directory_is_last(tmp_path: Path) -> None:
    here = os.stat(tmp_path).st_dev
    found = [
        mount("/mnt/hdd", "hdd", 900 * GIB, 9001),
        mount("/mnt/nvme", "nvme", 100 * GIB, 9002),
        mount("/", "ssd", 50 * GIB, here),
        mount("/mnt/pmem", "nvmm", 10 * GIB, 9003),
        mount("/mnt/small", "nvme", GIB // 2, 9004),
    ]
    path = tmp_path / "devices.yaml"
    path.write_text(propose(tmp_path, found))
    config = load(path)
    assert [(tier.name, str(tier.path)) for tier in config.tiers[:-1]] == [
        (kind, f"/mnt/{place}/keigo/{tmp_path.name}")
        for kind, place in (("nvmm", "pmem"), ("nvme", "nvme"), ("hdd", "hdd"))
    ]
    assert config.tiers[-1].in_place
    assert config.tiers[1].capacity == 80 * GIB
    assert config.placement.policy == "cost"


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(lambda name: name.strip(".")),
            st.sampled_from(KINDS),
            st.integers(0, 1 << 50),
        )
    )
)
def test_any_proposal_loads(tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str, int]]) -> None:
    base = tmp_path_factory.getbasetemp()
    path = base / "proposed.yaml"
    mounts = [mount(f"/mnt/{name}", kind, free, 9000 + n) for n, (name, kind, free) in enumerate(found)]
    path.write_text(propose(base, mounts))
    *others, last = load(path).tiers
    assert last.in_place
    assert {str(tier.path) for tier in others} <= {f"{found.path}/keigo/{base.name}" for found in mounts}
    assert len(others) == sum(found.free >= GIB and str(found.path).isprintable() for found in mounts)


@pytest.mark.parametrize(
    "name", ["2024", "true", "null", "-", "1e3", "2024-01-01", "0x1", "a b", "a\nb: c", "...", "\u00e4" * 70, "\udcff"]
)
def test_any_directory_gets_a_proposal_that_loads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = tmp_path / "devices.yaml"
    path.write_text(propose(tmp_path / name, [mount("/mnt/my disk", "ssd", 9 * GIB, 9001)]))
    config = load(path)
    assert str(config.tiers[0].path) == f"/mnt/my disk/keigo/{config.volume}"


def test_one_disk_is_one_tier(tmp_path: Path) -> None:
    """Two partitions of a disk, or two subvolumes, share its bandwidth."""
    here = os.stat(tmp_path).st_dev
    found = [
        MountInfo(Path("/"), "sda", "ssd", 50 * GIB, here),
        MountInfo(Path("/home"), "sda", "ssd", 60 * GIB, 9001),
        MountInfo(Path("/mnt/a"), "nvme0n1", "nvme", 10 * GIB, 9002),
        MountInfo(Path("/mnt/b"), "nvme0n1", "nvme", 20 * GIB, 9003),
    ]
    path = tmp_path / "devices.yaml"
    path.write_text(propose(tmp_path, found))
    assert [str(tier.path) for tier in load(path).tiers] == [f"/mnt/b/keigo/{tmp_path.name}", "None"]


def test_one_disk_alone_is_the_one_tier_in_place(tmp_path: Path) -> None:
    only = [mount("/", "ssd", 50 * GIB, os.stat(tmp_path).st_dev)]
    for directory in (tmp_path, None):
        text = propose(directory, only)
        path = tmp_path / "devices.yaml"
        path.write_text(text)
        assert [tier.in_place for tier in load(path).tiers] == [True]
        assert "Only one device was found" in text


def test_without_a_directory_the_slowest_device_is_taken_for_its_own(tmp_path: Path) -> None:
    text = propose(None, [mount("/", "hdd", 50 * GIB, 9001), mount("/mnt/nvme", "nvme", 50 * GIB, 9002)])
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    assert [str(tier.path) for tier in load(path).tiers] == ["/mnt/nvme/keigo/data", "None"]
    assert "# DIR was not given; it is taken to be on dev9001, mounted at /" in text


def test_commands_in_comments_can_be_pasted(tmp_path: Path) -> None:
    text = propose(tmp_path, [mount("/mnt/my disk", "ssd", 9 * GIB, 9001)])
    assert f"#     install -d -m 700 '/mnt/my disk/keigo/{tmp_path.name}'\n" in text


def test_the_disk_below_a_partition_and_a_mapping(tmp_path: Path) -> None:
    blocks = tmp_path / "class"
    blocks.mkdir()
    for place in ("nvme0n1/nvme0n1p2", "sda/sda1", "sdb", "dm-0", "md0"):
        (tmp_path / "devices" / place).mkdir(parents=True)
        (blocks / Path(place).name).symlink_to(tmp_path / "devices" / place)
    for disk in ("nvme0n1", "sda"):
        (blocks / disk).symlink_to(tmp_path / "devices" / disk)
    for partition in ("nvme0n1p2", "sda1"):
        (blocks / partition / "partition").touch()
    (blocks / "dm-0/slaves/nvme0n1p2").mkdir(parents=True)
    (blocks / "md0/slaves/sda1").mkdir(parents=True)
    (blocks / "md0/slaves/sdb").mkdir(parents=True)
    names = ("nvme0n1p2", "dm-0", "sdb", "md0", "absent")
    assert [disk_of(name, blocks) for name in names] == ["nvme0n1", "nvme0n1", "sdb", "md0", "absent"]


def test_which_mounts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has files bound from the host's disk; /rundata is not below /run."""
    (tmp_path / "hosts").touch()
    rows = [
        ("/dev/x", str(tmp_path / "hosts"), "ext4", "rw"),
        ("/dev/x", "/run/media/stick", "ext4", "rw"),
        ("/dev/x", "/", "ext4", "ro,relatime"),
        ("tmpfs", "/dev/shm", "tmpfs", "rw"),
        ("/dev/x", "/absent", "ext4", "rw"),
        ("overlay", "/", "overlay", "rw"),
        ("/dev/loop0", str(tmp_path), "squashfs", "rw"),
    ]
    partitions = [SimpleNamespace(device=d, mountpoint=m, fstype=f, opts=o) for d, m, f, o in rows]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: partitions)
    assert find_mounts() == []
    partitions.append(SimpleNamespace(device="tank/db", mountpoint=str(tmp_path), fstype="zfs", opts="rw"))
    assert [(found.path, found.device) for found in find_mounts()] == [(tmp_path, "tank")]
    monkeypatch.setattr(discover, "_SYSTEM", (str(tmp_path)[:-1],))
    assert len(find_mounts()) == 1
    monkeypatch.setattr(discover, "_SYSTEM", (str(tmp_path.parent),))
    assert find_mounts() == []


def test_this_machine() -> None:
    assert all(found.free >= 0 and found.path.is_dir() and found.kind in KINDS for found in find_mounts())


def test_kinds() -> None:
    assert kind_of("pmem0", rotational=False) == "nvmm"
    assert kind_of("nvme0n1p1", rotational=False) == "nvme"
    assert kind_of("sda1", rotational=True) == "hdd"
    assert kind_of("vda", rotational=False) == "ssd"
