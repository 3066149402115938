"""All runs of a plan, one after the other, in turn: each repetition runs every setup once, and begins with another.

So what changes slowly (the machine's neighbours, its temperature, a device's age) hits all setups alike, and no setup
always follows the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from keigo import __version__
from workloads.compare.hierarchy import Hierarchy, prepared
from workloads.compare.job import Job
from workloads.compare.plan import Plan, WorkloadPlan
from workloads.compare.results import FORMAT, Comparison, Described, Run, SetupRecord, load, save
from workloads.compare.run import run_job
from workloads.compare.setups import Setup
from workloads.compare.tools import CompareError
from workloads.compare.worker import Began, Done
from workloads.runner.isolation import check_may_drop, memory_limit
from workloads.runner.meters import machine


class Watcher(Protocol):
    """Who is told how a comparison gets on."""

    def say(self, text: str) -> None:
        """Something that takes long, or a setup that does not run."""

    def begin(self, run: str, number: int, of: int) -> None:
        """A run begins."""

    def watch(self, event: Began | Done) -> None:
        """How the run gets on."""

    def end(self, run: Run) -> None:
        """A run is over."""


def fingerprint(plan: Plan) -> str:
    """Of all that runs of one comparison share; the number of repetitions and the title may change."""
    parts = [plan.tiers, plan.testbed, plan.workloads, plan.engine, sorted(plan.options.items()), plan.setups]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def begun(plan: Plan, path: Path, *, resume: bool) -> Comparison:
    """The comparison to go on with: a new one, or with `resume` the one in the file. Raises CompareError.

    Runs that failed are forgotten: they are tried again.
    """
    if path.exists() and path.stat().st_size:
        if not resume:
            raise CompareError(f"{path}: is there already: --resume adds what is missing, or name another --json")
        found = load(path)
        if found.fingerprint != fingerprint(plan):
            raise CompareError(f"{path}: is of another plan than {plan.source}, or of an earlier state of it")
        kept = [run for run in found.runs if run.error is None]
        fresh = _fresh(plan)
        return msgspec.structs.replace(fresh, runs=kept, began=found.began, tiers=found.tiers)
    found = _fresh(plan)
    save(found, path)  # now rather than after the first run's hour
    return found


def _fresh(plan: Plan) -> Comparison:
    return Comparison(
        format=FORMAT,
        keigo=__version__,
        title=plan.title,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=plan.text,
        fingerprint=fingerprint(plan),
        base=plan.base,
        repeats=plan.repeats,
        machine=machine(),
        engine=plan.engine,
        options=dict(plan.options),
        tiers=[],
        setups=[SetupRecord(s.name, s.about(plan.tiers), s.unable(plan.tiers, plan.engine)) for s in plan.setups],
        workloads=[Described(workload.name, about_workload(workload)) for workload in plan.workloads],
        runs=[],
    )


def about_workload(workload: WorkloadPlan) -> str:
    """What is done, in a line."""
    settings = workload.settings
    parts = [workload.kind if workload.kind != workload.name else ""]
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in workload.parameters.items() if name != "records"]
    if "records" in workload.parameters:
        parts.insert(1, f"{workload.parameters['records']:,} records")
    if settings.seconds is not None:
        parts.append(f"{settings.seconds:g} s")
    elif settings.operations is not None:
        parts.append(f"{settings.operations:,} operations")
    if settings.warm_up:
        parts.append(f"after {settings.warm_up:g} s to warm up")
    parts.append(f"{settings.threads} thread{'s' if settings.threads > 1 else ''}")
    if settings.rate is not None:
        parts.append(f"{settings.rate:g} operations/s due")
    if settings.memory is not None:
        parts.append(f"in {settings.memory >> 20} MiB of memory, page cache included")
    if settings.drop_caches:
        parts.append("page cache dropped before the run")
    if settings.verify:
        parts.append("every answer checked")
    return ", ".join(part for part in parts if part)


def order(plan: Plan, setups: tuple[Setup, ...]) -> Iterator[tuple[int, WorkloadPlan, Setup]]:
    """Every run there is: repetition, workload, setup; each repetition begins with the next setup."""
    for repetition in range(plan.repeats):
        for workload in plan.workloads:
            first = repetition % max(1, len(setups))
            yield from ((repetition, workload, setup) for setup in setups[first:] + setups[:first])


def compare(plan: Plan, path: Path, watcher: Watcher, *, resume: bool, only: tuple[str, ...] = ()) -> Comparison:
    """Run what is missing of a plan, saving to `path` after each run; `only`: no other setups than these.

    A setup that fails on a workload is not tried on it again. Raises CompareError where nothing can begin, and
    KeyboardInterrupt on Ctrl-C, when all mounts and files of it are gone.
    """
    known = [setup.name for setup in plan.setups]
    for name in only:
        if name not in known:
            raise CompareError(f"--only: {name!r} is no setup of {plan.source} (setups: {', '.join(known)})")
    found = begun(plan, path, resume=resume)
    unable = {setup.name: setup.unable for setup in found.setups if setup.unable is not None}
    wanted = tuple(setup for setup in plan.setups if setup.name not in unable and (not only or setup.name in only))
    for name, why in unable.items():
        watcher.say(f"{name} does not run: {why}")
    have = {(run.repetition, run.workload, run.setup) for run in found.runs}
    missing = [it for it in order(plan, wanted) if (it[0], it[1].name, it[2].name) not in have]
    if not missing:
        return found
    _check_isolation(plan)
    with prepared(plan.tiers, plan.testbed, plan.source, watcher.say) as hierarchy:
        tiers = [Described(tier.name, tier.about) for tier in hierarchy.tiers]
        found = msgspec.structs.replace(found, tiers=tiers)
        failed: set[tuple[str, str]] = set()
        for number, (repetition, workload, setup) in enumerate(missing):
            if (workload.name, setup.name) in failed:
                continue
            text = f"{workload.name} on {setup.name}, repetition {repetition + 1} of {plan.repeats}"
            watcher.begin(text, number + 1, len(missing))
            run = _one(plan, hierarchy, workload, setup, repetition, watcher)
            if run.error is not None:
                failed.add((workload.name, setup.name))
            found = msgspec.structs.replace(found, runs=[*found.runs, run])
            save(found, path)
            watcher.end(run)
    return found


def _check_isolation(plan: Plan) -> None:
    """Raises IsolationError now for what would fail every run."""
    if any(workload.settings.drop_caches for workload in plan.workloads):
        check_may_drop()
    for memory in {workload.settings.memory for workload in plan.workloads} - {None}:
        with memory_limit(memory or 0, ()):
            pass


def _one(
    plan: Plan, hierarchy: Hierarchy, workload: WorkloadPlan, setup: Setup, repetition: int, watcher: Watcher
) -> Run:
    key = (workload.name, setup.name, repetition)
    try:
        with setup.up(hierarchy) as place:
            job = Job(
                directory=str(place.directory),
                engine=plan.engine,
                options=dict(plan.options),
                db_paths=list(place.db_paths),
                workload=workload.kind,
                parameters=dict(workload.parameters),
                settings=workload.settings,
            )
            return run_job(job, hierarchy, key, watcher.watch)
    except CompareError as error:
        return Run(*key, None, {}, None, str(error))
    finally:
        hierarchy.clear()
