"""Programs that are run beside the comparison: Keigo's own commands, the testbed, mount helpers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from keigo.errors import KeigoError

ROOT: Final = Path(__file__).parents[2]
"""Where the packages are: the testbed is in a checkout only."""


class CompareError(KeigoError):
    """What a comparison cannot do, in one line."""


def environment() -> dict[str, str]:
    """For child processes: they import the same packages as this one."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def module(name: str, *arguments: str | Path) -> list[str]:
    """The command line of a Python module."""
    return [sys.executable, "-m", name, *map(str, arguments)]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off until the end: a mount that was half made could not be undone. Main thread only.

    Raises KeyboardInterrupt at the end if one of them came.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def run(command: list[str]) -> str:
    """Run to the end, Ctrl-C or not; its output. Raises CompareError with its last words."""
    try:
        with undisturbed():
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment(),
                check=False,
                start_new_session=True,
            )
    except OSError as error:
        raise CompareError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise CompareError(last_words(done.stderr) or f"{' '.join(command[:4])}: exit {done.returncode}")
    return done.stdout


def last_words(complaints: str) -> str:
    """The last line of what a program wrote to standard error, without the word that says that it is an error."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else ""


def keigo(*arguments: str | Path) -> str:
    """A command of Keigo's. Raises CompareError with its words."""
    return run(module("keigo", *arguments))
