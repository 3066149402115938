"""The pace of copies, with a clock of the test's own: the limit, the budget, and what counts as the copy's own load."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keigo.devices.load import Load, Smoothed
from keigo.placement.budget import IDLE, Budget, Use
from keigo.placement.rates import assumed
from keigo.tiers import pace as module
from keigo.tiers.pace import ASK_EVERY, OthersUse, Pace, Stage
from keigo.tiers.tier import Tier

if TYPE_CHECKING:
    from keigo.devices.profile import Direction

CHUNK = 256 << 10
FAST, SLOW = (cast(Tier, SimpleNamespace(index=index, name=name)) for index, name in enumerate(("fast", "slow")))
STAGE: Stage = ((FAST, "read"), (SLOW, "write"))


class Clock(threading.Event):
    """Time passes only while somebody waits, or works."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.longest = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.longest = max(self.longest, timeout)
        self.now += timeout + 1e-6  # no wait is exact
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def copy(pace: Pace, clock: Clock, total: int, times: tuple[float, float] = (0.0, 0.0), most: int = CHUNK) -> float:
    """Copy so many bytes by chunks whose legs take so long; returns the seconds that it took."""
    began = clock.now
    while total > 0:
        size = min(pace.next(clock), total, most)
        clock.now += sum(times)
        pace.moved(size, *times)
        total -= size
    pace.next(clock)  # the last one's share of time, too
    return clock.now - began


def asking(pace: Pace, *budgets: Budget) -> list[Stage]:
    """Let the pace ask for these, the last one for ever; returns what it asked for."""
    asked: list[Stage] = []

    def ask(stage: Stage) -> Budget:
        asked.append(stage)
        return budgets[min(len(asked), len(budgets)) - 1]

    pace.begin(ask)
    pace.stage(STAGE)
    return asked


@pytest.mark.parametrize("size", [1 << 10, CHUNK])
@pytest.mark.parametrize("work", [0.0, 1e-4])
def test_bytes_per_second(clock: Clock, size: int, work: float) -> None:
    pace = Pace(2 << 20)
    asking(pace, Budget(CHUNK))
    assert copy(pace, clock, 8 << 20, (work, 0.0), size) == pytest.approx(4.0, rel=0.03)


def test_no_limit_never_waits(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, Budget(CHUNK))
    assert copy(pace, clock, 1000 << 20) == 0.0


def test_the_limit_is_for_all_copies_together(clock: Clock) -> None:
    pace, began = Pace(1 << 20), clock.now
    for _ in range(16):
        asking(pace, Budget(CHUNK))
        copy(pace, clock, 64 << 10)
    assert clock.now - began == pytest.approx(1.0, rel=0.02)


@given(st.floats(1e-6, 0.3), st.floats(1e-6, 0.3), st.floats(0, 50), st.floats(0, 50), st.floats(0.05, 1.0))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_copy_rests_as_long_as_the_budget_says(
    clock: Clock, reading: float, writing: float, at_source: float, at_target: float, spare: float
) -> None:
    """Also rests of 10 us: no wait is so short, but together they are what they should be."""
    pace = Pace(None)
    budget = Budget(CHUNK, (at_source, at_target), spare)
    asking(pace, budget)
    took = copy(pace, clock, 25 * CHUNK, (reading, writing))
    assert took == pytest.approx(25 * budget.period((reading, writing)), rel=0.01, abs=1e-3)


def test_it_asks_ten_times_a_second_also_while_it_waits(clock: Clock) -> None:
    pace = Pace(1 << 10)
    asked = asking(pace, Budget(CHUNK))
    copy(pace, clock, 10 << 10, most=5 << 10)
    assert len(asked) == pytest.approx(100, abs=2)
    assert all(stage is STAGE for stage in asked)
    assert clock.longest <= ASK_EVERY


def test_a_pause_ends_when_the_budget_says_so(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, *[Budget(CHUNK, paused="writers wait")] * 30, Budget(CHUNK))
    began = clock.now
    assert pace.next(clock) == CHUNK
    assert clock.now - began == pytest.approx(3.0, rel=1e-3)


def test_a_rest_is_cut_short_when_the_load_is_gone(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, Budget(CHUNK, (1000.0, 0.0)), Budget(CHUNK))
    pace.next(clock)
    pace.moved(CHUNK, 0.1, 0.1)
    began = clock.now
    pace.next(clock)
    assert clock.now - began <= 0.3


def test_stop_ends_a_wait(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, Budget(CHUNK, paused="for ever"))
    clock.set()
    pace.next(clock)


def test_what_asking_raises_ends_the_copy(clock: Clock) -> None:
    pace = Pace(None)

    def ask(_stage: Stage) -> Budget:
        raise InterruptedError

    pace.begin(ask)
    with pytest.raises(InterruptedError):
        pace.next(clock)


def test_speed(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, Budget(CHUNK, (0.2, 0.2)))
    copy(pace, clock, 400 * CHUNK, (0.005, 0.005))
    assert pace.speed == pytest.approx(CHUNK / 0.02, rel=0.1)
    asking(pace, Budget(CHUNK))
    assert pace.speed == 0


# What others use.


class Measured:
    """Two tiers and the load of their devices, sampled once a second as the daemon does it."""

    def __init__(self, pace: Pace, devices: Sequence[int] = (1, 2)) -> None:
        self.others = OthersUse(devices, pace)
        self.smoothed = [Smoothed() for _ in range(8)]
        self.loads: tuple[Load, ...] = ()

    def sample(self, now: float, *rates: tuple[float, float, float, float]) -> tuple[Use, Use]:
        """A second with these (read k, write k, and both bandwidths) by tier has passed: what others use, by tier."""
        self.loads = tuple(self._load(index, values) for index, values in enumerate(rates))
        legs = self.others.legs(STAGE, (assumed(0), assumed(1)), self.loads, now)
        return legs[0].use, legs[1].use

    def _load(self, index: int, values: tuple[float, float, float, float]) -> Load:
        mine = self.smoothed[4 * index : 4 * index + 4]
        for smoothed, value in zip(mine, values, strict=True):
            smoothed.add(value, 1.0)
        read_k, write_k, reads, writes = (smoothed.value for smoothed in mine)
        return Load(str(index), "device", read_k, write_k, reads, writes)


def test_nothing_measured_yet_is_nothing_used() -> None:
    others = OthersUse((1, 2), Pace(None))
    assert [leg.use for leg in others.legs(STAGE, (assumed(0), assumed(1)), (), 5.0)] == [IDLE, IDLE]
    assert [leg.direction for leg in others.legs(STAGE, (assumed(0), assumed(1)), (), 6.0)] == ["read", "write"]


@pytest.mark.parametrize("devices", [(1, 2), (7, 7)])
def test_the_copy_s_own_requests_are_not_somebody_else_s(devices: tuple[int, int]) -> None:
    """Some seconds nobody copies, then a copy comes to a busy device, then rests: others' use stays the same."""
    pace = Pace(None)
    pace.begin()
    pace.stage(STAGE)
    measured, now = Measured(pace, devices), 100.0
    for second in range(12):
        copying = 3 <= second < 8
        if copying:
            pace.moved(80 << 20, 0.4, 0.5)
        mine = (0.4, 0.5, float(80 << 20)) if copying else (0.0, 0.0, 0.0)
        now += 1.0
        reads = (1.5 + mine[0], 0.25, 1e6 + mine[2], 2e6)
        writes = (0.0, 3.0 + mine[1], 0.0, 5e6 + mine[2])
        if devices[0] == devices[1]:  # one device: both tiers show all of it
            both = tuple(a + b for a, b in zip(reads, writes, strict=True))
            reads = writes = (both[0], both[1], both[2], both[3])
        at_source, at_target = measured.sample(now, reads, writes)
        if devices[0] == devices[1]:
            assert at_source == at_target
            assert at_source.read_k == pytest.approx(1.5, abs=0.02)
            assert at_source.write_k == pytest.approx(3.25, abs=0.02)
        else:
            assert at_source.read_k == pytest.approx(1.5, abs=0.02)
            assert at_source.read_bandwidth == pytest.approx(1e6, abs=2e6)
            assert at_target.write_k == pytest.approx(3.0, abs=0.02)
            assert at_target.write_bandwidth == pytest.approx(5e6, abs=2e6)


def test_tiers_on_one_device_have_one_load() -> None:
    """A copy reads from one, another one from the other: both are the copies' own."""
    pace = Pace(None)
    pace.begin()
    measured = Measured(pace, (7, 7))
    for second in range(8):
        for tier in (FAST, SLOW):
            pace.stage(((tier, "read"),))
            pace.moved(CHUNK, 0.25)
        both = (0.5, 0.0, 2.0 * CHUNK, 0.0)
        seen = measured.sample(100.0 + second, both, both)
    assert [use.read_k for use in seen] == pytest.approx([0.0, 0.0], abs=0.02)


def test_a_load_that_is_not_known_is_none() -> None:
    others = OthersUse((1, 2), Pace(None))
    loads = (Load("fast", "lost"), Load("slow", "counted", None, None, 5.0, 6.0))
    found = others.legs(STAGE, (assumed(0), assumed(1)), loads, 5.0)
    assert [leg.use for leg in found] == [IDLE, Use(0.0, 0.0, 5.0, 6.0)]


def test_own_requests_are_counted_by_tier_and_direction(clock: Clock) -> None:
    pace = Pace(None)
    asking(pace, Budget(CHUNK))
    copy(pace, clock, 4 * CHUNK, (0.25, 0.5))
    expected: dict[tuple[int, Direction], list[float]] = {
        (0, "read"): [1.0, 4.0 * CHUNK],
        (1, "write"): [2.0, 4.0 * CHUNK],
    }
    assert pace.own == expected
