#!/usr/bin/env python3
"""How fast operations are drawn, on one core: keys/s of each distribution, operations/s of each workload."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from workloads.generators.distributions import (
    SCRAMBLED_ITEMS,
    Distribution,
    Exponential,
    Hotspot,
    Latest,
    ScrambledZipfian,
    Sequential,
    Uniform,
    Zipfian,
)
from workloads.generators.mixgraph import VARIANTS, Mixgraph, Sine
from workloads.generators.shifting import ShiftingHotspot
from workloads.generators.timeseries import TimeSeries
from workloads.generators.trace import Trace
from workloads.generators.workload import BLOCK, View, Workload, stream
from workloads.generators.ycsb import CORE, Ycsb
from workloads.operations import Int64s
from workloads.records import UserKeys, Values

ROUNDS = 5


def best(draw: Callable[[], object], items: int, seconds: float) -> float:
    """Items/s of the best of several rounds: what disturbs a round only makes it slower."""
    draw()
    found = 0.0
    for _ in range(ROUNDS):
        calls, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds / ROUNDS:
            draw()
            calls += 1
        found = max(found, calls * items / took)
    return found


def distributions(records: int) -> Iterator[tuple[str, Callable[[], object]]]:
    random = stream(1)
    for name, items in (("zipfian", records), ("zipfian, 10^10 items", SCRAMBLED_ITEMS)):
        yield name, partial(Zipfian(items).ranks, random, BLOCK)
    still = np.full(BLOCK, records, np.int64)
    growing = records + np.cumsum(random.random(BLOCK) < 0.05, dtype=np.int64)
    view = View(records, 0, 1)
    cases: list[tuple[str, Distribution, Int64s]] = [
        ("scrambled zipfian", ScrambledZipfian(records, view), still),
        ("scrambled zipfian, 5% inserts", ScrambledZipfian(records + records // 10, view), growing),
        ("latest, 5% inserts", Latest(), growing),
        ("uniform", Uniform(records), still),
        ("hotspot", Hotspot(records), still),
        ("exponential", Exponential(records), still),
        ("sequential", Sequential(records), still),
    ]
    for name, drawn, visible in cases:
        yield name, partial(drawn.draw, random, visible)


def workloads(records: int, trace: Path) -> Iterator[Workload]:
    for letter in CORE:
        yield Ycsb(letter, records, operations=records)
    for variant in VARIANTS:
        yield Mixgraph(records, variant=variant)
    yield Mixgraph(records, sine=Sine())
    yield ShiftingHotspot(records)
    yield TimeSeries(loaded_points=records // 1000)
    yield Trace(str(trace))


def write_trace(path: Path, rows: int) -> None:
    lines = (f"{i / 1000},{'update' if i % 2 else 'read'},{i * 7919 % rows},100\n" for i in range(rows))
    path.write_text("time,op,key,size\n" + "".join(lines))


def make_values(values: Values, keys: list[int], size: int) -> None:
    for key in keys:
        values.value(key, 7, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"numpy {np.__version__}, {args.records:,} records, one core, best of {ROUNDS}")
    print("\nrecord numbers, M keys/s")
    for name, draw in distributions(args.records):
        print(f"  {name:34}{best(draw, BLOCK, args.seconds) / 1e6:8.1f}")
    print("\noperations, M/s")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        write_trace(trace, 300_000)
        start = time.perf_counter()
        Trace(str(trace))
        read = 0.3 / (time.perf_counter() - start)
        for workload in workloads(args.records, trace):
            batches = itertools.chain.from_iterable(workload.run() for _ in itertools.count())
            timed = " with times" if isinstance(workload, Mixgraph) and workload.sine else ""
            print(f"  {workload.name + timed:34}{best(partial(next, batches), BLOCK, args.seconds) / 1e6:8.1f}")
    print(f"  {'reading a CSV trace':34}{read:8.1f}")
    print("\nrecords as bytes, M/s")
    numbers = stream(1).integers(0, args.records, BLOCK)
    for keys in (UserKeys("hashed"), UserKeys("ordered")):
        print(f"  {keys.order + ' keys':34}{best(partial(keys.keys, numbers), BLOCK, args.seconds) / 1e6:8.1f}")
    values = Values()
    some = numbers.tolist()
    for size in (100, 1000):
        made = best(partial(make_values, values, some, size), BLOCK, args.seconds)
        print(f"  {f'values of {size} bytes':34}{made / 1e6:8.1f}")


if __name__ == "__main__":
    main()
