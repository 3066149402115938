"""`keigo init`'s proposal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.config import load
from keigo.discover import KINDS, MountInfo, find_mounts, kind_of, propose

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


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="/\0\n\r", exclude_categories=["C"]), min_size=1),
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
    assert load(path).tiers[-1].in_place


def test_this_machine() -> None:
    assert all(found.free >= 0 and found.path.is_dir() and found.kind in KINDS for found in find_mounts())


def test_kinds() -> None:
    assert kind_of("pmem0", rotational=False) == "nvmm"
    assert kind_of("nvme0n1p1", rotational=False) == "nvme"
    assert kind_of("sda1", rotational=True) == "hdd"
    assert kind_of("vda", rotational=False) == "ssd"
