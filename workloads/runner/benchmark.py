"""One run from beginning to end: the place, the load, the run, the checks; whatever ends it early, what was measured is
in the result."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from keigo import __version__
from keigo.errors import KeigoError
from workloads.engines import ON_DISK, open_engine
from workloads.engines.options import EngineOptions, asked_for
from workloads.engines.protocol import Engine
from workloads.generators.workload import Workload
from workloads.operations import Int64s, Op
from workloads.records import Values
from workloads.runner import isolation
from workloads.runner.drive import Clock, Loop, PlainLoop, RealClock
from workloads.runner.meters import Meters, Sampler, machine
from workloads.runner.phase import Measured, PhaseRun, PhaseSpec
from workloads.runner.place import (
    Marker,
    PlaceError,
    check_tables,
    claim_tables,
    read_marker,
    remove_database,
    write_marker,
)
from workloads.runner.result import FORMAT, Level, Phase, Result, Verification, latency_of
from workloads.verify import CheckedLoop, Oracle, VerificationError, adopt, check_all


class Watcher(Protocol):
    """Who is told how a run gets on; called by the thread that runs it."""

    def begin(self, what: str, operations: int | None, seconds: float | None) -> None:
        """Something begins: a phase with its limits, or a step without."""

    def tick(self, operations: int, elapsed: float) -> None:
        """So far: operations that have ended, seconds measured."""


class Silent:
    """Tells nobody."""

    def begin(self, what: str, operations: int | None, seconds: float | None) -> None:
        """See Watcher."""

    def tick(self, operations: int, elapsed: float) -> None:
        """See Watcher."""


@dataclass(frozen=True)
class Plan:
    """What to run. `directory` is the database's own. See `phase.PhaseSpec` for the limits.

    An engine that is not in `engines.ON_DISK` is never opened again, as it would have forgotten everything.
    """

    directory: Path
    engine: str
    workload: Workload
    options: EngineOptions = field(default_factory=EngineOptions)
    threads: int = 1
    operations: int | None = None
    seconds: float | None = None
    warm_up: float = 0.0
    rate: float | None = None
    interval: float = 1.0
    seed: int = 0
    """Of the values; the workload has its own."""
    compression_ratio: float = 1.0
    load: bool = True
    run: bool = True
    settle: bool = False
    """Whether compactions are waited for after the run, too, as they always are after a load."""
    verify: bool = False
    drop_caches: bool = False
    memory: int | None = None
    numbers: Int64s | None = None
    """All record numbers of a workload that does not count them from 0, ascending."""
    deletes: bool = False
    """Whether the workload deletes records: then one that a load made may be gone after an earlier run."""


class Benchmark:
    """A run of a plan. Raises PlaceError or IsolationError where it cannot begin."""

    def __init__(self, plan: Plan, watcher: Watcher | None = None, opener: Callable[..., Engine] = open_engine) -> None:
        self._plan = plan
        self._watcher = watcher or Silent()
        self._opener = opener
        self._phases: list[Phase] = []
        self._loops: list[CheckedLoop] = []
        self._failures: list[str] = []
        self._final = self._reopened = 0
        self._complete = False
        self._abandoned = False  # threads that nobody waits for may still use the engine
        self._began = datetime.now(UTC)
        marker = read_marker(plan.directory)
        self._marker = self._wanted(marker)
        self._table_places = tuple(place.path for place in plan.options.db_paths)
        check_tables(plan.directory, self._table_places)
        if plan.drop_caches:
            isolation.check_may_drop()
        self._meters = Meters(plan.directory)
        self._values = Values(self._marker.value_seed, self._marker.compression_ratio)
        self._oracle = Oracle(plan.workload.key_format, self._values, plan.numbers) if plan.verify else None
        self._replaces = plan.load and marker is not None
        self._engine: Engine | None = None

    def _wanted(self, found: Marker | None) -> Marker:
        plan = self._plan
        wanted = Marker(
            engine=plan.engine,
            workload=plan.workload.name,
            records=plan.workload.records,
            value_seed=plan.seed,
            compression_ratio=plan.compression_ratio,
            key_format=repr(plan.workload.key_format),
            loaded=False,
        )
        if plan.load:
            return wanted
        if found is None or not found.loaded:
            raise PlaceError(f"{plan.directory}: nothing is loaded here: run the load first")
        for name in ("engine", "records", "key_format"):
            has, want = getattr(found, name), getattr(wanted, name)
            if has != want:
                raise PlaceError(f"{plan.directory}: was loaded with {name.replace('_', ' ')} {has}, not {want}")
        return found

    def run(self) -> Result:
        """Run it. Once the database is open, errors of the engine, failed checks and Ctrl-C (KeyboardInterrupt) end it
        and are in the result. Raises IsolationError, PlaceError, OptionError or EngineError before."""
        plan = self._plan
        begun, interrupted, error = False, False, None
        pids = [os.getpid()] + ([] if self._meters.daemon_pid is None else [self._meters.daemon_pid])
        limit = nullcontext() if plan.memory is None else isolation.memory_limit(plan.memory, pids)
        try:
            with limit, self._closing():
                if self._replaces:
                    remove_database(plan.directory, self._table_places, self._meters.daemon_pid)
                if plan.load:
                    write_marker(plan.directory, self._marker)
                    claim_tables(plan.directory, self._table_places)
                self._open(create=plan.load)
                begun = True
                self._everything()
        except KeyboardInterrupt:
            interrupted = True
        except VerificationError as wrong:
            self._failures.append(str(wrong))
            error = f"verification failed: {wrong}"
        except KeigoError as failed:
            if not begun:
                raise
            error = str(failed)
        return self._result(interrupted, error)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if not self._abandoned:
                with suppress(KeigoError):  # what ended the run is told, not what follows from it
                    self._close()
            raise
        self._close()

    def _open(self, *, create: bool) -> None:
        self._engine = self._opener(self._plan.engine, str(self._plan.directory), self._plan.options, create=create)

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def _opened(self) -> Engine:
        if self._engine is None:
            raise KeigoError("the database is not open")
        return self._engine

    def _everything(self) -> None:
        plan, workload = self._plan, self._plan.workload
        threads = range(plan.threads)
        if plan.load:
            batches = [workload.load(thread, plan.threads) for thread in threads]
            self._phase("load", PhaseSpec(batches, interval=plan.interval), workload.records)
            self._marker = msgspec.structs.replace(self._marker, loaded=True)
            write_marker(plan.directory, self._marker)
        if self._oracle is not None:
            self._watcher.begin("reading what is there", None, None)
            if plan.load:
                self._oracle.settle()
            else:
                adopt(self._opened, self._oracle, [] if plan.deletes else workload.load())
        if plan.run:
            if plan.drop_caches and plan.engine in ON_DISK:
                self._close()
                isolation.drop_page_cache()
                self._open(create=False)
            batches = [workload.run(thread, plan.threads) for thread in threads]
            spec = PhaseSpec(batches, plan.operations, plan.seconds, plan.warm_up, plan.rate, plan.interval)
            self._phase("run", spec, plan.operations)
        if self._oracle is not None:
            self._check_all(self._oracle)

    def _loop(self, clock: Clock) -> Loop:
        if self._oracle is None:
            return PlainLoop(self._opened, self._plan.workload.key_format, self._values, clock)
        self._loops.append(CheckedLoop(self._opened, self._oracle, clock))
        return self._loops[-1]

    def _phase(self, name: str, spec: PhaseSpec, operations: int | None) -> None:
        clock = RealClock()
        phase = PhaseRun(spec, [self._loop(clock) for _ in spec.batches], clock)
        sampler = Sampler(self._meters)
        stalled = self._opened.stats().stall_micros or 0
        self._watcher.begin(name, operations, spec.seconds)
        try:
            measured = phase.run(sampler.sample, lambda: self._watcher.tick(phase.live, phase.elapsed))
        except KeyboardInterrupt:
            self._abandoned = True
            raise
        settled, failed = None, measured.error
        if (name == "load" or self._plan.settle) and failed is None and not measured.interrupted:
            self._watcher.begin("waiting for compactions", None, None)
            start = time.monotonic()
            try:
                self._opened.wait_for_compactions()
            except (KeigoError, KeyboardInterrupt) as error:
                failed = error
            settled = time.monotonic() - start
            sampler.sample()
        self._phases.append(self._told(name, spec, measured, sampler, settled, stalled))
        if failed is not None:
            raise failed
        if measured.interrupted:
            raise KeyboardInterrupt

    def _told(
        self, name: str, spec: PhaseSpec, measured: Measured, sampler: Sampler, settled: float | None, stalled: int
    ) -> Phase:
        samples = sampler.samples()
        # A database with a background error, or a mount without a daemon, may not tell of itself any more.
        stats = None if measured.error is not None else self._opened.stats()
        open_loop = bool(measured.service)
        return Phase(
            name=name,
            seconds=measured.seconds,
            operations=measured.operations,
            throughput=measured.operations / measured.seconds if measured.seconds else 0.0,
            missing=measured.missing,
            scanned=measured.scanned,
            value_bytes=measured.value_bytes,
            latency={_name(op): latency_of(found) for op, found in sorted(measured.latency.items())},
            service={_name(op): latency_of(found) for op, found in sorted(measured.service.items())},
            behind=measured.behind if open_loop else 0.0,
            interval=spec.interval,
            per_interval={_name(op): counts for op, counts in sorted(measured.per_interval.items())},
            samples=samples,
            database_cpu=samples.database_cpu[-1],
            daemon_cpu=samples.daemon_cpu[-1] if samples.daemon_cpu else None,
            read_bytes={tier: column[-1] for tier, column in samples.read_bytes.items()},
            written_bytes={tier: column[-1] for tier, column in samples.written_bytes.items()},
            settle_seconds=settled,
            levels=[] if stats is None else [Level(level.level, level.files, level.bytes) for level in stats.levels],
            stall_seconds=None if stats is None or stats.stall_micros is None else (stats.stall_micros - stalled) / 1e6,
        )

    def _check_all(self, oracle: Oracle) -> None:
        for reopened in (False, True) if self._plan.engine in ON_DISK else (False,):
            self._watcher.begin("checking every key" + (", reopened" if reopened else ""), len(oracle.written()), None)
            if reopened:
                self._close()
                self._open(create=False)
            checked, wrong = check_all(self._opened, oracle, lambda done: self._watcher.tick(done, 0.0))
            if reopened:
                self._reopened = checked
            else:
                self._final = checked
            if wrong:
                self._failures += wrong[1:]
                raise VerificationError(wrong[0] + (" (after closing and opening again)" if reopened else ""))
        self._complete = True

    def _result(self, interrupted: bool, error: str | None) -> Result:
        plan = self._plan
        verification = None
        if self._oracle is not None:
            verification = Verification(
                sum(loop.reads for loop in self._loops),
                sum(loop.scans for loop in self._loops),
                sum(loop.scanned for loop in self._loops),
                self._final,
                self._reopened,
                self._failures[-1:] + self._failures[:-1],
                self._complete,
            )
        return Result(
            format=FORMAT,
            keigo=__version__,
            began=self._began.isoformat(timespec="seconds"),
            directory=str(plan.directory.absolute()),
            filesystem=self._meters.filesystem,
            engine=plan.engine,
            options={name: plain(getattr(plan.options, name)) for name in asked_for(plan.options)},
            workload=plan.workload.name,
            parameters=parameters_of(plan.workload),
            settings={
                name: getattr(plan, name)
                for name in (
                    *("threads", "operations", "seconds", "warm_up", "rate", "interval", "seed", "compression_ratio"),
                    *("load", "run", "settle", "verify", "drop_caches", "memory"),
                )
            },
            machine=machine(),
            mount=self._meters.mount,
            phases=self._phases,
            verification=verification,
            interrupted=interrupted,
            error=error,
        )


def _name(op: Op) -> str:
    return op.name.lower()


def plain(value: object) -> object:
    """An option's value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def parameters_of(workload: Workload) -> dict[str, Any]:
    """The workload's own parameters that are numbers, texts or lists of them, by name."""
    found = {}
    for name in getattr(workload, "__dataclass_fields__", ()):
        value = getattr(workload, name)
        if isinstance(value, (bool, int, float, str)) or (
            isinstance(value, Sequence) and all(isinstance(item, (int, float)) for item in value)
        ):
            found[name] = value
    return found
