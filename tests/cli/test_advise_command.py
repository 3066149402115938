"""`keigo advise` on a profile of simulated devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keigo.cli import main
from keigo.config import load
from keigo.devices.profile import save_profile
from tests.devices.synthetic import synthetic_profile

CONFIG = """\
volume: advised
tiers:
  - {name: nvmm, path: pmem, capacity: 32GiB}
  - {name: nvme, path: flash, capacity: 400GiB, reserve: 10%}
  - {name: sata, in_place: true, capacity: 4TiB}
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    path = tmp_path / "devices.yaml"
    path.write_text(CONFIG)
    save_profile(tmp_path / "devices.profile.json", synthetic_profile(quick=True))
    return path


def advise(devices: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["advise", "-d", str(devices), *args])


def test_it_recommends_what_can_be_pasted(devices: Path, tmp_path: Path) -> None:
    done = advise(devices, "--data", "1TiB", "--skew", "0.9")
    assert done.exit_code == 0, done.output
    assert "operations/s predicted" in done.output
    lines = done.output.splitlines()
    begin = lines.index("devices.yaml:") + 1
    pasted = [line.removeprefix("    ") for line in lines[begin : lines.index("", begin)]]
    other = tmp_path / "pasted.yaml"
    other.write_text(CONFIG + "\n".join(pasted) + "\n")
    placed = load(other).placement.levels
    assert placed["nvmm"][:2] == ("wal", 0)
    assert placed["sata"]


def test_figures_of_another_device_are_told(devices: Path) -> None:
    assert advise(devices, "--data", "1TiB").stderr == ""
    (devices.parent / "pmem").mkdir()
    done = advise(devices, "--data", "1TiB", "--json")
    assert done.exit_code == 0
    json.loads(done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"note: {devices.parent}/devices.profile.json: tier nvmm was measured on another device (")


def test_json_has_the_same(devices: Path) -> None:
    done = advise(devices, "--data", "1TiB", "--read-ratio", "0.2", "--style", "leveled", "--json")
    found = json.loads(done.stdout)
    assert found["style"] == "leveled"
    assert 2 <= found["growth"] <= 20
    assert found["ops_per_second"] > 0
    assert found["rocksdb_options"]["max_bytes_for_level_multiplier"] == str(found["growth"])
    assert [tier["tier"] for tier in found["tiers"]] == ["nvmm", "nvme", "sata"]
    assert [tier["room_bytes"] >> 30 for tier in found["tiers"]] == [30, 360, 3891]
    assert all(tier["peak_bytes"] <= tier["room_bytes"] for tier in found["tiers"])
    assert {"growth", "compaction threads"} <= {change["what"] for change in found["changes"]}
    assert all(set(named) == {"formula", "source"} for named in found["formulas"].values())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--data", "much"], "--data: 'much' is not a size"),
        (["--data", "0"], "sizes must be above 0"),
        (["--data", "1TiB", "--memory", "-"], "--memory: '-' is not a size"),
        (["--data", "1TiB", "--read-ratio", "1.1"], "read ratio 1.1: must be between 0 and 1"),
        (["--data", "1TiB", "--scan-ratio", "0.2"], "read ratio 0.9 and scan ratio 0.2 are more than 1 together"),
        (["--data", "1TiB", "--skew", "-2"], "skew -2: must be 0"),
        (["--data", "90TiB"], "90.0 TiB do not fit"),
    ],
)
def test_mistakes_are_told_in_a_line(devices: Path, args: list[str], told: str) -> None:
    done = advise(devices, *args)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert told in line


def test_without_a_profile_it_says_how_to_make_one(devices: Path) -> None:
    (devices.parent / "devices.profile.json").unlink()
    done = advise(devices, "--data", "1TiB")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"keigo profile -d {devices} makes it")


def test_a_tier_that_was_not_measured_is_named(devices: Path) -> None:
    save_profile(devices.parent / "devices.profile.json", synthetic_profile(("nvmm", "nvme"), quick=True))
    done = advise(devices, "--data", "1TiB")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "tier sata is not in it" in line
    assert "keigo profile DIR" in line
