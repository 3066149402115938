"""The mover and a drain when something fails that nobody reckoned with. A volume without a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from keigo.control import ControlError
from keigo.placement.policy import Files, Move, TierState
from keigo.serving.drain import Drainer
from keigo.tiers.migration import migrate
from keigo.tiers.mover import Request
from keigo.tiers.pace import Pace
from tests.tiers.test_mover import DATA, Bed


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    made = Bed(tmp_path, monkeypatch)
    yield made
    made.close()


def drained(bed: Bed) -> dict[str, Any]:
    drainer = Drainer(bed.volume, bed.mover)
    drainer.start()
    return drainer.follow(lambda _status: None)


def test_a_defect_in_one_move_ends_neither_the_mover_nor_an_unmount(bed: Bed) -> None:
    a, b = bed.make(1), bed.make(2)
    raised: list[bool] = []

    def raise_once() -> None:
        if not raised:
            raised.append(True)
            raise KeyError("a defect")

    bed.on_chunk = raise_once
    told: list[str | None] = []
    bed.mover.submit(Request(a, "mid", "test", told.append))
    bed.mover.submit(Request(b, "mid", "test", told.append))
    bed.mover.start()
    bed.wait(lambda: len(told) == 2)
    assert told == ["KeyError('a defect')", None]
    assert (bed.home(a), bed.home(b)) == ("fast", "mid")
    assert bed.mover.progress.failed == 1
    assert "a defect" in str(bed.mover.progress.last_error)
    bed.mover.pause()
    bed.mover.resume()


def test_a_policy_that_cannot_plan_does_not_end_the_mover(bed: Bed) -> None:
    a = bed.make(1)

    def defect(_files: Files, _tiers: Sequence[TierState]) -> list[Move]:
        raise OverflowError("math range error")

    bed.policy.script = defect
    bed.mover.start()
    bed.wait_plans(2)
    bed.wait(lambda: bed.mover.progress.last_error)
    assert bed.mover.progress.last_error == "no plan: OverflowError('math range error')"
    bed.plan(bed.down(a))
    bed.mover.poke()
    bed.wait(lambda: bed.home(a) == "mid")


def test_a_drain_ends_where_a_file_has_links_that_nobody_knows(bed: Bed, tmp_path: Path) -> None:
    bed.make(1)
    bed.make(2)
    os.link(bed.tiers["fast"] / "000001.sst", tmp_path / "foreign")
    bed.mover.start()
    with pytest.raises(ControlError, match="000001.sst: has 2 links on its tier and 1 in the volume"):
        drained(bed)
    os.unlink(tmp_path / "foreign")
    bed.wait(lambda: not bed.volume.evacuation.draining)
    assert drained(bed)["files"] >= 1
    assert (bed.tiers["slow"] / "000001.sst").read_bytes() == DATA


def test_a_drain_ends_where_a_file_is_lost_from_its_tier(bed: Bed) -> None:
    bed.make(1)
    (bed.tiers["fast"] / "000001.sst").unlink()
    bed.mover.start()
    with pytest.raises(ControlError, match="000001.sst: is not on its tier"):
        drained(bed)


def test_a_drain_that_ends_by_a_defect_does_not_say_that_all_is_well(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.make(1)

    def defect() -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(bed.volume.guards, "remove_all", defect)
    monkeypatch.setattr("threading.excepthook", lambda _args: None)
    bed.mover.start()
    with pytest.raises(ControlError, match="a defect"):
        drained(bed)
    assert not bed.volume.evacuation.draining


@pytest.mark.parametrize("fails", [False, True])
def test_room_is_taken_when_a_copy_begins_and_given_back_when_it_fails(bed: Bed, fails: bool) -> None:
    file, mid = bed.make(1), bed.volume.by_name["mid"]
    mid.capacity, mid.reserve = len(DATA) + 100, 0
    rooms = []

    def look() -> None:
        rooms.append(mid.room())
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    bed.on_chunk = look
    try:
        migrate(bed.volume, file, mid, "test", Pace(None))
    except OSError as error:
        assert error.errno == errno.EIO
    assert set(rooms) == {100}
    assert (mid.room(), mid.files) == ((len(DATA) + 100, 0) if fails else (100, 1))
