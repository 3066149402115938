"""The mover: which of a plan's moves are carried out, in which order, and when not. A volume without a mount."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fusefs.attributes import Caller, Changes
from fusefs.namespace import Namespace
from keigo import failpoints
from keigo.config import load
from keigo.lsm.pressure import CALM, Pressure
from keigo.placement.policy import Choice, Context, Files, FileState, Move, Prospect, TierState
from keigo.tiers import bounces, mover
from keigo.tiers.catalog import ROOT
from keigo.tiers.migration import migrate
from keigo.tiers.mover import Mover, Request
from keigo.tiers.opening import open_volume
from keigo.tiers.pace import Pace
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume
from tests.conftest import write_config

CHUNK = 256 << 10
DATA = os.urandom(3 * CHUNK + 77)
ME = Caller(os.geteuid(), os.getegid(), 0)
STALLED = Pressure(1.0, stalled=True)
FAST, MID, SLOW = range(3)
Plan = Callable[[Files, Sequence[TierState]], list[Move]]


class Scripted:
    """A policy that creates on the fast tier and plans what a test says."""

    name = "scripted"
    period: float | None = None

    def __init__(self) -> None:
        self.script: Plan = lambda _files, _tiers: []
        self.plans = 0

    def choose(self, _context: Context, _size: int, _tiers: Sequence[TierState]) -> Choice:
        return Choice(FAST, "scripted")

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        self.plans += 1
        here = {file.id: file.tier for file in files}
        return [move for move in self.script(files, tiers) if here.get(move.file) == move.source]

    def prospects(self, _file: FileState, _files: Files, _tiers: Sequence[TierState]) -> list[Prospect]:
        return []

    def prices(self, _files: Files, tiers: Sequence[TierState]) -> tuple[float, ...]:
        return (0.0,) * len(tiers)


class Bed:
    """A volume of three tiers, its mover, and what has been moved, in order."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiers = {name: base / name for name in ("fast", "mid", "slow")}
        for path in tiers.values():
            path.mkdir()
        write_config(base / "devices.yaml", "moving", tiers, {})
        self.policy = Scripted()
        self.volume, _ = open_volume(load(base / "devices.yaml"), tiers["slow"], self.policy)
        self.namespace = Namespace(self.volume)
        self.mover = Mover(self.volume, None)
        self.tiers = tiers
        self.moved: list[int] = []
        self.tried: list[int] = []

        def trying(volume: Volume, file: int, target: Tier, reason: str, pace: Pace) -> int:
            self.tried.append(file)
            return migrate(volume, file, target, reason, pace)

        monkeypatch.setattr("keigo.tiers.mover.migrate", trying)
        self.on_chunk: Callable[[], None] = lambda: None
        monkeypatch.setattr(failpoints, "hit", self._hit)

    def _hit(self, name: str) -> None:
        if name == "migrate.copying":
            self.on_chunk()
        elif name == "migrate.switched":
            self.moved += self.volume.landing

    def make(self, number: int, data: bytes = DATA) -> int:
        found, handle = self.namespace.files.create(ROOT, b"%06d.sst" % number, 0o644, os.O_RDWR, ME)
        self.namespace.io.write(handle, 0, data)
        self.namespace.files.release(handle)
        return found.id

    def down(self, file: int, *, urgent: bool = False, target: int = MID) -> Move:
        return Move(file, FAST, target, "test", urgent=urgent)

    def plan(self, *moves: Move) -> None:
        """Plan these as long as the files are where they say."""
        self.policy.script = lambda _files, _tiers: list(moves)

    def feel(self, pressure: Pressure) -> None:
        self.volume.placing.felt(ROOT, pressure, time.time() + 3600)

    def home(self, file: int) -> str:
        return self.volume.record(file).home

    def wait(self, so: Callable[[], object]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + 60
        while not so():
            assert time.monotonic() < deadline, self.mover.progress
            self.mover.wait_change(0.02)

    def wait_plans(self, more: int) -> None:
        """Wait until so many more plans were made."""
        self.wait(lambda: self.mover.progress.current is None)
        wanted = self.policy.plans + more

        def planned() -> bool:
            self.mover.poke()
            return self.policy.plans >= wanted

        self.wait(planned)

    def close(self) -> None:
        self.on_chunk = lambda: None
        self.mover.stop()
        self.namespace.close()
        self.volume.close()


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    made = Bed(tmp_path, monkeypatch)
    yield made
    made.close()


class Gate:
    """Holds the mover after a chunk, in whichever copy."""

    def __init__(self, bed: Bed) -> None:
        self.arrived, self.go = threading.Event(), threading.Event()
        bed.on_chunk = self._hold

    def _hold(self) -> None:
        self.arrived.set()
        assert self.go.wait(60)

    def reached(self) -> None:
        assert self.arrived.wait(60)


def test_a_plan_is_carried_out_in_its_order_with_what_is_urgent_first(bed: Bed) -> None:
    a, b, c, d = (bed.make(number) for number in range(4))
    bed.plan(bed.down(a), bed.down(b), bed.down(c, urgent=True), bed.down(d, target=SLOW))
    bed.mover.start()
    bed.wait(lambda: len(bed.moved) == 4)
    assert bed.moved == [c, a, b, d]
    assert [bed.home(file) for file in (a, b, c, d)] == ["mid", "mid", "mid", "slow"]
    assert (bed.tiers["mid"] / "000001.sst").read_bytes() == DATA
    bed.wait(lambda: bed.mover.progress.done == 4)
    assert bed.mover.progress.bytes == 4 * len(DATA)


def test_what_is_urgent_waits_for_what_makes_room_for_it(bed: Bed) -> None:
    """Refused for want of room it would not be tried again for seconds."""
    a, b, c = (bed.make(number) for number in range(3))
    bed.plan(bed.down(a), Move(a, MID, SLOW, "test"), bed.down(b, urgent=True), bed.down(c, urgent=True))
    bed.volume.tiers[MID].promise(bed.volume.tiers[MID].room() - len(DATA) * 3 // 2)
    assert [request.file for request in bed.mover.plan()] == [b, a, c]


def test_of_a_long_plan_only_the_first_moves_are_queued_and_the_next_plan_follows(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_MOST_PLANNED", 4)
    files = [bed.make(number, b"x" * 100) for number in range(10)]
    bed.plan(*(bed.down(file) for file in files))
    assert len(bed.mover.plan()) == 4
    bed.mover.start()
    bed.wait(lambda: len(bed.moved) == 10)
    assert bed.moved == files
    assert bed.policy.plans >= 4


def test_nothing_but_what_makes_room_moves_while_writers_wait(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_STALE", 0.2)
    a, b = bed.make(1), bed.make(2)
    bed.plan(bed.down(a), bed.down(b, urgent=True))
    bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    bed.wait(lambda: bed.mover.progress.done == 1)
    bed.wait(lambda: bed.mover.progress.paused)
    assert bed.tried == [b]
    assert "writers wait" in (bed.mover.progress.paused or "")
    bed.wait_plans(2)
    assert bed.tried == [b], "no copy was begun"
    bed.feel(CALM)
    bed.wait(lambda: bed.moved == [b, a])
    bed.wait(lambda: bed.mover.progress.paused is None)


def test_a_copy_pauses_when_writers_begin_to_wait(bed: Bed) -> None:
    file = bed.make(1)
    bed.plan(bed.down(file))
    gate = Gate(bed)
    bed.mover.start()
    gate.reached()
    bed.feel(STALLED)
    gate.arrived.clear()
    gate.go.set()
    # The budget is asked for anew ten times a second: at most what is copied until then goes on.
    bed.wait(lambda: bed.mover.progress.paused or bed.moved)
    if not bed.moved:
        assert bed.mover.progress.current == "000001.sst"
        bed.feel(CALM)
        bed.wait(lambda: bed.moved)


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each chunk be asked for."""
    monkeypatch.setattr("keigo.tiers.pace.ASK_EVERY", 0.0)


def test_a_paused_copy_waits_in_the_middle(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    file = bed.make(1)
    bed.plan(bed.down(file))
    bed.on_chunk = lambda: bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    assert bed.mover.progress.current == "000001.sst"
    assert bed.home(file) == "fast"
    bed.on_chunk = lambda: None
    bed.feel(CALM)
    bed.wait(lambda: bed.home(file) == "mid")
    assert bed.mover.progress.cancelled == 0


def test_a_paused_copy_does_not_hold_up_the_end(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    bed.plan(bed.down(bed.make(1)))
    bed.on_chunk = lambda: bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    bed.mover.pause()
    assert bed.mover.progress.current is None
    assert os.listdir(bed.tiers["mid"] / ".keigo" / "incoming") == []
    bed.feel(CALM)
    bed.on_chunk = lambda: None
    bed.mover.resume()
    bed.wait(lambda: bed.mover.progress.done == 1)


def test_a_file_rewritten_in_place_with_its_old_time_is_not_taken_for_damaged(bed: Bed) -> None:
    """As `rsync --inplace -t` does: the time is set before the file is closed."""
    file = bed.make(1)
    migrate(bed.volume, file, bed.volume.tiers[MID], "test", Pace(None))
    before = bed.namespace.nodes.getattr(file).mtime_ns
    handle = bed.namespace.files.open(file, os.O_RDWR)
    bed.namespace.io.write(handle, 0, b"other bytes")
    bed.namespace.nodes.setattr(file, Changes(mtime_ns=before), handle)
    bed.namespace.files.release(handle)
    migrate(bed.volume, file, bed.volume.tiers[SLOW], "test", Pace(None))
    assert (bed.tiers["slow"] / "000001.sst").read_bytes() == b"other bytes" + DATA[11:]


def test_what_a_compaction_reads_is_left_alone(bed: Bed) -> None:
    a, b, c = (bed.make(number) for number in range(3))
    bed.volume.hooks.doomed = lambda: frozenset({a, b})
    bed.plan(bed.down(a), bed.down(b, urgent=True), bed.down(c))
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.done == 2)
    bed.wait_plans(2)
    assert bed.moved == bed.tried == [b, c]
    assert [bed.mover.held(file) for file in (a, c, bed.make(4))] == [
        "a compaction reads it, and will replace it",
        "has come from fast a short while ago, and does not go back yet",
        None,
    ]


def test_a_copy_ends_when_a_compaction_begins_to_read_the_file(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    a, b = bed.make(1), bed.make(2)

    def doom() -> None:
        bed.volume.hooks.doomed = lambda: frozenset({a})

    bed.on_chunk = doom
    bed.plan(bed.down(a), bed.down(b))
    bed.mover.start()
    bed.wait(lambda: bed.home(b) == "mid")
    assert bed.home(a) == "fast"
    assert not (bed.tiers["mid"] / "000001.sst").exists()
    assert os.listdir(bed.tiers["mid"] / ".keigo" / "incoming") == []
    bed.volume.hooks.doomed = frozenset
    bed.mover._refused.clear()
    bed.on_chunk = lambda: None
    bed.mover.poke()
    bed.wait(lambda: bed.home(a) == "mid")


def test_an_urgent_copy_goes_on_although_a_compaction_reads_the_file(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    file = bed.make(1)

    def trouble() -> None:
        bed.volume.hooks.doomed = lambda: frozenset({file})
        bed.feel(STALLED)

    bed.on_chunk = trouble
    bed.plan(bed.down(file, urgent=True))
    bed.mover.start()
    bed.wait(lambda: bed.home(file) == "mid")


def test_the_rest_of_an_old_plan_is_not_carried_out(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_STALE", 0.2)
    a, b, c = (bed.make(number) for number in range(3))
    gate = Gate(bed)
    bed.plan(bed.down(a, urgent=True), bed.down(b, urgent=True))
    bed.mover.start()
    gate.reached()
    bed.plan(bed.down(c))
    threading.Event().wait(0.3)  # it grows old
    gate.go.set()
    bed.wait(lambda: bed.home(c) == "mid")
    assert bed.moved == [a, c]


@pytest.mark.parametrize("change", ["gone", "open", "full"])
def test_each_move_is_looked_at_again_when_its_turn_comes(bed: Bed, change: str) -> None:
    a, b, c = (bed.make(number) for number in range(3))
    gate = Gate(bed)
    bed.plan(bed.down(a), bed.down(b), bed.down(c, target=SLOW))
    bed.mover.start()
    gate.reached()
    handle = 0
    if change == "gone":
        bed.namespace.names.unlink(ROOT, b"000001.sst")
    elif change == "open":
        handle = bed.namespace.files.open(b, os.O_RDWR)
    else:
        bed.volume.by_name["mid"].charge(1 << 50)
    gate.go.set()
    bed.wait(lambda: bed.home(c) == "slow")
    assert bed.moved == [a, c]
    assert bed.mover.progress.failed == 0
    if change == "open":
        bed.namespace.files.release(handle)


def test_a_move_from_where_the_file_is_not_any_more(bed: Bed) -> None:
    file = bed.make(1)
    bed.plan(bed.down(file, target=SLOW), bed.down(file))
    bed.mover.start()
    bed.wait_plans(3)
    assert bed.moved == [file]
    assert bed.home(file) == "slow"


def test_a_file_does_not_go_to_and_fro(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_STALE", 0.2)  # a refused file is planned again at once
    file, other = bed.make(1), bed.make(2)
    bed.plan(Move(file, FAST, MID, "down"), Move(file, MID, FAST, "up"))
    bed.mover.start()
    bed.wait(lambda: bed.moved == [file])
    bed.wait_plans(4)
    assert bed.moved == [file]
    bed.plan(Move(file, MID, FAST, "up"), Move(file, MID, SLOW, "on"), bed.down(other))
    bed.wait(lambda: bed.home(other) == "mid")  # others are not held up
    bed.wait(lambda: bed.home(file) == "slow")  # and to a third tier it may go


def test_a_file_may_go_back_where_room_is_needed_or_a_pin_says_so(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounces, "HOLD", 1e6)
    a, b = bed.make(1), bed.make(2)
    bed.plan(bed.down(a), bed.down(b))
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.done == 2)
    bed.volume.pins.pin("000002.sst", "fast")
    bed.plan(Move(a, MID, FAST, "room", urgent=True), Move(b, MID, FAST, "pinned"))
    bed.mover.poke()
    bed.wait(lambda: bed.mover.progress.done == 4)
    assert [bed.home(file) for file in (a, b)] == ["fast", "fast"]


def test_it_may_go_back_when_the_time_has_come(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounces, "HOLD", 0.0)
    file = bed.make(1)
    bed.plan(Move(file, FAST, MID, "down"), Move(file, MID, FAST, "up"))
    bed.mover.start()
    bed.wait(lambda: len(bed.moved) >= 3)


def test_a_copy_that_takes_its_time_makes_way_for_what_is_urgent(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    monkeypatch.setattr(mover, "_STALE", 0.2)
    a, b = bed.make(1), bed.make(2)
    bed.plan(bed.down(a))
    bed.on_chunk = lambda: bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    bed.plan(bed.down(a), bed.down(b, urgent=True))
    bed.wait(lambda: bed.home(b) == "mid")
    assert bed.home(a) == "fast"


def test_a_copy_that_takes_its_time_makes_way_for_a_user(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    a, b = bed.make(1), bed.make(2)
    bed.plan(bed.down(a))
    bed.on_chunk = lambda: bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    outcome: list[str | None] = []
    bed.mover.submit(Request(b, "mid", "by command", outcome.append, keep=True))
    bed.wait(lambda: outcome)
    assert outcome == [None]
    assert bed.moved == [b]


def test_it_plans_again_after_the_policy_s_period(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_PLAN_EVERY", 0.01)
    bed.mover.start()
    bed.wait(lambda: bed.policy.plans == 1)
    bed.mover.wait_change(0.3)
    assert bed.policy.plans == 1, "nothing has happened and the policy has no period"
    bed.policy.period = 0.02
    bed.mover.poke()
    bed.wait(lambda: bed.policy.plans > 5)


def test_a_failed_move_is_not_tried_again_at_once(bed: Bed) -> None:
    file = bed.make(1)

    def fail() -> None:
        raise OSError(5, "broken")

    bed.on_chunk = fail
    bed.plan(bed.down(file))
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.failed == 1)
    bed.wait_plans(3)
    assert bed.mover.progress.failed == 1
    assert bed.mover.progress.last_error == "000001.sst: broken"
    assert bed.mover.held(file) == "the last move failed: broken"


def test_a_drain_is_not_kept_waiting(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by writers that wait, nor by a copy that is under way."""
    slowly(monkeypatch)
    files = [bed.make(number) for number in range(3)]
    bed.plan(*(bed.down(file) for file in files))
    bed.on_chunk = lambda: bed.feel(STALLED)
    bed.mover.start()
    bed.wait(lambda: bed.mover.progress.paused is not None)
    bed.volume.evacuation.draining = True
    bed.mover.poke()
    bed.wait(lambda: all(bed.home(file) == "slow" for file in files))
    bed.volume.evacuation.draining = False
