"""The commands about devices: what they can do, measured."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from keigo import mounts
from keigo.cli_common import Number, config_option, console, errors, json_option, load_config, plain_errors
from keigo.config import Config, TierConfig
from keigo.control import is_served
from keigo.errors import KeigoError
from keigo.units import format_size, parse_size

# numpy, scipy and matplotlib take half a second to import; only the commands that need them do it.

if TYPE_CHECKING:
    from keigo.devices.advise import Tier
    from keigo.devices.profile import DeviceId, Profile, Summary, TierProfile
    from keigo.devices.sweep import Sweep

_LEAST: Final = 1 << 20  # bytes; a smaller file has too few blocks to be random on


@dataclass(frozen=True, slots=True)
class _Place:
    """A tier that is to be measured."""

    tier: TierConfig
    path: Path
    device: DeviceId
    reserve: int


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@config_option
@click.option("--quick", is_flag=True, help="Some 15 seconds a tier instead of minutes.")
@click.option("--size", help="Most bytes that a tier's file may take, such as 1GiB.")
@click.option("--runtime", type=Number(min=0.05, max=600), metavar="SECONDS", help="Time of each cell.")
@click.option("--tier", "names", multiple=True, metavar="NAME", help="Only this tier; may be repeated.")
@click.option("--show", is_flag=True, help="Measure nothing; show tables and plots of the profile that there is.")
@json_option
@plain_errors
def profile(
    directory: Path | None,
    devices: Path,
    quick: bool,
    size: str | None,
    runtime: float | None,
    names: tuple[str, ...],
    show: bool,
    as_json: bool,
) -> None:
    """Measure the tiers' devices with fio and write the profile beside devices.yaml.

    DIR is the directory that is mounted over; it names the tier in place, which is measured only if it is given.
    """
    from keigo.devices.profile import profile_path

    config = load_config(devices)
    if show:
        _show(config, as_json)
        return
    wanted = _size(size)
    try:
        with _terminated_as_interrupted():
            found = _measure_all(config, directory, names, quick=quick, size=wanted, runtime=runtime)
    except KeyboardInterrupt:
        _say("interrupted; no profile was written")
        sys.exit(130)
    _tell(found, as_json)
    if not as_json:
        _say(f"wrote {profile_path(config.source)}; keigo profile -d {config.source} --show draws it")


def _show(config: Config, as_json: bool) -> None:
    from keigo.devices.profile import load_profile, profile_path

    path = profile_path(config.source)
    found = load_profile(path)
    if found is None:
        raise KeigoError(f"{path}: there is no profile yet; keigo profile -d {config.source} makes it")
    if as_json:
        _tell(found.tiers, as_json)
        return
    from keigo.observe.profile_tables import show

    show(found, path.with_suffix(".png"), console)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = parse_size(text)
    except ValueError as error:
        raise KeigoError(f"--size: {error}") from None
    if size < _LEAST:
        raise KeigoError(f"--size: {text} is below {format_size(_LEAST)}")
    return size


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does: by an exception, so that all is cleaned up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure_all(
    config: Config,
    directory: Path | None,
    names: Sequence[str],
    *,
    quick: bool,
    size: int | None,
    runtime: float | None,
) -> list[TierProfile]:
    """Measure, fit, and write the profile; returns what was measured now."""
    from keigo.devices import fio
    from keigo.devices.fit import fit
    from keigo.devices.profile import FORMAT, Profile, TierProfile, profile_path, save_profile
    from keigo.devices.scratch import room_for
    from keigo.devices.sweep import full_sweep, measure, quick_sweep

    path = profile_path(config.source)
    if not os.access(path.parent, os.W_OK):
        raise KeigoError(f"{path}: cannot be written there")
    fio_version = fio.version()
    places = _places(config, directory, names)
    sweep = (quick_sweep if quick else full_sweep)(size, runtime)
    for place in places:  # before minutes are spent on the first
        room_for(place.path, place.device.filesystem, sweep.size, place.reserve)
    if is_served(config.volume):
        text = f"note: volume {config.volume} is mounted: its own I/O slows what is measured, and is slowed by it"
        _say(text)
    kernel = os.uname().release
    tiers = []
    for place, told in _followed(places, sweep):
        found = measure(place.path, place.device, sweep, place.reserve, told)
        try:
            model = fit(found.cells)
        except ValueError as error:
            raise KeigoError(f"tier {place.tier.name}: no model fits what was measured: {error}") from error
        tiers.append(
            TierProfile(place.tier.name, place.device, found.direct, found.memory, found.file_bytes, found.cells, model)
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    merged = _merged(config, tiers, _earlier(path))  # read now: another profile may have ended meanwhile
    save_profile(path, Profile(FORMAT, now, kernel, fio_version, quick, merged))
    return tiers


def _earlier(path: Path) -> Profile | None:
    """The profile that there is; one that cannot be read is replaced, for that is what helps against it."""
    from keigo.devices.profile import ProfileError, load_profile

    try:
        return load_profile(path)
    except ProfileError as error:
        _say(f"note: {error}; it is replaced")
        return None


def _places(config: Config, directory: Path | None, names: Sequence[str]) -> list[_Place]:
    """The tiers to measure. Raises KeigoError where one cannot be reached, or none is left."""
    from keigo.devices.identity import device_of

    known = [tier.name for tier in config.tiers]
    for name in names:
        if name not in known:
            raise KeigoError(f"{config.source}: --tier: {name!r} is not a tier (tiers: {', '.join(known)})")
    if directory is not None and not any(tier.in_place for tier in config.tiers):
        raise KeigoError(f"{directory}: is no tier: {config.source} has none with in_place: true")
    places = []
    for tier in config.tiers:
        if names and tier.name not in names:
            continue
        path = _in_place(config, tier, directory) if tier.path is None else tier.path
        if path is None:
            continue
        where = f"{config.source}:{tier.line}: tiers: {tier.name}: path: {path}"
        try:
            device = device_of(path)
        except (FileNotFoundError, NotADirectoryError):
            raise KeigoError(f"{where}: no such directory") from None
        except OSError as error:
            raise KeigoError(f"{where}: {error.strerror}") from error
        if device.filesystem == mounts.FSTYPE:
            raise KeigoError(f"{where}: is inside a mounted volume ({device.disk}), which is no device")
        places.append(_Place(tier, path, device, tier.reserve_bytes(tier.capacity or device.size_bytes)))
    if not places:
        raise KeigoError(f"{config.source}: no tier is left that can be measured now")
    return places


def _in_place(config: Config, tier: TierConfig, directory: Path | None) -> Path | None:
    """The directory of the tier in place, if it can be reached; else says why not."""
    mount = None if directory is None else mounts.mount_at(mounts.real_path(directory))
    if (directory is None and is_served(config.volume)) or (mount is not None and mount.volume is not None):
        text = f"note: tier {tier.name} is in place and cannot be measured under its mount: umount, and profile again"
    elif directory is None:
        text = f"note: tier {tier.name} is in place: keigo profile DIR -d {config.source} measures it too"
    else:
        return directory
    _say(text)
    return None


def _merged(config: Config, measured: Sequence[TierProfile], earlier: Profile | None) -> tuple[TierProfile, ...]:
    """All tiers in their order: those measured now, and what an earlier profile has of the others' devices."""
    now = {tier.tier: tier for tier in measured}
    merged = []
    for tier in config.tiers:
        old = None if earlier is None else earlier.tier(tier.name)
        if tier.name in now:
            merged.append(now[tier.name])
        elif earlier is not None and old is not None:
            # Which device a tier in place is on is known when it is mounted, and looked at then.
            if tier.path is not None and not _still_on(tier.path, old.device):
                continue
            dated = {"created": old.created or earlier.created, "kernel": old.kernel or earlier.kernel}
            merged.append(msgspec.structs.replace(old, **dated))
    return tuple(merged)


def _still_on(path: Path, device: DeviceId) -> bool:
    from keigo.devices.identity import device_of, same_device

    try:
        return same_device(device, device_of(path))
    except OSError:  # the profile that was just measured must not be lost over a tier that was not
        return False


def _followed(places: Sequence[_Place], sweep: Sweep) -> Iterator[tuple[_Place, Callable[[], None]]]:
    """Each tier with what to call while it is measured: a bar on a terminal, else a line per tier."""
    from keigo.devices.identity import shown

    total = sweep.seconds * len(places)
    _say(
        f"measuring {len(places)} tier(s), up to {len(sweep.points)} cells of up to {sweep.runtime:g} s each: "
        f"about {_duration(total)} in all"
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for number, place in enumerate(places):
            text = f"tier {place.tier.name}: {shown(place.device)}"
            progress.update(task, description=text, completed=sweep.seconds * number)
            if not errors.is_terminal:
                _say(f"{text}, about {_duration(sweep.seconds)}")
            begin = time.monotonic()
            done, most = sweep.seconds * number, sweep.seconds

            def told(begin: float = begin, done: float = done, most: float = most) -> None:
                progress.update(task, completed=done + min(most, time.monotonic() - begin))

            yield place, told


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _say(text: str) -> None:
    """A line on standard error, as it is: a path may have brackets."""
    errors.print(text, markup=False, soft_wrap=True)


def _tell(tiers: Sequence[TierProfile], as_json: bool) -> None:
    from keigo.devices.profile import summary_of

    try:
        sums = [(tier, summary_of(tier.cells, "read"), summary_of(tier.cells, "write")) for tier in tiers]
    except ValueError as error:
        raise KeigoError(f"the profile cannot be summed up: {error}") from error
    if as_json:
        rows = [{"tier": tier.tier, "read": read, "write": write} for tier, read, write in sums]
        click.echo(msgspec.json.encode(rows).decode())
    else:
        console.print(_table(sums))


def _table(sums: Sequence[tuple[TierProfile, Summary, Summary]]) -> Table:
    from keigo.devices.identity import shown

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tier")
    table.add_column("device", overflow="fold")
    for direction in ("read", "write"):
        for what in ("4 KiB", "k*", "most"):
            table.add_column(f"{direction} {what}" if what == "4 KiB" else what, justify="right")
    for tier, read, write in sums:
        device = shown(tier.device) + ("" if tier.direct else ", through the page cache")
        figures = [
            figure
            for way in (read, write)
            for figure in (
                f"{way.latency_us:.3g} us" if way.latency_us < 1000 else f"{way.latency_us / 1000:.3g} ms",
                str(way.saturation_k),
                f"{format_size(int(way.bandwidth))}/s",
            )
        ]
        table.add_row(tier.tier, device, *figures)
    return table


@click.command()
@config_option
@click.option("--data", "data", required=True, metavar="SIZE", help="Bytes of the database, such as 1TiB.")
@click.option("--read-ratio", type=float, default=0.9, show_default=True, help="Share of point reads.")
@click.option("--scan-ratio", type=float, default=0.0, show_default=True, help="Share of scans; the rest are writes.")
@click.option("--entry", type=click.IntRange(1), default=400, show_default=True, help="Bytes of a key and its value.")
@click.option("--threads", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of the foreground.")
@click.option("--memory", default="8MiB", show_default=True, metavar="SIZE", help="Of the database's block cache.")
@click.option("--skew", type=float, default=0.0, show_default=True, help="Zipf exponent of reads; 0: uniform.")
@click.option("--style", type=click.Choice(["leveled", "universal", "any"]), default="any", show_default=True)
@json_option
@plain_errors
def advise(
    devices: Path,
    data: str,
    read_ratio: float,
    scan_ratio: float,
    entry: int,
    threads: int,
    memory: str,
    skew: float,
    style: str,
    as_json: bool,
) -> None:
    """Recommend where levels go and how to tune the database, by the profile beside devices.yaml."""
    from keigo.devices import advise as advising
    from keigo.devices.predict import Mix
    from keigo.observe.advice_table import advice_report, facts

    tiers = _profiled_tiers(load_config(devices))
    wanted = advising.Wanted(
        data_bytes=_parsed("--data", data),
        entry_bytes=entry,
        mix=Mix(read_ratio, scan_ratio, threads, cpus=os.cpu_count() or 1),
        memory_bytes=_parsed("--memory", memory),
        skew=skew,
        styles=advising.STYLES[style],
    )
    advice = advising.advise(wanted, tiers)
    if as_json:
        click.echo(msgspec.json.encode(facts(advice, tiers)).decode())
    else:
        console.print(advice_report(advice, tiers))


def _parsed(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise KeigoError(f"{option}: {error}") from None


def _profiled_tiers(config: Config) -> list[Tier]:
    """The tiers with their models and room. Raises KeigoError for one without a profile."""
    from keigo.devices.advise import Tier
    from keigo.devices.profile import load_profile, profile_path

    path = profile_path(config.source)
    found = load_profile(path)
    if found is None:
        raise KeigoError(f"{path}: there is no profile yet; keigo profile -d {config.source} makes it")
    tiers = []
    for tier in config.tiers:
        measured = found.tier(tier.name)
        if measured is None:
            where = "DIR " if tier.in_place else ""
            raise KeigoError(
                f"{path}: tier {tier.name} is not in it; keigo profile {where}-d {config.source} measures it"
            )
        _note_another_device(path, tier, measured.device)
        capacity = tier.capacity or measured.device.size_bytes
        tiers.append(Tier(tier.name, measured.model, max(0, capacity - tier.reserve_bytes(capacity))))
    return tiers


def _note_another_device(path: Path, tier: TierConfig, device: DeviceId) -> None:
    """Say that a tier's figures are another device's, where the tier is at hand: advice may be wanted for one afar."""
    from keigo.devices.identity import device_of, same_device, shown

    try:
        now = None if tier.path is None else device_of(tier.path)
    except OSError:
        return
    if now is not None and not same_device(device, now):
        text = f"note: {path}: tier {tier.name} was measured on another device ({shown(device)}, now {shown(now)})"
        _say(f"{text}: the advice is for that one")
