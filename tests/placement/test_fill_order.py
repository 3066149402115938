"""The `fill-order` policy, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.fill_order import FillOrderPolicy
from keigo.placement.policy import Context, Policy

from .support import ListFiles, Unread, sst, tiers

POLICY: Policy = FillOrderPolicy(metadata_tier=2)


@pytest.mark.parametrize("role", Role)
def test_all_but_metadata_goes_to_the_fastest_whatever_its_level(role: Role) -> None:
    is_data = role is Role.WAL or role in IMMUTABLE
    for level in (None, 0, 6):
        context = Context(role, Job.COMPACTION, level, b"x")
        assert POLICY.choose(context, 10, tiers(10, 500, 500)).tier == (0 if is_data else 2)


@pytest.mark.parametrize(("rooms", "tier"), [((9, 500, 500), 1), ((-5, 9, 500), 2), ((9, 9, 10), 2)])
def test_then_to_the_next_with_room(rooms: tuple[int, ...], tier: int) -> None:
    choice = POLICY.choose(Context(Role.SST, Job.FLUSH, 0, b"x"), 10, tiers(*rooms))
    assert choice.tier == tier
    assert choice.reason == f"t0 is the fastest; t0 is full, t{tier} has room"


def test_metadata_says_so() -> None:
    choice = POLICY.choose(Context(Role.MANIFEST, Job.FLUSH, None, b"x"), 10, tiers(10, 500, 9))
    assert (choice.tier, choice.reason) == (1, "manifest: t2 is the tier for metadata; t2 is full, t1 has room")


def test_nothing_moves_as_long_as_no_tier_is_too_full() -> None:
    files = [sst(1, 2, level=0, reads=100.0), sst(2, 0, level=6), sst(3, 1)]
    assert POLICY.plan(Unread(files), tiers(500, 0, 0)) == []
    assert POLICY.period is None


def test_a_tier_that_is_too_full_gives_up_its_oldest_files_until_a_twentieth_is_free() -> None:
    files = [
        replace(sst(7, 0, 20, level=6), created=50.0),
        replace(sst(6, 0, 20, level=0), created=10.0),
        replace(sst(9, 0, 20, level=3), created=30.0),
        replace(sst(8, 0, 20, level=3), created=30.0),
        sst(1, 1, level=6),
    ]
    moves = POLICY.plan(ListFiles(files), tiers(-1, 40, 500))
    # 20 each bring the room from -1 to 59; a twentieth of 1000 is 50.
    assert [(move.file, move.target, move.urgent) for move in moves] == [(6, 1, True), (8, 1, True), (9, 2, True)]
    assert {move.reason for move in moves} == {"makes room on t0"}


def test_from_the_slowest_tier_up_where_else() -> None:
    moves = POLICY.plan(ListFiles([sst(1, 2), sst(2, 2)]), tiers(10, 10, -20))
    assert [(move.file, move.target) for move in moves] == [(1, 1), (2, 0)]


def test_pins_hold_and_draw() -> None:
    files = [sst(1, 0, pinned=0), sst(2, 0), sst(3, 0, pinned=2), sst(4, 2, pinned=1), sst(5, 2, 50, pinned=1)]
    moves = POLICY.plan(ListFiles(files), tiers(-1, 30, 500))
    # What belongs on a slower tier goes first; 5 does not fit.
    assert [(move.file, move.target, move.urgent) for move in moves] == [
        (3, 2, True),
        (2, 1, True),
        (4, 1, False),
    ]
    assert moves[0].reason == "makes room on t0; pinned to t2"
