"""What bench-placement found: a file of JSON that is whole after each run, what is missing in it, and its figures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from bench_placement_phases import Settling
from bench_placement_plan import (
    BEST,
    COST,
    ONCE,
    PARTS,
    STEPS,
    WANTED,
    Part,
    Row,
    Todo,
    is_list,
    level_lists,
    list_name,
)

from keigo.errors import KeigoError

FORMAT: Final = 1
KEPT_LISTS: Final = 3
"""Of the lists of levels so many, the best of each step, are run at full length."""


class ResultsError(KeigoError):
    """A file of results that cannot be gone on with."""


class Step(msgspec.Struct, frozen=True):
    """What was measured of one step."""

    name: str
    operations: int
    seconds: float
    settle_seconds: float | None = None
    """Until compactions were over; None where they were not waited for."""
    phases: tuple[Settling, ...] = ()
    """Of a workload that shifts."""
    read_p99_us: float | None = None
    stall_seconds: float | None = None
    facts: dict[str, float] = {}
    """Figures of this step only."""

    def rate(self, *, settled: bool = True) -> float:
        """Operations per second; `settled`: of all the time until compactions were over, where that was measured."""
        return self.operations / (self.seconds + ((self.settle_seconds or 0.0) if settled else 0.0))


class Done(msgspec.Struct, frozen=True):
    """A part that was run on a setup."""

    part: Part
    setup: str
    repetition: int
    short: bool
    began: str
    """ISO 8601, UTC."""
    took: float
    """Seconds in all."""
    keigo: str
    """Commit, and whether files differed from it."""
    steps: tuple[Step, ...] = ()
    error: str | None = None

    @property
    def todo(self) -> Todo:
        """What it is an answer to."""
        return Todo(self.part, self.setup, self.repetition, self.short)

    def step(self, name: str) -> Step | None:
        """One of its steps."""
        return next((step for step in self.steps if step.name == name), None)


class Results(msgspec.Struct):
    """All that was run with the same sizes and times."""

    format: int
    head: dict[str, float]
    """What all runs have in common; runs of another head are not added."""
    profile: Any = None
    """Of the emulated devices, as `keigo profile` wrote it."""
    runs: list[Done] = []

    def add(self, done: Done) -> None:
        """A run; one that failed before gives way to it."""
        self.runs = [run for run in self.runs if run.todo != done.todo] + [done]

    def forget(self, setups: Sequence[str]) -> int:
        """Drop the runs of some setups, as after a change of a policy; returns how many."""
        before = len(self.runs)
        self.runs = [run for run in self.runs if run.setup not in setups]
        return before - len(self.runs)

    def good(self, part: Part, setup: str, *, short: bool = False) -> list[Done]:
        """The runs of a part that did not fail, by repetition."""
        found = [run for run in self.runs if (run.part, run.setup, run.short) == (part, setup, short)]
        return sorted((run for run in found if run.error is None), key=lambda run: run.repetition)


def load(path: Path, head: dict[str, float]) -> Results:
    """The results in a file, or new ones. Raises ResultsError."""
    if not path.exists():
        return Results(FORMAT, head)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error
    if (found.format, found.head) != (FORMAT, head):
        differ = sorted(name for name in {*found.head, *head} if found.head.get(name) != head.get(name))
        raise ResultsError(f"{path}: is of other runs ({', '.join(differ)}): give another file, or the same options")
    return found


def save(found: Results, path: Path) -> None:
    """Write all in one piece."""
    fresh = path.with_name(f"{path.name}.part")
    with fresh.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs there are to be."""

    repeats: int = 3
    parts: Sequence[Part] = PARTS
    setups: Sequence[str] = ()
    """No others than these; none: those that the table needs."""
    of: str = COST
    """The setup that the table is about."""
    lists: bool = True
    """Whether the best static lists of levels are searched, and run."""

    def names(self, part: Part, repetition: int, best: Sequence[str]) -> list[str]:
        """Setups of a part, in the order of that repetition: each begins with another one."""
        usual = [self.of if name == COST else name for name in WANTED[part]]
        more = [name for name in self.setups if name not in usual and name not in best]
        once = ONCE[part] if repetition else ()
        names = [name for name in [*usual, *best] if name not in once]
        names = [name for name in names if not self.setups or name in self.setups] + more
        first = repetition % max(1, len(names))
        return [*names[first:], *names[:first]]


def order(found: Results, wanted: Wanted) -> Iterator[Todo]:
    """Every run that the table wants, as far as it is known: which lists are best is known once all were tried.

    After the first repetition all lists are tried, in short.
    """
    searched = [part for part in wanted.parts if part != "migrating" and wanted.lists]
    for repetition in range(wanted.repeats):
        for part in wanted.parts:
            best = best_lists(found, part) if part in searched else []
            yield from (Todo(part, name, repetition) for name in wanted.names(part, repetition, best))
        if repetition == 0 and not wanted.setups:
            for part in searched:
                yield from (Todo(part, list_name(places), 0, short=True) for places in level_lists())


def missing(found: Results, todos: Iterator[Todo]) -> list[Todo]:
    """What of this is still to be run, failed runs among it."""
    have = {run.todo for run in found.runs if run.error is None}
    return [todo for todo in todos if todo not in have]


def best_lists(found: Results, part: Part, kept: int = KEPT_LISTS) -> list[str]:
    """The best lists of any step of a part by their short runs; none before all were tried."""
    every = [list_name(places) for places in level_lists()]
    tried = {name: runs[0] for name in every if (runs := found.good(part, name, short=True))}
    failed = {run.setup for run in found.runs if run.short and run.part == part and run.error is not None}
    if set(every) - set(tried) - failed:
        return []
    best: dict[str, None] = {}
    for name in STEPS[part]:
        steps = {setup: step for setup, run in tried.items() if (step := run.step(name)) is not None}
        ranked = sorted(steps, key=lambda setup: -steps[setup].rate())
        best.update(dict.fromkeys(ranked[:kept]))
    return list(best)


def expected(found: Results, todo: Todo) -> float | None:
    """Seconds that a run will take, by those that were like it; None where none was."""
    alike = [run for run in found.runs if (run.part, run.short) == (todo.part, todo.short) and run.error is None]
    same = [run.took for run in alike if run.setup == todo.setup]
    if same:
        return max(same)
    return statistics.median(run.took for run in alike) if alike else None


class Verdict(msgspec.Struct, frozen=True):
    """A row of the table with what was found."""

    row: Row
    value: float | None
    """Ratio of medians, or median of a figure; None where something is missing."""
    low: float | None = None
    """Least and most over repetitions that have both."""
    high: float | None = None
    unsettled: float | None = None
    """The same ratio without the time until compactions were over, where that was measured."""
    base: str | None = None
    """The setup compared with."""
    runs: int = 0
    lacks: str | None = None
    """What is missing."""

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None: not known."""
        if self.value is None:
            return None
        return (self.row.least is None or self.value >= self.row.least) and (
            self.row.most is None or self.value <= self.row.most
        )


def verdict(found: Results, row: Row) -> Verdict:
    """What the results say of a row."""
    if row.base is None:
        return _figure(found, row)
    base = row.base
    if base == BEST:
        ran = [name for name in {run.setup for run in found.runs} if is_list(name) and _rates(found, row, name)]
        if not ran:
            return Verdict(row, None, lacks=_lacks_lists(found, row))
        base = max(sorted(ran), key=lambda name: statistics.median(_rates(found, row, name).values()))
    mine, theirs = _rates(found, row, row.setup), _rates(found, row, base)
    lacks = [name for name, has in ((row.setup, mine), (base, theirs)) if not has]
    if lacks:
        why = {run.setup: run.error for run in found.runs if run.part == row.part and run.error is not None}
        return Verdict(row, None, base=base, lacks="; ".join(f"{name}: {why.get(name) or 'not run'}" for name in lacks))
    pairs = [mine[number] / theirs[number] for number in mine if number in theirs]
    ratio = statistics.median(mine.values()) / statistics.median(theirs.values())
    plain_mine, plain_theirs = (_rates(found, row, name, settled=False) for name in (row.setup, base))
    plain = statistics.median(plain_mine.values()) / statistics.median(plain_theirs.values())
    return Verdict(
        row,
        ratio,
        min(pairs, default=None),
        max(pairs, default=None),
        None if plain == ratio else plain,
        base,
        min(len(mine), len(theirs)),
    )


def _rates(found: Results, row: Row, setup: str, *, settled: bool = True) -> dict[int, float]:
    """Repetition -> operations per second."""
    runs = {run.repetition: run.step(row.step) for run in found.good(row.part, setup)}
    return {number: step.rate(settled=settled) for number, step in runs.items() if step is not None}


def _lacks_lists(found: Results, row: Row) -> str:
    tried = sum(bool(found.good(row.part, list_name(places), short=True)) for places in level_lists())
    of = sum(1 for _ in level_lists())
    return f"{tried} of {of} lists tried" if tried < of else "the best lists were not run at full length"


def _figure(found: Results, row: Row) -> Verdict:
    values = []
    for run in found.good(row.part, row.setup):
        for step in run.steps:
            if row.step == "settling" and len(step.phases) > 1:
                values.append(statistics.median(phase.settled for phase in step.phases[1:]))
            elif row.step in step.facts:
                values.append(step.facts[row.step])
    if not values:
        why = [run.error for run in found.runs if (run.part, run.setup) == (row.part, row.setup) and run.error]
        return Verdict(row, None, lacks=f"{row.setup}: {why[0] if why else 'not run'}")
    return Verdict(row, statistics.median(values), min(values), max(values), runs=len(values))
