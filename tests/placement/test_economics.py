"""What a file costs: the formulas, term by term, and the rates that they are of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.model import SMALL_BLOCK, CostModel, DeviceModel, Form, Interference
from keigo.lsm.pressure import Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement import economics
from keigo.placement.policy import Bucket, Context, Expectation, Group, TierState
from keigo.placement.rates import PLAIN, STREAM_BLOCK, Rates, assumed, rates_of

RATES = Rates(
    append=1e-3,
    read=2e-3,
    read_byte=1e-7,
    stream=4e-8,
    writes=(1e-8, 2e-8),
    delays=(0.0, 3e-8),
    disturbs=(5e-9, 6e-9),
)
EXPECTED = Expectation(size=1000, life=100, reads=1e-5, read_size=4096 + 1000, learned=True)


def tier(room: int = 1000, price: float = 0.0, writers: int = 0, rates: Rates = RATES, inflow: float = 0) -> TierState:
    return TierState("t", 1000, 1000 - room, room, rates, price, writers, inflow)


def context(role: Role = Role.SST, job: Job = Job.COMPACTION, level: int = 3, pressure: float = 0) -> Context:
    return Context(role, job, level, b"x", pressure=Pressure(pressure))


@pytest.mark.parametrize(
    ("role", "job", "level", "calm"),
    [
        (Role.WAL, Job.FOREGROUND, None, 1),
        (Role.SST, Job.FLUSH, 0, 0.5),
        (Role.SST, Job.COMPACTION, 1, 0.25),
        (Role.SST, Job.COMPACTION, 5, 0.1),
        (Role.SST, Job.COMPACTION, None, 0.1),
        (Role.SST, Job.FOREGROUND, 0, 1),
    ],
)
def test_urgency(role: Role, job: Job, level: int | None, calm: float) -> None:
    assert economics.urgency(job, role, level, Pressure()) == calm
    assert economics.urgency(job, role, level, Pressure(level0=1.0)) == pytest.approx(1)
    assert economics.urgency(job, role, level, Pressure(stalled=True)) == pytest.approx(1)
    halfway = economics.urgency(job, role, level, Pressure(level0=0.5))
    assert halfway == pytest.approx((calm + 1) / 2)


def test_a_compaction_into_a_deep_level() -> None:
    (cost,) = economics.costs(context(), 50, EXPECTED, [tier(room=75, price=1e-6, writers=1)])
    assert cost.write == pytest.approx(50 * (0.1 * 2e-8 + 0.1 * 3e-8 + 6e-9))
    assert cost.read == pytest.approx(50 * (100 * 1e-5 * (2e-3 + 1000 * 1e-7) + 0.25 * 4e-8))
    # Of 75 bytes 25 would be left, half of its own size: two and a half times the price.
    assert cost.room == pytest.approx(50 * 100 * 1e-6 * 2.5)
    assert cost.total == cost.write + cost.read + cost.room


def test_pressure_makes_background_writes_count() -> None:
    (calm,) = economics.costs(context(), 500, EXPECTED, [tier(writers=1)])
    (backed_up,) = economics.costs(context(pressure=1), 500, EXPECTED, [tier(writers=1)])
    assert backed_up.write == pytest.approx(500 * (2e-8 + 3e-8 + 6e-9))
    assert backed_up.read == calm.read


def test_a_wal_is_many_small_appends_that_nobody_reads() -> None:
    (cost,) = economics.costs(context(Role.WAL, Job.FOREGROUND), 8192, EXPECTED, [tier(writers=1)])
    assert cost.write == pytest.approx(2 * 1e-3)
    assert cost.read == 0


def test_nobody_looks_further_ahead_than_the_horizon() -> None:
    eternal, long = (replace(EXPECTED, life=life) for life in (1e9, economics.HORIZON))
    assert economics.costs(context(), 500, eternal, [tier()]) == economics.costs(context(), 500, long, [tier()])


@pytest.mark.parametrize(
    ("room", "times"), [(1000, 0), (60, 0), (40, 0.25), (20, 1), (10, 2.5), (1, 29.5 * 20 / 20), (0, 100), (-9, 100)]
)
def test_room_costs_more_the_less_there_is(room: int, times: float) -> None:
    assert economics.scarcity(tier(room)) == pytest.approx(times)


def test_a_large_file_leaves_less_room() -> None:
    assert economics.scarcity(tier(120), size=60) == pytest.approx(1)
    assert economics.scarcity(tier(70), size=60) > 5
    assert economics.scarcity(tier(70), size=10) < 1


def test_what_lives_long_pays_for_room_that_is_not_scarce_yet() -> None:
    """Of 10 headrooms of room half a minute's inflow is left: nothing is scarce for so long, then the price holds."""
    plenty = replace(tier(20_000), capacity=100_000, inflow=400.0)
    assert economics.scarcity(plenty) == 0
    assert economics.occupying(40.0, plenty, 0) == 0
    assert economics.occupying(60.0, plenty, 0) == pytest.approx(10.0)


def test_what_lives_long_is_not_kept_out_by_a_moment_without_room() -> None:
    full = replace(tier(500), capacity=100_000, inflow=400.0)
    scarce = economics.scarcity(full)
    assert scarce > 4
    assert economics.occupying(1.0, full, 0) == pytest.approx(scarce)
    assert economics.occupying(105.0, full, 0) == pytest.approx(5 * scarce + 100)


def test_where_nothing_comes_room_stays_as_it_is() -> None:
    assert economics.occupying(100.0, replace(tier(20_000), capacity=100_000), 0) == 0


def test_headroom_follows_what_comes() -> None:
    assert economics.headroom(tier(inflow=0)) == 20
    assert economics.headroom(tier(inflow=16)) == 80
    assert economics.headroom(tier(inflow=1e9)) == 150


def test_keeping_a_bucket() -> None:
    bucket = Bucket(0, Group(0, None, Role.SST, 3), -10, None, 5, 5000)
    kept = economics.keeping(bucket, EXPECTED, RATES)
    assert kept == pytest.approx(1.5 * 2**-10 * (2e-3 + 1e-4) + 0.25 * 4e-8 / 100)
    cold = replace(bucket, heat=None)
    assert economics.keeping(cold, EXPECTED, RATES) == pytest.approx(0.25 * 4e-8 / 100)


def test_what_comes_again_and_again_pays_for_its_writes_by_its_life() -> None:
    bucket = Bucket(0, Group(0, None, Role.SST, 3), None, None, 5, 5000)
    long, short = (
        economics.recurring(bucket, replace(EXPECTED, life=life), Pressure(), tier(writers=1)) for life in (100, 10)
    )
    assert long == pytest.approx((0.1 * 2e-8 + 0.1 * 3e-8 + 6e-9 + 0.25 * 4e-8) / 100)
    assert short == pytest.approx(10 * long)
    flushed = replace(bucket, group=bucket.group._replace(level=0))
    assert economics.recurring(flushed, EXPECTED, Pressure(), tier()) > economics.recurring(
        bucket, EXPECTED, Pressure(), tier()
    )


# --- rates ---


def device(ks: tuple[int, ...], write_setup: tuple[float, ...], transfer: tuple[float, ...]) -> DeviceModel:
    read = CostModel(("max", "max"), (1, 8), (1e-4, 1e-4), (1e-9, 8e-9))
    forms: tuple[Form, ...] = tuple("max" for _ in ks)
    write = CostModel(forms, ks, write_setup, transfer)
    return DeviceModel(read, write, None, None, Interference(1.0, 4.0))


LINEAR = device((1, 2, 4, 64), (1e-4, 1e-4, 2e-4, 64e-4 / 2), (1e-9, 1e-9, 2e-9, 32e-9))
"""Writes: two at a time, and no better beyond."""


def test_beside_others_a_writer_has_its_share() -> None:
    rates = rates_of(LINEAR)
    one = LINEAR.request_time("write", 1, STREAM_BLOCK) / STREAM_BLOCK
    assert rates.write(0) == pytest.approx(one)
    assert rates.write(1) == pytest.approx(one)  # the second slot
    assert rates.write(3) == pytest.approx(2 * one)
    assert rates.write(10_000) == rates.write(31)
    assert rates.delay(0) == rates.delay(1) == 0
    assert rates.delay(3) > 0


def test_a_device_that_declines_declines_for_all() -> None:
    """Beyond its best k the whole device moves less, be it by files or by requests of the page cache."""
    declining = device((1, 4, 8), (1e-4, 1e-4, 4e-4), (1e-9, 4e-9, 16e-9))
    calm, flooded = rates_of(declining), rates_of(declining, write_k=8)
    assert flooded.write(0) > calm.write(0)
    assert calm.write(7) > 2 * calm.write(3)


def test_bandwidth_of_others_counts_as_writers() -> None:
    alone = rates_of(LINEAR)
    busy = rates_of(LINEAR, write_bandwidth=4 / alone.write(0))
    assert busy.write(0) == pytest.approx(alone.write(4))
    assert busy.write(9) == alone.write(9)


def test_writes_disturb_readers_until_saturated() -> None:
    quiet, read = rates_of(LINEAR), rates_of(LINEAR, read_k=3)
    assert set(quiet.disturbs) == {0.0}
    assert read.disturb(0) > 0
    assert read.disturb(10) == 0
    assert read.read > 0


@given(
    st.integers(0, 5),
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 1e10),
)
def test_rates_of_any_load_are_sane(place: int, read_k: float, write_k: float, bandwidth: float) -> None:
    rates = rates_of(assumed(place), read_k, write_k, bandwidth)
    slower = rates_of(assumed(place + 1), read_k, write_k, min(bandwidth, 1e6))
    assert all(x > 0 for x in (rates.append, rates.read, rates.stream, *rates.writes))
    assert rates.read_byte >= 0
    assert all(x >= 0 for x in (*rates.delays, *rates.disturbs))
    assert list(rates.writes) == sorted(rates.writes)
    assert rates.read < slower.read
    assert rates.append < slower.append
    assert rates_of(assumed(place)).write(0) < slower.write(0)


def test_small_reads_are_of_4_kib() -> None:
    rates = rates_of(LINEAR)
    assert rates.read == LINEAR.request_time("read", 1, SMALL_BLOCK)
    assert rates.read + rates.read_byte * (STREAM_BLOCK - SMALL_BLOCK) == pytest.approx(
        LINEAR.request_time("read", 1, STREAM_BLOCK)
    )
    assert PLAIN.write(3) == PLAIN.write(0)
