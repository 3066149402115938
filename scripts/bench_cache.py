"""What the read cache is worth, end to end: against none, a whole fast device, and other caches of the same size.

Emulated devices come up, are profiled once, and every part is run on each of its setups. The JSON file has every run:
begun again with it, only what is missing is run.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Final

import bench_cache_results as results
import bench_cache_runs as runs
import click
import msgspec
from bench_cache_jobs import Bench, in_memory
from bench_cache_plan import BARE, FAST, PARTS, SETUPS, SLOW, Part, Row, Sizes, Times, Todo, order, rows
from bench_placement_runs import measured, write_profile
from ending import end_by_sigterm
from rich.console import Console
from rich.table import Table

from keigo.devices.profile import Profile
from keigo.errors import KeigoError
from keigo.units import parse_size
from workloads.compare.hierarchy import Hierarchy, TestbedPlan, identity, prepared

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
messages = Console(stderr=True, highlight=False)
_DILATION: Final = 20.0
_QUICK: Final = 3.0


def say(text: str) -> None:
    """A line for who waits."""
    messages.print(f"{time.strftime('%H:%M:%S')} {text}", style="dim", soft_wrap=True)


class Work:
    """The runs that are missing, one after the other."""

    def __init__(self, found: results.Results, path: Path, sizes: Sizes, times: Times, *, quick: bool) -> None:
        self._found = found
        self._path = path
        self._sizes = sizes
        self._times = times
        self._quick = quick

    def all(self, todos: list[Todo], dilation: float) -> None:
        """Run them. Raises KeigoError where nothing can begin."""
        for todo in [todo for todo in todos if todo.part in BARE]:
            self._keep(todo, runs.run_bare(todo, quick=self._quick))
        todos = [todo for todo in todos if todo.part not in BARE]
        if not todos:
            return
        source = self._path.absolute()
        testbed = TestbedPlan(None, dilation, tuple((name, self._sizes.device) for name in (FAST, SLOW)))
        name = f"keigo-bench-cache-{identity(source)}"
        with in_memory(name) as memory, prepared(self._sizes.tiers(), testbed, source, say) as hierarchy:
            bench = Bench(hierarchy, memory, self._sizes, self._times, self._profile(hierarchy, memory))
            for todo in todos:
                say(f"{todo.part}: {todo.setup}, repetition {todo.repetition + 1}")
                self._keep(todo, runs.run(bench, todo))

    def _profile(self, hierarchy: Hierarchy, memory: Path) -> Path:
        """The file with the profile of the devices, measured at the first time."""
        if self._found.profile is None:
            say("measuring the devices")
            self._found.profile = msgspec.to_builtins(measured(hierarchy, memory / "measured"))
            results.save(self._found, self._path)
        path = memory / "profile"
        write_profile(msgspec.convert(self._found.profile, Profile), hierarchy, path)
        return path

    def _keep(self, todo: Todo, done: results.Done) -> None:
        figures = " ".join(f"{name} {value:,.4g}" for name, value in done.figures.items())
        say(f"  {todo.part} {todo.setup}, {done.took:.0f} s: {done.error or figures}")
        self._found.add(done)
        results.save(self._found, self._path)


def number(value: float | None) -> str:
    """A figure in the table."""
    if value is None:
        return ""
    if value >= results.NEVER:
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def target(row: Row) -> str:
    """What a row asks for."""
    if row.least is not None:
        return f"at least {row.least:g}"
    return "" if row.most is None else f"at most {row.most:g}"


def show(found: results.Results, parts: tuple[Part, ...]) -> None:
    """The table of targets."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("row", "setup", "against", "target", "found", "least", "most", "of", "to", "runs", ""):
        right = name in ("found", "least", "most", "of", "to", "runs")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=len(name))
    for row in rows():
        if row.part not in parts:
            continue
        it = results.verdict(found, row)
        end = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[it.met]
        if it.lacks is not None:
            end = f"[yellow]missing: {it.lacks}[/]"
        cells = [number(value) for value in (it.value, it.low, it.high)]
        cells += [number(it.mine), number(it.theirs)] if row.base is not None else ["", ""]
        table.add_row(row.title, row.setup, row.base or "", target(row), *cells, str(it.runs or ""), end)
    console.print(table)
    console.print(all_figures(found, parts))


def all_figures(found: results.Results, parts: tuple[Part, ...]) -> Table:
    """Every figure of every setup, medians."""
    table = Table(box=None, header_style="bold", pad_edge=False, title="all figures, medians", title_justify="left")
    for name in ("part", "setup", "runs", "figures"):
        table.add_column(name)
    for part in parts:
        for setup in SETUPS[part]:
            ran = [run for run in found.runs if (run.part, run.setup, run.error) == (part, setup, None)]
            names = dict.fromkeys(name for run in ran for name in run.figures)
            shown = [f"{name} {number(statistics.median(found.figures(part, setup, name)))}" for name in names]
            if shown:
                table.add_row(part, setup, str(len(ran)), ", ".join(shown))
    return table


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "path", default="bench-cache.json", type=click.Path(path_type=Path), show_default=True)
@click.option("--data", default="96MiB", show_default=True, help="Size of the database; all sizes follow.")
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(1), help="Of each measured run.")
@click.option("--dilate", default=_DILATION, show_default=True, type=click.FloatRange(1))
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1), help="Of the parts that take little.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this one.")
@click.option("--again", multiple=True, type=click.Choice(PARTS), help="Forget the runs of this part.")
@click.option("--quick", is_flag=True, help="One repetition of short runs: ten minutes.")
@click.option("--table", is_flag=True, help="Run nothing; show what is there.")
def main(
    path: Path,
    data: str,
    seconds: float,
    dilate: float,
    repeats: int,
    parts: tuple[Part, ...],
    again: tuple[Part, ...],
    quick: bool,
    table: bool,
) -> None:
    if quick:
        seconds, repeats = min(seconds, _QUICK), 1
    try:
        sizes, times = Sizes(parse_size(data)), Times(seconds)
        found = results.load(path, {"data": float(sizes.data), "seconds": seconds, "dilation": dilate})
    except (KeigoError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if again and (count := found.forget(again)):
        say(f"{count} runs of {', '.join(again)} are forgotten")
    chosen = parts or PARTS
    try:
        if not table:
            work = Work(found, path, sizes, times, quick=quick)
            work.all(found.missing(order(chosen, repeats)), dilate)
    except KeigoError as error:
        raise click.ClickException(str(error)) from None
    finally:
        show(found, chosen)


if __name__ == "__main__":
    end_by_sigterm()
    main()
