"""`keigo profile` as users run it: real fio, real directories, and a mount that looks at what it wrote."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from keigo.cli import main
from keigo.devices import sweep
from keigo.devices.identity import device_of
from keigo.devices.profile import Profile, load_profile, profile_path, save_profile
from tests.conftest import MakeWorld, World, new_world
from tests.devices.disks import MIB, command, ext4, mounted
from tests.devices.synthetic import synthetic_profile

TINY = ("--quick", "--size", "2MiB", "--runtime", "0.05")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    """A world that most tests never mount."""
    world = new_world(tmp_path / "w", "pyfuse3")
    yield world
    world.destroy()


def profile_of(world: World) -> Profile:
    found = load_profile(profile_path(world.config))
    assert found is not None
    return found


def files(world: World) -> dict[str, list[str]]:
    return {name: sorted(os.listdir(path)) for name, path in world.tiers.items()}


def test_three_figures_a_direction_for_each_tier(place: World) -> None:
    (place.directory / "precious").write_text("precious")
    before = files(place), sorted(os.listdir(place.base))
    profile_path(place.config).write_text("an unreadable one")
    done = place.keigo(
        "profile", place.directory, "-d", place.config, *TINY, "--tier", "fast", "--tier", "slow", "--json"
    )
    rows = json.loads(done.stdout)
    assert [row["tier"] for row in rows] == ["fast", "slow"]
    for row in rows:
        assert list(row) == ["tier", "read", "write"]
        for way in ("read", "write"):
            assert list(row[way]) == ["latency_us", "saturation_k", "bandwidth"]
            assert row[way]["latency_us"] > 0
            assert row[way]["saturation_k"] in (1, 2, 4, 8, 16, 32, 64)
            assert row[way]["bandwidth"] > 0
    lines = done.stderr.splitlines()
    assert lines[0].startswith("measuring 2 tier(s), up to 35 cells of up to 0.05 s each: about ")
    assert [line.split(":")[0] for line in lines[1:3]] == ["tier fast", "tier slow"]
    assert lines[3].startswith(f"note: {profile_path(place.config)}: is not a profile: ")
    assert lines[3].endswith("; it is replaced")
    found = profile_of(place)
    assert [tier.tier for tier in found.tiers] == ["fast", "slow"]
    assert [tier.memory for tier in found.tiers] == [True, False]
    assert found.kernel == os.uname().release
    assert found.quick
    shown = place.keigo("profile", "-d", place.config, "--show", "--json")
    assert json.loads(shown.stdout) == rows
    there = sorted({*os.listdir(place.base)} - {"devices.profile.json"})
    assert (files(place), there) == before


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is really measured, which takes fio a quarter of a second a cell."""
    (found,) = synthetic_profile(("nvme",), quick=True).tiers
    monkeypatch.setattr(sweep, "measure", lambda *_: sweep.Measured(True, False, 1 << 30, found.cells))


def profile(world: World, *args: str) -> Result:
    """`keigo profile` in this process."""
    done = CliRunner().invoke(main, ["profile", "-d", str(world.config), *TINY, *args])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.usefixtures("measured")
def test_a_tier_in_place_needs_its_directory_and_the_rest_is_kept(place: World) -> None:
    old = synthetic_profile(("nvme", "sata"), quick=True)
    mid, slow = (
        msgspec.structs.replace(tier, tier=name) for tier, name in zip(old.tiers, ("mid", "slow"), strict=True)
    )
    save_profile(profile_path(place.config), msgspec.structs.replace(old, tiers=(mid, slow)))
    done = profile(place, "--tier", "fast", "--tier", "slow")
    assert f"note: tier slow is in place: keigo profile DIR -d {place.config} measures it too" in done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["fast", "tmpfs", "(memory)"]
    assert done.stderr.splitlines()[-1].startswith(f"wrote {profile_path(place.config)}; ")
    # `mid` was measured on another device; which one the tier in place is on is not known yet.
    fast, kept = profile_of(place).tiers
    assert (fast.tier, kept.tier) == ("fast", "slow")
    assert (kept.created, kept.kernel) == (old.created, old.kernel)
    assert kept.cells == slow.cells
    assert (fast.created, fast.kernel) == ("", "")


def test_what_another_profile_wrote_meanwhile_is_kept(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = synthetic_profile(("nvme",), quick=True).tiers
    asked = 0

    def measure(*_args: object) -> sweep.Measured:
        nonlocal asked
        asked += 1
        if asked == 1:
            assert "wrote" in profile(place, "--tier", "fast").stderr
        return sweep.Measured(True, False, 1 << 30, found.cells)

    monkeypatch.setattr(sweep, "measure", measure)
    profile(place, "--tier", "mid")
    assert [tier.tier for tier in profile_of(place).tiers] == ["fast", "mid"]


def refused(world: World, *args: str | Path) -> str:
    """The line with which it is refused."""
    done = CliRunner().invoke(main, ["profile", "-d", str(world.config), *map(str, args)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    assert "measuring" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_mistakes(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no tier is left that can be measured" in refused(place, *TINY, "--tier", "slow")
    assert "--tier: 'tape' is not a tier (tiers: fast, mid, slow)" in refused(place, "--tier", "tape")
    assert "--size: '1 lot' is not a size" in refused(place, "--size", "1 lot")
    assert "--size: 4KiB is below 1.0 MiB" in refused(place, "--size", "4KiB")
    done = CliRunner().invoke(main, ["profile", "-d", str(place.config), "--runtime", "nan"])
    assert "Invalid value for '--runtime': nan is not a number" in done.stderr
    absent = place.base / "absent"
    assert f"path: {absent}: no such directory" in refused(place, absent, *TINY)
    assert "there is no profile yet" in refused(place, "--show")
    place.config.write_text(f"volume: {place.volume}\ntiers: [{{name: mid, path: mid}}]\n")
    assert "has none with in_place: true" in refused(place, place.directory, *TINY)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert refused(place, *TINY) == "Error: fio is not installed; it is in the package fio (apt-get install fio)"
    assert not profile_path(place.config).exists()


def test_a_profile_that_cannot_be_written_is_told_before_anything_is_measured(place: World, tmp_path: Path) -> None:
    with mounted("--bind", tmp_path, at=tmp_path / "ro") as sealed:
        command("mount", "-o", "remount,bind,ro", sealed)
        place.config = sealed / place.config.relative_to(tmp_path)
        assert refused(place, *TINY) == f"Error: {profile_path(place.config)}: cannot be written there"


def test_a_nearly_full_tier_is_refused_before_any_is_measured(place: World, tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as full:
        (full / "data").write_bytes(os.urandom(22 * MIB))
        text = place.config.read_text().replace(str(place.tiers["mid"]), str(full))
        place.config.write_text(text.replace("capacity: 256MiB", "reserve: 20%"))
        assert refused(place, *TINY).startswith(f"Error: {full}: is too full to be measured: ")
        assert set(os.listdir(full)) == {"lost+found", "data"}
    assert not profile_path(place.config).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(place: World, number: signal.Signals) -> None:
    save_profile(profile_path(place.config), synthetic_profile(("nvme",), quick=True))
    before = profile_path(place.config).read_bytes()
    there = files(place), sorted(os.listdir(place.base))
    arguments = ["profile", str(place.directory), "-d", str(place.config), "--size", "2MiB", "--runtime", "300"]
    with subprocess.Popen(
        [sys.executable, "-m", "keigo", *arguments, "--tier", "mid"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as profiling:
        watch = None
        try:
            watch = os.pidfd_open(started_fio(profiling.pid))
        finally:
            profiling.send_signal(number if watch is not None else signal.SIGKILL)
        out, err = profiling.communicate(timeout=60)
    try:
        assert select.select([watch], [], [], 0)[0], "fio is still running"
    finally:
        os.close(watch)
    assert profiling.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; no profile was written"
    assert "Traceback" not in err
    assert profile_path(place.config).read_bytes() == before
    assert (files(place), sorted(os.listdir(place.base))) == there


def started_fio(pid: int) -> int:
    """Wait until a process has started fio; its id."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while True:
        for child in children.read_text().split():
            try:
                if (
                    Path(f"/proc/{child}/comm").read_text() == "fio\n"
                    and "output-format" in Path(f"/proc/{child}/cmdline").read_text()
                ):
                    return int(child)
            except OSError:  # it has ended: fio --version
                continue
        time.sleep(0.001)


def test_show_draws_the_profile_that_there_is(place: World) -> None:
    save_profile(profile_path(place.config), synthetic_profile(("nvme",), quick=True))
    done = place.keigo("profile", "-d", place.config, "--show")
    assert "nvme" in done.stdout
    assert profile_path(place.config).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# --- a mount ---


def mount_notes(world: World) -> list[str]:
    done = world.keigo(
        "mount", world.directory, "-d", world.config, "--driver", world.driver, "--log-file", world.log_file
    )
    world.pids.append(world.status()["pid"])
    return done.stderr.splitlines()


def write_profile(world: World, tiers: Mapping[str, Path], **change: str) -> None:
    """A profile of these devices, whatever was measured of them."""
    old = synthetic_profile(("nvme",), quick=True)
    parts = tuple(
        msgspec.structs.replace(old.tiers[0], tier=name, device=device_of(path)) for name, path in tiers.items()
    )
    now = {"created": datetime.now(UTC).isoformat(), "kernel": os.uname().release}
    save_profile(profile_path(world.config), msgspec.structs.replace(old, tiers=parts, **{**now, **change}))


def test_a_mount_knows_its_devices_and_notices_others(make_world: MakeWorld) -> None:
    world = make_world()
    assert mount_notes(world) == []
    assert world.status()["profile"] is None
    world.umount()

    write_profile(world, world.tiers)
    assert mount_notes(world) == []
    facts = world.status()["profile"]
    assert (sorted(facts["tiers"]), facts["remarks"]) == (["fast", "mid", "slow"], [])
    world.umount()

    foreign = {"fast": world.tiers["fast"], "mid": world.tiers["fast"]}
    write_profile(world, foreign, kernel="5.4.0-1", created="2020-01-01T00:00:00+00:00")
    other, missing, kernel, age = mount_notes(world)
    assert other.startswith("note: devices.profile.json: tier mid was measured on another device (tmpfs (memory), now")
    assert missing == "note: devices.profile.json: tier slow is not in it; keigo profile measures it"
    assert "was measured on Linux 5.4, this is" in kernel
    assert "days ago" in age
    assert world.status()["profile"]["tiers"] == ["fast"]


@pytest.mark.usefixtures("measured")
def test_under_a_mount_the_tier_in_place_is_left_out(place: World) -> None:
    place.mount()
    done = profile(place, "--tier", "mid", "--tier", "slow")
    assert "note: tier slow is in place and cannot be measured under its mount" in done.stderr
    assert f"note: volume {place.volume} is mounted" in done.stderr
    assert [tier.tier for tier in profile_of(place).tiers] == ["mid"]
    assert "no tier is left that can be measured now" in refused(place, place.directory, *TINY, "--tier", "slow")
    inside = place.directory / "sub"
    inside.mkdir()
    link = place.base / "link"
    link.symlink_to(place.directory)
    for other in (inside, link):
        said = refused(place, other, *TINY, "--tier", "slow")
        assert f"path: {other}: is inside a mounted volume (keigo:{place.volume})" in said
    place.kill()
    assert f"path: {link}: Transport endpoint is not connected" in refused(place, link, *TINY, "--tier", "slow")


DEEP = "[" * 100_000 + "]" * 100_000


def write_text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (write_text("not JSON"), "is not a profile: "),
        (write_text(f'{{"more": {DEEP}}}'), "is not a profile: "),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.write_bytes(b" " * (17 << 20)), "File too large"),
    ],
    ids=["not JSON", "deep", "a FIFO", "a device", "large"],
)
def test_a_broken_profile_stops_no_mount(make_world: MakeWorld, spoil: Callable[[Path], object], said: str) -> None:
    world = make_world()
    spoil(profile_path(world.config))
    (note,) = mount_notes(world)
    assert note.startswith(f"note: devices.profile.json: {said}")
    assert world.status()["profile"]["tiers"] == []
    (world.directory / "000001.log").write_bytes(b"x")
    world.umount()
