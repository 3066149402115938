"""What bench-cache found: a file of JSON that is whole after each run, what is missing in it, and its figures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from bench_cache_plan import Part, Row, Todo

from keigo.errors import KeigoError

FORMAT: Final = 1
_NEAR: Final = 0.95
_STEADY: Final = 5
NEVER: Final = 1e9  # JSON has no infinity


class ResultsError(KeigoError):
    """A file of results that cannot be gone on with."""


class Done(msgspec.Struct, frozen=True):
    """A setup of a part that was run."""

    part: Part
    setup: str
    repetition: int
    began: str
    """ISO 8601, UTC."""
    took: float
    """Seconds in all."""
    keigo: str
    """Commit, and whether files differed from it."""
    figures: dict[str, float] = {}
    """`rate`: operations per second; for the others see `bench_cache_plan.rows` and where they are made."""
    series: dict[str, list[float]] = {}
    """Columns over time."""
    error: str | None = None

    @property
    def todo(self) -> Todo:
        """What it is an answer to."""
        return Todo(self.part, self.setup, self.repetition)


class Results(msgspec.Struct):
    """All that was run with the same sizes and times."""

    format: int
    head: dict[str, float]
    """What all runs have in common; runs of another head are not added."""
    profile: Any = None
    """Of the emulated devices, as `keigo profile` wrote it."""
    runs: list[Done] = []

    def add(self, done: Done) -> None:
        """A run; one that was there before gives way to it."""
        self.runs = [run for run in self.runs if run.todo != done.todo] + [done]

    def forget(self, parts: Iterable[str]) -> int:
        """Drop the runs of some parts; returns how many."""
        parts, before = set(parts), len(self.runs)
        self.runs = [run for run in self.runs if run.part not in parts]
        return before - len(self.runs)

    def missing(self, todos: Iterable[Todo]) -> list[Todo]:
        """What of this is still to be run, failed runs among it."""
        have = {run.todo for run in self.runs if run.error is None}
        return [todo for todo in todos if todo not in have]

    def figures(self, part: Part, setup: str, figure: str) -> list[float]:
        """A figure of a setup, in each of its runs that has it, by repetition."""
        runs = [run for run in self.runs if (run.part, run.setup, run.error) == (part, setup, None)]
        return [run.figures[figure] for run in sorted(runs, key=lambda run: run.repetition) if figure in run.figures]

    def why(self, part: Part, setup: str) -> str:
        """Why there is nothing of a setup."""
        errors = [run.error for run in self.runs if (run.part, run.setup) == (part, setup) and run.error]
        return errors[-1] if errors else "not run"


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


class Verdict(msgspec.Struct, frozen=True):
    """A row of the table with what was found."""

    row: Row
    value: float | None
    """Median of the figure, or ratio of medians; None where something is missing."""
    mine: float | None = None
    theirs: float | None = None
    runs: int = 0
    low: float | None = None
    """Least and most that any two runs make of it."""
    high: float | None = None
    lacks: str | None = None
    """What is missing."""

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None: not known, or there is none."""
        row = self.row
        if self.value is None or (row.least is None and row.most is None):
            return None
        return (row.least is None or self.value >= row.least) and (row.most is None or self.value <= row.most)


def verdict(found: Results, row: Row) -> Verdict:
    """What the results say of a row."""
    mine = found.figures(row.part, row.setup, row.figure)
    if not mine:
        return Verdict(row, None, lacks=f"{row.setup}: {found.why(row.part, row.setup)}")
    median = statistics.median(mine)
    if row.base is None:
        return Verdict(row, median, median, None, len(mine), min(mine), max(mine))
    theirs = found.figures(row.part, row.base, row.figure)
    if not theirs:
        return Verdict(row, None, median, lacks=f"{row.base}: {found.why(row.part, row.base)}")
    base = statistics.median(theirs)
    low, high = min(mine) / max(theirs), max(mine) / min(theirs)
    return Verdict(row, median / base, median, base, min(len(mine), len(theirs)), low, high)


def seconds_until(at: Iterable[float], ratios: Iterable[float], end: float, enough: float) -> float:
    """Seconds after `end` from which on a ratio is `enough`, in the mean of _STEADY values; NEVER where it never is.

    at: when each ratio was. One second has some hundreds of reads, whose ratio varies by more than 5% by chance.
    """
    after = [(moment, ratio) for moment, ratio in zip(at, ratios, strict=True) if moment >= end]
    for number in range(len(after) - _STEADY + 1):
        if statistics.fmean(ratio for _, ratio in after[number : number + _STEADY]) >= enough:
            return after[number][0] - end
    return NEVER


def near(ratio: float) -> float:
    """What is within 5% of a ratio, below it."""
    return _NEAR * ratio
