"""A plan: what is compared, read from a YAML file.

    title: YCSB A on three tiers
    tiers:                              # fast to slow; or `devices: FILE`, and `directory:` for its tier in place
      - {name: nvme, path: /mnt/nvme, capacity: 2GiB}
      - {name: sata, path: /mnt/sata}
    testbed: {dilate: 20}               # instead of paths: emulated devices of these names, for the comparison only
    workload: {name: ycsb-a, records: 1M, operations: 1M, value_size: 400, threads: 4}    # or `workloads:`, a list
    engine: {name: rocksdb, write_buffer: 4MiB}
    setups: [all-slow, all-fast, {keigo: levels}]                                         # see `plan_setups`
    base: all-slow                      # default: the first setup
    repeats: 3
    drop_caches: true                   # before each run phase
    memory: 512MiB                      # limit of database and daemon together

Paths are relative to the plan's directory. Every mistake in it is one line with file, line and key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keigo import config
from keigo.errors import KeigoError
from workloads.compare.document import Node, read
from workloads.compare.hierarchy import TestbedPlan, TierPlan
from workloads.compare.job import DB_BENCH, NEEDED, PARAMETERS, Settings, workload_of
from workloads.compare.plan_setups import setups_of
from workloads.compare.setups import Setup
from workloads.engines import OPEN
from workloads.engines.options import COMPACTION_STYLES, COMPRESSIONS, EngineOptions

_TOP: Final = (
    *("title", "tiers", "devices", "directory", "testbed", "workload", "workloads"),
    *("engine", "setups", "base", "repeats", "drop_caches", "memory"),
)
_Reader = Callable[[Node], Any]


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """A workload with all that it is told, and a name that no other of the plan has."""

    name: str
    kind: str
    parameters: Mapping[str, Any]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, checked as far as it can be without looking at the tiers."""

    source: Path
    text: str
    title: str
    tiers: tuple[TierPlan, ...]
    testbed: TestbedPlan | None
    workloads: tuple[WorkloadPlan, ...]
    engine: str
    options: Mapping[str, Any]
    """Of `EngineOptions`, but `db_paths`."""
    setups: tuple[Setup, ...]
    base: str
    repeats: int


def load(path: Path) -> Plan:
    """Read and check a plan. Raises PlanError, or ConfigError for the devices.yaml that it names."""
    source = path.absolute()
    root = read(source)
    top = root.mapping(_TOP)
    tiers = _tiers(root, top)
    testbed = _testbed(top["testbed"], tiers) if "testbed" in top else None
    for tier in tiers:
        if (tier.path is None) == (testbed is None):
            text = "has a path, and the plan a testbed" if testbed else "needs a path, or the plan a testbed"
            raise top.get("tiers", root).error(f"{tier.name}: {text}")
    setups = setups_of(_need(root, top, "setups"), tiers, source.parent)
    names = [setup.name for setup in setups]
    engine, options = _engine(top.get("engine"))
    memory = top["memory"].size() if "memory" in top else None
    common = {"drop_caches": "drop_caches" in top and top["drop_caches"].flag(), "memory": memory}
    workloads = _workloads(root, top, common)
    if any((workload.kind == DB_BENCH) != (engine == DB_BENCH) for workload in workloads):
        raise top.get("engine", root).error("the engine db_bench and workloads of that name go together")
    return Plan(
        source,
        source.read_text(),
        top["title"].text() if "title" in top else source.stem,
        tiers,
        testbed,
        workloads,
        engine,
        options,
        setups,
        top["base"].choice(names) if "base" in top else names[0],
        top["repeats"].count() if "repeats" in top else 3,
    )


def _need(root: Node, top: Mapping[str, Node], name: str) -> Node:
    if name not in top:
        raise root.error(f"{name}: is missing")
    return top[name]


def _tiers(root: Node, top: Mapping[str, Node]) -> tuple[TierPlan, ...]:
    if ("tiers" in top) == ("devices" in top):
        raise root.error("tiers: name either tiers or a devices.yaml (devices:)")
    if "devices" in top:
        return _tiers_of_devices(top)
    if "directory" in top:
        raise top["directory"].error("is for the tier in place of a devices.yaml; tiers have a path each")
    found: list[TierPlan] = []
    for item in top["tiers"].items():
        given = item.mapping(("name", "path", "capacity"))
        name = _need(item, given, "name").text()
        if any(tier.name == name for tier in found):
            raise given["name"].error(f"{name!r} is the name of two tiers")
        path = item.source.parent / given["path"].text() if "path" in given else None
        found.append(TierPlan(name, path, given["capacity"].size() if "capacity" in given else None))
    return tuple(found)


def _tiers_of_devices(top: Mapping[str, Node]) -> tuple[TierPlan, ...]:
    node = top["devices"]
    found = config.load(node.source.parent / node.text())
    tiers = []
    for tier in found.tiers:
        path = tier.path
        if path is None:
            if "directory" not in top:
                raise node.error(f"its tier {tier.name} is in place: say with directory: where that is")
            path = node.source.parent / top["directory"].text()
        tiers.append(TierPlan(tier.name, path, tier.capacity))
    return tuple(tiers)


def _testbed(node: Node, tiers: Sequence[TierPlan]) -> TestbedPlan:
    given = node.mapping(("directory", "dilate", "sizes"))
    sizes = given["sizes"].entries() if "sizes" in given else {}
    names = [tier.name for tier in tiers]
    for name, size in sizes.items():
        if name not in names:
            raise size.error(f"is not a tier (tiers: {', '.join(names)})")
    return TestbedPlan(
        node.source.parent / given["directory"].text() if "directory" in given else None,
        given["dilate"].number(1) if "dilate" in given else 20.0,
        tuple((name, size.size()) for name, size in sizes.items()),
    )


_SETTINGS: Final[Mapping[str, _Reader]] = {
    "threads": Node.count,
    "operations": Node.count,
    "seconds": Node.number,
    "warm_up": Node.number,
    "rate": Node.number,
    "interval": Node.number,
    "seed": lambda node: node.count(0),
    "compression_ratio": Node.number,
    "verify": Node.flag,
}
_BENCHMARKS: Final = (
    *("fillrandom", "fillseq", "fillsync", "overwrite", "readrandom", "readseq", "seekrandom"),
    *("readwhilewriting", "readrandomwriterandom", "updaterandom", "mixgraph"),
)
_PARAMETERS: Final[Mapping[str, _Reader]] = {
    **dict.fromkeys(
        ("records", "series", "loaded_points", "phase_operations", "most_value", "most_scanned"), Node.count
    ),
    **dict.fromkeys(("theta", "hot_records", "hot_operations", "scan_share"), Node.number),
    **dict.fromkeys(("distribution", "variant"), Node.text),
    **dict.fromkeys(("benchmark", "load"), lambda node: node.choice(_BENCHMARKS)),
    "key_size": Node.count,
    "read_percent": lambda node: node.count(0),
    **dict.fromkeys(("ordered", "paced"), Node.flag),
    "value_size": Node.size,
    "path": lambda node: str(node.source.parent / node.text()),
}
_OPTIONS: Final[Mapping[str, _Reader]] = {
    **dict.fromkeys(("write_buffer", "file_size", "level_base"), Node.size),
    **dict.fromkeys(("background_jobs", "subcompactions"), Node.count),
    **dict.fromkeys(("direct_reads", "direct_writes", "sync", "wal", "dynamic_levels"), Node.flag),
    "block_cache": lambda node: node.size(0),
    "bloom_bits": lambda node: node.count(0),
    "max_open_files": lambda node: node.count(-1),
    "growth_factor": lambda node: node.count(2),
    **dict.fromkeys(("level0_slowdown", "level0_stop"), Node.count),
    "compression": lambda node: node.choice(COMPRESSIONS),
    "compaction_style": lambda node: node.choice(COMPACTION_STYLES),
}


def _workloads(root: Node, top: Mapping[str, Node], common: Mapping[str, Any]) -> tuple[WorkloadPlan, ...]:
    if ("workload" in top) == ("workloads" in top):
        raise root.error("workload: name one workload, or a list of workloads (workloads:)")
    nodes = [top["workload"]] if "workload" in top else list(top["workloads"].items())
    found: list[WorkloadPlan] = []
    for node in nodes:
        made = _workload(node, common)
        if any(other.name == made.name for other in found):
            raise node.error(f"{made.name!r} is the name of two workloads: give one a label")
        found.append(made)
    return tuple(found)


def _workload(node: Node, common: Mapping[str, Any]) -> WorkloadPlan:
    kind = _need(node, node.entries(), "name").choice(list(PARAMETERS))
    known = PARAMETERS[kind]
    given = node.mapping(("name", "label", *known, *_SETTINGS))
    for name in known:
        if name in NEEDED:
            _need(node, given, name)
    parameters = {name: _PARAMETERS[name](given[name]) for name in known if name in given}
    if given.get("seconds") and given.get("operations"):
        raise given["seconds"].error("the run is told operations, too: only one of them")
    settings = Settings(
        **{name: read_it(given[name]) for name, read_it in _SETTINGS.items() if name in given}, **common
    )
    if kind == DB_BENCH:
        _check_native(given)
    else:
        try:
            workload_of(kind, parameters, settings)
        except KeigoError as error:
            raise node.error(str(error)) from None
    name = parameters.get("benchmark", kind)
    return WorkloadPlan(given["label"].text() if "label" in given else name, kind, parameters, settings)


def _check_native(given: Mapping[str, Node]) -> None:
    for name in ("warm_up", "rate", "interval", "compression_ratio", "verify"):
        if name in given:
            raise given[name].error("db_bench has no such thing")
    if "seconds" in given:
        given["seconds"].count()
    fresh = given["benchmark"].text().startswith("fill")
    if fresh and "load" in given:
        raise given["load"].error(f"{given['benchmark'].text()} begins with a new database")
    if not fresh and not ("load" in given and given["load"].text().startswith("fill")):
        raise given.get("load", given["benchmark"]).error("name the fill... benchmark that loads the database (load:)")


def _engine(node: Node | None) -> tuple[str, dict[str, Any]]:
    if node is None:
        return "rocksdb", {}
    given = node.mapping(("name", *_OPTIONS))
    name = given["name"].choice([*OPEN, DB_BENCH]) if "name" in given else "rocksdb"
    options = {key: read_it(given[key]) for key, read_it in _OPTIONS.items() if key in given}
    try:
        EngineOptions(**options)
    except KeigoError as error:
        raise node.error(str(error)) from None
    return name, options
