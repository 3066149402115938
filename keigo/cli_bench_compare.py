"""`keigo bench compare` and `keigo bench report`. numpy is imported by the commands that need it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keigo.cli_bench import INTERRUPTED, sigterm_as_ctrl_c
from keigo.cli_common import console, errors, plain_errors
from keigo.errors import KeigoError

if TYPE_CHECKING:
    from workloads.compare.results import Run
    from workloads.compare.worker import Began, Done
    from workloads.report.measured import Document
    from workloads.runner.result import NativeResult


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Default: PLAN's .json here."
)
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Default: beside the JSON.")
@click.option("--only", multiple=True, metavar="SETUP", help="Only this setup; may be repeated.")
@click.option("--repeats", type=click.IntRange(min=1), help="Instead of the plan's.")
@click.option("--resume", is_flag=True, help="Add the runs that the JSON does not have, after an interruption.")
@plain_errors
def compare(
    plan: Path, json_file: Path | None, html_file: Path | None, only: tuple[str, ...], repeats: int | None, resume: bool
) -> None:
    """Run the setups of PLAN in turn on one hierarchy; write medians, ratios and their spread as JSON and HTML.

    The JSON is whole after each run. Exit 1 where a run failed.
    """
    import dataclasses

    from workloads.compare.interleave import compare as run_all
    from workloads.compare.plan import load

    wanted = load(plan)
    if repeats is not None:
        wanted = dataclasses.replace(wanted, repeats=repeats)
    path = json_file or Path(f"{plan.stem}.json")
    page = html_file or path.with_suffix(".html")
    try:
        with sigterm_as_ctrl_c(), _watching() as watcher:
            found = run_all(wanted, path, watcher, resume=resume, only=only)
    except KeyboardInterrupt:
        if path.exists():
            _tell(path, page)
        _say("interrupted; --resume goes on")
        sys.exit(INTERRUPTED)
    _tell(path, page)
    failed = [run for run in found.runs if run.error is not None]
    if failed:
        raise KeigoError(f"{len(failed)} run(s) failed, the first: {failed[0].setup}: {failed[0].error}")


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Default: beside RESULT.")
@plain_errors
def report(result: Path, html_file: Path | None) -> None:
    """Draw RESULT, the JSON of a run or of a comparison, as an HTML file that needs nothing else."""
    _tell(result, html_file or result.with_suffix(".html"))


def _tell(path: Path, page: Path) -> None:
    """Show what a JSON file has, and write its page."""
    from workloads.report.page import page as page_of
    from workloads.report.terminal import tables

    document = _document(path)
    if page == path:
        raise KeigoError(f"{page}: is the JSON itself; name another --html")
    try:
        page.write_text(page_of(document))
    except OSError as error:
        raise KeigoError(f"{page}: {error.strerror}") from error
    console.print(tables(document))
    _say(f"wrote {page}, of {path}")


def _document(path: Path) -> Document:
    from workloads.compare.results import decode
    from workloads.compare.summary import document_of, document_of_native, document_of_result
    from workloads.runner.result import decode as decode_result

    try:
        text = path.read_bytes()
    except OSError as error:
        raise KeigoError(f"{path}: {error.strerror}") from error
    if b'"fingerprint"' in text:
        return document_of(decode(text, str(path)))
    if b'"benchmarks"' in text:
        return document_of_native(_native(text, path), "db_bench")
    result = decode_result(text, str(path))
    return document_of_result(result, f"{result.workload} on {result.engine}")


def _native(text: bytes, path: Path) -> NativeResult:
    import msgspec

    from workloads.runner.result import NativeResult

    try:
        return msgspec.json.decode(text, type=NativeResult)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeigoError(f"{path}: not a result of keigo bench: {error}") from error


def _say(text: str) -> None:
    """A line on standard error, as it is: a path may have brackets."""
    errors.print(text, markup=False, soft_wrap=True)


class _Watcher:
    """A line per run when it is over, and what it does meanwhile on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", note="")
        self._began = 0.0
        self._text = self._what = ""

    def say(self, text: str) -> None:
        """See `interleave.Watcher`."""
        _say(text)

    def begin(self, run: str, number: int, of: int) -> None:
        """See `interleave.Watcher`."""
        self._began = time.monotonic()
        self._text = f"{number}/{of} {run}"
        self._progress.reset(self._task, description=self._text, note="")

    def watch(self, event: Began | Done) -> None:
        """See `interleave.Watcher`."""
        if hasattr(event, "what"):
            self._what = event.what
            note = event.what
        else:
            rate = event.operations / event.seconds if event.seconds else 0.0
            note = f"{self._what}: {event.operations:,} operations, {rate:,.0f}/s"
        self._progress.update(self._task, note=note)

    def end(self, run: Run) -> None:
        """See `interleave.Watcher`."""
        phases = [] if run.result is None else [phase for phase in run.result.phases if phase.name == "run"]
        how = run.error or f"{phases[0].throughput:,.0f} operations/s" if phases else run.error or "nothing was run"
        _say(f"{self._text}: {how} ({time.monotonic() - self._began:.0f} s)")


@contextmanager
def _watching() -> Iterator[_Watcher]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield _Watcher(progress)
