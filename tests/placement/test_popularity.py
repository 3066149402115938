"""The `popularity` policy, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.packing import ordinal
from keigo.placement.policy import Context, FileState, Policy, TierState
from keigo.placement.popularity import PopularityPolicy

from .support import NOW, ListFiles, Unread, sst, tiers

POLICY: Policy = PopularityPolicy(metadata_tier=2, period=60.0)


def planned(files: list[FileState], states: list[TierState]) -> list[tuple[int, int, int]]:
    return [(move.file, move.source, move.target) for move in POLICY.plan(ListFiles(files), states)]


def test_new_files_go_to_the_fastest_tier_with_room() -> None:
    for role, tier in ((Role.SST, 0), (Role.WAL, 0), (Role.CURRENT, 2)):
        assert POLICY.choose(Context(role, Job.COMPACTION, 6, b"x"), 10, tiers(10, 500, 500)).tier == tier
    assert POLICY.choose(Context(Role.SST, Job.FLUSH, 0, b"x"), 10, tiers(9, 500, 500)).tier == 1


def test_what_is_read_most_goes_up_first_and_as_much_as_fits() -> None:
    files = [sst(1, 2, 40, reads=1.0), sst(2, 2, 40, reads=3.0), sst(3, 2, 40, reads=2.0), sst(4, 2, 40)]
    # A twentieth of 1000 stays free: 130 - 50 hold two files.
    moves = POLICY.plan(ListFiles(files), tiers(130, 70, 500))
    assert [(move.file, move.target) for move in moves] == [(2, 0), (3, 0)]
    assert [move.reason for move in moves] == [
        "3 reads/s, 1st of 3: fits t0",
        "2 reads/s, 2nd of 3: fits t0",
    ]
    assert not any(move.urgent for move in moves)


def test_reads_count_not_reads_per_byte() -> None:
    files = [sst(1, 2, 50, reads=2.0), sst(2, 2, 10, reads=1.9)]
    assert planned(files, tiers(100, 50, 500)) == [(1, 2, 0)]


def test_a_file_that_is_read_less_makes_way() -> None:
    files = [sst(1, 0, 40, reads=1.0), sst(2, 2, 40, reads=2.0)]
    assert planned(files, tiers(50, 90, 500)) == [(2, 2, 0), (1, 0, 1)]
    assert planned(files, tiers(39, 90, 500)) == [(2, 2, 1), (1, 0, 2)], "with a twentieth free the fastest holds none"
    files[0] = replace(files[0], reads=2.0)
    assert planned(files, tiers(50, 90, 500)) == [(2, 2, 1)]
    assert planned(files, tiers(50, 89, 500)) == []


@pytest.mark.parametrize("equal", [0.0, 0.3])
def test_of_files_read_equally_often_none_moves_for_another(equal: float) -> None:
    files = [sst(number, number % 3, 40, reads=equal) for number in range(1, 13)]
    assert planned(files, tiers(50, 50, 500)) == []


def test_what_nobody_reads_stays_until_its_room_is_needed_and_then_the_oldest_goes() -> None:
    idle = [replace(sst(number, 0, 20), created=NOW - 1000 + number % 5) for number in range(1, 7)]
    assert POLICY.plan(Unread(idle), tiers(50, 500, 500)) == []
    assert planned([sst(9, 2)], tiers(1000, 1000, 500)) == [], "it does not go up, either"
    moves = POLICY.plan(ListFiles([*idle, sst(7, 1, 30, reads=0.1)]), tiers(50, 500, 500))
    assert [(move.file, move.target) for move in moves] == [(7, 0), (5, 1), (1, 1)]
    assert moves[1].reason == "hardly read, and t0 needs the room"


def test_idle_files_go_no_further_down_than_to_the_next_tier_with_room() -> None:
    idle = [sst(1, 0, 60), sst(2, 1, 10)]
    assert planned([*idle, sst(3, 2, 50, reads=1.0)], tiers(50, 100, 500)) == [(3, 2, 0), (1, 0, 2)]
    assert planned([*idle, sst(3, 2, 50, reads=1.0)], tiers(50, 110, 500)) == [(3, 2, 0), (1, 0, 1)]
    two = [sst(1, 0, 30), sst(2, 0, 30), sst(3, 2, 60, reads=1.0)]
    assert planned(two, tiers(60, 109, 500)) == [(3, 2, 0), (1, 0, 1), (2, 0, 2)], "the next holds one of them"


def test_a_file_rests_for_a_period_where_it_was_made_or_moved_to() -> None:
    files = [
        replace(sst(1, 2, reads=5.0), created=NOW - 59),
        replace(sst(2, 2, reads=4.0), created=NOW - 61),
        replace(sst(3, 2, reads=3.0), created=NOW - 900, moved=NOW - 59),
        replace(sst(4, 2, reads=2.0), created=NOW - 900, moved=NOW - 61),
    ]
    assert planned(files, tiers(500, 500, 500)) == [(2, 2, 0), (4, 2, 0)]
    assert POLICY.period == 60
    assert len(PopularityPolicy(2, 59.0).plan(ListFiles(files), tiers(500, 500, 500))) == 4


def test_not_on_a_tier_that_is_too_full_which_is_urgent() -> None:
    files = [replace(sst(1, 0, 30, reads=5.0), created=NOW), replace(sst(2, 0, 60), created=NOW), sst(3, 1)]
    assert planned(files, tiers(25, 500, 500)) == [], "25 are less than a twentieth, but not too little"
    moves = POLICY.plan(ListFiles(files), tiers(-1, 500, 500))
    assert [(move.file, move.target, move.urgent) for move in moves] == [(2, 1, True)]


def test_the_slowest_tier_gives_up_no_more_than_it_must() -> None:
    idle = [replace(sst(number, 2), created=NOW - number) for number in range(1, 4)]
    (move,) = POLICY.plan(ListFiles([*idle, sst(4, 2, reads=1.0)]), tiers(59, 500, -5))
    assert (move.file, move.target, move.urgent) == (4, 1, True)
    moves = POLICY.plan(ListFiles(idle), tiers(59, 9, -15))
    assert [(move.file, move.target) for move in moves] == [(3, 0), (2, 0)]
    assert moves[0].reason == "makes room on t2"


def test_files_on_full_tiers_change_places_by_way_of_the_slowest() -> None:
    files = [sst(1, 0, 60, reads=1.0), sst(2, 1, 60, reads=2.0)]
    moves = POLICY.plan(ListFiles(files), tiers(55, 55, 500))
    assert [(move.file, move.source, move.target) for move in moves] == [(1, 0, 2), (2, 1, 0), (1, 2, 1)]
    assert moves[0].reason == "makes way on t0, until t1 has room"
    assert planned(files, tiers(55, 55, 59)) == [], "no room to wait in"
    assert planned(files, tiers(60, 55, 59)) == [(2, 1, 0), (1, 0, 1)]


def test_only_what_is_needed_makes_way() -> None:
    # 1 and 2 belong on t1, where 3 is; 2 alone leaves the room for it.
    files = [sst(1, 0, 3, reads=0.1), sst(2, 0, 60, reads=0.2), sst(3, 1, 63, reads=2.0)]
    assert planned(files, tiers(50, 0, 500)) == [(2, 0, 2), (3, 1, 0), (1, 0, 1)]


def test_nothing_makes_way_for_a_file_that_is_read_less() -> None:
    # 1 waits on t1 for the room of 3 on t0, and 2 for that of 4 on t1; but there is none on t2 for such large ones.
    files = [
        sst(1, 1, 10, reads=2.0),
        sst(2, 2, 10, reads=1.0),
        sst(3, 0, 60, reads=0.5),
        sst(4, 1, 60, reads=0.4),
    ]
    assert planned(files, tiers(0, 0, 10)) == []
    assert planned(files, tiers(0, 0, 60)) == [(3, 0, 2), (1, 1, 0), (2, 2, 1)]


def test_a_file_too_large_for_a_tier_goes_to_the_next() -> None:
    files = [sst(1, 2, 80, reads=9.0), sst(2, 2, 20, reads=1.0)]
    assert planned(files, tiers(129, 130, 500)) == [(1, 2, 1), (2, 2, 0)]


def test_pins_hold_and_draw_and_take_their_room_first() -> None:
    files = [
        sst(1, 0, 30, pinned=0),
        sst(2, 2, 30, pinned=0),
        sst(3, 2, 30, reads=9.0),
        sst(4, 1, 30, reads=5.0, pinned=1),
    ]
    assert planned(files, tiers(90, 40, 500)) == [(2, 2, 0)]
    assert planned(files, tiers(110, 40, 500)) == [(2, 2, 0), (3, 2, 0)]


def test_nothing_makes_way_for_a_pinned_file_that_fits_nowhere_there() -> None:
    files = [sst(1, 0, 100, reads=5.0), sst(2, 2, 900, pinned=0)]
    assert planned(files, tiers(60, 500, 500)) == []
    assert planned(files, tiers(800, 500, 500)) == [(1, 0, 1), (2, 2, 0)]


def test_only_sst_and_blob_files_move() -> None:
    files = [replace(sst(number, 2, reads=5.0), role=role, group=None) for number, role in enumerate(Role)]
    moved = {files[file].role for file, _, _ in planned(files, tiers(500, 500, 500))}
    assert moved == {Role.SST, Role.BLOB}


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (113, "113th")],
)
def test_ordinal(number: int, text: str) -> None:
    assert ordinal(number) == text
