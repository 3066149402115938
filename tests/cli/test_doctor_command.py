"""`keigo doctor`: it says what is wrong before a mount does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from keigo import doctor
from tests.conftest import MakeWorld, World


def found(world: World, *args: str | Path, status: int = 0) -> dict[str, list[dict[str, Any]]]:
    done = world.keigo("doctor", *args, "--json", check=False)
    assert done.returncode == status, done.stdout + done.stderr
    by_verdict: dict[str, list[dict[str, Any]]] = {"ok": [], "note": [], "bad": []}
    for finding in json.loads(done.stdout):
        by_verdict[finding["verdict"]].append(finding)
    return by_verdict


@pytest.fixture
def place(make_world: MakeWorld) -> World:
    return make_world()


def test_a_volume_that_can_be_mounted(place: World) -> None:
    told = found(place, place.directory, "-d", place.config)
    assert not told["bad"]
    texts = [finding["what"] for finding in told["ok"]]
    assert f"{place.config}: volume {place.volume}, 3 tiers" in texts
    assert f"{place.directory}: not mounted, and nobody has a file open there" in texts
    notes = [finding["what"] for finding in told["note"]]
    assert any("fast" in note and "is memory (tmpfs)" in note for note in notes)
    assert not any("others can read it" in note for note in notes)
    assert not os.listdir(place.directory)


def test_what_would_stop_a_mount(place: World) -> None:
    place.tiers["mid"].rmdir()
    with (place.directory / "LOCK").open("w"):
        told = found(place, place.directory, "-d", place.config, status=1)
    assert [finding["what"].split(": ", 1)[-1] for finding in told["bad"]]
    assert any("mid" in finding["what"] and "no such directory" in finding["what"] for finding in told["bad"])


def test_a_running_database_underneath(place: World) -> None:
    with (place.directory / "LOCK").open("w"):
        told = found(place, place.directory, status=1)
    (bad,) = told["bad"]
    assert f"pid {os.getpid()}" in bad["what"]
    assert bad["do"]


def test_tiers_that_others_can_read(place: World) -> None:
    place.tiers["mid"].chmod(0o755)
    notes = found(place, place.directory, "-d", place.config)["note"]
    (note,) = [note for note in notes if "others can read it" in note["what"]]
    assert note["what"].startswith("tier mid: ")
    assert note["do"] == f"chmod 700 {place.tiers['mid']}"


def test_a_mount_that_answers_and_one_that_does_not(place: World) -> None:
    place.mount()
    told = found(place, place.directory, "-d", place.config)
    assert any("is mounted and answers" in finding["what"] for finding in told["ok"])
    place.kill()
    (bad,) = found(place, place.directory, status=1)["bad"]
    assert bad == {"verdict": "bad", "what": f"{place.directory}: the daemon of volume {place.volume} is dead",
                   "do": "mount again"}  # fmt: skip
    place.mount()


def test_a_mistake_in_devices_yaml_is_a_finding(place: World) -> None:
    place.config.write_text("volume: v\n")
    (bad,) = found(place, "-d", place.config, status=1)["bad"]
    assert "tiers: is missing" in bad["what"]


def test_for_people(place: World) -> None:
    out = place.keigo("doctor", place.directory, "-d", place.config).stdout
    assert "ok   /dev/fuse can be opened" in out
    assert "keigo profile" in out


def test_an_old_kernel_is_told() -> None:
    (_, note, *_) = doctor.machine("6.1.0-28-amd64", "no passthrough")
    assert note.verdict == "note"
    assert "Linux 6.1.0-28-amd64 has no FUSE passthrough" in note.what
    (_, other, *_) = doctor.machine("6.18.1", "not permitted")
    assert other.what == "the kernel driver cannot be used: not permitted"
