"""One run in a process of its own, so that nothing is left of it for the next: `python -m workloads.compare.worker`.

A `Job` comes on standard input; what happens goes to standard output, one `Event` a line of JSON, the result last.
SIGTERM ends it as Ctrl-C does. Times are of CLOCK_MONOTONIC, which is the same in every process of a machine.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import msgspec

from keigo.errors import KeigoError
from workloads.compare.job import DB_BENCH, Job, runner_plan
from workloads.compare.native import run_native
from workloads.runner.benchmark import Benchmark
from workloads.runner.result import Result


class Began(msgspec.Struct, frozen=True, tag="began"):
    """A phase, or a step between phases, begins."""

    what: str
    at: float
    operations: int | None = None
    """That it will have, where that is known."""
    seconds: float | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """How far the phase is."""

    operations: int
    seconds: float


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The run is over; what ended it early is in the result."""

    result: Result


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The run could not begin."""

    error: str


Event = Began | Done | Ended | Refused


def _tell(event: Event) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


class _Teller:
    """A Watcher that tells the parent."""

    def begin(self, what: str, operations: int | None, seconds: float | None) -> None:
        _tell(Began(what, time.monotonic(), operations, seconds))

    def tick(self, operations: int, elapsed: float) -> None:
        _tell(Done(operations, elapsed))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the job that standard input has."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
        watcher = _Teller()
        native = job.workload == DB_BENCH
        _tell(Ended(run_native(job, watcher) if native else Benchmark(runner_plan(job), watcher).run()))
    except KeigoError as error:
        _tell(Refused(str(error)))
    except KeyboardInterrupt:
        _tell(Refused("interrupted"))


if __name__ == "__main__":
    main()
