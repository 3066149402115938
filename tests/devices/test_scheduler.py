"""Which scheduler a tier's device has, in trees like /sys and on a real loop device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keigo.devices.scheduler import priority_notes, schedulers_of
from tests.devices.disks import loop_device

MIB = 1 << 20


class Sys:
    """A /sys/dev/block with devices of one's own, numbered in the order of their making."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.devices: list[Path] = []
        self.numbers = base / "numbers"
        self.numbers.mkdir()

    def add(self, name: str, scheduler: str | None = None, *, on: Path | None = None) -> Path:
        """A disk, or with `on` a partition of one."""
        place = (on or self.base) / name
        place.mkdir()
        if on is not None:
            (place / "partition").write_text("1\n")
        if scheduler is not None:
            (place / "queue").mkdir()
            (place / "queue/scheduler").write_text(scheduler + "\n")
        self.devices.append(place)
        (self.numbers / f"0:{len(self.devices)}").symlink_to(place)
        return place

    def stack(self, upper: Path, *lower: Path) -> None:
        (upper / "slaves").mkdir()
        for place in lower:
            (upper / "slaves" / place.name).symlink_to(place)

    def found(self, place: Path) -> dict[str, str]:
        return schedulers_of(os.makedev(0, self.devices.index(place) + 1), self.numbers)


@pytest.fixture
def sys_block(tmp_path: Path) -> Sys:
    return Sys(tmp_path)


def test_a_disk_s_own(sys_block: Sys) -> None:
    assert sys_block.found(sys_block.add("sda", "none mq-deadline kyber [bfq]")) == {"sda": "bfq"}
    assert sys_block.found(sys_block.add("zram0", "none")) == {"zram0": "none"}


def test_a_partition_s_is_its_disk_s(sys_block: Sys) -> None:
    disk = sys_block.add("sda", "[mq-deadline] bfq")
    assert sys_block.found(sys_block.add("sda1", on=disk)) == {"sda": "mq-deadline"}


def test_a_mapping_s_are_those_of_what_is_below(sys_block: Sys) -> None:
    one, other = sys_block.add("sda", "[bfq]"), sys_block.add("nvme0n1", "[none] bfq")
    crypt, volume = sys_block.add("dm-0", "none"), sys_block.add("dm-1", "none")
    sys_block.stack(crypt, sys_block.add("sda2", on=one))
    sys_block.stack(volume, crypt, other)
    assert sys_block.found(volume) == {"sda": "bfq", "nvme0n1": "none"}


def test_of_what_is_unknown_nothing_is_said(sys_block: Sys) -> None:
    assert sys_block.found(sys_block.add("pmem0")) == {}
    assert schedulers_of(os.makedev(0, 99), sys_block.numbers) == {}
    assert priority_notes([("memory", os.stat("/dev/shm").st_dev)]) == []


def test_a_line_for_each_that_ignores_priorities(sys_block: Sys) -> None:
    sys_block.add("sda", "[bfq]")
    sys_block.add("sdb", "[mq-deadline] bfq")
    (note,) = priority_notes([("fast", os.makedev(0, 1)), ("slow", os.makedev(0, 2))], sys_block.numbers)
    assert note.startswith("io_priority does nothing on tier slow: the I/O scheduler of sdb is mq-deadline, ")


def test_a_real_device() -> None:
    with loop_device(16 * MIB) as device:
        name = os.path.basename(device)
        (scheduler,) = schedulers_of(os.stat(device).st_rdev).values()
        assert f"[{scheduler}]" in Path(f"/sys/block/{name}/queue/scheduler").read_text()
        notes = priority_notes([("t", os.stat(device).st_rdev)])
        assert [name in note for note in notes] == [True] * (scheduler != "bfq")
