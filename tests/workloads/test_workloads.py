"""What every workload promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.workloads.drawn import equal, first, joined
from workloads.generators.mixgraph import VARIANTS, Mixgraph, Sine
from workloads.generators.shifting import ShiftingHotspot
from workloads.generators.timeseries import TimeSeries
from workloads.generators.trace import Trace
from workloads.generators.workload import Workload, WorkloadError
from workloads.generators.ycsb import CORE, DISTRIBUTIONS, Ycsb
from workloads.operations import Op

COUNT = 20_000
Make = Callable[[int, int], Workload]


def ycsb(letter: str, distribution: str | None) -> Make:
    return lambda seed, batch: Ycsb(letter, 300, COUNT, seed, distribution=distribution, batch=batch)


def mixgraph(variant: str) -> Make:
    return lambda seed, batch: Mixgraph(300, seed, variant, batch=batch)


MAKERS: dict[str, Make] = {
    **{f"ycsb-{letter}": ycsb(letter, None) for letter in CORE},
    **{f"ycsb-e-{name}": ycsb("e", name) for name in DISTRIBUTIONS},
    **{variant: mixgraph(variant) for variant in VARIANTS},
    "sine": lambda seed, batch: Mixgraph(300, seed, sine=Sine(), batch=batch),
    "shifting": lambda seed, batch: ShiftingHotspot(300, seed, 3000, batch=batch),
    "timeseries": lambda seed, batch: TimeSeries(30, 10, seed, batch=batch),
}


@pytest.fixture(params=[*MAKERS, "trace"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param != "trace":
        return MAKERS[request.param]

    def traced(seed: int, batch: int) -> Workload:
        path = tmp_path / f"{seed}.csv"
        random = np.random.default_rng(seed)
        ops = random.choice(["read", "update", "scan", "rmw"], 2 * COUNT)
        keys = random.integers(0, 300, 2 * COUNT)
        rows = (f"{i / 7},{op},{key},{9 + i % 50}\n" for i, (op, key) in enumerate(zip(ops, keys, strict=True)))
        path.write_text("time,op,key,size\n" + "".join(rows))
        return Trace(str(path), batch=batch)

    return traced


def test_the_same_seed_gives_the_same_operations_whatever_the_batch(make: Make) -> None:
    for thread, threads in ((0, 1), (1, 3)):
        one = first(make(1, 8192), COUNT // 2, thread, threads)
        assert len(one) == COUNT // 2
        for batch in (1000, 1, 100_000):
            count = 2000 if batch == 1 else COUNT // 2
            assert equal(one.part(0, count), first(make(1, batch), count, thread, threads)), batch


def test_batches_are_no_larger_than_asked(make: Make) -> None:
    assert max(len(batch) for batch in itertools.islice(make(1, 100).run(), 200)) == 100
    assert max(len(batch) for batch in make(1, 7).load()) == 7


def test_other_seeds_and_threads_give_other_operations(make: Make) -> None:
    one = first(make(1, 8192), 5000, 0, 2)
    assert not equal(one, first(make(2, 8192), 5000, 0, 2))
    assert not equal(one, first(make(1, 8192), 5000, 1, 2))


def test_threads_load_every_record_once(make: Make) -> None:
    workload = make(1, 8192)
    for threads in (1, 4):
        parts = [joined(workload.load(thread, threads)) for thread in range(threads)]
        keys = np.concatenate([part.key for part in parts])
        assert len(keys) == workload.records
        assert len(np.unique(keys)) == workload.records
        assert all((part.op == Op.INSERT).all() and (part.size > 0).all() for part in parts)


def test_batches_have_their_types_and_only_what_an_operation_needs(make: Make) -> None:
    workload = make(1, 8192)
    for part in (first(workload, COUNT), joined(workload.load())):
        types = [column.dtype.name for column in (part.op, part.key, part.size, part.length)]
        assert types == ["uint8", "int64", "int32", "int32"]
        assert len(part.op) == len(part.key) == len(part.size) == len(part.length)
        assert np.array_equal(part.size > 0, np.isin(part.op, (Op.UPDATE, Op.INSERT, Op.RMW)))
        assert np.array_equal(part.length > 0, part.op == Op.SCAN)
        assert part.at is None or (part.at.dtype.name == "float64" and (np.diff(part.at) >= 0).all())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_thread_touches_only_what_was_loaded_or_what_it_inserted(make: Make, threads: int) -> None:
    workload = make(1, 8192)
    loaded = set(joined(workload.load()).key.tolist())
    everywhere: set[int] = set(loaded)
    for thread in range(threads):
        known = set(loaded)
        done = first(workload, COUNT // 2, thread, threads)
        for op, key in zip(done.op.tolist(), done.key.tolist(), strict=True):
            if op == Op.INSERT:
                assert key not in everywhere, "inserted twice"
                known.add(key)
                everywhere.add(key)
            else:
                assert key in known


def test_keys_are_different_and_of_one_size(make: Make) -> None:
    workload = make(1, 8192)
    numbers = np.unique(np.concatenate([joined(workload.load()).key, first(workload, COUNT).key]))
    keys = workload.key_format.keys(numbers)
    assert len(set(keys)) == len(numbers)
    assert {len(key) for key in keys} == {workload.key_format.size}


@pytest.mark.parametrize(("thread", "threads"), [(-1, 1), (1, 1), (0, 0)])
def test_a_thread_is_one_of_its_number(make: Make, thread: int, threads: int) -> None:
    with pytest.raises(WorkloadError, match=f"thread {thread} of {threads}: "):
        make(1, 8192).run(thread, threads)
    with pytest.raises(WorkloadError, match=f"thread {thread} of {threads}: "):
        list(make(1, 8192).load(thread, threads))
