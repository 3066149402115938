"""Universal compaction, played through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.universal import Run, cycle, pick


def runs(*shares: float) -> list[Run]:
    return [Run(share, 0) for share in shares]


@pytest.mark.parametrize(
    ("shares", "picked"),
    [
        ((1, 1, 1), None),  # fewer than the trigger
        ((1, 1, 1, 1), (0, 4)),  # the newer three have at least twice the oldest
        ((1, 3, 5, 4), (0, 4)),  # so they do here, though the oldest two alone would be alike in size
        ((1, 1, 1, 4), (0, 3)),  # alike in size
        ((1, 1, 3, 9), (0, 2)),
        ((1, 2, 4, 50), None),  # each next one is larger than those before
        ((1, 2, 4, 8, 50), (0, 2)),  # more than the trigger: the newest ones, until as many are left
        ((1, 5, 4, 50), (1, 3)),  # the first run that is followed by one alike
    ],
)
def test_the_picker(shares: tuple[float, ...], picked: tuple[int, int] | None) -> None:
    assert pick(runs(*shares), 4) == picked


def test_one_cycle_by_hand() -> None:
    # Runs of 1 beside one of 2 memtables, trigger 2: each flush is first alike or not, and all merge at 4.
    found = cycle(2, 2, 3)
    # Flush: 1/2 and 1: not twice, and 1/2 is followed by one that is larger; no merge. Flush: 1/2, 1/2, 1: the newest
    # two are alike, and then 1 is alike to their sum: 3/4 after the union, and everything is one merge of all.
    assert found.full == pytest.approx(1.0)
    assert sum(found.written) == pytest.approx(1 + 1.0)
    assert found.read[-1] == pytest.approx(1.0)
    assert found.peak[-1] == pytest.approx(2.0)


@given(st.floats(2, 3000), st.integers(2, 24), st.integers(2, 10), st.integers(1, 16))
def test_a_cycle_keeps_account(flushes: float, trigger: int, levels: int, late: int) -> None:
    found = cycle(flushes, trigger, levels, late)
    assert len(found.mean) == len(found.peak) == len(found.read) == levels
    assert math.fsum(found.found) == pytest.approx(1.0)
    assert found.mean[-1] >= 1 - 1e-9, "the oldest run has all keys"
    assert found.peak[-1] >= 2 - 1e-9, "a full compaction writes all keys beside those that are there"
    assert sum(found.runs) <= trigger + 1e-9
    # What merges write is no more than what they read, and every byte is written once by its flush.
    assert 1 <= sum(found.written) <= 1 + sum(found.read) + 1e-9
    assert 0 < found.full <= sum(found.written) - 1 + 1e-9


def test_more_runs_mean_fewer_writes() -> None:
    written = [sum(cycle(1000, trigger, 7).written) for trigger in (4, 8, 16, 24)]
    assert written == sorted(written, reverse=True)


def test_late_merges_take_more_flushes_at_once() -> None:
    written = [sum(cycle(96, 4, 7, late).written) for late in (1, 2, 4, 8)]
    assert written == sorted(written, reverse=True)
    assert written[0] > 2 * written[-1]


def test_more_data_than_are_played_through_cost_what_the_most_do() -> None:
    assert cycle(1e7, 16, 7) == cycle(1e9, 16, 7)
