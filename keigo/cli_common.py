"""What all commands share: options, consoles, and how an error ends."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from keigo.config import Config, load
from keigo.errors import KeigoError

P = ParamSpec("P")
R = TypeVar("R")

# Tables keep their columns in a pipe or a log, where rich would assume 80 characters and fold names.
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
errors = Console(stderr=True, highlight=False)


class _Untouched(click.ParamType[Path]):
    """A path that is not looked at, as click.Path does: a daemon that takes over a mount would wait for itself."""

    name = "directory"

    def convert(self, value: object, _param: click.Parameter | None, _ctx: click.Context | None) -> Path:
        """Just the path."""
        return Path(str(value))


directory_argument = click.argument("directory", metavar="DIR", type=_Untouched())
config_option = click.option(
    "-d", "--devices", required=True, type=click.Path(path_type=Path), help="The devices.yaml of the volume."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Number(click.FloatRange):
    """A real number in a range; click lets nan pass, which is in none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what users can cause into one line and exit status 1."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeigoError as error:
            raise click.ClickException(str(error)) from None

    return wrapped


def load_config(path: Path) -> Config:
    """Load devices.yaml, made absolute: the daemon has another working directory."""
    return load(Path(os.path.abspath(path)))


def progress_bar() -> Progress:
    """How far something is, on a terminal; nothing elsewhere. Tasks need a `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
