"""The `levels` policy, by example."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import pytest

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.levels import LevelsPolicy
from keigo.placement.planner import MOST_ALIKE
from keigo.placement.policy import Bucket, Context, FileState, Move, Policy, TierState
from tests.placement.support import ListFiles, Unread, done, sst

NVMM, NVME, SATA = 0, 1, 2
PAPER: Sequence[frozenset[int | Literal["wal"]]] = [
    frozenset({"wal", 0, 1}),
    frozenset({2, 3}),
    frozenset({4, 5, 6}),
]
POLICY: Policy = LevelsPolicy(PAPER, SATA)


def tiers(*rooms: int, capacity: int = 1000) -> list[TierState]:
    names = ("nvmm", "nvme", "sata", "tape")
    return [TierState(names[i], capacity, capacity - room, room) for i, room in enumerate(rooms)]


def planned(files: Sequence[FileState], states: Sequence[TierState]) -> list[Move]:
    return POLICY.plan(ListFiles(files), states)


def chosen(role: Role, job: Job = Job.UNKNOWN, level: int | None = None, rooms: Sequence[int] = (500,) * 3) -> int:
    return POLICY.choose(Context(role, job, level, b"db/x"), 10, tiers(*rooms)).tier


# --- choose ---


@pytest.mark.parametrize(
    ("role", "job", "level", "tier"),
    [
        (Role.WAL, Job.FOREGROUND, None, NVMM),
        (Role.SST, Job.FLUSH, None, NVMM),
        (Role.SST, Job.FLUSH, 0, NVMM),
        (Role.SST, Job.FLUSH, 2, NVME),
        (Role.SST, Job.COMPACTION, 1, NVMM),
        (Role.SST, Job.COMPACTION, 3, NVME),
        (Role.SST, Job.COMPACTION, 6, SATA),
        (Role.SST, Job.COMPACTION, 40, SATA),
        (Role.SST, Job.COMPACTION, None, NVMM),
        (Role.SST, Job.FOREGROUND, None, NVMM),
        (Role.SST, Job.UNKNOWN, None, NVMM),
        (Role.BLOB, Job.FLUSH, 0, NVMM),
        (Role.BLOB, Job.COMPACTION, 5, SATA),
        (Role.MANIFEST, Job.FLUSH, None, SATA),
        (Role.CURRENT, Job.FOREGROUND, None, SATA),
        (Role.OPTIONS, Job.FOREGROUND, None, SATA),
        (Role.INFOLOG, Job.FOREGROUND, None, SATA),
        (Role.IDENTITY, Job.FOREGROUND, None, SATA),
        (Role.TEMPORARY, Job.FOREGROUND, None, SATA),
        (Role.LOCK, Job.FOREGROUND, None, SATA),
        (Role.OTHER, Job.UNKNOWN, None, SATA),
    ],
)
def test_wished_tier(role: Role, job: Job, level: int | None, tier: int) -> None:
    assert chosen(role, job, level) == tier


def test_output_of_unknown_level_starts_below_the_flushes() -> None:
    policy = LevelsPolicy([frozenset({"wal", 0}), frozenset({1, 2}), frozenset({3})], SATA)
    wished = {
        (role, job): policy.choose(Context(role, job, None, b"x"), 10, tiers(500, 500, 500)).tier
        for role in (Role.SST, Role.BLOB)
        for job in (Job.COMPACTION, Job.FOREGROUND)
    }
    assert wished == {
        (Role.SST, Job.COMPACTION): NVME,
        (Role.SST, Job.FOREGROUND): NVMM,
        (Role.BLOB, Job.COMPACTION): NVME,
        (Role.BLOB, Job.FOREGROUND): NVME,
    }


@pytest.mark.parametrize(
    ("levels", "level", "tier"),
    [
        ([{"wal", 0, 1}, {4}, {5}], 2, NVME),
        ([{"wal"}, {1}, {5}], 0, NVME),
        ([{"wal"}, {0, 1}, set()], 3, NVME),
        ([{0}, {1}, {0, 1}], 0, NVMM),
        ([{0}, {1}, {0, 1}], 7, SATA),
        ([{"wal"}, set(), set()], 0, SATA),
    ],
)
def test_level_listed_nowhere_or_twice(levels: list[set[int | Literal["wal"]]], level: int, tier: int) -> None:
    policy = LevelsPolicy([frozenset(listed) for listed in levels], SATA)
    assert policy.tier_of_level(level) == tier


def test_wal_listed_nowhere_goes_to_the_fastest() -> None:
    policy = LevelsPolicy([frozenset({0}), frozenset({1})], 1)
    assert policy.choose(Context(Role.WAL, Job.FOREGROUND, None, b"x"), 0, tiers(5, 5)).tier == 0


@pytest.mark.parametrize(
    ("level", "rooms", "tier"),
    [(0, (5, 500, 500), NVME), (0, (-5, 5, 500), SATA), (5, (500, 500, 5), NVME), (3, (500, 5, 5), NVMM)],
)
def test_full_tier_falls_slower_then_faster(level: int, rooms: tuple[int, ...], tier: int) -> None:
    assert chosen(Role.SST, Job.COMPACTION, level, rooms) == tier


def test_reasons_name_what_decided() -> None:
    def why(role: Role, job: Job, level: int | None, *rooms: int) -> str:
        return POLICY.choose(Context(role, job, level, b"x"), 10, tiers(*rooms)).reason

    assert why(Role.WAL, Job.FOREGROUND, None, 50, 50, 50) == "wal is listed on nvmm"
    assert why(Role.SST, Job.COMPACTION, 3, 50, 50, 50) == "level 3 is listed on nvme"
    assert why(Role.SST, Job.COMPACTION, 9, 50, 50, 50) == "level 9 is listed nowhere: sata is next"
    assert why(Role.SST, Job.FLUSH, None, 5, 50, 50) == (
        "flush: level 0 is listed on nvmm; nvmm is full, nvme has room"
    )
    assert why(Role.MANIFEST, Job.FLUSH, None, 50, 50, 50) == "manifest: sata is the tier for metadata"


# --- plan ---


def test_nothing_to_do() -> None:
    assert planned([], tiers(500, 500, 500)) == []
    assert planned([sst(1, NVMM, level=0), sst(2, SATA, level=5), sst(3, NVME)], tiers(0, 0, 0)) == []


def test_files_are_not_read_where_no_room_or_nothing_to_do_can_be_seen() -> None:
    home = [sst(1, NVMM, level=0), sst(2, SATA, level=5), sst(3, NVME)]
    assert POLICY.plan(Unread(home), tiers(0, 0, 0)) == []
    # One belongs up, but 49 bytes are not the twentieth of 1000.
    astray = [*home, sst(4, SATA, level=0)]
    assert POLICY.plan(Unread(astray), tiers(49, 0, 500)) == []
    with pytest.raises(AssertionError, match="files are read"):
        POLICY.plan(Unread(astray), tiers(50, 0, 500))


def test_of_full_tiers_only_those_files_are_read_that_may_move() -> None:
    class Some(ListFiles):
        def members(self, bucket: Bucket) -> Iterator[FileState]:
            assert bucket.tier == NVMM or bucket.group.level == 1
            return super().members(bucket)

    files = [sst(1, NVMM, level=0), sst(2, NVME, level=2), sst(3, SATA, level=1), sst(4, SATA, level=6)]
    assert [move.file for move in POLICY.plan(Some(files), tiers(-1, 500, 500))] == [1]


def test_of_very_many_alike_a_plan_takes_some_and_the_next_goes_on() -> None:
    count = 2 * MOST_ALIKE + 100
    files = ListFiles([sst(number, SATA, level=0, size=1) for number in range(1, count + 1)])
    states = tiers(10**6, 0, 0, capacity=10**6)
    moves: list[Move] = []
    rounds = 0
    while plan := POLICY.plan(files, states):
        assert len(plan) <= MOST_ALIKE
        states = done(files, states, plan)
        files = files.after(plan)
        moves += plan
        rounds += 1
    assert rounds == 3
    assert sorted(move.file for move in moves) == list(range(1, count + 1))


def test_full_tier_gives_up_what_belongs_below_then_unknown_then_known_the_oldest_first() -> None:
    files = [
        sst(1, NVMM, level=0),
        sst(2, NVMM, level=1),
        sst(3, NVMM),
        sst(4, NVMM),
        sst(5, NVMM, level=2),
        sst(6, NVMM, level=6),
        sst(7, NVMM, level=6),
    ]
    # A twentieth of 1000 is 50: six files of 10 bytes bring room from -1 to 59, the seventh stays.
    moves = planned(files, tiers(-1, 500, 500))
    assert [(move.file, move.target) for move in moves] == [
        (6, SATA),
        (7, SATA),
        (5, NVME),
        (3, NVME),
        (4, NVME),
        (2, NVME),
    ]
    assert moves[0].reason == "makes room on nvmm; level 6 is listed on sata"
    assert moves[3].reason == "makes room on nvmm"


def test_a_tier_that_is_only_nearly_full_is_left_alone() -> None:
    assert planned([sst(1, NVMM)], tiers(0, 500, 500)) == []


def test_room_is_made_on_the_next_slower_tier_that_has_some_else_on_a_faster_one() -> None:
    files = [sst(1, NVME), sst(2, NVME), sst(3, NVME), sst(4, NVME), sst(5, NVME)]
    moves = planned(files, tiers(19, -1, 25))
    assert [(move.file, move.target) for move in moves] == [(1, SATA), (2, SATA), (3, NVMM)]


def test_a_file_too_large_for_any_other_tier_does_not_stop_smaller_ones() -> None:
    moves = planned([sst(1, NVMM, size=400), sst(2, NVMM, size=60)], tiers(-1, 100, 100))
    assert [(move.file, move.target) for move in moves] == [(2, NVME)]


def test_pins_hold_under_pressure_and_draw_files() -> None:
    files = [
        sst(1, NVMM, level=6, pinned=NVMM),
        sst(2, SATA, level=6, pinned=NVME),
        sst(3, NVMM, pinned=SATA),
    ]
    moves = planned(files, tiers(-1, 10, 500))
    assert sorted((move.file, move.target) for move in moves) == [(2, NVME), (3, SATA)]
    assert {move.reason for move in moves} >= {"pinned to nvme"}


def test_known_levels_go_home_and_leave_the_watermark_free() -> None:
    files = [sst(1, SATA, level=0), sst(2, SATA, level=1), sst(3, NVMM, level=5)]
    assert {move.file: move.target for move in planned(files, tiers(500, 500, 500))} == {
        1: NVMM,
        2: NVMM,
        3: SATA,
    }
    # 60 - 10 leaves exactly the twentieth; one more does not fit, and the upper level is worth more.
    assert [move.file for move in planned(files[:2], tiers(60, 500, 500))] == [1]
    assert planned(files[:2], tiers(59, 500, 500)) == []


def test_files_that_go_down_make_room_for_those_that_go_up() -> None:
    files = [sst(1, SATA, level=0), sst(2, NVMM, level=5)]
    moves = planned(files, tiers(50, 500, 500))
    assert [(move.file, move.target) for move in moves] == [(2, SATA), (1, NVMM)]


def test_what_goes_down_goes_first_so_that_the_upper_level_gets_the_room() -> None:
    files = [sst(1, SATA, 60, level=0), sst(2, SATA, 10, level=1), sst(3, NVMM, 50, level=5)]
    moves = planned(files, tiers(60, 500, 500))
    assert [(move.file, move.target) for move in moves] == [(3, SATA), (1, NVMM)]


def test_room_that_appears_elsewhere_is_used_for_a_full_tier_in_the_same_plan() -> None:
    files = [sst(1, NVMM, 120), sst(2, NVME, 50, level=5)]
    moves = planned(files, tiers(-1, 90, 100))
    assert [(move.file, move.target) for move in moves] == [(2, SATA), (1, NVME)]


def test_two_moves_made_one_are_urgent_where_one_of_them_was() -> None:
    # 1 would go to nvme first, for sata has no room until 3 has left.
    files = [sst(1, NVMM, 200, level=5), sst(3, SATA, 150, level=2)]
    moves = planned(files, tiers(-1, 900, 100))
    assert [(move.file, move.target, move.urgent) for move in moves] == [(3, NVME, False), (1, SATA, True)]


def test_a_file_moves_once_where_it_would_come_back() -> None:
    # To make room the two small old files would go first, the large one last; then the small ones fit again.
    files = [sst(1, NVMM, 10, level=1), sst(2, NVMM, 20, level=1), sst(3, NVMM, 300, level=1)]
    moves = planned(files, tiers(-1, 500, 500))
    assert [(move.file, move.source, move.target) for move in moves] == [(3, NVMM, NVME)]


def test_only_closed_immutable_files_move() -> None:
    states = tiers(-100, 500, 500)
    others = [replace(sst(i, NVMM, 50), role=role) for i, role in enumerate(Role) if role not in IMMUTABLE]
    assert planned(others, states) == []
    assert planned([replace(file, pinned=SATA) for file in others], states) == []
