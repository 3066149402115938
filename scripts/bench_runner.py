#!/usr/bin/env python3
"""What the runner itself costs: us per operation with an engine that does nothing, by workload, threads and checks.

With one thread that is the time between two calls of the database. The best of several rounds is shown: what disturbs
a round only makes it slower.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from workloads.generators.mixgraph import Mixgraph
from workloads.generators.workload import Workload
from workloads.generators.ycsb import CORE, Ycsb
from workloads.runner.benchmark import Benchmark, Plan

ROUNDS = 5


def cost(workload: Workload, engine: str, operations: int, threads: int, rate: float | None, verify: bool) -> float:
    """us per operation of the run phase."""
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="bench-runner-") as directory:
            plan = Plan(
                Path(directory), engine, workload, operations=operations, threads=threads, rate=rate, verify=verify
            )
            result = Benchmark(plan).run()
            if result.error is not None:
                raise SystemExit(result.error)
            phase = result.phases[1]
            found.append(phase.seconds / phase.operations * 1e6)
    return min(found)


def main() -> None:
    """Print a line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=500_000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--value-size", type=int, default=1000)
    options = parser.parse_args()
    workloads: list[Workload] = [
        Ycsb(letter, options.records, operations=options.operations, value_size=options.value_size) for letter in CORE
    ]
    workloads.append(Mixgraph(options.records))
    for workload in workloads:
        shown = [f"{workload.name:22}"]
        for threads in (1, 2):
            plain = cost(workload, "null", options.operations, threads, None, verify=False)
            shown.append(f"{threads} thread{'s' if threads > 1 else ' '} {plain:5.2f} us")
        # Due faster than it can go: nothing waits, so what is seen is the cost of an open loop.
        shown.append(f"open loop {cost(workload, 'null', options.operations, 1, 1e9, verify=False):5.2f} us")
        checked = cost(workload, "dict", options.operations // 10, 1, None, verify=True)
        shown.append(f"with --verify, in a dict {checked:6.2f} us")
        print("   ".join(shown), flush=True)


if __name__ == "__main__":
    main()
