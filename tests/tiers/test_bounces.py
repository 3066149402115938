"""A file that moved is not moved back at once, and each time it is, later."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from keigo.tiers.bounces import HOLD, MOST, Bounces


def test_not_back_at_once() -> None:
    bounces = Bounces()
    assert bounces.until(1, "slow") == 0
    bounces.moved(1, "slow", "fast", 1000.0)
    assert bounces.until(1, "slow") == 1000.0 + HOLD
    assert bounces.until(1, "other") == 0, "on to a third tier it may go"
    assert bounces.until(2, "slow") == 0


def test_each_time_later() -> None:
    bounces, now, waits = Bounces(), 0.0, []
    tiers = ["slow", "fast"]
    for turn in range(12):
        source, target = tiers[turn % 2], tiers[(turn + 1) % 2]
        now = max(now, bounces.until(1, target))
        bounces.moved(1, source, target, now)
        waits.append(bounces.until(1, source) - now)
    assert waits == [min(MOST, HOLD * 2**turn) for turn in range(12)]


def test_after_a_long_calm_it_starts_anew() -> None:
    bounces = Bounces()
    for turn in range(5):
        bounces.moved(1, *(("slow", "fast") if turn % 2 else ("fast", "slow")), float(turn))
    bounces.moved(1, "slow", "fast", 5.0 + 2 * MOST)
    assert bounces.until(1, "slow") == 5.0 + 2 * MOST + HOLD


@given(st.floats(1.0, 7000.0))
def test_at_any_rhythm_it_goes_back_once_an_hour_in_the_end(rhythm: float) -> None:
    """A policy that wants it back every so many seconds."""
    bounces, home, moves = Bounces(), "slow", []
    now = 0.0
    while now < 48 * MOST:
        target = "fast" if home == "slow" else "slow"
        if now >= bounces.until(1, target):
            bounces.moved(1, home, target, now)
            moves.append(now)
            home = target
        now += rhythm
    late = [then - before for before, then in pairwise(moves) if before > 6 * MOST]
    assert late
    assert min(late) >= MOST


def test_few_are_remembered() -> None:
    bounces = Bounces()
    for file in range(70_000):
        bounces.moved(file, "slow", "fast", float(file) / 100)
    assert len(bounces) == 65536
    assert bounces.until(1, "slow") == 0
    assert bounces.until(69_999, "slow") > 0
    bounces.forget(1e9)
    assert len(bounces) == 0
