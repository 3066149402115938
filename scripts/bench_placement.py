"""What placement is worth, end to end: `cost` against everything on one device, `db_paths` and static lists of levels.

Emulated devices come up, are profiled once, and every part is run on every setup in turn, in several repetitions. The
JSON file has every run: begun again with it, only what is missing is run. Beside it, in FILE.runs, each run has what
its devices did second by second, as JSON and as a picture.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Final, get_args

import bench_placement_results as results
import bench_placement_runs as runs
import click
import msgspec
from bench_placement_figure import draw
from bench_placement_plan import COST, DEVICES, PARTS, STEPS, Part, Sizes, Times, Todo, rows, setups
from ending import end_by_sigterm
from rich.console import Console
from rich.table import Table

from keigo.devices.profile import Profile
from keigo.errors import KeigoError
from keigo.units import parse_size
from workloads.compare.hierarchy import Hierarchy, TestbedPlan, TierPlan, prepared

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
messages = Console(stderr=True, highlight=False)
_DILATION: Final = 20.0


def say(text: str) -> None:
    """A line for who waits."""
    messages.print(f"{time.strftime('%H:%M:%S')} {text}", style="dim", soft_wrap=True)


def tiers_of(sizes: Sizes, testbed: Path | None) -> tuple[TierPlan, ...]:
    """The tiers, on a testbed that is up already where one is named."""
    if testbed is None:
        return sizes.tiers()
    return tuple(TierPlan(tier.name, testbed / tier.name, tier.capacity) for tier in sizes.tiers())


class Work:
    """The runs that are missing, one after the other, for as long as there is time."""

    def __init__(self, found: results.Results, path: Path, sizes: Sizes, times: Times, budget: float) -> None:
        self._found = found
        self._path = path
        self._sizes = sizes
        self._times = times
        self._budget = budget
        self._until = time.monotonic() + budget
        self._beside = path.with_suffix(".runs")
        self._tried: set[Todo] = set()

    def next(self, wanted: results.Wanted) -> Todo | None:
        """The first run that is missing, was not tried now, and will be over in time, by those that were like it.

        One like which none was yet takes half of all time.
        """
        left = self._until - time.monotonic()
        unknown = self._budget / 2
        for todo in results.missing(self._found, results.order(self._found, wanted)):
            if todo in self._tried:
                continue
            took = results.expected(self._found, todo)
            if left < (unknown if took is None else took):
                continue
            if (why := self._unable(todo)) is None:
                return todo
            self._tried.add(todo)
            self._keep(results.Done(todo.part, todo.setup, todo.repetition, todo.short, "", 0.0, "", (), why))
        return None

    def _unable(self, todo: Todo) -> str | None:
        return setups()[todo.setup].unable(self._sizes.tiers(), runs.engine_of(todo.part))

    def all(self, wanted: results.Wanted, dilation: float, testbed: Path | None) -> None:
        """Run them. Raises KeigoError where nothing can begin."""
        if self.next(wanted) is None:
            return
        plan = None if testbed else TestbedPlan(None, dilation, tuple((name, self._sizes.device) for name in DEVICES))
        with prepared(tiers_of(self._sizes, testbed), plan, self._path.absolute(), say) as hierarchy:
            profile = self._profile(hierarchy)
            try:
                while (todo := self.next(wanted)) is not None:
                    self._tried.add(todo)
                    self._do(runs.Bench(hierarchy, self._sizes, self._times, profile), todo)
            finally:
                profile.unlink()

    def _profile(self, hierarchy: Hierarchy) -> Path:
        """The file with the profile of the devices, measured at the first time."""
        if self._found.profile is None:
            say("measuring the devices")
            self._found.profile = msgspec.to_builtins(runs.measured(hierarchy, self._path))
            results.save(self._found, self._path)
        path = self._path.with_suffix(".profile")
        runs.write_profile(msgspec.convert(self._found.profile, Profile), hierarchy, path)
        return path

    def _do(self, bench: runs.Bench, todo: Todo) -> None:
        name = f"{todo.part} on {todo.setup}, {'in short' if todo.short else f'repetition {todo.repetition + 1}'}"
        say(name)
        done, timeline = runs.run(bench, todo, setups()[todo.setup])
        if done.error is not None:
            say(f"  {done.error}")
        for step in done.steps:
            settled = "" if step.settle_seconds is None else f", and {step.settle_seconds:.1f} s of compactions"
            say(f"  {step.name}: {step.rate(settled=False):,.0f}/s in {step.seconds:.1f} s{settled} {_shown(step)}")
        self._keep(done)
        self._beside.mkdir(exist_ok=True)
        path = self._beside / f"{todo.part}-{todo.setup}-{'short' if todo.short else todo.repetition}.json"
        path.write_bytes(msgspec.json.encode({"run": done, "timeline": timeline}))
        draw(timeline, f"{path.stem}, {done.began}, {done.keigo}", path.with_suffix(".png"))

    def _keep(self, done: results.Done) -> None:
        self._found.add(done)
        results.save(self._found, self._path)


def _shown(step: results.Step) -> str:
    if step.phases:
        return "phases " + ", ".join(
            f"{it.steady:,.0f}/s after {it.settled:.0%} of {it.seconds:.0f} s" for it in step.phases
        )
    return " ".join(f"{name} {value:,.4g}" for name, value in step.facts.items() if not name.endswith("_bytes"))


def show(found: results.Results, setup: str) -> None:
    """The table of targets."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("row", "step", "against", "target", "found", "least", "most", "without debt", "runs", ""):
        table.add_column(
            name, justify="right" if name in ("found", "least", "most", "without debt", "runs") else "left"
        )

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    for row in rows(setup):
        it = results.verdict(found, row)
        target = f"at least {row.least:g}" if row.least is not None else f"at most {row.most:g}"
        end = {True: "[green]met[/]", False: "[red]missed[/]", None: f"[yellow]missing: {it.lacks}[/]"}[it.met]
        against = it.base or (row.base or "")
        cells = [number(value) for value in (it.value, it.low, it.high, it.unsettled)]
        table.add_row(row.title, row.step, against, target, *cells, str(it.runs or ""), end)
    console.print(table)
    console.print(rates_table(found))


def rates_table(found: results.Results) -> Table:
    """Operations per second of every setup, medians; time until compactions are over included."""
    steps = [(part, step) for part in PARTS for step in STEPS[part] if part != "migrating"]
    table = Table(box=None, header_style="bold", pad_edge=False, title="operations/s, medians", title_justify="left")
    table.add_column("setup")
    for _, step in steps:
        table.add_column(step, justify="right")
    names = dict.fromkeys(run.setup for run in found.runs if run.error is None)
    for name in names:
        cells = []
        for part, step in steps:
            full, short = (
                [it.rate() for run in found.good(part, name, short=short) if (it := run.step(step)) is not None]
                for short in (False, True)
            )
            cells.append(
                f"{statistics.median(full):,.0f} ({len(full)})" if full else f"{short[0]:,.0f} s" if short else ""
            )
        table.add_row(name, *cells)
    table.caption = "in brackets: runs; s: one short run, in the search for the best lists"
    return table


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "path", default="bench-placement.json", type=click.Path(path_type=Path), show_default=True)
@click.option("--fast", default="32MiB", show_default=True, help="Capacity of the fastest tier; all sizes follow.")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1), help="Of runs limited by time.")
@click.option("--phase", default=60_000, show_default=True, type=click.IntRange(1000), help="Operations until a shift.")
@click.option("--dilate", default=_DILATION, show_default=True, type=click.FloatRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--part", "parts", multiple=True, type=click.Choice(get_args(Part)), help="Only this one.")
@click.option("--setup", "only", multiple=True, help="Only this one.")
@click.option("--no-lists", is_flag=True, help="Without the search for the best static lists of levels.")
@click.option("--until", type=click.FloatRange(1), help="Begin no run that will not be over after so many seconds.")
@click.option("--quick", is_flag=True, help="One repetition of short runs, without lists: ten minutes.")
@click.option("--again", multiple=True, metavar="SETUP", help="Forget the runs of this setup.")
@click.option("--of", "setup", default=COST, show_default=True, help="The setup that the table is about.")
@click.option("--table", is_flag=True, help="Run nothing; show what is there.")
@click.option(
    "--testbed", type=click.Path(exists=True, file_okay=False, path_type=Path), help="One that is up already."
)
def main(
    path: Path,
    fast: str,
    seconds: float,
    phase: int,
    dilate: float,
    repeats: int,
    parts: tuple[Part, ...],
    only: tuple[str, ...],
    no_lists: bool,
    until: float | None,
    quick: bool,
    again: tuple[str, ...],
    setup: str,
    table: bool,
    testbed: Path | None,
) -> None:
    unknown = [name for name in (*only, *again, setup) if name not in setups()]
    if unknown:
        raise click.ClickException(f"{unknown[0]}: is no setup ({', '.join(setups())})")
    if quick:
        seconds, phase, repeats, no_lists = min(seconds, 8.0), min(phase, 20_000), 1, True
    try:
        sizes, times = Sizes(parse_size(fast)), Times(seconds, phase)
        head = {"fast": sizes.fast, "seconds": seconds, "phase": phase, "phases": times.phases, "dilation": dilate}
        head |= {name: value for name, value in sizes.options().items() if not isinstance(value, str)}
        found = results.load(path, {name: float(value) for name, value in head.items()})
    except (KeigoError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if again and (count := found.forget(again)):
        say(f"{count} runs of {', '.join(again)} are forgotten")
    work = Work(found, path, sizes, times, until or 1e9)
    try:
        if not table:
            work.all(results.Wanted(repeats, parts or PARTS, only, setup, lists=not no_lists), dilate, testbed)
    except KeigoError as error:
        raise click.ClickException(str(error)) from None
    finally:
        show(found, setup)


if __name__ == "__main__":
    end_by_sigterm()
    main()
