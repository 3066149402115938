"""YCSB's core workloads: mixes, sizes, scan lengths, inserts of several threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.workloads.drawn import first, fits, joined, near
from workloads.generators.workload import Mix, WorkloadError
from workloads.generators.ycsb import CORE, DISTRIBUTIONS, Ycsb
from workloads.operations import Op, share, take
from workloads.records import UserKeys

COUNT = 100_000


@pytest.mark.parametrize(
    ("letter", "shares"),
    [
        ("a", {Op.READ: 0.5, Op.UPDATE: 0.5}),
        ("b", {Op.READ: 0.95, Op.UPDATE: 0.05}),
        ("c", {Op.READ: 1.0}),
        ("d", {Op.READ: 0.95, Op.INSERT: 0.05}),
        ("e", {Op.SCAN: 0.95, Op.INSERT: 0.05}),
        ("f", {Op.READ: 0.5, Op.RMW: 0.5}),
    ],
)
def test_the_mix_is_that_of_ycsb(letter: str, shares: dict[Op, float]) -> None:
    done = first(Ycsb(letter, 1000, COUNT, seed=1), COUNT)
    for op in Op:
        assert near(int((done.op == op).sum()), COUNT, shares.get(op, 0.0)), op


def test_operations_of_different_kinds_follow_one_another_at_random() -> None:
    """Reads and updates alternate as coins fall: after a read, a read is as likely as after an update."""
    op = first(Ycsb("a", 1000, seed=1), COUNT).op
    after_read = op[1:][op[:-1] == Op.READ]
    assert near(int((after_read == Op.READ).sum()), len(after_read), 0.5)


def test_scan_lengths_are_uniform_from_1_to_100() -> None:
    done = first(Ycsb("e", 1000, COUNT, seed=1), COUNT)
    lengths = done.length[done.op == Op.SCAN]
    assert fits(np.bincount(lengths, minlength=101)[1:].astype(np.int64), np.full(100, 0.01)) > 0.001
    assert not done.length[done.op != Op.SCAN].any()


def test_load_is_in_the_order_of_record_numbers() -> None:
    loaded = joined(Ycsb("a", 20_000, value_size=77).load())
    assert loaded.key.tolist() == list(range(20_000))
    assert (loaded.op == Op.INSERT).all()
    assert (loaded.size == 77).all()


def test_inserts_of_several_threads_extend_the_records_without_a_clash() -> None:
    threads = 3
    keys = []
    for thread in range(threads):
        done = first(Ycsb("d", 1000, seed=1), 20_000, thread, threads)
        inserted = done.key[done.op == Op.INSERT]
        assert inserted.tolist() == list(range(1000 + thread, 1000 + thread + threads * len(inserted), threads))
        keys += inserted.tolist()
    assert len(set(keys)) == len(keys)


def test_latest_reads_what_was_just_inserted() -> None:
    done = first(Ycsb("d", 1000, seed=1), COUNT)
    newest = 999 + np.cumsum(done.op == Op.INSERT)
    ages = (newest - done.key)[done.op == Op.READ]
    assert (ages >= 0).all()
    hottest = 1 / np.sum(np.arange(1, 3000) ** -0.99)  # with some 1000 to 6000 records
    assert (ages == 0).mean() == pytest.approx(hottest, rel=0.1)


def test_zipfian_reads_reach_inserted_records() -> None:
    done = first(Ycsb("e", 1000, COUNT, seed=1), COUNT)
    assert (done.key[done.op == Op.SCAN] >= 1000).sum() > 1000


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_distribution_goes_with_every_workload(name: str) -> None:
    for letter in CORE:
        done = first(Ycsb(letter, 50, 1000, seed=1, distribution=name), 1000)
        assert done.key.min() >= 0
        assert done.key[done.op != Op.INSERT].max() < 50 + (done.op == Op.INSERT).sum()


def test_the_hottest_record_is_as_hot_among_many_as_among_few() -> None:
    """It gets 1 in zeta(10^10) operations, 3.8%, however many records there are."""
    for records in (1000, 1_000_000):
        keys = first(Ycsb("c", records, seed=1), COUNT).key
        hottest = int(np.unique_counts(keys).counts.max())
        assert hottest / COUNT == pytest.approx(1 / 26.469, rel=0.1)


def test_one_record_is_enough() -> None:
    assert not first(Ycsb("a", 1, seed=1), 1000).key.any()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"workload": "g"}, "workload 'g': must be one of a, b, c, d, e, f"),
        ({"records": 0}, "records 0: must be above 0"),
        ({"value_size": -1}, "value size -1: must be above 0"),
        ({"distribution": "normal"}, "distribution 'normal': must be one of "),
        ({"seed": -3}, "seed -3: must not be negative"),
        ({"theta": 1.0}, "theta 1: "),
        ({"batch": 0}, "batch 0: must be above 0"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        Ycsb(**{"workload": "a", "records": 10, **given})
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shares", [[(Op.READ, -1.0)], [(Op.READ, 0.0)], [], [(Op.READ, float("nan"))]])
def test_a_mix_needs_shares(shares: list[tuple[Op, float]]) -> None:
    with pytest.raises(WorkloadError):
        Mix(shares)


def test_a_mix_of_ones_own() -> None:
    mix = Mix([(Op.DELETE, 1), (Op.READ, 3)])
    done = first(Ycsb("a", 100, mix=mix, key_format=UserKeys("ordered", 16)), 10_000)
    assert near(int((done.op == Op.DELETE).sum()), 10_000, 0.25)
    assert near(int((done.op == Op.READ).sum()), 10_000, 0.75)


def test_take_and_share_count_exactly() -> None:
    workload = Ycsb("a", 10, batch=7)
    for count in (0, 1, 7, 8, 20_000):
        sizes = [len(batch) for batch in take(workload.run(), count)]
        assert sum(sizes) == count
        assert 0 not in sizes
    assert [share(11, thread, 3) for thread in range(3)] == [4, 4, 3]
