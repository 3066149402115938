"""`keigo tier add` on a live mount: open files go on, and what cannot be is refused before anything changes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from keigo.cli_common import directory_argument
from keigo.config import load
from keigo.control import ControlError, ask
from keigo.serving.tier_change import hold, put_back
from tests.conftest import MakeWorld, World
from tests.engines.processes import StoreProcess
from tests.faults import keeping
from tests.faults.keeping import kept, tiers

LEVELS = "{fast: [wal, 0, 1], slow: [2, 3, 4, 5, 6]}"
pytestmark = pytest.mark.timeout(120)
driver = keeping.driver


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    """A volume of two tiers, and a directory for a third, `mid`."""
    made = make_world({"fast": "64MiB"}, LEVELS, names=("fast", "slow"))
    yield made
    if made.is_mounted():
        made.umount()


def add(world: World, *args: str | Path, name: str = "mid", check: bool = True) -> str:
    done = world.keigo("tier", "add", world.directory, name, *args, check=check)
    assert (done.returncode == 0) == check
    return done.stdout if check else done.stderr


def test_a_tier_is_added_under_open_files(world: World) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("tiers:\n", "tiers:  # fast to slow\n  # the fastest\n") + "# the end\n")
    kept(world)
    at, mid = world.directory, world.base / "mid"
    (at / "000001.sst").write_bytes(b"read" * 1000)
    with (at / "000002.log").open("wb", buffering=0) as wal, (at / "000001.sst").open("rb") as reader:
        wal.write(b"before")
        before = world.status()["pid"]
        said = add(world, "--path", mid, "--capacity", "32MiB", "--before", "slow")
        assert "added tier mid" in said
        assert tiers(world) == ["fast", "mid", "slow"]
        assert world.status()["pid"] != before
        wal.write(b" and after")
        assert reader.read() == b"read" * 1000
    assert (at / "000002.log").read_bytes() == b"before and after"
    changed = world.config.read_text()
    assert "tiers:  # fast to slow\n  # the fastest\n" in changed
    assert changed.endswith("# the end\n")
    assert load(world.config).tiers[1].capacity == 32 << 20
    world.wait_closed()
    ask(world.volume, "migrate", pattern="000001.sst", tier="mid")
    assert (mid / "000001.sst").read_bytes() == b"read" * 1000
    world.umount()
    kept(world)
    assert tiers(world) == ["fast", "mid", "slow"]
    world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)


def test_a_database_that_is_written_all_the_time_hears_nothing(world: World) -> None:
    kept(world)
    store = StoreProcess("rocksdb", world.directory / "kv", create=True)
    try:
        acks = store.acks(0, 20)
        for _ in range(20):
            next(acks)
        add(world, "--path", world.base / "mid", "--before", "slow")
        assert tiers(world) == ["fast", "mid", "slow"]
        acked = 0
        for _ in range(20):
            acked = next(acks)
    finally:
        store.kill()
    with StoreProcess("rocksdb", world.directory / "kv", create=False) as store:
        found = store.dump()
    assert len(found) >= acked
    assert sorted(found) == list(range(len(found)))
    assert len(list((world.directory / "kv").glob("LOG*"))) == 2, "opened once before, and once now"


def test_the_second_tier_of_a_volume_guards_its_database(make_world: MakeWorld) -> None:
    world = make_world({}, "{slow: [wal, 0, 1, 2, 3, 4, 5, 6]}", names=("slow",))
    kept(world)
    with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
        store.put(range(100), 1)
        assert world.status()["guards"] == 0
        add(world, "--path", world.base / "mid", "--before", "slow")
        assert tiers(world) == ["mid", "slow"]
        assert world.status()["guards"] == 1
        store.put(range(100, 200), 1)
    with StoreProcess("rocksdb", world.directory / "kv", create=False) as store:
        assert len(store.dump()) == 200
    world.wait_closed()
    world.umount()
    assert (world.directory / "kv" / "LOCK").is_dir()


REFUSED = {
    "name": (("fast", "mid"), "is a tier already"),
    "bad name": (("a b", "mid"), "is not a name"),
    "no directory": (("mid", "nothing"), "No such file"),
    "a file": (("mid", "file"), "is not a directory"),
    "not empty": (("mid", "full"), "is not empty"),
    "inside": (("mid", "db/inside"), "below the mount"),
    "contains": (("mid", "."), "contains"),
    "another volume's": (("mid", "foreign"), "belongs to volume other"),
    "below a tier": (("mid", "fast/below"), "one inside the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_next_daemon_would_refuse_changes_nothing(world: World, case: str) -> None:
    (world.base / "file").write_bytes(b"")
    (world.base / "full").mkdir()
    (world.base / "full" / "x").write_bytes(b"")
    (world.base / "foreign" / ".keigo").mkdir(parents=True)
    (world.base / "foreign" / ".keigo" / "tier.json").write_text(
        '{"format": 1, "volume": "other", "id": "x", "tier": "mid"}'
    )
    kept(world)
    (world.directory / "inside").mkdir()
    text, before = world.config.read_text(), world.status()["pid"]
    (name, place), why = REFUSED[case]
    path = world.tiers["fast"] / "below" if case == "below a tier" else world.base / place
    if case == "below a tier":
        path.mkdir()
    said = add(world, "--path", path, "--before", "slow", name=name, check=False)
    assert why in said
    assert said.count("\n") == 1
    assert world.config.read_text() == text
    assert world.status()["pid"] == before


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--capacity", "much", "is not a size"),
        ("--capacity", "1000PiB", "is above the device's"),
        ("--reserve", "100%", "is not between"),
        ("--before", "none", "no such tier"),
    ],
)
def test_mistakes_in_options(world: World, option: str, value: str, why: str) -> None:
    kept(world)
    text, before = world.config.read_text(), world.status()["pid"]
    assert why in add(world, "--path", world.base / "mid", option, value, check=False)
    assert (world.config.read_text(), world.status()["pid"]) == (text, before)


def test_a_tier_that_another_process_has(world: World) -> None:
    import fcntl

    kept(world)
    state = world.base / "mid" / ".keigo"
    state.mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another" in add(world, "--path", world.base / "mid", check=False)
    add(world, "--path", world.base / "mid")
    assert tiers(world) == ["fast", "slow", "mid"]


def test_a_devices_yaml_that_was_changed_meanwhile(world: World) -> None:
    kept(world)
    world.config.write_text(world.config.read_text() + "copy_limit: 1MiB\n")
    assert "keigo restart" in add(world, "--path", world.base / "mid", check=False)


def test_without_a_keeper_it_says_what_to_do(world: World) -> None:
    world.mount()
    said = add(world, "--path", world.base / "mid", check=False)
    assert "umount, add the tier to" in said


def test_with_a_driver_that_cannot_be_replaced_it_says_what_to_do(world: World) -> None:
    world.keigo("mount", world.directory, "-d", world.config, "--log-file", world.log_file, "--driver", "pyfuse3")
    world.pids.append(world.status()["pid"])
    said = add(world, "--path", world.base / "mid", check=False)
    assert "pyfuse3 driver cannot be replaced under a mount: umount, add the tier to" in said


def test_the_slowest_that_holds_the_directories_stays_the_slowest(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world({}, "{fast: [wal, 0, 1, 2], mid: [3, 4, 5, 6]}", names=("fast", "mid"))
    kept(world)
    (tmp_path / "new").mkdir()
    assert "--before mid" in add(world, "--path", tmp_path / "new", name="new", check=False)


@pytest.mark.parametrize(("point", "there"), [("tier.kept", False), ("tier.written", True)])
def test_killed_at_each_step(world: World, point: str, there: bool) -> None:
    kept(world, point)
    with (world.directory / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        # The command hears of the death, and of the daemon after it only if the tier is there.
        with pytest.raises(ControlError, match="went away"):
            ask(world.volume, "tier-add", name="mid", path=str(world.base / "mid"))
        assert ("mid" in tiers(world)) is there
        file.write(b" and after")
    assert (world.directory / "file").read_bytes() == b"before and after"
    if not there:
        add(world, "--path", world.base / "mid")
        assert tiers(world) == ["fast", "slow", "mid"]


def test_a_next_daemon_that_cannot_open_it_puts_the_old_text_back(world: World) -> None:
    text = world.config.read_text()
    kept(world)
    mid, away = world.base / "mid", threading.Event()

    def take_away() -> None:
        while world.config.read_text() == text and not away.is_set():
            pass
        mid.rename(world.base / "gone")

    thread = threading.Thread(target=take_away)
    with (world.directory / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        thread.start()
        said = add(world, "--path", mid, check=False)
        away.set()
        thread.join()
        assert "is as it was before" in said
        assert tiers(world) == ["fast", "slow"]
        assert world.config.read_text() == text
        file.write(b" and after")
    assert (world.directory / "file").read_bytes() == b"before and after"
    (world.base / "gone").rename(mid)
    add(world, "--path", mid)
    assert tiers(world) == ["fast", "slow", "mid"]
    assert not os.path.exists(world.base / ".devices.yaml.new")


def test_a_tier_that_no_daemon_served_is_no_member_any_more(world: World) -> None:
    kept(world)
    (world.directory / "000001.sst").write_bytes(b"x")
    world.umount()
    good = world.config.read_text()
    members = world.directory / ".keigo" / "volume.json"
    listed = json.loads(members.read_text())
    members.write_text(json.dumps({**listed, "tiers": ["fast", "mid", "slow"]}))
    world.config.write_text("nonsense\n")
    held, root = hold(good), os.open(world.directory, os.O_RDONLY)
    try:
        put_back(world.config, held, {"slow": root})
    finally:
        os.close(held)
        os.close(root)
    assert json.loads(members.read_text()) == listed
    kept(world)
    assert tiers(world) == ["fast", "slow"]


def test_a_command_does_not_look_at_the_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon that takes a mount over is such a command: it would wait for itself."""
    seen: list[object] = []

    @click.command()
    @directory_argument
    def command(directory: Path) -> None:
        seen.append(directory)

    looked: list[object] = []
    real = os.stat

    def look(path: Any, **how: Any) -> os.stat_result:
        looked.append(path)
        return real(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", look)
        command.main([str(tmp_path)], standalone_mode=False)
    assert seen == [tmp_path]
    assert not {str(tmp_path), tmp_path} & set(looked)
