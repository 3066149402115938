"""The command line: `scripts/testbed up|down|status|check DIR`."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import click
import msgspec
import psutil
from rich.console import Console

from keigo.errors import KeigoError
from keigo.units import format_size, parse_size
from testbed import bed, parameters, stack, tables
from testbed.parameters import Device, DeviceFileError

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT: Final = "nvmm,nvme,sata"
DILATION: Final = 20.0
MOST_DILATION: Final = 1000.0
"""An SSD's request then takes 0.1 s; a device that answers no sooner than in minutes cannot be unmounted."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Show what a user can set right as one line."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeigoError as error:
            raise click.ClickException(str(error)) from None

    return wrapped


directory_argument = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


def _number(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Refuse nan, which click lets pass: it is in no range."""
    if math.isnan(value):
        raise click.BadParameter(f"{value} is not a number")
    return value


@click.group()
def main() -> None:
    """Emulated devices on this machine: nvmm, nvme, sata, hdd. Needs root."""


@main.command()
@directory_argument
@click.option("--devices", metavar="A,B,...", help=f"Which, fast to slow (default: {DEFAULT}).")
@click.option(
    "--device-file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A device of your own, named like the file; the default is then your devices alone.",
)
@click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="Another size: nvme=8GiB.")
@click.option(
    "--dilate",
    "dilation",
    type=click.FloatRange(min=1, max=MOST_DILATION),
    callback=_number,
    default=DILATION,
    show_default=True,
    help="How many times slower than the real device.",
)
@plain_errors
def up(directory: Path, devices: str | None, files: Sequence[Path], sizes: Sequence[str], dilation: float) -> None:
    """Bring emulated devices up in DIR and write DIR/devices.yaml."""
    chosen = _chosen(devices, files, _parsed_sizes(sizes))
    room = sum(device.size for device in chosen.values())
    free = psutil.virtual_memory().available
    if room / stack.METADATA_SHARE > free / 2:
        raise DeviceFileError(
            f"--size: {format_size(room)} in all: their empty file systems alone take "
            f"{format_size(room // stack.METADATA_SHARE)} of memory, and {format_size(free)} are free"
        )
    if room > free:
        click.echo(
            f"note: the devices hold {format_size(room)} in memory when full, {format_size(free)} are free", err=True
        )
    found = bed.up(directory, chosen, dilation, lambda line: click.echo(line, err=True))
    data = bed.database(directory, found)
    config = directory / bed.CONFIG
    click.echo(f"times are {dilation:g}x those of the real devices; next:")
    for command in (
        ("keigo", "profile", data, "-d", config),
        ("keigo", "mount", data, "-d", config),
        ("scripts/testbed", "down", directory),
    ):
        click.echo("    " + shlex.join(map(str, command)))


def _parsed_sizes(sizes: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in sizes:
        name, equals, size = text.partition("=")
        try:
            if not equals:
                raise ValueError("write NAME=SIZE")
            found[name] = parse_size(size)
        except ValueError as error:
            raise DeviceFileError(f"--size {text}: {error}") from None
    return found


def _chosen(devices: str | None, files: Sequence[Path], sizes: dict[str, int]) -> dict[str, Device]:
    """The devices that are wanted, fast to slow. Raises DeviceFileError."""
    own = {path.stem: path for path in files}
    names = (devices or ",".join(own) or DEFAULT).split(",")
    for name in names:
        if not _NAME.fullmatch(name):
            raise DeviceFileError(f"{name!r}: a device's name has lower case letters, digits, - and _")
        if names.count(name) > 1:
            raise DeviceFileError(f"{name}: is wanted twice")
    for name in [*own, *sizes]:
        if name not in names:
            raise DeviceFileError(f"{name}: is not among the devices {','.join(names)}")
    return {name: parameters.load(own.get(name) or parameters.shipped_file(name), sizes.get(name)) for name in names}


@main.command()
@directory_argument
@plain_errors
def down(directory: Path) -> None:
    """Undo all of a testbed, also after a crash; the data on it are gone."""
    if bed.down(directory):
        click.echo(f"{directory}: the testbed is down")
    else:
        click.echo(f"{directory}: no testbed is up here")


@main.command()
@directory_argument
@click.option("--json", "as_json", is_flag=True, help="Times in microseconds, sizes in bytes.")
@plain_errors
def status(directory: Path, as_json: bool) -> None:
    """Show the devices of DIR: parameters as dilated, memory used, requests served."""
    found, devices = bed.status(directory)
    if as_json:
        rows = [msgspec.to_builtins(device) for device in devices]
        click.echo(json.dumps({"dilation": found.dilation, "devices": rows}, indent=1))
        return
    console.print(tables.parameters_table(found))
    console.print(tables.activity_table(devices))
    for device in devices:
        if device.counts and not device.counts["running"]:
            name = device.member.name
            click.echo(
                f"note: {name} answers without its own times: a calibration was cut short, or a device is coming up; "
                f"{shlex.join(('scripts/testbed', 'calibrate', str(directory)))}",
                err=True,
            )


@main.command()
@directory_argument
@plain_errors
def calibrate(directory: Path) -> None:
    """Measure again what the way to the devices costs: if the machine was busy at `up`, while nothing else runs."""
    found = bed.recalibrate(directory, lambda line: click.echo(line, err=True))
    console.print(tables.parameters_table(found))


@main.command()
@directory_argument
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.2, max=600),
    callback=_number,
    default=2.0,
    show_default=True,
    help="Per measurement.",
)
@click.option("--device", "only", multiple=True, metavar="NAME", help="Only this one.")
@plain_errors
def check(directory: Path, seconds: float, only: Sequence[str]) -> None:
    """Measure the devices of DIR with fio, and print that beside what their parameters say."""
    from testbed import check as checking

    found, _ = bed.status(directory)
    for name in only:
        if name not in [member.name for member in found.members]:
            raise bed.BedError(f"{name}: is not a device of {directory}")
    for member in found.members:
        if not only or member.name in only:
            console.print(tables.check_table(member.name, checking.measure(directory, member, seconds)))
