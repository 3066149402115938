"""Mixgraph follows the models of the paper: key ranges, power law, Pareto sizes, sine rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.workloads.drawn import first, fits, joined, near
from workloads.generators.mixgraph import VARIANTS, KeyRanges, Mixgraph, Pareto, PowerLaw, Sine
from workloads.generators.workload import WorkloadError, stream
from workloads.operations import Op

COUNT = 200_000
RANGES = KeyRanges(30, 14.18, -2.917, 0.0164, -0.08082)


def test_the_mix_is_that_of_the_paper() -> None:
    done = first(Mixgraph(10_000, seed=1), COUNT)
    for op, share in ((Op.READ, 0.83), (Op.UPDATE, 0.14), (Op.SCAN, 0.03)):
        assert near(int((done.op == op).sum()), COUNT, share)


def test_key_ranges_have_the_hotness_of_two_exponentials() -> None:
    keys = first(Mixgraph(30_000, seed=1), COUNT).key
    counts = np.bincount(keys // 1000, minlength=30).astype(np.int64)
    x = np.arange(1, 31)
    hotness = 14.18 * np.exp(-2.917 * x) + 0.0164 * np.exp(-0.08082 * x)
    hotness /= hotness.sum()
    assert np.allclose(RANGES.hotness(), hotness)
    order = np.argsort(-counts)  # which range is how hot is dealt out at random
    assert fits(counts[order], hotness) > 0.001


def test_seeds_deal_out_the_hotness() -> None:
    hottest = [np.bincount(first(Mixgraph(30_000, seed), 5000).key // 1000).argmax() for seed in range(10)]
    assert len(set(map(int, hottest))) > 5


def test_random_keys_are_uniform() -> None:
    keys = first(Mixgraph(1000, seed=1, variant="all_random"), COUNT).key
    assert fits(np.bincount(keys, minlength=1000).astype(np.int64), np.full(1000, 1e-3)) > 0.001


def test_keys_of_a_range_are_uniform_without_a_power_law() -> None:
    keys = first(Mixgraph(30_000, seed=1, variant="prefix_random"), COUNT).key
    hottest = int(np.bincount(keys // 1000).argmax())
    inside = keys[keys // 1000 == hottest] % 1000
    assert fits(np.bincount(inside, minlength=1000).astype(np.int64), np.full(1000, 1e-3)) > 0.001


def test_the_hottest_keys_follow_the_power_law() -> None:
    """The x hottest of all keys get a x^b of the operations, up to what hashing adds to them."""
    law = PowerLaw(0.002312, 0.3467)
    keys = first(Mixgraph(10_000_000, seed=1, variant="all_dist"), COUNT).key
    counts = np.sort(np.unique_counts(keys).counts)[::-1]
    for x in (1, 10, 100):
        assert counts[:x].sum() / COUNT == pytest.approx(law.a * x**law.b, rel=0.1)


def test_value_sizes_are_pareto() -> None:
    drawn = Pareto(0.2615, 25.45).draw(stream(1), COUNT)
    law = stats.genpareto(0.2615, scale=25.45)
    edges = np.arange(0, 400)
    counts = np.histogram(drawn, np.append(edges + 0.5, np.inf))[0]
    assert fits(counts, np.diff(np.append(law.cdf(edges), 1.0))) > 0.001


def test_pareto_with_k_0_is_exponential() -> None:
    drawn = Pareto(0.0, 100.0, 5.0).draw(stream(1), COUNT)
    edges = np.arange(5, 505, 5)
    counts = np.histogram(drawn, np.append(edges + 0.5, np.inf))[0]
    assert fits(counts, np.diff(np.append(stats.expon(5, 100).cdf(edges), 1.0))) > 0.001


def test_values_written_have_10_to_1024_bytes() -> None:
    done = first(Mixgraph(1000, seed=1), COUNT)
    sizes = done.size[done.op == Op.UPDATE]
    assert sizes.min() == 10
    assert 500 < sizes.max() <= 1024
    law = stats.genpareto(0.2615, scale=25.45)
    assert near(int((sizes <= 40).sum()), len(sizes), float(law.cdf(40)))


def test_scan_lengths_are_pareto_below_their_bound() -> None:
    done = first(Mixgraph(1000, seed=1), 1_000_000)
    lengths = done.length[done.op == Op.SCAN]
    assert lengths.min() == 1
    assert lengths.max() < 10_000
    law = stats.genpareto(2.517, scale=14.236)
    # What is beyond the bound comes back anywhere below it, nearly evenly.
    wrapped = float(law.sf(10_000)) * 100 / 10_000
    assert near(int((lengths <= 100).sum()), len(lengths), float(law.cdf(100)) + wrapped)


@pytest.mark.parametrize("records", [30, 1000, 4096, 12_345])
def test_load_scatters_each_record_once(records: int) -> None:
    keys = joined(Mixgraph(records).load()).key
    assert sorted(keys.tolist()) == list(range(records))
    if records > 100:
        assert np.abs(np.diff(keys)).mean() > records / 10


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("records", [30, 31, 1000])
def test_keys_are_records(variant: str, records: int) -> None:
    keys = first(Mixgraph(records, seed=1, variant=variant), 50_000).key
    assert keys.min() >= 0
    assert keys.max() < records


@pytest.mark.parametrize("threads", [1, 3])
def test_the_rate_is_a_sine(threads: int) -> None:
    sine = Sine(a=900, b=2 * np.pi / 100, c=0.5, d=1000, interval=1.0)
    parts = [first(Mixgraph(1000, sine=sine), 120_000 // threads, thread, threads).at for thread in range(threads)]
    times = np.sort(np.concatenate([part for part in parts if part is not None]))
    assert len(times) == 120_000
    for second in range(0, 100, 7):
        rate = 900 * np.sin(sine.b * second + 0.5) + 1000
        assert ((times >= second) & (times < second + 1)).sum() == pytest.approx(rate, abs=2)


def test_times_never_fall() -> None:
    at = first(Mixgraph(1000, sine=Sine(d=1001)), 50_000).at
    assert at is not None
    assert (np.diff(at) >= 0).all()
    assert at[0] == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"variant": "some"}, "variant 'some': must be one of all_random, "),
        ({"records": 29}, "records 29: must be at least 30"),
        ({"records": 1 << 32}, "records 4294967296: must be at most 2147483648"),
        ({"sine": Sine(a=5, d=5)}, "sine d 5: must be above |a| = 5"),
        ({"sine": Sine(interval=0)}, "interval 0: must be above 0"),
        ({"most_scanned": 0}, "most scanned 0: must be above 0"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        Mixgraph(**{"records": 1000, **given})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("c", [0.0, float("inf")])
def test_key_ranges_must_have_a_hotness(c: float) -> None:
    with pytest.raises(WorkloadError, match="no range has a hotness above 0"):
        KeyRanges(3, 0.0, 1.0, c, 1.0).hotness()
