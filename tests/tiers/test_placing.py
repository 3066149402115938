"""What a volume knows for placement follows what happens to its files. No mount: a namespace over a volume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fusefs.attributes import ROOT_ID, Caller
from fusefs.namespace import Namespace
from keigo.config import load
from keigo.devices.load import Load
from keigo.lsm.database import Belief
from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.history import YOUNG
from keigo.placement.policy import Choice, Context, Group, TierState
from keigo.placement.rates import assumed
from keigo.policies import make_policy
from keigo.tiers.catalog import ROOT, FileRecord
from keigo.tiers.creation import create
from keigo.tiers.flow import LATELY
from keigo.tiers.migration import migrate
from keigo.tiers.opening import open_volume
from keigo.tiers.pace import Pace
from keigo.tiers.placing import group_of
from keigo.tiers.volume import Volume
from tests.conftest import MakeWorld, write_config
from tests.lsm.test_manifest import deleted, manifest, new_file

ME = Caller(os.geteuid(), os.getegid(), 0)
SIZES = 200_000
TIERS = ("fast", "mid", "slow")


class Open:
    """A volume with tiers fast, mid and slow, and a namespace over it; `reopen` closes and opens it again."""

    def __init__(self, base: Path, extra: str = "") -> None:
        self.tiers = {name: base / name for name in TIERS}
        for path in self.tiers.values():
            path.mkdir()
        write_config(base / "devices.yaml", "placing", self.tiers, {}, extra=extra)
        self.config = load(base / "devices.yaml")
        self.open()

    def open(self) -> None:
        self.volume, _ = open_volume(self.config, self.tiers["slow"], make_policy(self.config))
        self.placing = self.volume.placing
        self.namespace = Namespace(self.volume)

    def close(self) -> None:
        self.namespace.close()
        self.volume.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def begin(self, name: bytes, belief: Belief, directory: int = ROOT) -> tuple[int, int]:
        """Create a file for a purpose; (file, handle)."""
        file, fd = create(self.volume, directory, name, 0o644, ME.uid, ME.gid, os.O_RDWR, 0, belief)
        return file, self.namespace.files._add(file, fd, os.O_RDWR)  # its `create` would ask threads for the belief

    def make(self, name: bytes, belief: Belief, size: int = SIZES, directory: int = ROOT) -> int:
        file, handle = self.begin(name, belief, directory)
        self.namespace.io.write(handle, 0, b"x" * size)
        self.namespace.files.release(handle)
        return file

    def level(self, file: int) -> int | None:
        state = self.placing.index.state(file, time.time())
        assert state is not None
        assert state.group is not None
        assert state.level == state.group.level
        return state.level

    def unlink(self, name: bytes) -> None:
        self.volume.unlink(ROOT, name)


def at(level: int | None, *, inputs: frozenset[int] = frozenset(), pressure: Pressure = CALM) -> Belief:
    return Belief(Job.COMPACTION, level, "default", "rocksdb", pressure=pressure, inputs=inputs)


def sst(level: int | None) -> Group:
    return group_of(ROOT, Role.SST, "default", level)


@pytest.fixture
def open_(tmp_path: Path) -> Iterator[Open]:
    made = Open(tmp_path)
    yield made
    made.close()


def watched(volume: Volume) -> list[Context]:
    """The contexts of files created from now on."""
    seen: list[Context] = []
    choose = volume.placing.policy.choose

    class Spy:
        name = "spy"

        def choose(self, context: Context, size: int, tiers: list[TierState]) -> Choice:
            seen.append(context)
            return choose(context, size, tiers)

    volume.placing.policy = Spy()  # type: ignore[assignment]
    return seen


# --- the index follows ---


def test_a_file_is_seen_once_it_is_closed(open_: Open) -> None:
    file, handle = open_.begin(b"000007.sst", at(2))
    assert open_.placing.index.state(file, time.time()) is None
    assert [state.writers for state in open_.placing.tier_states()] == [0, 1, 0]
    open_.namespace.io.write(handle, 0, b"x" * SIZES)
    open_.namespace.files.release(handle)
    state = open_.placing.index.state(file, time.time())
    assert state is not None
    assert (state.tier, state.size, state.number, state.group) == (1, SIZES, 7, sst(2))
    assert time.time() - 60 < state.created <= time.time()
    assert [state.writers for state in open_.placing.tier_states()] == [0, 0, 0]


def test_a_file_that_is_opened_for_writing_again_is_not_seen(open_: Open) -> None:
    file = open_.make(b"000007.sst", at(2))
    handle = open_.namespace.files.open(file, os.O_WRONLY)
    second = open_.namespace.files.open(file, os.O_WRONLY)
    assert open_.placing.index.state(file, time.time()) is None
    assert [state.writers for state in open_.placing.tier_states()] == [0, 1, 0]
    open_.namespace.files.release(handle)
    assert open_.placing.index.state(file, time.time()) is None
    open_.namespace.io.write(second, SIZES, b"x" * 100)
    open_.namespace.files.release(second)
    state = open_.placing.index.state(file, time.time())
    assert state is not None
    assert state.size == SIZES + 100
    assert [state.writers for state in open_.placing.tier_states()] == [0, 0, 0]


def test_readers_do_not_hide_a_file_but_passthrough_does(open_: Open) -> None:
    file = open_.make(b"000007.sst", at(2))
    handle = open_.namespace.files.open(file, os.O_RDONLY)

    def movable() -> list[int]:
        view = open_.placing.view(time.time())
        return [state.id for bucket in view.buckets() for state in view.members(bucket)]

    assert movable() == [file]
    open_.volume.open_files.pin(file, 1)
    assert movable() == []
    assert [bucket.files for bucket in open_.placing.view(time.time()).buckets()] == [1]
    open_.volume.open_files.pin(file, -1)
    open_.namespace.files.release(handle)
    assert movable() == [file]


def test_a_migration_moves_the_file_to_another_bucket(open_: Open) -> None:
    file = open_.make(b"000007.sst", at(2))
    before = time.time()
    migrate(open_.volume, file, open_.volume.by_name["slow"], "test", Pace(None))
    state = open_.placing.index.state(file, time.time())
    assert state is not None
    assert state.tier == 2
    assert before <= state.moved <= time.time()
    assert open_.placing.history.expect(sst(2), time.time()).learned


def test_unlinked_files_and_those_of_several_names(open_: Open) -> None:
    file = open_.make(b"000007.sst", at(2))
    open_.namespace.names.link(file, ROOT_ID, b"000008.sst")
    open_.unlink(b"000007.sst")
    state = open_.placing.index.state(file, time.time())
    assert state is not None
    assert state.number == 8
    open_.unlink(b"000008.sst")
    assert len(open_.placing.index) == 0


def test_a_file_that_is_unlinked_while_it_is_open(open_: Open) -> None:
    file, handle = open_.begin(b"000007.sst", at(2))
    open_.namespace.io.write(handle, 0, b"x" * SIZES)
    open_.unlink(b"000007.sst")
    assert open_.placing.index.state(file, time.time()) is None
    open_.namespace.files.release(handle)
    assert open_.placing.index.state(file, time.time()) is None
    assert [state.writers for state in open_.placing.tier_states()] == [0, 0, 0]


def test_what_is_no_file_is_not_seen(open_: Open) -> None:
    open_.namespace.names.symlink(ROOT_ID, b"link", b"target", ME)
    assert len(open_.placing.index) == 0


def test_renaming_changes_what_a_file_is(open_: Open) -> None:
    file = open_.make(b"000007.dbtmp", Belief(Job.FOREGROUND))
    open_.namespace.names.rename(ROOT_ID, b"000007.dbtmp", ROOT_ID, b"000009.sst", 0)
    state = open_.placing.index.state(file, time.time())
    assert state is not None
    assert (state.role, state.number) == (Role.SST, 9)


def test_the_manifest_moves_files_between_groups(open_: Open) -> None:
    """Levels that were not known, or wrong, or that a trivial move changes: no file dies of it."""
    numbers = (7, 8, 9)
    files = [open_.make(b"%06d.sst" % number, at(None)) for number in numbers]
    edits = [new_file(number, size=SIZES, level=1) for number in numbers]
    found, handle = open_.namespace.files.create(ROOT_ID, b"MANIFEST-000001", 0o644, os.O_RDWR, ME)

    def write() -> None:
        open_.namespace.io.write(handle, 0, manifest(*edits))
        open_.namespace.observer.wrote(found.id)
        open_.namespace.observer.settle()

    current, to = open_.namespace.files.create(ROOT_ID, b"CURRENT", 0o644, os.O_RDWR, ME)
    open_.namespace.io.write(to, 0, b"MANIFEST-000001\n")
    open_.namespace.observer.wrote(current.id)
    write()
    assert [open_.level(file) for file in files] == [1, 1, 1]
    edits += [deleted(8, level=1), new_file(8, size=SIZES, level=2)]
    write()
    assert [open_.level(file) for file in files] == [1, 2, 1]
    buckets = {bucket.group.level: bucket.files for bucket in open_.placing.view(time.time()).buckets()}
    assert (buckets[1], buckets[2]) == (2, 1)
    # A death would have made level 1's life shorter than what is assumed.
    now = time.time()
    assert open_.placing.history.expect(sst(1), now).life >= YOUNG * 10
    for name in (handle, to):
        open_.namespace.files.release(name)


def test_pins_are_followed(tmp_path: Path) -> None:
    made = Open(tmp_path, extra="pins: {'000007.*': slow, 'there/*': mid}\n")

    def pinned(file: int) -> int | None:
        made.placing.view(time.time())
        state = made.placing.index.state(file, time.time())
        assert state is not None
        return state.pinned

    directory = made.volume.mkdir(ROOT, b"here", 0o755, ME.uid, ME.gid)
    files = [made.make(b"%06d.sst" % number, at(2)) for number in (7, 8)]
    inside = made.make(b"000009.sst", at(2), directory=directory)
    assert [pinned(file) for file in (*files, inside)] == [2, None, None]
    with made.volume.lock:
        made.volume.pins.pin("000008.*", "fast")
    assert [pinned(file) for file in (*files, inside)] == [2, 0, None]
    made.namespace.names.rename(ROOT_ID, b"here", ROOT_ID, b"there", 0)
    assert [pinned(file) for file in (*files, inside)] == [2, 0, 1]
    made.namespace.names.rename(ROOT_ID, b"000008.sst", ROOT_ID, b"000010.sst", 0)
    assert pinned(files[1]) is None
    made.volume.keep(files[1], made.volume.record(files[1]).home)
    assert pinned(files[1]) == 1
    with made.volume.lock:
        made.volume.pins.unpin("000008.*")
    made.reopen()
    assert [pinned(file) for file in (*files, inside)] == [2, 1, 1]
    made.close()


# --- history ---


def test_sizes_are_by_group(open_: Open) -> None:
    for number in range(4):
        open_.make(b"%06d.sst" % number, at(0), size=1000)
        open_.make(b"%06d.sst" % (100 + number), at(5), size=300_000)
    assert open_.placing.expected_size(sst(0)) == 1000
    assert open_.placing.expected_size(sst(5)) == 300_000
    assert 1000 < open_.placing.expected_size(sst(3)) < 300_000  # not seen: that of any SST
    assert open_.placing.expected_size(group_of(ROOT, Role.BLOB, None, None)) == 0
    seen = watched(open_.volume)
    _, handle = open_.begin(b"000200.sst", at(5))
    open_.namespace.files.release(handle)
    assert seen[0].expected is not None
    assert (seen[0].expected.size, seen[0].expected.learned) == (300_000, True)


def test_deaths_are_unlinks_only(open_: Open) -> None:
    for number in range(30):
        open_.make(b"%06d.sst" % number, at(3))
    open_.reopen()  # the scan at an open forgets nothing here, and takes in all
    before = open_.placing.history.expect(sst(3), time.time())
    assert before.learned
    assert before.life >= YOUNG * 1000
    for number in range(20):
        open_.unlink(b"%06d.sst" % number)
    after = open_.placing.history.expect(sst(3), time.time())
    assert after.life < before.life / 100


def test_files_lost_while_it_was_closed_did_not_die(open_: Open) -> None:
    for number in range(30):
        open_.make(b"%06d.sst" % number, at(3))
    open_.close()
    for path in open_.tiers["mid"].glob("*.sst"):
        path.unlink()
    open_.open()
    assert len(open_.placing.index) == 0
    assert open_.placing.history.expect(sst(3), time.time()).life == YOUNG * 1000


def test_the_time_that_a_log_is_written_is_part_of_its_life(open_: Open) -> None:
    wal = group_of(ROOT, Role.WAL, None, None)
    file, handle = open_.begin(b"000007.log", Belief(Job.FOREGROUND))
    open_.namespace.io.write(handle, 0, b"x" * SIZES)
    with open_.volume.lock:
        record = open_.volume.record(file)
        record.created -= 5000
        open_.volume.catalog.put_file(file, record)
    open_.namespace.files.release(handle)
    open_.unlink(b"000007.log")
    assert open_.placing.history.expect(wal, time.time()).life == pytest.approx(5000 * 0.8, rel=0.1)


# --- heat ---


def refresh(open_: Open, reads: dict[int, tuple[int, int]], now: float | None = None) -> None:
    loads = [Load(name, "counted") for name in TIERS]
    open_.placing.refresh(time.time() if now is None else now, loads, reads)


def test_reads_heat_a_file_and_its_group(open_: Open) -> None:
    one, other = (open_.make(b"%06d.sst" % number, at(2)) for number in (7, 8))
    refresh(open_, {})
    refresh(open_, {one: (1000, 4_096_000), 999_999: (5, 5)}, time.time() + 1)
    now = time.time()
    assert open_.placing.heat(one, now) > 5
    assert open_.placing.heat(other, now) == 0
    expected = open_.placing.history.expect(sst(2), now)
    assert expected.reads > 0
    assert expected.read_size == 4096


def test_a_new_file_is_as_hot_as_what_it_is_made_from(open_: Open) -> None:
    hot, cold = (open_.make(b"%06d.sst" % number, at(2)) for number in (7, 8))
    open_.make(b"000009.sst", at(2))
    refresh(open_, {hot: (100_000, 409_600_000)}, time.time() + 1)
    seen = watched(open_.volume)
    made = [
        open_.make(b"%06d.sst" % number, at(3, inputs=frozenset(inputs)))
        for number, inputs in ((10, (7, 8)), (11, (8, 9)), (12, (7, 8)), (13, ()), (14, (500,)))
    ]
    reads = [context.expected.reads for context in seen if context.expected is not None]
    heat = open_.placing.heat(hot, time.time())
    assert reads[0] == pytest.approx(heat / (2 * SIZES), rel=0.05)
    assert reads[1] == 0
    assert reads[2] == reads[0]
    assert open_.placing.heat(made[0], time.time()) == pytest.approx(heat / 2, rel=0.05)
    assert open_.placing.heat(made[1], time.time()) == 0
    assert open_.placing.heat(cold, time.time()) == 0


def test_heat_survives_a_restart(open_: Open) -> None:
    hot, cold = (open_.make(b"%06d.sst" % number, at(2)) for number in (7, 8))
    refresh(open_, {hot: (100_000, 409_600_000)})
    with open_.volume.lock:  # for some minutes, so that it is no news
        for file in (hot, cold):
            record = open_.volume.record(file)
            record.created -= 1000
            open_.volume.catalog.put_file(file, record)
    open_.reopen()
    before = open_.placing.heat(hot, time.time())
    assert before > 1000
    assert open_.placing.history.expect(sst(2), time.time()).reads == pytest.approx(before / (2 * SIZES), rel=0.2)
    assert open_.placing.heat(hot, time.time()) == pytest.approx(before, rel=0.2)
    assert open_.placing.heat(cold, time.time()) == 0
    open_.reopen()
    assert open_.placing.heat(hot, time.time()) == pytest.approx(before, rel=0.2)


# --- tiers ---


def test_loads_become_rates(open_: Open) -> None:
    calm = [state.rates for state in open_.placing.tier_states()]
    assert [rates.read for rates in calm] == sorted(rates.read for rates in calm)
    loads = [Load("fast", "counted", 64.0, 2.0, 1e6, 1e6), *(Load(name, "counted") for name in TIERS[1:])]
    open_.placing.refresh(time.time(), loads, {})
    busy = [state.rates for state in open_.placing.tier_states()]
    assert busy[0].read > 4 * calm[0].read
    assert busy[1:] == calm[1:]
    assert open_.placing.loads == tuple(loads)


def test_models_of_measured_devices(open_: Open) -> None:
    open_.placing.measured({"mid": assumed(5)})
    assert open_.placing.profiled == ("mid",)
    assert open_.placing.models[1] == assumed(5)
    reads = [state.rates.read for state in open_.placing.tier_states()]
    assert reads == pytest.approx([reads[1] / 4, reads[1], reads[1] * 4])


def test_inflow_growth_and_swing(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("keigo.clock.now", lambda: now)
    refresh(open_, {}, now)
    file = open_.make(b"000007.sst", at(2), size=30 << 20)
    states = open_.placing.tier_states()
    assert states[1].inflow == pytest.approx((30 << 20) * 0.693 / LATELY, rel=0.05)
    assert [state.growth for state in states] == [0, 30 << 20, 0]
    assert states[0].inflow == 0
    assert [state.swing for state in states] == [0, 0, 0]
    refresh(open_, {}, now)
    open_.unlink(b"000007.sst")
    assert open_.placing.tier_states()[1].swing == pytest.approx(30 << 20, rel=0.1)
    refresh(open_, {}, now + 59)
    assert open_.placing.tier_states()[1].swing == pytest.approx(30 << 20, rel=0.1)
    assert open_.placing.tier_states()[1].growth < 10 << 20
    refresh(open_, {}, now + 61)
    assert open_.placing.tier_states()[1].swing < 10 << 20
    assert open_.placing.index.state(file, now) is None


# --- databases ---


def test_pressure_is_the_worst_of_the_databases_lately(open_: Open) -> None:
    now = time.time()
    assert open_.placing.pressure == CALM
    open_.placing.felt(5, Pressure(0.5), now)
    open_.placing.felt(6, Pressure(0.2, stalled=True), now)
    assert open_.placing.pressure == Pressure(0.5, stalled=True)
    open_.placing.felt(6, CALM, now)
    assert open_.placing.pressure == Pressure(0.5)
    open_.placing.felt(5, Pressure(1.0), now - 11)
    assert open_.placing.pressure == CALM


def test_a_file_is_created_under_the_pressure_of_its_database(open_: Open) -> None:
    seen = watched(open_.volume)
    open_.make(b"000007.sst", at(0, pressure=Pressure(0.7)))
    open_.make(b"000008.log", Belief(Job.FOREGROUND))
    other = open_.volume.mkdir(ROOT, b"other", 0o755, ME.uid, ME.gid)
    open_.make(b"000009.log", Belief(Job.FOREGROUND), directory=other)
    assert [context.pressure for context in seen] == [Pressure(0.7), Pressure(0.7), CALM]
    assert open_.placing.pressure == Pressure(0.7)


def test_costs_are_kept(tmp_path: Path) -> None:
    made = Open(tmp_path)
    made.close()
    text = (tmp_path / "devices.yaml").read_text()
    (tmp_path / "devices.yaml").write_text(text[: text.index("placement:")] + "placement: {policy: cost}\n")
    made.config = load(tmp_path / "devices.yaml")
    made.open()
    file = made.make(b"000007.sst", at(2))
    made.reopen()
    costs = made.volume.record(file).costs
    assert costs is not None
    assert [len(cost) for cost in costs] == [3, 3, 3]
    made.close()


def test_old_records_are_read() -> None:
    """Fields that were added have defaults."""
    old = msgspec.msgpack.encode(["fast", [[1, b"a"]], 5])
    record = msgspec.msgpack.decode(old, type=FileRecord)
    assert (record.size, record.costs, record.moved) == (5, None, 0.0)


def test_what_is_promised_to_writers_of_one_tier_is_missing_on_another_of_the_same_device(tmp_path: Path) -> None:
    tiers = {name: tmp_path / name for name in ("mid", "slow")}
    for path in tiers.values():
        path.mkdir()
    write_config(tmp_path / "devices.yaml", "sharing", tiers, {"mid": "1TiB"}, levels="{mid: [wal, 0], slow: [1]}")
    config = load(tmp_path / "devices.yaml")
    volume, _ = open_volume(config, tiers["slow"], make_policy(config))
    mid, slow = volume.tiers
    before = slow.room()
    mid.promise(1 << 30)
    after = slow.room()
    mid.promise(-(1 << 30))
    volume.close()
    # The device is used by others, too, meanwhile.
    assert before - after > 1 << 29


@pytest.mark.parametrize("driver", ["none"])
def test_tiers_of_several_devices_share_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    config = load(world.config)
    volume, _ = open_volume(config, world.directory, make_policy(config))
    devices = {tier.name: os.fstat(tier.root.fd).st_dev for tier in volume.tiers}
    for tier in volume.tiers:
        assert {other.name for other in tier.sharing} == {
            name for name, device in devices.items() if device == devices[tier.name]
        }
    volume.close()
    assert len(set(devices.values())) == 2, "the fast tier of a test is in memory"
