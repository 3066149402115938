"""Engines for tests: slow by a clock of their own, or untruthful."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from workloads.engines.null import DictEngine
from workloads.engines.protocol import Engine, EngineError, EngineStats
from workloads.generators.workload import Workload
from workloads.runner.benchmark import Benchmark, Plan
from workloads.runner.result import Result


@dataclass
class VirtualClock:
    """Time passes only when somebody says so."""

    nanoseconds: int = 1_000_000_000
    stopped: bool = False

    def now(self) -> int:
        return self.nanoseconds

    def wait(self, seconds: float) -> bool:
        self.nanoseconds += round(seconds * 1e9)
        return self.stopped

    def stop(self) -> None:
        self.stopped = True


class Wrapped:
    """An engine that does what another one does; made anew at each opening, over the same one."""

    name = "wrapped"

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def get(self, key: bytes) -> bytes | None:
        return self.inner.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.inner.put(key, value)

    def delete(self, key: bytes) -> None:
        self.inner.delete(key)

    def scan(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return self.inner.scan(start, count)

    def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        self.inner.write(batch)

    def flush(self) -> None:
        self.inner.flush()

    def sync(self) -> None:
        self.inner.sync()

    def wait_for_compactions(self) -> None:
        self.inner.wait_for_compactions()

    def stats(self) -> EngineStats:
        return self.inner.stats()

    def close(self) -> None:
        pass


class Slow(Wrapped):
    """Each call takes 100 us of a virtual clock, and the `stalls`-th a second."""

    def __init__(self, clock: VirtualClock, stalls: int = -1) -> None:
        super().__init__(DictEngine())
        self._clock = clock
        self._stalls = stalls
        self.calls = 0

    def get(self, key: bytes) -> bytes | None:
        self._clock.nanoseconds += 1_000_000_000 if self.calls == self._stalls else 100_000
        self.calls += 1
        return self.inner.get(key)


class Failing(Wrapped):
    """The `fails`-th read fails."""

    def __init__(self, inner: Engine, fails: int) -> None:
        super().__init__(inner)
        self._left = fails

    def get(self, key: bytes) -> bytes | None:
        self._left -= 1
        if self._left == 0:
            raise EngineError("wrapped /db: IO error: no such sector")
        return self.inner.get(key)


@dataclass
class Opening:
    """Opens engines made by `make` over one DictEngine, which outlives them."""

    make: Callable[[Engine], Engine] = Wrapped
    store: DictEngine = field(default_factory=DictEngine)
    opened: int = 0

    def __call__(self, *_: object, create: bool) -> Engine:  # noqa: ARG002 - what it made is still there
        self.opened += 1
        return self.make(self.store)


def run(directory: Path, workload: Workload, opening: Opening | None = None, **settings: object) -> Result:
    """Run a workload on an engine of `opening`."""
    plan = Plan(directory, "rocksdb", workload, **settings)  # type: ignore[arg-type]
    return Benchmark(plan, opener=opening or Opening()).run()
