"""What one run is asked to do: plain data that goes to a process of its own, and the runner's plan that it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np

from workloads.engines.options import DbPath, EngineOptions
from workloads.generators.mixgraph import Mixgraph
from workloads.generators.shifting import ShiftingHotspot
from workloads.generators.timeseries import TimeSeries
from workloads.generators.trace import Trace
from workloads.generators.workload import Workload
from workloads.generators.ycsb import CORE, Ycsb
from workloads.records import UserKeys
from workloads.runner.benchmark import Plan


class Settings(msgspec.Struct, frozen=True):
    """The runner's own; see `workloads.runner.benchmark.Plan`."""

    threads: int = 1
    operations: int | None = None
    seconds: float | None = None
    warm_up: float = 0.0
    rate: float | None = None
    interval: float = 1.0
    seed: int = 0
    compression_ratio: float = 1.0
    verify: bool = False
    drop_caches: bool = False
    memory: int | None = None


class Job(msgspec.Struct, frozen=True):
    """A run: a workload on an engine in a directory."""

    directory: str
    engine: str
    options: dict[str, Any]
    """Of `EngineOptions`, but `db_paths`."""
    db_paths: list[tuple[str, int]]
    workload: str
    """A name of `PARAMETERS`."""
    parameters: dict[str, Any]
    settings: Settings
    load: bool = True
    """Whether to load records first; else the run finds what an earlier job loaded."""
    run: bool = True
    """Whether anything is done after the load."""
    settle: bool = False
    """Whether compactions are waited for after the run, too."""


def _ycsb(letter: str) -> Callable[[Mapping[str, Any], Settings], Workload]:
    def make(given: Mapping[str, Any], settings: Settings) -> Workload:
        given = dict(given)
        keys = UserKeys("ordered" if given.pop("ordered", False) else "hashed")
        expected = settings.operations or (0 if settings.seconds else given["records"])
        return Ycsb(letter, operations=expected, seed=settings.seed, key_format=keys, **given)

    return make


def _mixgraph(given: Mapping[str, Any], settings: Settings) -> Workload:
    return Mixgraph(seed=settings.seed, **given)


def _shifting(given: Mapping[str, Any], settings: Settings) -> Workload:
    return ShiftingHotspot(seed=settings.seed, **given)


def _timeseries(given: Mapping[str, Any], settings: Settings) -> Workload:
    return TimeSeries(seed=settings.seed, **given)


def _trace(given: Mapping[str, Any], _settings: Settings) -> Workload:
    return Trace(**given)


_MAKERS: Final = {
    **{f"ycsb-{letter}": _ycsb(letter) for letter in CORE},
    "mixgraph": _mixgraph,
    "shifting": _shifting,
    "timeseries": _timeseries,
    "trace": _trace,
}
DB_BENCH: Final = "db_bench"
"""The workload, and the engine, that is db_bench and not one of ours."""
_YCSB: Final = ("records", "value_size", "distribution", "theta", "most_scanned", "ordered")
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        **{f"ycsb-{letter}": _YCSB for letter in CORE},
        "mixgraph": ("records", "variant", "most_value", "most_scanned"),
        "shifting": ("records", "value_size", "phase_operations", "hot_records", "hot_operations"),
        "timeseries": ("series", "loaded_points", "value_size", "scan_share", "most_scanned"),
        "trace": ("path", "value_size", "paced"),
        DB_BENCH: ("benchmark", "load", "records", "key_size", "value_size", "read_percent"),
    }
)
"""The workloads, and what each may be told."""
NEEDED: Final = ("records", "path", "benchmark")
"""Parameters without which a workload that has them cannot be made."""


def workload_of(name: str, parameters: Mapping[str, Any], settings: Settings) -> Workload:
    """The workload of that name. Raises WorkloadError for a value that makes none."""
    return _MAKERS[name](parameters, settings)


def runner_plan(job: Job) -> Plan:
    """What the runner is to do. Raises WorkloadError or OptionError."""
    workload = workload_of(job.workload, job.parameters, job.settings)
    settings = msgspec.structs.asdict(job.settings)
    is_trace = isinstance(workload, Trace)
    if settings["operations"] is None and settings["seconds"] is None and not is_trace:
        settings["operations"] = workload.records
    return Plan(
        directory=Path(job.directory),
        engine=job.engine,
        workload=workload,
        options=EngineOptions(**job.options, db_paths=tuple(DbPath(*place) for place in job.db_paths)),
        numbers=np.unique(workload.columns.key) if isinstance(workload, Trace) else None,
        deletes=is_trace,
        load=job.load,
        run=job.run,
        settle=job.settle,
        **settings,
    )
