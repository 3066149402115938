"""`keigo profile --show`, as it is run: tables and plots on stdout, a picture beside the profile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from matplotlib.image import imread

from keigo.devices.profile import profile_path, save_profile
from tests.devices.synthetic import profile_of, synthetic_profile

DEVICES = """\
volume: shown
tiers:
  - {name: nvmm, path: /nowhere/nvmm}
  - {name: nvme, path: /nowhere/nvme}
  - {name: sata, in_place: true}
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    path = tmp_path / "devices.yaml"
    path.write_text(DEVICES)
    return path


def run_show(devices: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keigo", "profile", "-d", str(devices), "--show"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_a_profile_is_shown_and_its_picture_written(devices: Path) -> None:
    save_profile(profile_path(devices), synthetic_profile(("nvmm", "nvme", "sata"), quick=True))
    done = run_show(devices)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for tier in ("nvmm", "nvme", "sata"):
        assert f"{tier}: loop0 ext4" in done.stdout
    assert "reads: requests/s, over k" in done.stdout
    assert "\x1b" not in done.stdout
    picture = devices.with_name("devices.profile.png")
    assert done.stdout.endswith(f"picture: {picture}\n")
    assert imread(picture).shape[:2] == (1170, 1560)
    assert {path.name for path in devices.parent.iterdir()} == {
        "devices.yaml",
        "devices.profile.json",
        "devices.profile.png",
    }


def test_a_locale_without_unicode_is_served(devices: Path) -> None:
    save_profile(profile_path(devices), synthetic_profile(("nvmm",), quick=True))
    done = run_show(devices, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "points: o nvmm" in done.stdout


def test_without_a_profile_one_line_says_so(devices: Path) -> None:
    done = run_show(devices)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(profile_path(devices)) in done.stderr


def test_a_profile_that_was_tampered_with_is_refused_in_one_line(devices: Path) -> None:
    tier = synthetic_profile(("nvmm",), quick=True).tiers[0]
    cells = (msgspec.structs.replace(tier.cells[0], seconds=0.0), *tier.cells[1:])
    save_profile(profile_path(devices), profile_of([msgspec.structs.replace(tier, cells=cells)]))
    done = run_show(devices)
    assert done.returncode == 1
    assert f"{profile_path(devices)}: is not a profile: " in done.stderr
    assert "$.tiers[0].cells[0].seconds" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not devices.with_name("devices.profile.png").exists()
