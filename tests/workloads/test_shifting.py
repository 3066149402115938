"""The hot spot shifts, and the mix with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.workloads.drawn import first, fits, joined, near
from workloads.generators.shifting import ShiftingHotspot
from workloads.generators.workload import WorkloadError
from workloads.operations import Op

PHASE = 20_000


def made(**given: Any) -> ShiftingHotspot:
    return ShiftingHotspot(**{"records": 10_000, "seed": 1, "phase_operations": PHASE, **given})


def test_the_mix_goes_from_writing_to_reading_and_back() -> None:
    done = first(made(), 5 * PHASE)
    for phase, share in enumerate((0.9, 0.5, 0.1, 0.5, 0.9)):
        op = done.op[phase * PHASE : (phase + 1) * PHASE]
        assert near(int((op == Op.UPDATE).sum()), PHASE, share)
        assert (op == Op.READ).sum() + (op == Op.UPDATE).sum() == PHASE


def test_each_phase_has_its_own_window() -> None:
    workload = made()
    done = first(workload, 20 * PHASE)
    starts = workload.hot_start(np.arange(20, dtype=np.int64)).tolist()
    assert sorted(starts) == list(range(0, 10_000, workload.window))  # 20 windows of 5%, each once
    assert starts != sorted(starts)
    for phase, start in enumerate(starts):
        key = done.key[phase * PHASE : (phase + 1) * PHASE]
        hot = (key >= start) & (key < start + workload.window)
        assert near(int(hot.sum()), PHASE, 0.9 + 0.1 * 0.05)


def test_both_parts_are_uniform() -> None:
    workload = made(records=200, hot_records=0.1, phase_operations=10**6)
    keys = first(workload, 100_000).key
    shares = np.full(200, 0.1 / 200)
    start = int(workload.hot_start(np.zeros(1, np.int64))[0])
    shares[start : start + 20] += 0.9 / 20
    assert fits(np.bincount(keys, minlength=200).astype(np.int64), shares) > 0.001


def test_threads_do_their_part_of_each_phase() -> None:
    workload = made(write_shares=(1.0, 0.0), phase_operations=1001)
    for thread in range(3):
        op = first(workload, 2000, thread, 3).op
        phase = (np.arange(2000) * 3 + thread) // 1001
        assert np.array_equal(op == Op.UPDATE, phase % 2 == 0)


def test_seeds_move_the_windows() -> None:
    zero = np.zeros(1, np.int64)
    assert len({int(made(seed=seed).hot_start(zero)[0]) for seed in range(10)}) == 10


@pytest.mark.parametrize("records", [1, 2, 7])
def test_few_records(records: int) -> None:
    keys = first(made(records=records, phase_operations=10), 5000).key
    assert set(keys.tolist()) == set(range(records))


def test_load_is_in_order() -> None:
    assert joined(made(records=100).load()).key.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"hot_records": 0.0}, "hot records 0.0: must be above 0"),
        ({"hot_operations": 2.0}, "hot operations 2.0: must be from 0 to 1"),
        ({"write_shares": ()}, "write shares: there must be one or more"),
        ({"write_shares": (0.5, -1)}, "write share -1: must be from 0 to 1"),
        ({"phase_operations": 0}, "phase operations 0: must be above 0"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        made(**given)
    assert str(caught.value) == text
