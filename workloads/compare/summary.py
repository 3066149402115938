"""Results as a report's document: of a comparison, or of a single run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

import numpy as np

from keigo.units import format_size
from workloads.compare.native import spread_out
from workloads.compare.results import Comparison, Run
from workloads.compare.traffic import Moved
from workloads.report.measured import Document, Latency, Measured, Section, Setup, Traffic
from workloads.runner.result import Latency as RunnerLatency
from workloads.runner.result import Machine, NativeResult, Phase, Result

_DEVICES: Final = "the block devices under the tiers"
_KEIGO: Final = "Keigo"


def document_of(found: Comparison) -> Document:
    """The report of a comparison."""
    sections = tuple(_section(found, workload.name, workload.about) for workload in found.workloads)
    notes = []
    if any(run.result is not None and run.devices is None for run in found.runs):
        notes.append("The tiers are not each on a block device of their own: nobody counted what each of them moved.")
    drivers = {run.setup: run.result.mount.driver for run in found.runs if run.result and run.result.mount}
    return Document(
        title=found.title,
        created=_when(found.began),
        sections=sections,
        tiers=tuple((tier.name, tier.about) for tier in found.tiers),
        machine=machine_rows(found.machine),
        configuration=(
            ("engine", found.engine),
            *((name.replace("_", " "), shown_option(value)) for name, value in found.options.items()),
            *((f"driver of {setup}", driver) for setup, driver in drivers.items()),
            ("repetitions", f"{found.repeats}, interleaved; each begins with another setup, each run with new files"),
            ("Keigo", found.keigo),
        ),
        plan=found.plan,
        notes=tuple(notes),
    )


def _section(found: Comparison, workload: str, about: str) -> Section:
    setups = []
    rates: dict[str, dict[int, float]] = {}
    for setup in found.setups:
        runs = [run for run in found.runs if (run.workload, run.setup) == (workload, setup.name)]
        good = {run.repetition: made for run in runs if run.error is None and (made := measured_of(run)) is not None}
        failed = next((run.error for run in runs if run.error is not None), None)
        unable = setup.unable or failed or (None if good else "was left out (--only), or not reached")
        setups.append(Setup(setup.name, setup.about, tuple(good.values()), unable, failed is not None))
        rates[setup.name] = {repetition: made.rate for repetition, made in good.items()}
    return Section(workload, about, tuple(setups), found.base, rates)


def measured_of(run: Run) -> Measured | None:
    """The run phase of a run; None where it has none."""
    if run.result is None:
        return None
    traffic = None if run.devices is None else _traffic_of_devices(run.devices)
    return _measured(run.result, traffic, run.began.get("run", 0.0))


def _measured(result: Result, traffic: Traffic | None, run_began: float) -> Measured | None:
    phase = next((phase for phase in result.phases if phase.name == "run"), None)
    if phase is None:
        return None
    load = next((phase for phase in result.phases if phase.name == "load"), None)
    ends, throughput = _throughput(phase)
    cpu = {"database": phase.database_cpu} | ({} if phase.daemon_cpu is None else {"keigo": phase.daemon_cpu})
    return Measured(
        operations=phase.operations,
        seconds=phase.seconds,
        throughput=throughput,
        ends=ends,
        latencies={name: latency for name, found in phase.latency.items() if (latency := _latency(found)) is not None},
        load_seconds=None if load is None else load.seconds + (load.settle_seconds or 0.0),
        cpu=cpu,
        traffic=traffic,
        run_began=run_began,
        corrected=bool(phase.service),
        interrupted=result.interrupted,
    )


def _throughput(phase: Phase) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """When the intervals of a phase ended, and the operations per second in each.

    Without a last one that was cut to less than half: so few operations say nothing.
    """
    count = max(1, round(phase.seconds / phase.interval))
    ends = [min(phase.interval * (number + 1), phase.seconds) for number in range(count)]
    sums = [sum(counts[at] for counts in phase.per_interval.values() if at < len(counts)) for at in range(count)]
    rates = [done / max(end - begin, 1e-9) for done, (begin, end) in zip(sums, pairwise([0.0, *ends]), strict=True)]
    return tuple(ends), tuple(rates)


def _latency(found: RunnerLatency) -> Latency | None:
    if not found.count:
        return None
    return Latency(np.array(found.values) / 1e3, np.array(found.counts, np.int64), found.mean * found.count / 1e3)


def _traffic_of_devices(moved: Moved) -> Traffic:
    read, written = (
        {tier: _steps(column) for tier, column in columns.items()}
        for columns in (moved.read_bytes, moved.written_bytes)
    )
    return Traffic(_DEVICES, tuple(moved.seconds[1:]), read, written)


def _traffic_of_keigo(result: Result) -> Traffic | None:
    """Of the run phase: between phases nobody samples."""
    samples = next((phase.samples for phase in result.phases if phase.name == "run"), None)
    if samples is None or result.mount is None or not samples.read_bytes or len(samples.seconds) < 2:
        return None
    length = min(len(column) for column in samples.read_bytes.values())
    read, written = (
        {tier: _steps(columns[tier][:length]) for tier in result.mount.tiers}
        for columns in (samples.read_bytes, samples.written_bytes)
    )
    moving = [pair for tier in result.mount.tiers if any((pair := (read[tier], written[tier]))[0] + pair[1])]
    if len(set(moving)) < len(moving):
        return None  # tiers on one block device: Keigo tells of each what all of the device moved
    return Traffic(_KEIGO, tuple(samples.seconds[1:length]), read, written)


def _steps(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, after - before) for before, after in pairwise(counts))


def document_of_result(result: Result, title: str) -> Document:
    """The report of a single run."""
    made = _measured(result, _traffic_of_keigo(result), 0.0)
    load = next((phase for phase in result.phases if phase.name == "load"), None)
    unable = None if made is not None else result.error or "nothing was run, only loaded"
    setup = Setup(_place(result), result.directory, () if made is None else (made,), unable, result.error is not None)
    about = ", ".join([result.engine, *_told(result)])
    section = Section(result.workload, about, (setup,), None, {setup.name: {0: made.rate} if made else {}})
    notes = [result.error] if result.error is not None else []
    notes += ["The run was interrupted: this is what was measured until then."] if result.interrupted else []
    mount = result.mount
    place = "no Keigo mount" if mount is None else f"Keigo, policy {mount.policy}, driver {mount.driver}"
    rows = [("directory", f"{result.directory} ({result.filesystem}; {place})"), ("engine", result.engine)]
    rows += [(name.replace("_", " "), shown_option(value)) for name, value in result.options.items()]
    rows += [(name.replace("_", " "), shown_option(value)) for name, value in result.settings.items() if value]
    rows += [("load", f"{load.operations:,} records in {load.seconds:.1f} s")] if load is not None else []
    tiers = () if mount is None else tuple((name, _rank(at, len(mount.tiers))) for at, name in enumerate(mount.tiers))
    configuration = (*rows, ("Keigo", result.keigo))
    return Document(
        title, _when(result.began), (section,), tiers, machine_rows(result.machine), configuration, "", tuple(notes)
    )


def document_of_native(result: NativeResult, title: str) -> Document:
    """The report of a run of `db_bench`: a section per benchmark."""
    name = _place(result)
    sections = []
    for found in result.report.results:
        latencies = {it.operation: one for it in found.histograms if (one := _latency(spread_out(it))) is not None}
        made = Measured(found.operations, found.seconds, (), (), latencies)
        about = f"{found.operations:,} operations in {found.seconds:.1f} s"
        setup = Setup(name, result.directory, (made,))
        sections.append(Section(found.name, about, (setup,), None, {name: {0: made.rate}}))
    rows = [("directory", f"{result.directory} ({result.filesystem})")]
    rows += [(key.replace("_", " "), shown_option(value)) for key, value in result.options.items()]
    notes = ("The run was interrupted: this is what was over by then.",) if result.interrupted else ()
    machine = machine_rows(result.machine)
    configuration = (*rows, ("Keigo", result.keigo))
    return Document(title, _when(result.began), tuple(sections), (), machine, configuration, "", notes)


def _rank(number: int, of: int) -> str:
    return {0: "the fastest", of - 1: "the slowest"}.get(number, f"number {number + 1}, fast to slow")


def _told(result: Result) -> list[str]:
    """The parameters that say something to a reader."""
    given = {name.replace("_", " "): value for name, value in result.parameters.items() if value and name != "batch"}
    return [f"{name} {shown_option(value)}" for name, value in given.items()]


def _place(result: Result | NativeResult) -> str:
    return "plain directory" if result.mount is None else f"keigo-{result.mount.policy}"


def _when(began: str) -> str:
    return datetime.fromisoformat(began).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine_rows(machine: Machine) -> tuple[tuple[str, str], ...]:
    """What a report says of the machine."""
    return (
        ("CPU", f"{machine.cpu}, {machine.cpus} CPU{'s' if machine.cpus > 1 else ''}"),
        ("memory", format_size(machine.memory)),
        ("kernel", f"Linux {machine.kernel}"),
        ("Python", machine.python),
    )


def shown_option(value: object) -> str:
    """An option's value; sizes that are round are shown as such."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1 << 12 and value % (1 << 10) == 0:
        return format_size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
