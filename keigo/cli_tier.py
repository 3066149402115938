"""`keigo tier`: which tiers a mounted volume has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from keigo.cli_common import console, directory_argument, errors, plain_errors, progress_bar
from keigo.control import ControlError, ask, request, volume_of


@click.group()
def tier() -> None:
    """Change the tiers of a mounted volume, while it is in use."""


@tier.command()
@directory_argument
@click.argument("name")
@click.option("--path", required=True, type=click.Path(path_type=Path), help="An empty directory on the device.")
@click.option("--capacity", help="Bytes to use, like 100GiB.  [default: the device's]")
@click.option("--reserve", help="What placement leaves free of it: a size, or a percentage.  [default: 5%]")
@click.option("--before", metavar="TIER", help="The next slower tier.  [default: none, it is the slowest]")
@plain_errors
def add(directory: Path, name: str, path: Path, capacity: str | None, reserve: str | None, before: str | None) -> None:
    """Add tier NAME to the volume mounted at DIR, and to its devices.yaml. Files stay open."""
    volume = volume_of(directory)
    where = os.path.abspath(path)
    asked = {"name": name, "path": where, "capacity": capacity, "reserve": reserve, "before": before}
    ending = False
    try:
        for _ in request(volume, "tier-add", **asked):
            ending = True
    except ControlError:
        if not ending:
            raise
    found = ask(volume, "status")  # waits for the next daemon
    if name not in (known["name"] for known in found["tiers"]):
        raise ControlError(
            f"{name}: the next daemon could not open it (its log says why); {found['config']} is as it was before"
        )
    console.print(
        f"added tier {name} at {where}; {found['config']} has it, the daemon is {found['pid']}", soft_wrap=True
    )


@tier.command()
@directory_argument
@click.argument("name")
@plain_errors
def remove(directory: Path, name: str) -> None:
    """Bring all files of tier NAME elsewhere, and take it out of the volume mounted at DIR. Files stay open."""
    volume = volume_of(directory)
    before = ask(volume, "status")
    where = next((known["path"] for known in before["tiers"] if known["name"] == name), None)
    failure: ControlError | None = None
    ending = False
    try:
        with progress_bar() as progress:
            task = progress.add_task("removing", total=None, note="")
            told: list[str] = []
            for said in request(volume, "tier-remove", name=name):
                ending = "ending" in said
                if not ending:
                    note = _waiting_for(said)
                    if note and note not in told and not console.is_terminal:
                        told.append(note)
                        errors.print(note, soft_wrap=True)
                    progress.update(task, total=said["total"], completed=said["total"] - said["left"], note=note)
    except ControlError as error:
        if not ending:
            raise
        failure = error
    found = ask(volume, "status")  # waits for the next daemon
    if name in (known["name"] for known in found["tiers"]):
        if failure is not None and found["pid"] == before["pid"]:
            raise failure
        raise ControlError(
            f"{name}: its removal was cut short (the log says why); {found['config']} is as it was before"
        )
    if where is not None and os.path.lexists(os.path.join(where, ".keigo")):
        errors.print(f"note: {where}/.keigo is left behind; the log says why", soft_wrap=True)
    console.print(
        f"removed tier {name}; {found['config']} has it no more, the daemon is {found['pid']}", soft_wrap=True
    )


def _waiting_for(said: dict[str, Any]) -> str:
    """What a user can do where nothing moves."""
    if not said["open"] or said["current"]:
        return ""
    return f"waiting for {said['open'][0]} to be closed"
