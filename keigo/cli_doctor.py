"""`keigo doctor`: what a mount needs, whether it is there, and what to do."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from keigo.cli_common import console, json_option, plain_errors

_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]BAD [/]"}


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("-d", "--devices", type=click.Path(path_type=Path), help="The devices.yaml of the volume.")
@json_option
@plain_errors
def doctor(directory: Path | None, devices: Path | None, as_json: bool) -> None:
    """Check this machine, and a volume's tiers with -d, and say what to do. Exit status 1 where a mount would fail."""
    from keigo import doctor as checks

    found = list(checks.machine(os.uname().release, _why_no_passthrough()))
    if devices is not None:
        found += checks.volume(Path(os.path.abspath(devices)), directory)
    elif directory is not None:
        found.append(checks.mount(directory))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            console.print(_MARKS[finding.verdict], end=" ", soft_wrap=True)
            console.print(finding.what, markup=False, soft_wrap=True)
            if finding.do:
                console.print(f"     {finding.do}", style="dim", markup=False, soft_wrap=True)
    if any(finding.verdict == "bad" for finding in found):
        sys.exit(1)


def _why_no_passthrough() -> str | None:
    """Why the kernel driver cannot be used here; None: it can."""
    from fusefs.driver import DriverError

    try:
        from fusefs.connection import try_out

        with tempfile.TemporaryDirectory(prefix="keigo-doctor-") as place:
            try_out(place)
    except (DriverError, ImportError) as error:
        return str(error)
    return None
