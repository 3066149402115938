"""The profile's file, its three figures, and whether it still speaks of the devices at hand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.identity import device_of
from keigo.devices.profile import (
    Cell,
    DeviceId,
    Direction,
    Pattern,
    Profile,
    ProfileError,
    load_profile,
    profile_path,
    save_profile,
    summary_of,
)
from keigo.devices.staleness import examine, remarks, usable
from tests.devices.synthetic import NVMM, measure_sectors, synthetic_profile

HERE = "6.18.3-amd64"
MEASURED = synthetic_profile(("nvme", "sata"), quick=True)
DEVICES = {tier.tier: tier.device for tier in MEASURED.tiers}
NOW = datetime.fromisoformat(MEASURED.created) + timedelta(days=10)


def cell(k: int, requests: int, *, direction: Direction = "read", block: int = 4096, beside: int = 0) -> Cell:
    pattern: Pattern = "random"
    return Cell(direction, pattern, k, block, requests, 1.0, k * 1e6 / requests, 1.0, 2.0, beside)


# --- the file ---


def test_it_is_beside_devices_yaml() -> None:
    assert profile_path(Path("/etc/keigo/devices.yaml")) == Path("/etc/keigo/devices.profile.json")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "devices.profile.json"
    assert load_profile(path) is None
    save_profile(path, MEASURED)
    assert load_profile(path) == MEASURED
    assert os.listdir(tmp_path) == ["devices.profile.json"]
    text = json.loads(path.read_text())
    assert text["tiers"][0]["cells"][0]["block_bytes"] == 4096


def test_sectors_are_kept_and_not_modelled(tmp_path: Path) -> None:
    path = tmp_path / "devices.profile.json"
    sectors = tuple(measure_sectors(NVMM))
    tiers = tuple(msgspec.structs.replace(tier, cells=(*tier.cells, *sectors)) for tier in MEASURED.tiers)
    save_profile(path, msgspec.structs.replace(MEASURED, tiers=tiers))
    found = load_profile(path)
    assert found is not None
    assert found.tiers == tiers
    for tier, before in zip(found.tiers, MEASURED.tiers, strict=True):
        assert tuple(one for one in tier.cells if one.modelled) == before.cells
        assert summary_of(tier.cells, "write") == summary_of(before.cells, "write")


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "devices.profile.json"
    save_profile(path, MEASURED)

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ProfileError, match=r"devices\.profile\.json: Input/output error"):
        save_profile(path, msgspec.structs.replace(MEASURED, tiers=()))
    assert load_profile(path) == MEASURED
    assert os.listdir(tmp_path) == ["devices.profile.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-40], "is not a profile"),
        (lambda _text: "{}", "is not a profile"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, this version knows 1"),
        (lambda text: text.replace('"direct": true', '"direct": "yes"'), "is not a profile"),
        (lambda text: re.sub(r'"seconds": [^,]*', '"seconds": 0', text), r"is not a profile: .*\.cells\[0\]\.seconds"),
        (lambda text: re.sub(r'"mean_us": [^,]*', '"mean_us": 1e300', text), r"is not a profile: .*mean_us"),
        (lambda text: re.sub(r'"requests": [^,]*', f'"requests": {10**400}', text), r"is not a profile: .*requests"),
    ],
)
def test_a_file_that_is_no_profile(change: Callable[[str], str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "devices.profile.json"
    save_profile(path, MEASURED)
    path.write_text(change(path.read_text()))
    with pytest.raises(ProfileError, match=said) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    known = examine(tmp_path / "devices.yaml", {}, HERE, NOW)
    assert known.profile is None
    (note,) = known.notes
    assert note.startswith("devices.profile.json: ")
    assert re.search(said, note)
    assert str(tmp_path) not in note


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "devices.profile.json"
    path.write_bytes(raw)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="Is a directory"):
        load_profile(tmp_path)


# --- three figures ---


def test_a_summary() -> None:
    cells = [cell(1, 1000), cell(2, 2900), cell(4, 3000), cell(8, 3100), cell(16, 2900)]  # 2900 is 94% of the peak
    cells += [cell(4, 100, block=1 << 20), cell(4, 99999, beside=4), cell(64, 10**6, direction="write")]
    found = summary_of(cells, "read")
    assert found.latency_us == 1000
    assert found.saturation_k == 4
    assert found.bandwidth == 100 << 20


@pytest.mark.parametrize("cells", [[], [cell(2, 10)], [cell(1, 10, direction="write")], [cell(1, 10, block=8192)]])
def test_nothing_to_sum_up(cells: list[Cell]) -> None:
    with pytest.raises(ValueError, match="no random read of 4 KiB at k = 1 was measured"):
        summary_of(cells, "read")


@given(st.dictionaries(st.integers(2, 64), st.integers(1, 10**6)), st.integers(1, 10**6), st.randoms())
def test_saturation_is_the_smallest_k_near_the_peak(at: dict[int, int], alone: int, random: object) -> None:
    requests = {**at, 1: alone}
    cells = [cell(k, count) for k, count in requests.items()]
    random.shuffle(cells)  # type: ignore[attr-defined]
    found = summary_of(cells, "read")
    enough = 0.95 * max(requests.values())
    assert requests[found.saturation_k] >= enough
    assert all(count < enough for k, count in requests.items() if k < found.saturation_k)
    assert found.bandwidth == 4096 * max(requests.values())


# --- stale and foreign ---


def stale(profile: Profile = MEASURED, kernel: str = HERE, now: datetime = NOW, **devices: DeviceId) -> list[str]:
    return remarks(profile, {**DEVICES, **devices}, kernel, now)


def test_nothing_is_wrong() -> None:
    assert stale() == []
    assert set(usable(MEASURED, DEVICES)) == {"nvme", "sata"}


def test_another_device() -> None:
    other = msgspec.structs.replace(DEVICES["sata"], uuid="other", disk="sdz", model="Slow")
    (line,) = stale(sata=other)
    assert line.startswith("tier sata was measured on another device (loop0 ext4, now Slow sdz ext4)")
    assert set(usable(MEASURED, {**DEVICES, "sata": other})) == {"nvme"}


def test_a_remark_is_one_line_whatever_a_device_is_called() -> None:
    (tier, *_) = MEASURED.tiers
    odd = msgspec.structs.replace(tier, device=msgspec.structs.replace(tier.device, filesystem="ext4\n\x1b[31mred"))
    profile = msgspec.structs.replace(MEASURED, tiers=(odd,))
    (line,) = remarks(profile, {tier.tier: tier.device}, HERE, NOW)
    assert "ext4??[31mred" in line
    assert line.isprintable()


def test_a_tier_that_was_not_measured() -> None:
    assert stale(new=DEVICES["sata"]) == ["tier new is not in it; keigo profile measures it"]


def test_a_tier_that_is_no_more() -> None:
    assert remarks(MEASURED, {"nvme": DEVICES["nvme"]}, HERE, NOW) == []


def test_another_kernel() -> None:
    assert stale(kernel="6.18.99") == []
    assert stale(kernel="6.1.0-40-amd64") == ["was measured on Linux 6.18, this is 6.1"]


def test_half_a_year_old() -> None:
    made = datetime.fromisoformat(MEASURED.created)
    assert stale(now=made + timedelta(days=180)) == []
    assert stale(now=made + timedelta(days=200)) == ["was measured 200 days ago"]


def test_a_part_that_was_kept_has_its_own_age_and_kernel() -> None:
    old = msgspec.structs.replace(MEASURED.tiers[0], created="2020-01-01T00:00:00+00:00", kernel="5.4.0")
    kept = msgspec.structs.replace(MEASURED, tiers=(old, MEASURED.tiers[1]))
    kernel, age = stale(kept)
    assert kernel == "was measured on Linux 5.4, this is 6.18"
    assert age.startswith("was measured 25")


@pytest.mark.parametrize("date", ["", "yesterday", "2026-11-21T16:00:00"])
def test_a_date_that_is_none(date: str) -> None:
    (line,) = stale(msgspec.structs.replace(MEASURED, created=date))
    assert line.endswith("is not a date")


# --- all of it, as a mount looks at it ---


def test_without_a_profile_nothing_is_said(tmp_path: Path) -> None:
    known = examine(tmp_path / "devices.yaml", {"fast": tmp_path}, HERE, NOW)
    assert (known.notes, known.facts()) == ([], None)


def test_real_directories(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    tiers = tuple(
        msgspec.structs.replace(MEASURED.tiers[0], tier=name, device=device_of(place))
        for name, place in (("fast", memory), ("slow", tmp_path))
    )
    config = tmp_path / "devices.yaml"
    save_profile(profile_path(config), msgspec.structs.replace(MEASURED, tiers=tiers))
    known = examine(config, {"fast": memory, "slow": tmp_path}, HERE, NOW)
    assert known.notes == []
    assert set(known.tiers) == {"fast", "slow"}
    swapped = examine(config, {"fast": tmp_path, "slow": tmp_path, "gone": tmp_path / "gone"}, HERE, NOW)
    gone, foreign = swapped.notes
    assert "gone: No such file or directory" in gone
    assert "tier fast was measured on another device (tmpfs (memory), now" in foreign
    assert swapped.facts() == {
        "path": str(profile_path(config)),
        "created": MEASURED.created,
        "tiers": ["slow"],
        "remarks": list(swapped.remarks),
    }
    json.dumps(swapped.facts())


def test_time_goes_by_the_clock_given() -> None:
    assert stale(now=datetime(2000, 1, 1, tzinfo=UTC)) == []
