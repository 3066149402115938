"""Time series: points arrive in order, scans end at the newest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.workloads.drawn import first, fits, joined, near
from workloads.generators.timeseries import TimeSeries
from workloads.generators.workload import WorkloadError
from workloads.operations import Op

COUNT = 50_000


@pytest.mark.parametrize("threads", [1, 3])
def test_every_series_grows_point_by_point(threads: int) -> None:
    workload = TimeSeries(series=7, loaded_points=5, seed=1)
    seen: set[int] = set()
    for thread in range(threads):
        done = first(workload, COUNT, thread, threads)
        keys = done.key[done.op == Op.INSERT]
        for series in range(thread, 7, threads):
            points = keys[keys % 7 == series] // 7
            assert points.tolist() == list(range(5, 5 + len(points)))
        assert not seen & set(keys.tolist())
        seen |= set(keys.tolist())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_scan_reads_the_newest_points_of_a_series(threads: int) -> None:
    workload = TimeSeries(series=7, loaded_points=5, seed=1)
    for thread in range(threads):
        done = first(workload, 5000, thread, threads)
        points = dict.fromkeys(range(thread, 7, threads), 5)
        for op, key, length in zip(done.op.tolist(), done.key.tolist(), done.length.tolist(), strict=True):
            if op == Op.INSERT:
                points[key % 7] += 1
            else:
                assert 1 <= length <= 60
                assert key // 7 + length == points[key % 7]


def test_scans_have_their_share_and_spread_over_series_and_lengths() -> None:
    done = first(TimeSeries(series=20, loaded_points=100, seed=1), COUNT)
    scans = done.op == Op.SCAN
    assert near(int(scans.sum()), COUNT, 0.1)
    assert fits(np.bincount(done.key[scans] % 20, minlength=20).astype(np.int64), np.full(20, 0.05)) > 0.001
    assert fits(np.bincount(done.length[scans], minlength=61)[1:].astype(np.int64), np.full(60, 1 / 60)) > 0.001


def test_keys_of_a_series_lie_together_by_time() -> None:
    workload = TimeSeries(series=12, loaded_points=3)
    keys = workload.key_format.keys(joined(workload.load()).key)
    assert sorted(keys)[:4] == [b"00000000:00000000000%d" % t for t in (0, 1, 2)] + [b"00000001:000000000000"]
    assert len(set(keys)) == 36 == workload.records


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"series": 0}, "series 0: must be above 0"),
        ({"loaded_points": 0}, "loaded points 0: must be above 0"),
        ({"scan_share": 1.5}, "scan share 1.5: must be from 0 to 1"),
        ({"series": 10**9}, "series 1000000000: must be at most 100000000"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        TimeSeries(**given)
    assert str(caught.value) == text


def test_a_thread_needs_a_series() -> None:
    with pytest.raises(WorkloadError, match="threads 8: must be at most 7"):
        TimeSeries(series=7).run(0, 8)
