"""The `mutant` policy, by example. What it shares with `popularity` is tested there."""

from __future__ import annotations

from dataclasses import replace

from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.mutant import MutantPolicy
from keigo.placement.policy import Context, FileState, Policy, TierState

from .support import NOW, ListFiles, sst, tiers

POLICY: Policy = MutantPolicy(metadata_tier=1)
COLD = sst(99, 1, 8000)
"""With 2000 bytes of others what resists on each side of a border, a twentieth of all bytes, is 500."""


def planned(files: list[FileState], states: list[TierState]) -> list[tuple[int, int, int]]:
    return [(move.file, move.source, move.target) for move in POLICY.plan(ListFiles(files), states)]


def test_new_ssts_go_to_the_fastest_tier_with_room() -> None:
    for role, tier in ((Role.SST, 0), (Role.BLOB, 0), (Role.WAL, 0), (Role.OPTIONS, 1)):
        assert POLICY.choose(Context(role, Job.COMPACTION, 6, b"x"), 10, tiers(10, 500)).tier == tier


def test_temperature_is_per_byte() -> None:
    files = [sst(1, 1, 1 << 20, reads=0.9), sst(2, 1, 1 << 19, reads=0.8)]
    moves = POLICY.plan(ListFiles(files), tiers(1 << 20, 1 << 20, capacity=1 << 20))
    assert [(move.file, move.target) for move in moves] == [(2, 0)]
    assert moves[0].reason == "1.6 reads/s per MiB, 1st of 2: fits t0"


def test_tiers_fill_from_the_hottest_down() -> None:
    files = [sst(number, 3, 100, reads=100.0 - number) for number in range(1, 9)]
    # 50 stay free on each.
    places = {file: target for file, _, target in planned(files, tiers(260, 360, 160, 500))}
    assert places == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2}


def test_what_is_near_the_border_resists() -> None:
    # The fast tier holds ten, and has the wrong ones.
    files = [sst(number, 0 if number > 10 else 1, 100, reads=200.0 - number) for number in range(1, 21)]
    moved = {file for file, _, _ in planned([*files, COLD], tiers(50, 50_000))}
    assert moved == {*range(1, 6), *range(16, 21)}, "five on each side are next to the border"
    moved = {file for file, _, _ in planned(files, tiers(50, 50_000))}
    assert moved == {*range(1, 10), *range(12, 21)}, "a twentieth of 2000 bytes is one file"


def test_what_resists_makes_way_for_what_does_not() -> None:
    hot, near, cold = sst(1, 1, 500, reads=1000.0), sst(2, 0, 450, reads=450.0), replace(COLD, size=9000)
    others = [sst(number, 0, 100, reads=150.0) for number in range(3, 8)]
    assert planned([near, *others, cold], tiers(0, 50_000)) == [], "it stays although it does not quite fit"
    assert planned([hot, near, *others, cold], tiers(100, 50_000)) == [(2, 0, 1), (1, 1, 0)]


def test_resistance_holds_at_each_border_that_is_crossed() -> None:
    """What went two tiers too far down comes back, though it is near to one of the borders."""
    files = [sst(1, 2, 100, reads=50.0), *(sst(number, 1, 100, reads=20.0) for number in range(2, 14))]
    assert planned([*files, replace(COLD, tier=2)], tiers(150, 1250, 50_000))[0] == (1, 2, 0)


def test_a_young_sst_stays_where_it_is() -> None:
    files = [
        replace(sst(1, 1, reads=5.0), created=NOW - 29),
        replace(sst(2, 1, reads=5.0), created=NOW - 31),
        replace(sst(3, 1, reads=5.0), created=NOW - 99, moved=NOW - 29),
    ]
    assert planned(files, tiers(500, 500)) == [(2, 1, 0)]


def test_period() -> None:
    assert POLICY.period == 1
    assert MutantPolicy(1, 10.0).period == 10
