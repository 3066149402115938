"""Which device a directory is on, on real file systems and in a made-up /sys."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from keigo.devices.identity import device_of, same_device, shown
from keigo.devices.profile import DeviceId
from tests.devices.disks import MIB, command, ext4, mounted

DISK = DeviceId("ext4", "1111", "nvme0n1", "Fast 3000", "S1", 1000)


def changed(**fields: str | int) -> DeviceId:
    return msgspec.structs.replace(DISK, **fields)


def test_memory() -> None:
    found = device_of(Path("/dev/shm"))
    room = os.statvfs("/dev/shm")
    assert found == DeviceId("tmpfs", "", "", "", "", room.f_blocks * room.f_frsize)
    assert shown(found) == "tmpfs (memory)"


def test_a_real_ext4_is_told_by_its_uuid_and_its_disk(tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as place:
        device = command("findmnt", "-n", "-o", "SOURCE", place)
        (place / "below").mkdir()
        found = device_of(place / "below")
        assert found.filesystem == "ext4"
        assert found.disk == device.removeprefix("/dev/")
        assert found.uuid == command("blkid", "-p", "-s", "UUID", "-o", "value", device)
        assert 16 * MIB < found.size_bytes < 32 * MIB
        assert same_device(found, device_of(place))
        with mounted("--bind", place / "below", at=tmp_path / "bound") as bound:
            assert device_of(bound) == found
    with ext4(tmp_path, 32 * MIB) as place:
        assert not same_device(found, device_of(place))


def test_two_mounts_of_memory_are_one_device(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=16M", "tmpfs", at=tmp_path / "t") as place:
        assert same_device(device_of(place), device_of(Path("/dev/shm")))


def test_what_has_no_block_device_is_told_by_its_source(tmp_path: Path) -> None:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for place in (lower, upper, work):
        place.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with mounted("-t", "overlay", "-o", options, "some-source", at=tmp_path / "all") as place:
        found = device_of(place)
    assert (found.filesystem, found.disk, found.model, found.serial) == ("overlay", "some-source", "", "")


def made_up_sys(base: Path, directory: Path, files: dict[str, str]) -> Path:
    """A /sys in which the directory's file system is on the first partition of `nvme9n1`."""
    number = os.stat(directory).st_dev
    disk = base / "devices/pci/nvme9n1"
    (disk / "nvme9n1p1").mkdir(parents=True)
    (disk / "nvme9n1p1/partition").write_text("1\n")
    for name, text in files.items():
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        (disk / name).write_text(text)
    for folder in ("class/block", "dev/block"):
        (base / folder).mkdir(parents=True)
    (base / "class/block/nvme9n1").symlink_to(disk)
    (base / "class/block/nvme9n1p1").symlink_to(disk / "nvme9n1p1")
    (base / f"dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(disk / "nvme9n1p1")
    return base


def test_model_and_serial_are_those_of_the_disk(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "tmpfs", at=tmp_path / "sys") as base, ext4(tmp_path, 32 * MIB) as place:
        files = {"device/model": "Fast  3000   \n", "device/serial": " S1 \n", "wwid": "nvme.1"}
        sys = made_up_sys(base, place, files)
        found = device_of(place, sys)
        assert (found.disk, found.model, found.serial) == ("nvme9n1", "Fast 3000", "S1")
        (sys / "devices/pci/nvme9n1/device/serial").unlink()
        assert device_of(place, sys).serial == "nvme.1"
        (sys / "devices/pci/nvme9n1/wwid").unlink()
        assert device_of(place, sys).serial == ""


def test_udevs_link_serves_where_the_kernel_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "by-uuid"
    links.mkdir()
    with ext4(tmp_path, 32 * MIB) as place:
        device = command("findmnt", "-n", "-o", "SOURCE", place)
        (links / "0000-other").symlink_to("/dev/null")
        (links / "abcd").symlink_to(device)
        monkeypatch.setattr("keigo.devices.identity._GETFSUUID", 0)
        assert device_of(place, by_uuid=links).uuid == "abcd"
        assert device_of(place, by_uuid=tmp_path / "absent").uuid == ""


SAME = [
    changed(disk="nvme1n1"),
    changed(uuid="2222"),
    changed(size_bytes=2000),
    changed(serial="", disk="sdb", size_bytes=2000),
    changed(serial="", uuid=""),
]
OTHER = [
    changed(serial="S2"),
    changed(model="Slow 1"),
    changed(filesystem="xfs"),
    changed(serial="", uuid="2222"),
    changed(serial="", uuid="", size_bytes=2000),
    changed(serial="", uuid="", disk="nvme1n1"),
]


@pytest.mark.parametrize("other", SAME)
def test_the_same_device(other: DeviceId) -> None:
    assert same_device(DISK, other)
    assert same_device(other, DISK)


@pytest.mark.parametrize("other", OTHER)
def test_another_device(other: DeviceId) -> None:
    assert not same_device(DISK, other)
    assert not same_device(other, DISK)


def test_a_virtual_disks_serial_need_not_be_unique() -> None:
    one, other = changed(model="", serial="x"), changed(model="", serial="x", uuid="2222")
    assert same_device(one, changed(model="", serial="x"))
    assert not same_device(one, other)
    assert not same_device(one, changed(model="", serial="y"))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        device_of(tmp_path / "absent")
