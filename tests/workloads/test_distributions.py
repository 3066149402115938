"""Record numbers follow their distributions: chi-square and KS tests against theory, with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.workloads.drawn import fits, near
from workloads.generators.distributions import (
    SCRAMBLED_ITEMS,
    THETA,
    Distribution,
    Exponential,
    Hotspot,
    Latest,
    ScrambledZipfian,
    Sequential,
    Uniform,
    Zipfian,
    zeta,
)
from workloads.generators.workload import View, WorkloadError, stream
from workloads.operations import Floats, Int64s
from workloads.records import fnv64

DRAWS = 400_000


def constant(visible: int, count: int = DRAWS) -> Int64s:
    return np.full(count, visible, np.int64)


def counted(drawn: Int64s, items: int) -> Int64s:
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < items
    return np.bincount(drawn, minlength=items).astype(np.int64)


def gray(items: int, theta: float) -> Floats:
    """Shares of the ranks by Gray et al.: the first two exactly, then differences of the inverse of their formula."""
    total = float(np.sum(np.arange(1, items + 1, dtype=np.float64) ** -theta))
    two = 1 + 0.5**theta
    eta = (1 - (2 / items) ** (1 - theta)) / (1 - two / total)
    edges = ((np.arange(2, items + 1) / items) ** (1 - theta) - 1 + eta) / eta
    return np.concatenate([[1 / total, 0.5**theta / total], np.diff(edges)])


def test_zeta_of_ten_billion_is_the_constant_in_ycsb() -> None:
    assert float(zeta(SCRAMBLED_ITEMS, THETA)[0]) == pytest.approx(26.46902820178302, rel=1e-11)  # summed in doubles


@pytest.mark.parametrize("theta", [0.2, 0.99, 1.3])
@pytest.mark.parametrize("items", [1, 2, 3, 63, 64, 65, 1000, 100_000])
def test_zeta_is_the_sum(items: int, theta: float) -> None:
    summed = float(np.sum(np.arange(1, items + 1, dtype=np.float64) ** -theta))
    assert float(zeta(items, theta)[0]) == pytest.approx(summed, rel=1e-12)


@pytest.mark.parametrize("theta", [0.5, 0.99, 1.2])
@pytest.mark.parametrize("items", [3, 10, 1000, 100_000])
def test_zipfian_follows_gray(items: int, theta: float) -> None:
    ranks = Zipfian(items, theta).ranks(stream(1), DRAWS)
    assert fits(counted(ranks, items), gray(items, theta)) > 0.001


def test_zipfian_is_near_the_law_itself() -> None:
    """Gray's formula is an approximation: in sum it misplaces few draws, and the two hottest not at all."""
    items = 1000
    law = np.arange(1, items + 1) ** -THETA
    law /= law.sum()
    counts = counted(Zipfian(items).ranks(stream(1), DRAWS), items)
    assert np.abs(counts / DRAWS - law).sum() / 2 < 0.04
    assert near(int(counts[0]), DRAWS, law[0])
    assert near(int(counts[1]), DRAWS, law[1])


@pytest.mark.parametrize("items", [1, 2])
def test_zipfian_of_one_or_two_items(items: int) -> None:
    counts = counted(Zipfian(items).ranks(stream(1), 10_000), items)
    assert near(int(counts[0]), 10_000, 1 / float(zeta(items, THETA)[0]))


def scrambled_shares(space: int) -> Floats:
    """The hottest two million of 10^10 ranks one by one, what is left of the mass alike on every record."""
    head = 2_000_000
    total = float(zeta(SCRAMBLED_ITEMS, THETA)[0])
    two = 1 + 0.5**THETA
    eta = (1 - (2 / SCRAMBLED_ITEMS) ** (1 - THETA)) / (1 - two / total)
    edges = ((np.arange(2, head + 1) / SCRAMBLED_ITEMS) ** (1 - THETA) - 1 + eta) / eta
    shares = np.concatenate([[1 / total, 0.5**THETA / total], np.diff(edges)])
    where = fnv64(np.arange(head, dtype=np.int64)) % space
    return np.asarray(np.bincount(where, weights=shares, minlength=space) + (1 - shares.sum()) / space)


@pytest.mark.parametrize("space", [10, 1000])
def test_scrambled_zipfian_follows_its_ranks(space: int) -> None:
    drawn = ScrambledZipfian(space, View(space, 0, 1)).draw(stream(1), constant(space))
    assert fits(counted(drawn, space), scrambled_shares(space)) > 0.001


def test_scrambled_zipfian_spreads_what_is_hot() -> None:
    space = 10_000
    drawn = ScrambledZipfian(space, View(space, 0, 1)).draw(stream(1), constant(space))
    counts = counted(drawn, space)
    hot = np.argsort(-counts)[:100]
    assert counts[hot].sum() > 0.2 * DRAWS  # 1% of the records, a fifth of the operations,
    assert stats.kstest(hot / space, "uniform").pvalue > 0.001  # and they lie anywhere
    assert int(hot[0]) == int(fnv64(np.zeros(1, np.int64))[0]) % space


def test_scrambled_zipfian_keeps_its_hot_records_while_records_are_inserted() -> None:
    space, view = 2000, View(1000, 0, 1)
    few = counted(ScrambledZipfian(space, view).draw(stream(1), constant(1000)), 1000)
    many = counted(ScrambledZipfian(space, view).draw(stream(2), constant(1500)), 1500)
    shares = scrambled_shares(space)
    assert fits(few, shares[:1000] / shares[:1000].sum()) > 0.001
    assert fits(many, shares[:1500] / shares[:1500].sum()) > 0.001


def test_scrambled_zipfian_draws_only_what_its_thread_sees() -> None:
    view = View(1000, 1, 3)
    visible = 1000 + np.arange(DRAWS, dtype=np.int64) // 1000
    index = ScrambledZipfian(4000, view).draw(stream(1), visible)
    assert (index >= 0).all()
    assert (index < visible).all()
    numbers = view.number(index)
    own = numbers[numbers >= 1000]
    assert len(own) > 1000
    assert (own % 3 == (1000 + 1) % 3).all()


def test_scrambled_zipfian_ends_where_almost_nothing_is_visible() -> None:
    drawn = ScrambledZipfian(10**9, View(3, 0, 1)).draw(stream(1), constant(3, 1000))
    assert set(drawn.tolist()) == {0, 1, 2}


def test_latest_is_zipfian_by_age() -> None:
    age = 999 - Latest().draw(stream(1), constant(1000))
    assert fits(counted(age, 1000), gray(1000, THETA)) > 0.001


def test_latest_follows_each_insert_at_once() -> None:
    """At every size the ages are those of that size: two sizes in one draw, and the tail of the larger is reached."""
    visible = np.repeat(np.array([3, 50], np.int64), DRAWS)
    age = visible - 1 - Latest().draw(stream(1), visible)
    assert fits(counted(age[:DRAWS], 3), gray(3, THETA)) > 0.001
    assert fits(counted(age[DRAWS:], 50), gray(50, THETA)) > 0.001


def test_uniform() -> None:
    assert fits(counted(Uniform(500).draw(stream(1), constant(500)), 500), np.full(500, 1 / 500)) > 0.001


def test_exponential_is_cut_at_the_oldest_record() -> None:
    records, percentile, share = 10_000, 95.0, 0.8571428571
    age = records - 1 - Exponential(records, percentile, share).draw(stream(1), constant(records))
    scale = records * share / -np.log(1 - percentile / 100)
    edges = stats.truncexpon(b=records / scale, scale=scale).cdf(np.arange(0, records + 1, 100))
    counts = np.histogram(age, np.arange(0, records + 1, 100))[0]
    assert fits(counts, np.diff(edges)) > 0.001


def test_exponential_puts_its_percentile_within_its_share() -> None:
    records = 10_000
    age = records - 1 - Exponential(records, 90.0, 0.1).draw(stream(1), constant(records))
    assert near(int((age < 1000).sum()), DRAWS, 0.9)


def test_hotspot() -> None:
    counts = counted(Hotspot(1000, 0.2, 0.8).draw(stream(1), constant(1000)), 1000)
    assert fits(counts, np.concatenate([np.full(200, 0.8 / 200), np.full(800, 0.2 / 800)])) > 0.001


@pytest.mark.parametrize("hot_records", [0.0, 0.05, 1.0])
def test_hotspot_with_an_empty_part_uses_the_other(hot_records: float) -> None:
    counts = counted(Hotspot(10, hot_records, 0.5).draw(stream(1), constant(10)), 10)
    assert fits(counts, np.full(10, 0.1)) > 0.001


def test_sequential_threads_together_go_round_in_order() -> None:
    rounds = [Sequential(10, thread, 3) for thread in range(3)]
    drawn = np.stack([r.draw(stream(1), constant(10, 7)) for r in rounds], axis=1)
    assert drawn.ravel().tolist() == [n % 10 for n in range(21)]
    assert rounds[0].draw(stream(1), constant(10, 2)).tolist() == [21 % 10, 24 % 10]


@pytest.mark.parametrize(
    "distribution",
    [
        ScrambledZipfian(5000, View(1000, 0, 1)),
        Latest(),
        Uniform(1000),
        Exponential(1000),
        Hotspot(1000),
        Sequential(1000),
    ],
    ids=lambda d: type(d).__name__,
)
def test_everything_drawn_exists(distribution: Distribution) -> None:
    visible = np.arange(1000, 6000, dtype=np.int64)
    drawn = distribution.draw(stream(1), visible)
    assert drawn.shape == visible.shape
    assert (drawn >= 0).all()
    assert (drawn < visible).all()


@pytest.mark.parametrize("thread", [0, 1, 2])
def test_a_view_numbers_and_indexes_alike(thread: int) -> None:
    view = View(10, thread, 3)
    index = np.arange(30, dtype=np.int64)
    numbers = view.number(index)
    assert numbers[:12].tolist() == [*range(10), 10 + thread, 13 + thread]
    assert view.index(numbers).tolist() == index.tolist()
    others = np.setdiff1d(np.arange(70), numbers)
    assert (view.index(others.astype(np.int64)) == -1).all()


def test_mistakes_are_one_line() -> None:
    for make, text in (
        (lambda: Zipfian(0), "items 0: must be above 0"),
        (lambda: Zipfian(5, 1.0), "theta 1: "),
        (lambda: Hotspot(5, 1.5), "hot records 1.5: must be from 0 to 1"),
        (lambda: Exponential(5, 100.0), "percentile 100.0: "),
        (lambda: stream(-1), "seed -1: must not be negative"),
    ):
        with pytest.raises(WorkloadError) as caught:
            make()
        assert str(caught.value).startswith(text)
        assert "\n" not in str(caught.value)
