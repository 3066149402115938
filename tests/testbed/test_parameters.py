"""Device files: what they say, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import parameters
from testbed.parameters import DeviceFileError, load, shipped, shipped_file

GOOD = """
about: a device
size: 64MiB
read: {base_us: 50, slots: 4, bandwidth: 100MB/s}
write: {base_us: 20, slots: 2, bandwidth: 40MB/s, decline: 0.5}
"""
WRONG = {
    "no size": (GOOD.replace("size: 64MiB", ""), "size"),
    "not a size": (GOOD.replace("64MiB", "64 apples"), "64 apples"),
    "too small": (GOOD.replace("64MiB", "1MiB"), "1048576"),
    "no slots": (GOOD.replace("slots: 4, ", ""), "slots"),
    "zero slots": (GOOD.replace("slots: 4", "slots: 0"), "slots"),
    "text for a number": (GOOD.replace("base_us: 50", "base_us: fast"), "base_us"),
    "negative": (GOOD.replace("base_us: 50", "base_us: -1"), "base_us"),
    "unknown field": (GOOD + "colour: red\n", "colour"),
    "no bandwidth": (GOOD.replace("100MB/s", "0"), "bandwidth"),
    "not YAML": ("read: {", "not YAML"),
    "a list": ("- 1\n", "array"),
    "a head with slots": (GOOD + "head: {adjacent_us: 1, full_us: 2, rpm: 7200}\n", "1 slot"),
    "infinite": (GOOD.replace("base_us: 50", "base_us: .inf"), "base_us"),
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_device_file(tmp_path: Path) -> None:
    device = load(write(tmp_path / "d.yaml", GOOD))
    assert (device.size, device.read.bandwidth, device.write.decline) == (64 << 20, 100_000_000, 0.5)
    assert load(tmp_path / "d.yaml", 32 << 20).size == 32 << 20


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_with_file_and_value(tmp_path: Path, what: str) -> None:
    text, named = WRONG[what]
    path = write(tmp_path / "d.yaml", text)
    with pytest.raises(DeviceFileError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceFileError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(DeviceFileError, match="tape: no such device"):
        shipped_file("tape")


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_is_right_and_names_its_sources(name: str) -> None:
    text = shipped_file(name).read_text()
    load(shipped_file(name))
    assert "[1]" in text
    for line in text.splitlines():
        assert (
            not any(key in line for key in ("base_us:", "slots:", "bandwidth:", "rpm:")) or "#" in line or "1" in line
        )


def test_the_default_devices_are_ordered_fast_to_slow() -> None:
    small = [load(shipped_file(name)).expected_us("read", 1, 4096) for name in ("nvmm", "nvme", "sata", "hdd")]
    assert small == sorted(small)


def test_dilation_slows_all_alike(tmp_path: Path) -> None:
    device = load(write(tmp_path / "d.yaml", GOOD))
    slow = device.dilated(10)
    for direction in ("read", "write"):
        for k in (1, 2, 8, 64):
            for size in (4096, 1 << 20):
                assert slow.expected_us(direction, k, size) == pytest.approx(
                    10 * device.expected_us(direction, k, size)
                )
    assert slow.read.slots == device.read.slots
    disk = load(shipped_file("hdd"))
    assert disk.dilated(3).expected_us("read", 2, 4096) == pytest.approx(3 * disk.expected_us("read", 2, 4096))


def test_expected_times_of_round_figures(tmp_path: Path) -> None:
    device = load(write(tmp_path / "d.yaml", GOOD))
    assert device.expected_us("read", 1, 100_000) == 50 + 1000
    assert device.expected_us("read", 8, 1) == 8 * 50 / 4
    assert device.expected_us("read", 8, 100_000) == 8 * 1000
    assert device.expected_us("write", 6, 1) == (1 + 0.5 * 4 / 2) * 6 * 20 / 2


def test_least_size_has_room_for_a_file_system() -> None:
    assert parameters.LEAST_SIZE >= 16 << 20
