"""`keigo tier remove` on a live mount: the tier's files go elsewhere, open ones go on, and then it is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from keigo.config import load
from keigo.control import ControlError, ask
from keigo.tiers.intents import Ident, Intent, Step
from tests.background import Migrating
from tests.conftest import MakeWorld, World
from tests.engines.processes import StoreProcess
from tests.faults import keeping
from tests.faults.keeping import kept, tiers

pytestmark = pytest.mark.timeout(180)
driver = keeping.driver
THREE = ("fast", "mid", "slow")
TWO = ("fast", "slow")
DATA = os.urandom(1 << 20)


def filled(make_world: MakeWorld, names: tuple[str, ...] = THREE, extra: str = "") -> World:
    """A volume whose new files go to the fastest tier with room; not mounted."""
    world = make_world({"fast": "64MiB"}, "{slow: [0]}", extra, names)
    text = world.config.read_text().replace("{policy: levels, levels: {slow: [0]}}", "{policy: fill-order}")
    world.config.write_text("# all of it\n" + text.replace("tiers:\n", "tiers:  # fast to slow\n  # the fastest\n"))
    return world


def remove(world: World, name: str = "fast", *, check: bool = True) -> str:
    done = world.keigo("tier", "remove", world.directory, name, check=check)
    assert (done.returncode == 0) == check, done.stdout
    return done.stdout if check else done.stderr


def is_gone(world: World, name: str = "fast") -> None:
    """Nothing of the tier is left, on its device, in the mount, or in devices.yaml."""
    assert tiers(world) == [other for other in world.tiers if other != name]
    assert os.listdir(world.tiers[name]) == []
    assert name not in [tier.name for tier in load(world.config).tiers]


def checked(world: World) -> None:
    """Unmounted, it is sound, with all checksums."""
    world.wait_closed()
    world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)


def closed_but(world: World, count: int) -> None:
    """Until the daemon has heard that all files but some are closed."""
    while world.status()["open_files"] != count:
        pass


@contextmanager
def streamed(world: World, where: str = "kv") -> Iterator[list[int]]:
    """A database that is written all the time; yields what was acknowledged last, and then checks all of it."""
    store = StoreProcess("rocksdb", world.directory / where, create=True)
    acked = [0]
    enough, end = threading.Event(), threading.Event()

    def write() -> None:
        for number in store.acks(0, 50):
            acked[0] = number
            if number > 5000:
                enough.set()
            if end.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert enough.wait(60)
        yield acked
        before = acked[0]
        deadline = threading.Event()
        while acked[0] == before:
            assert thread.is_alive(), "the database was stopped by an error"
            deadline.wait(0.01)
    finally:
        end.set()
        thread.join(30)
        store.kill()
    with StoreProcess("rocksdb", world.directory / where, create=False) as again:
        found = again.dump()
    assert len(found) >= acked[0]
    assert sorted(found) == list(range(len(found)))


def test_a_tier_leaves_under_a_database(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    at, text = world.directory, world.config.read_text()
    (at / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    assert world.tier_of("000001.sst") == "fast"
    with (
        streamed(world),
        (at / "000001.sst").open("rb") as reader,
        (at / "notes").open("wb", buffering=0) as writer,
    ):
        assert reader.read(1000) == DATA[:1000]
        writer.write(b"before")
        assert world.status()["guards"] == 1
        assert "removed tier fast" in remove(world)
        is_gone(world)
        assert world.status()["guards"] == 1
        writer.write(b" and after")
        assert reader.read() == DATA[1000:]
    assert (at / "notes").read_bytes() == b"before and after"
    lines = [line for line in text.splitlines(keepends=True) if "name: fast" not in line]
    assert world.config.read_text() == "".join(lines)
    checked(world)
    assert (at / "kv" / "LOCK").is_dir()
    kept(world)
    assert tiers(world) == ["mid", "slow"]
    assert (at / "000001.sst").read_bytes() == DATA


def test_the_last_tier_but_one_takes_the_guards_along(make_world: MakeWorld) -> None:
    world = filled(make_world, TWO)
    kept(world)
    with streamed(world):
        assert world.status()["guards"] == 1
        remove(world)
        is_gone(world)
        assert world.status()["guards"] == 0
    assert (world.directory / "kv" / "LOCK").is_file()
    checked(world)
    assert (world.directory / "kv" / "LOCK").is_file()
    with StoreProcess("rocksdb", world.directory / "kv", create=False) as bare:
        assert bare.dump()


def test_a_file_that_stays_open_is_named_and_the_tier_goes_on(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    text, before = world.config.read_text(), world.status()["pid"]
    with (world.directory / "000001.log").open("wb", buffering=0) as wal:
        wal.write(b"before")
        with pytest.raises(ControlError, match=r"open files stay on fast: 000001.log; close them and run again"):
            ask(world.volume, "tier-remove", name="fast", patience=1.0)
        assert (world.config.read_text(), world.status()["pid"]) == (text, before)
        assert world.status()["leaving"] is None
        (world.directory / "000002.sst").write_bytes(DATA)
        closed_but(world, 1)
        assert world.tier_of("000002.sst") == "fast"
        wal.write(b" and after")
    remove(world)
    is_gone(world)
    assert (world.directory / "000001.log").read_bytes() == b"before and after"
    assert (world.directory / "000002.sst").read_bytes() == DATA


def test_a_deleted_file_that_is_open_is_waited_for(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    path = world.directory / "000001.sst"
    path.write_bytes(DATA)
    world.wait_closed()
    with path.open("rb") as reader:
        path.unlink()
        with pytest.raises(ControlError, match=r"open files stay on fast: \(a deleted file\)"):
            ask(world.volume, "tier-remove", name="fast", patience=1.0)
        assert reader.read() == DATA
    world.wait_closed()
    remove(world)
    is_gone(world)


def test_nothing_comes_to_a_tier_that_leaves(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    at = world.directory
    (at / "000009.sst").write_bytes(DATA)
    outcome: list[str] = []
    with (at / "000001.log").open("wb", buffering=0):
        thread = threading.Thread(target=lambda: outcome.append(remove(world)))
        thread.start()
        while world.status()["leaving"] != "fast":
            assert thread.is_alive()
        (at / "000002.sst").write_bytes(DATA)
        closed_but(world, 1)
        assert world.tier_of("000002.sst") == "mid"
        for asked in ({"op": "pin", "pattern": "x", "tier": "fast"}, {"op": "tier-remove", "name": "fast"}):
            with pytest.raises(ControlError, match="is being removed"):
                ask(world.volume, **asked)
        for asked in ({"op": "migrate", "pattern": "000002.sst", "tier": "fast"}, {"op": "drain"}):
            with pytest.raises(ControlError, match="is being removed"):
                ask(world.volume, **asked)
    thread.join()
    assert "removed tier fast" in outcome[0]
    is_gone(world)
    assert world.tier_of("000002.sst") == "mid"


def test_a_copy_that_is_under_way_does_not_land_on_a_tier_that_leaves(make_world: MakeWorld) -> None:
    world = filled(make_world, extra="copy_limit: 1MiB/s\n")
    kept(world)
    (world.directory / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    ask(world.volume, "migrate", pattern="000001.sst", tier="mid")

    def leave() -> None:
        """Without the program's start, in which the copy could end."""
        with pytest.raises(ControlError, match="went away"):
            ask(world.volume, "tier-remove", name="fast")

    with (world.directory / "000002.log").open("wb", buffering=0):
        move = Migrating(world, "000001.sst", "fast")
        while world.status()["migrations"]["current"] != "000001.sst":
            assert move.outcome is None
        thread = threading.Thread(target=leave)
        thread.start()
        assert "tier fast is being removed" in str(move.result())
        assert world.tier_of("000001.sst") == "mid"
    thread.join()
    is_gone(world)
    assert (world.directory / "000001.sst").read_bytes() == DATA


REFUSED = {
    "primary": ("slow", "", "is in place: it cannot be removed"),
    "unknown": ("none", "", "no such tier"),
    "pin": ("mid", "pins:\n  '*.a': slow\n  '*.b': mid\n", "devices.yaml:11: pins: *.b: names tier mid"),
    "catalog": ("mid", "catalog: mid\n", "devices.yaml:9: catalog: names tier mid"),
    "cache": ("mid", "cache:\n  capacity: 8MiB\n  tier: mid\n", "devices.yaml:11: cache: tier: names tier mid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_leave_is_refused(make_world: MakeWorld, case: str) -> None:
    name, extra, why = REFUSED[case]
    world = filled(make_world, extra=extra)
    kept(world)
    text, before = world.config.read_text(), world.status()["pid"]
    said = remove(world, name, check=False)
    assert why in said
    assert said.count("\n") == 1
    assert (world.config.read_text(), world.status()["pid"]) == (text, before)


def test_a_tier_that_lists_levels_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    kept(world)
    assert "placement: levels: mid: names tier mid" in remove(world, "mid", check=False)


def test_a_tier_that_is_pinned_to_by_command_is_refused(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    world.keigo("pin", world.directory, "*.x", "fast")
    assert f"keigo unpin {world.directory} '*.x' first" in remove(world, check=False)


def test_more_than_has_room_elsewhere_is_refused(make_world: MakeWorld) -> None:
    world = filled(make_world, TWO)
    world.config.write_text(world.config.read_text().replace("in_place: true", "in_place: true, capacity: 4MiB"))
    kept(world)
    (world.directory / "000001.sst").write_bytes(DATA * 8)
    world.wait_closed()
    assert "have room for" in remove(world, check=False)


def test_without_a_keeper_it_says_what_to_do(make_world: MakeWorld) -> None:
    world = filled(make_world)
    world.mount()
    assert "keigo drain, umount, take the tier out of" in remove(world, check=False)


def test_a_file_that_nobody_knows_keeps_the_tier(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    (world.directory / "d").mkdir()
    (world.directory / "d" / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    (world.tiers["fast"] / "d" / "stranger").write_bytes(b"x")
    before = world.status()["pid"]
    assert "holds d/stranger, which the volume does not know" in remove(world, check=False)
    assert world.status()["pid"] == before
    (world.tiers["fast"] / "d" / "stranger").unlink()
    remove(world)
    is_gone(world)


def test_what_is_to_be_finished_on_it_keeps_the_tier(make_world: MakeWorld) -> None:
    world = filled(make_world)
    below = os.open(world.directory, os.O_RDONLY | os.O_DIRECTORY)
    kept(world)
    intent = Path(f"/proc/self/fd/{below}/.keigo/intent/migrate-9")
    step = Step("fast", "unlink", b"gone", Ident(1, 2, 3))
    intent.write_bytes(msgspec.json.encode(Intent("move gone", [step])))
    assert "not finished there: move gone" in remove(world, check=False)
    intent.unlink()
    os.close(below)
    remove(world)
    is_gone(world)


def test_guards_come_back_where_the_tier_stays(make_world: MakeWorld) -> None:
    world = filled(make_world, TWO)
    kept(world)
    with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
        store.put(range(100), 1)
    world.wait_closed()
    (world.tiers["fast"] / "kv" / "stranger").write_bytes(b"x")
    assert "holds kv/stranger" in remove(world, check=False)
    assert world.status()["guards"] == 1
    with StoreProcess("rocksdb", world.directory / "kv", create=False) as store:
        assert len(store.dump()) == 100
    (world.tiers["fast"] / "kv" / "stranger").unlink()
    checked(world)
    assert (world.directory / "kv" / "LOCK").is_dir()


def test_a_link_from_outside_keeps_a_file_and_an_unmount_ends_the_wait(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    (world.directory / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    (world.base / "outside").mkdir()
    where = world.tiers["fast"]
    os.link(where / "000001.sst", where.parent / "outside.sst")
    with pytest.raises(ControlError, match=r"files stay on fast: 000001.sst: has 2 links on its tier"):
        ask(world.volume, "tier-remove", name="fast", patience=0.5)
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(remove(world, check=False)))
    thread.start()
    while world.status()["leaving"] != "fast":
        assert thread.is_alive()
    world.umount()
    thread.join()
    assert "the volume is being closed" in outcome[0]
    kept(world)
    assert tiers(world) == ["fast", "mid", "slow"]
    (where.parent / "outside.sst").unlink()
    remove(world)
    is_gone(world)
    assert (world.directory / "000001.sst").read_bytes() == DATA


def test_a_lock_of_two_databases_is_told(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
        store.put(range(100), 1)
    (world.directory / "copy").mkdir()
    os.link(world.directory / "kv" / "LOCK", world.directory / "copy" / "LOCK")
    world.wait_closed()
    assert "are one file, which cannot move" in remove(world, check=False)


def test_a_file_that_a_user_moved_to_it_is_the_policys_again(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    (world.directory / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    world.keigo("migrate", world.directory, "000001.sst", "mid")
    assert ask(world.volume, "explain", name="000001.sst")["kept"] is True
    remove(world, "mid")
    is_gone(world, "mid")
    assert ask(world.volume, "explain", name="000001.sst")["kept"] is False


STEPS = {
    "leave.evacuated": True,
    "leave.unguarded": True,
    "leave.mirrors": True,
    "leave.forgotten": True,
    "tier.kept": True,
    "tier.written": False,
}
"""Whether the tier is there after a death at each."""


@pytest.mark.parametrize("names", [THREE, TWO], ids=["three", "two"])
@pytest.mark.parametrize("keeper", [True, False], ids=["kept", "alone"])
@pytest.mark.parametrize("point", STEPS)
def test_killed_at_each_step(make_world: MakeWorld, point: str, keeper: bool, names: tuple[str, ...]) -> None:
    world = filled(make_world, names)
    kept(world, point)
    at = world.directory
    with StoreProcess("rocksdb", at / "kv", create=True) as store:
        store.put(range(2000), 1)
    (at / "d").mkdir()
    (at / "d" / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    if not keeper:
        os.kill(world.pids[-2], signal.SIGSTOP)
    with pytest.raises(ControlError, match="went away"):
        ask(world.volume, "tier-remove", name="fast")
    if not keeper:
        os.kill(world.pids[-2], signal.SIGKILL)
        world.wait_dead()
        kept(world)
    assert ("fast" in tiers(world)) is STEPS[point]
    with StoreProcess("rocksdb", at / "kv", create=False) as store:
        assert len(store.dump()) == 2000
    assert (at / "d" / "000001.sst").read_bytes() == DATA
    if STEPS[point]:
        remove(world)
    assert "fast" not in tiers(world)
    if keeper:
        is_gone(world)
    checked(world)
    with StoreProcess("rocksdb", at / "kv", create=False) if len(names) == 2 else streamless() as bare:
        assert bare is None or len(bare.dump()) == 2000


@pytest.mark.parametrize(
    ("point", "names"),
    [("leave.locked", THREE), ("unguard.exchanged", TWO), ("tier.written", THREE)],
)
def test_killed_while_the_lock_of_an_open_database_moves(
    make_world: MakeWorld, point: str, names: tuple[str, ...]
) -> None:
    world = filled(make_world, names, "pins: {'*.log': slow, '*.sst': slow}\n")
    kept(world, point)
    with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
        store.put(range(100), 1)
        with pytest.raises(ControlError, match="went away"):
            ask(world.volume, "tier-remove", name="fast")
        assert ("fast" in tiers(world)) is (point != "tier.written")
        store.put(range(100, 200), 1)
        if point != "tier.written":
            remove(world)
        is_gone(world)
        store.put(range(200, 300), 1)
    with StoreProcess("rocksdb", world.directory / "kv", create=False) as store:
        assert len(store.dump()) == 300
    checked(world)
    assert (world.directory / "kv" / "LOCK").is_dir() is (names == THREE)


@contextmanager
def streamless() -> Iterator[None]:
    """Nothing: the bare directory of a volume of more tiers is guarded."""
    yield None


def test_a_next_daemon_that_cannot_go_without_it_puts_the_old_text_back(make_world: MakeWorld) -> None:
    world = filled(make_world)
    below = os.open(world.directory, os.O_RDONLY | os.O_DIRECTORY)
    kept(world)
    text = world.config.read_text()
    (world.directory / "000001.sst").write_bytes(DATA)
    world.wait_closed()
    members = Path(f"/proc/self/fd/{below}/.keigo/volume.json")
    listed = members.read_text()
    done = threading.Event()

    def spoil() -> None:
        """The tier is a member again, and so the next daemon misses it."""
        while world.config.read_text() == text and not done.is_set():
            pass
        members.write_text(listed)

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        assert "is as it was before" in remove(world, check=False)
    finally:
        done.set()
        thread.join()
        os.close(below)
    assert tiers(world) == ["fast", "mid", "slow"]
    assert world.config.read_text() == text
    assert (world.directory / "000001.sst").read_bytes() == DATA
    remove(world)
    is_gone(world)


def test_what_was_put_aside_stays(make_world: MakeWorld) -> None:
    world = filled(make_world)
    kept(world)
    lost = world.tiers["fast"] / ".keigo" / "lost"
    lost.mkdir()
    (lost / "x").write_bytes(b"x")
    done = world.keigo("tier", "remove", world.directory, "fast")
    assert "/.keigo is left behind" in done.stderr
    assert tiers(world) == ["mid", "slow"]
    assert (lost / "x").read_bytes() == b"x"


def test_the_one_that_is_left_fills_up_and_keeps_the_tier(make_world: MakeWorld) -> None:
    world = filled(make_world, TWO)
    world.config.write_text(world.config.read_text().replace("in_place: true", "in_place: true, capacity: 8MiB"))
    kept(world)
    at = world.directory
    outcome: list[str] = []
    with (at / "000001.log").open("wb", buffering=0) as wal:
        wal.write(DATA)
        thread = threading.Thread(target=lambda: outcome.append(remove(world, check=False)))
        thread.start()
        while world.status()["leaving"] != "fast":
            assert thread.is_alive()
        for number in range(2, 11):
            (at / f"{number:06}.sst").write_bytes(DATA)
        thread.join()
        assert "and others have room for" in outcome[0]
        (at / "000011.sst").write_bytes(DATA)
    world.wait_closed()
    assert world.tier_of("000011.sst") == "fast"


def test_others_that_fill_up_keep_the_tier(make_world: MakeWorld) -> None:
    """A database must not fail because somebody takes room away."""
    world = filled(make_world)
    text = world.config.read_text().replace(str(world.tiers["mid"]), f"{world.tiers['mid']}, capacity: 8MiB")
    world.config.write_text(text.replace("in_place: true", "in_place: true, capacity: 8MiB"))
    kept(world)
    at = world.directory
    outcome: list[str] = []
    with (at / "000001.log").open("wb", buffering=0):
        thread = threading.Thread(target=lambda: outcome.append(remove(world, check=False)))
        thread.start()
        while world.status()["leaving"] != "fast":
            assert thread.is_alive()
        for number in range(2, 22):
            (at / f"{number:06}.sst").write_bytes(DATA)
        thread.join()
    assert "tier fast stays: no other has room for new files" in outcome[0]
    world.wait_closed()
    assert all((at / f"{number:06}.sst").read_bytes() == DATA for number in range(2, 22))
    assert {row["tier"] for row in world.ls() if row["size"]} == {"fast", "mid", "slow"}
