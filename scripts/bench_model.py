"""Predicted order against measured order: db_bench on one emulated device at a time, and the model on its profile.

Every run begins with a copy of the same loaded database. `write` overwrites random keys, as fast as RocksDB lets it,
until no compaction is due any more; `read-mostly` has 8 threads with 9 reads to a write. Repetitions are interleaved,
in another order each, and figures are medians. The JSON file has every run: begun again with it, only what is missing
is run.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import bench_model_runs as runs
import click
import msgspec
from bench_model_runs import WORKLOADS, Setting, Workload
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from keigo.devices.lsm_costs import Tree, levels
from keigo.devices.predict import Hits, Mix, Threads, demands_of, predict
from keigo.devices.profile import TierProfile
from keigo.errors import KeigoError

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
messages = Console(stderr=True, highlight=False)

GROUPS: Final[dict[str, tuple[Setting, ...]]] = {
    "growth factor": tuple(Setting("leveled", growth, 4, 1) for growth in (2, 4, 8, 16)),
    "threads": tuple(Setting("leveled", 8, jobs, min(4, jobs)) for jobs in (1, 2, 4, 8, 16)),
    "style": (
        Setting("leveled", 8, 1, 1),
        Setting("leveled", 8, 4, 4),
        Setting("universal", 8, 1, 1),
        Setting("universal", 8, 4, 4),
    ),
}
PRESENT: Final = 0.9
"""Share of keys that exist: writing as many random ones as there are twice leaves 1 - e^-2, and once more 1 - e^-3."""
SETTINGS: Final = tuple(dict.fromkeys(setting for group in GROUPS.values() for setting in group))


class Results:
    """Profiles and runs, in the file as they come."""

    def __init__(self, path: Path, entries: int, seconds: int) -> None:
        self._path = path
        self.profiles: dict[str, TierProfile] = {}
        self.runs: list[dict[str, Any]] = []
        self._head = {"entries": entries, "seconds": seconds, "entry_bytes": runs.ENTRY, "dilation": runs.DILATION}
        if path.exists():
            found = json.loads(path.read_text())
            if {name: found[name] for name in self._head} != self._head:
                raise click.ClickException(f"{path}: is of other runs; give another file, or the same options")
            self.profiles = msgspec.convert(found["profiles"], dict[str, TierProfile])
            self.runs = found["runs"]

    def save(self) -> None:
        """Write all, in one piece."""
        fresh = self._path.with_suffix(".new")
        whole = {**self._head, "profiles": msgspec.to_builtins(self.profiles), "runs": self.runs}
        fresh.write_text(json.dumps(whole, indent=1))
        fresh.rename(self._path)

    def rates(self, device: str, setting: Setting, workload: Workload) -> list[float]:
        """Operations per second of the runs of a setting."""
        key = {"device": device, "workload": workload, **asdict(setting)}
        return [run["ops_per_second"] for run in self.runs if all(run[name] == value for name, value in key.items())]


def missing(results: Results, device: str, repeats: int) -> Iterator[tuple[int, Setting]]:
    """What is still to run on a device: repetition by repetition, each in an order of its own."""
    for repetition in range(repeats):
        order = list(SETTINGS)
        random.Random(repetition).shuffle(order)
        for setting in order:
            if min(len(results.rates(device, setting, workload)) for workload in WORKLOADS) <= repetition:
                yield repetition, setting


def measure(results: Results, device: str, base: Path, entries: int, seconds: int, repeats: int, until: float) -> None:
    """Run what is missing on a device, until a time of the monotonic clock."""
    todo = list(missing(results, device, repeats))
    if (not todo and device in results.profiles) or time.monotonic() > until:
        return
    databases = runs.Databases(base, entries)
    with runs.testbed_of(device, base) as directory:
        if device not in results.profiles:
            results.profiles[device] = runs.profile_of(directory)
            results.save()
        for repetition, setting in todo:
            if time.monotonic() > until:
                return
            database = directory / "bench"
            databases.copy_to(setting, database)
            for workload in WORKLOADS:
                found = runs.run(setting, workload, database, entries, seconds, seed=repetition + 1)
                results.runs.append({"device": device, "workload": workload, **asdict(setting), **asdict(found)})
                messages.print(f"  {device} {setting} {workload}: {found.ops_per_second:.0f}/s", style="dim")
            results.save()


def predicted(profile: TierProfile, setting: Setting, workload: Workload, entries: int) -> tuple[float, str]:
    """What the model says of a setting: operations per second, and the bottleneck."""
    flushes = max(1, setting.jobs // 4)
    compactions = max(1, setting.jobs - flushes)
    # Writes as fast as they go keep level 0 full; universal merges are late only where one runs at a time.
    behind = compactions == 1 if setting.style == "universal" else workload == "write"
    tree = Tree(
        data_bytes=PRESENT * entries * runs.ENTRY,
        entry_bytes=runs.ENTRY,
        file_bytes=runs.FILE,
        growth=setting.growth,
        level0_bytes=runs.LEVEL0_FILES * runs.MEMTABLE,
        level0_runs=runs.LEVEL0_FILES,
        style=setting.style,
        level0_late=1 if not behind else runs.LEVEL0_STOP - runs.LEVEL0_FILES + 1,
    )
    mix = Mix(0, 0, 1) if workload == "write" else Mix(runs.READ_PERCENT / 100, 0, runs.READERS)
    threads = Threads(compactions, setting.subcompactions, flushes)
    demands, work = demands_of(tree, ["d"] * len(levels(tree)), "d", mix, threads, Hits())
    found = predict(demands, work, {"d": profile.model})
    return found.rate, found.bottleneck.replace("d writes", "writes").replace("d reads", "reads")


def show(results: Results, entries: int) -> None:
    """A table for each device, workload and group, and Spearman's rho of its two orders."""
    for device, profile in results.profiles.items():
        for workload in WORKLOADS:
            for name, settings in GROUPS.items():
                rows = [(setting, results.rates(device, setting, workload)) for setting in settings]
                rows = [(setting, rates) for setting, rates in rows if rates]
                if rows:
                    group_table(f"{device}, {workload}, by {name}", profile, workload, rows, entries)


def group_table(
    title: str, profile: TierProfile, workload: Workload, rows: Sequence[tuple[Setting, list[float]]], entries: int
) -> None:
    """One group."""
    guesses = [predicted(profile, setting, workload, entries) for setting, _ in rows]
    model, medians = [rate for rate, _ in guesses], [statistics.median(rates) for _, rates in rows]
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("setting")
    for column in ("measured/s", "least..most", "predicted/s", "ratio", "rank", "predicted rank"):
        table.add_column(column, justify="right")
    table.add_column("predicted bottleneck")
    for (setting, rates), median, (rate, bottleneck), rank, guessed in zip(
        rows, medians, guesses, ranks(medians), ranks(model), strict=True
    ):
        spread = f"{min(rates):.0f}..{max(rates):.0f}"
        ratio = f"{rate / median:.2f}"
        table.add_row(str(setting), f"{median:.0f}", spread, f"{rate:.0f}", ratio, str(rank), str(guessed), bottleneck)
    console.print(table)
    if len(rows) > 2:
        # Rates that the model holds for equal, within what it cannot tell, are ties.
        told = [float(f"{rate:.2g}") for rate in model]
        rho = f"{spearmanr(told, medians).statistic:.2f}" if len(set(told)) > 1 else "none (all predicted alike)"
        console.print(
            f"Spearman's rho: {rho}; {len(rows)} settings, {min(len(rates) for _, rates in rows)} run(s) each"
        )
    console.print()


def ranks(rates: Sequence[float]) -> list[int]:
    """1 for the highest; equal ones, to two digits, share the better rank."""
    rounded = [float(f"{rate:.2g}") for rate in rates]
    return [1 + sum(other > rate for other in rounded) for rate in rounded]


@contextmanager
def work_directory() -> Iterator[Path]:
    """In memory; the testbed's images are in memory anyway."""
    base = Path(tempfile.mkdtemp(prefix="keigo-bench-model-", dir="/dev/shm"))
    try:
        yield base
    finally:
        shutil.rmtree(base)


@click.command()
@click.option("--quick", is_flag=True, help="One repetition: a few minutes.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--device", "devices", multiple=True, type=click.Choice(list(runs.DILATION)), help="Only this one.")
@click.option("--entries", default=96_000, show_default=True, type=click.IntRange(20_000), help="Of 1000 bytes.")
@click.option("--seconds", default=3, show_default=True, type=click.IntRange(1), help="Of each read-mostly run.")
@click.option("--budget", type=click.FloatRange(1), help="Begin no run after so many seconds; go on another time.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep all figures here, and go on from it.")
def main(
    quick: bool,
    repeats: int,
    devices: Sequence[str],
    entries: int,
    seconds: int,
    budget: float | None,
    json_file: Path | None,
) -> None:
    """What the model predicts against db_bench on emulated devices."""
    until = time.monotonic() + (budget or float("inf"))
    with work_directory() as base:
        results = Results(json_file or base / "results.json", entries, seconds)
        try:
            for device in devices or runs.DILATION:
                measure(results, device, base, entries, seconds, 1 if quick else repeats, until)
        except KeigoError as error:
            raise click.ClickException(str(error)) from None
        finally:
            show(results, entries)


if __name__ == "__main__":
    # SIGTERM ends it as Ctrl-C does, so that all is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
