"""The command line. Every mistake of a user's ends in one line on standard error and a non-zero exit."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType
from rich.live import Live

from keigo import __version__, cli_bench, cli_bench_compare, cli_devices, cli_doctor, cli_tier, discover, mounts
from keigo.cli_common import (
    config_option,
    console,
    directory_argument,
    errors,
    json_option,
    load_config,
    plain_errors,
    progress_bar,
)
from keigo.config import POLICIES, Config
from keigo.control import ControlError, ask, is_served, request, volume_of
from keigo.errors import KeigoError
from keigo.observe import tables
from keigo.observe.explain_table import explain_table
from keigo.observe.lsm_table import trees_table
from keigo.units import format_size

# What serves or opens a volume (FUSE, LMDB, trio) is imported by the commands that do: it would triple the time of
# a `keigo status`.


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keigo")
def main() -> None:
    """Tiered storage under an unmodified RocksDB, LevelDB or Speedb data directory."""


main.add_command(cli_bench.bench)
cli_bench.bench.add_command(cli_bench_compare.compare)
cli_bench.bench.add_command(cli_bench_compare.report)
main.add_command(cli_devices.profile)
main.add_command(cli_devices.advise)
main.add_command(cli_doctor.doctor)
main.add_command(cli_tier.tier)


@main.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("-d", "--devices", default="devices.yaml", type=click.Path(path_type=Path), help="The file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@plain_errors
def init(directory: Path | None, devices: Path, force: bool) -> None:
    """Write a devices.yaml from the devices and mounts of this machine, with DIR's device as the in-place tier."""
    if devices.exists() and not force:
        raise click.ClickException(f"{devices}: exists already (--force replaces it)")
    if directory is not None and not directory.is_dir():
        raise click.ClickException(f"{directory}: no such directory")
    text = discover.propose(directory, discover.find_mounts())
    try:
        devices.write_text(text)
    except OSError as error:
        raise click.ClickException(f"{devices}: {error.strerror}") from None
    console.print(f"wrote {devices}; read it, then: keigo mount {directory or 'DIR'} -d {devices}", soft_wrap=True)


@main.command()
@directory_argument
@config_option
@click.option("--driver", default="auto", type=click.Choice(["auto", "kernel", "pyfuse3"]), show_default=True)
@click.option("--policy", help=f"A policy to use, not the configured one: {', '.join(POLICIES)}.")
@click.option("--foreground", is_flag=True, help="Do not return; log to standard error.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Where the daemon logs.")
@click.option("--pid-file", type=click.Path(path_type=Path), help="Where to write which process to watch.")
@click.option("--debug", is_flag=True, help="Log every decision.")
@click.option("--keeper/--no-keeper", default=True, help="Replace a daemon that dies under the mount.  [default: on]")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--keeper-fd", type=int, hidden=True)
@click.option("--kept", hidden=True)
@plain_errors
def mount(
    directory: Path,
    devices: Path,
    driver: str,
    policy: str | None,
    foreground: bool,
    log_file: Path | None,
    pid_file: Path | None,
    debug: bool,
    keeper: bool,
    ready_fd: int | None,
    keeper_fd: int | None,
    kept: str | None,
) -> None:
    """Mount the volume of devices.yaml over DIR. Returns once it is mounted."""
    from keigo import daemon

    left = None if kept is None else daemon.parse_kept(kept)
    config = load_config(devices) if left is None else daemon.config_left(devices, left)
    where = Path(mounts.real_path(directory))
    if log_file is not None:
        log_file = Path(os.path.abspath(log_file))
        if Path(os.path.realpath(log_file)).is_relative_to(where):
            raise KeigoError(f"{log_file}: the log would be inside {directory}, below its own mount")
    arguments = ["mount", str(where), "-d", str(config.source), "--driver", driver, "--foreground"]
    if policy is not None:
        arguments += ["--policy", policy]
    if debug:
        arguments.append("--debug")
    if foreground:
        if keeper and keeper_fd is None and ready_fd is None:
            daemon.become_keeper(arguments)
        link = None if keeper_fd is None else daemon.Link(keeper_fd)
        ready_fd = ready_fd if left is None else None  # its reader has heard of the first daemon
        daemon.serve(config, where, driver=driver, policy=policy, ready_fd=ready_fd, debug=debug, link=link, kept=left)
        return
    log_file = log_file or daemon.default_log_file(config.volume)
    ready = daemon.start(arguments, log_file, keeper=keeper, pid_file=pid_file)
    if ready.error is not None:
        raise KeigoError(ready.error)
    for note in ready.notes:
        errors.print(f"note: {note}", soft_wrap=True)
    console.print(f"mounted volume {config.volume} at {where}", soft_wrap=True)


@main.command()
@directory_argument
@plain_errors
def umount(directory: Path) -> None:
    """Unmount, after migrations have stopped and everything is closed."""
    volume = volume_of(directory)
    where = mounts.real_path(directory)
    if not is_served(volume):
        found = mounts.mount_at(where)
        users = [] if found is None else mounts.users_of(found)
        if users:
            raise ControlError(f"{directory}: the daemon is dead, and still in use: {'; '.join(map(str, users[:5]))}")
        try:
            mounts.unmount(where)
        except OSError as error:
            raise ControlError(f"{directory}: {error.strerror}") from None
        console.print(f"unmounted {where} (its daemon was dead)", soft_wrap=True)
        return
    away = _elsewhere(volume)
    result = ask(volume, "umount")
    for line in result["left"]:
        errors.print(f"note: left behind: {line}", soft_wrap=True)
    console.print(f"unmounted {where}", soft_wrap=True)
    if away:
        text = f"note: {away} file(s) are on other tiers: mount again before a database opens {where}, or drain"
        errors.print(text, soft_wrap=True)


@main.command()
@directory_argument
@plain_errors
def restart(directory: Path) -> None:
    """Replace the daemon under the mount, as after an upgrade. Files stay open; requests wait for half a second."""
    volume = volume_of(directory)
    before = None
    try:
        for said in request(volume, "restart"):
            before = said["pid"]
    except ControlError:
        if before is None:
            raise
    console.print(f"restarted: the daemon of {volume} is {ask(volume, 'status')['pid']}, was {before}")


def _elsewhere(volume: str) -> int:
    """How many files are on tiers other than the in-place one; 0 where there is none."""
    tiers = ask(volume, "status")["tiers"]
    in_place = any(tier["in_place"] for tier in tiers)
    return sum(tier["files"] for tier in tiers if in_place and not tier["in_place"])


@main.command()
@directory_argument
@json_option
@plain_errors
def status(directory: Path, as_json: bool) -> None:
    """Show tiers, room, migrations and pins of a mounted volume."""
    found = ask(volume_of(directory), "status")
    if as_json:
        click.echo(json.dumps(found))
    else:
        console.print(tables.status_table(found))


@main.command()
@directory_argument
@click.option("--every", default=1.0, type=click.FloatRange(0.1, 3600), show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--svg", type=click.Path(path_type=Path), help="Draw it once into a file, and end.")
@plain_errors
def top(directory: Path, every: float, once: bool, svg: Path | None) -> None:
    """Show what a mounted volume does, over and over: tiers, levels, migrations, cache, stalls. Ends with Ctrl-C."""
    from keigo.observe.top import draw, top_view

    volume = volume_of(directory)

    def view() -> RenderableType:
        return top_view(ask(volume, "status"), ask(volume, "lsm"))

    if svg is not None:
        try:
            svg.write_text(draw(view(), f"keigo top {directory}"))
        except OSError as error:
            raise KeigoError(f"{svg}: {error.strerror}") from error
        return
    if once or not console.is_terminal:
        console.print(view())
        return
    with Live(view(), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every)  # a picture that changes once in a while waits for nothing else
                live.update(view(), refresh=True)
        except KeyboardInterrupt:
            return


@main.command()
@directory_argument
@json_option
@click.option("--why", is_flag=True, help="Show the reason for each file's place.")
@click.option("--summary", is_flag=True, help="A row per tier, role, level and reason instead of per file.")
@plain_errors
def ls(directory: Path, as_json: bool, why: bool, summary: bool) -> None:
    """Show each file's role, level, tier and size."""
    rows = ask(volume_of(directory), "ls")
    if as_json:
        click.echo(json.dumps(rows))
    elif summary:
        console.print(tables.where_table(rows))
    else:
        console.print(tables.files_table(rows, why=why))


@main.command()
@directory_argument
@click.argument("name")
@json_option
@plain_errors
def explain(directory: Path, name: str, as_json: bool) -> None:
    """Show why file NAME (as `keigo ls` shows it, or a path) is where it is, and what would make it move."""
    found = ask(volume_of(directory), "explain", name=_inside(directory, name))
    if as_json:
        click.echo(json.dumps(found))
    else:
        console.print(explain_table(found))


def _inside(directory: Path, name: str) -> str:
    """A file's path in the volume: NAME itself, or what is left of a path below the mount point."""
    where = Path(mounts.real_path(directory))
    path = Path(os.path.abspath(name))
    return str(path.relative_to(where)) if os.path.isabs(name) and path.is_relative_to(where) else name


@main.command()
@directory_argument
@json_option
@plain_errors
def lsm(directory: Path, as_json: bool) -> None:
    """Show each database's tree, level by level: how large the levels are, and which tiers hold them."""
    trees = ask(volume_of(directory), "lsm")
    if as_json:
        click.echo(json.dumps(trees))
    else:
        console.print(trees_table(trees))


@main.command()
@directory_argument
@click.option("--offline", is_flag=True, help="The volume is not mounted; needs -d.")
@click.option("-d", "--devices", type=click.Path(path_type=Path), help="The devices.yaml, with --offline.")
@plain_errors
def drain(directory: Path, offline: bool, devices: Path | None) -> None:
    """Bring every file back to the in-place tier; after umount DIR is an ordinary directory again."""
    if offline:
        if devices is None:
            raise click.UsageError("--offline needs -d devices.yaml")
        _drain_offline(directory, load_config(devices))
        return
    volume = volume_of(directory)
    result: Any = {}
    with progress_bar() as progress:
        task = progress.add_task("draining", total=None, note="")
        told: list[str] = []
        for result in request(volume, "drain"):
            if "left" not in result:
                break
            waiting = result["open"]
            note = ""
            if waiting and not result["current"]:
                # An idle database keeps its WAL open for ever; nothing of ours may end that.
                note = f"waiting for {waiting[0]} to be closed: write to the database, or stop it"
            if note and note not in told and not console.is_terminal:
                told.append(note)
                errors.print(note, soft_wrap=True)
            progress.update(task, total=result["total"], completed=result["total"] - result["left"], note=note)
    console.print(
        f"drained: {result['files']} file(s) were on other tiers, all files are in place; new ones stay there",
        soft_wrap=True,
    )


def _drain_offline(directory: Path, config: Config) -> None:
    from keigo.serving.drain import drain_offline
    from keigo.serving.mounting import open_offline
    from keigo.tiers.opening import dissolve

    volume, _ = open_offline(config, directory)
    try:
        with progress_bar() as progress:
            task = progress.add_task("draining", total=None, note="")
            moved = drain_offline(volume, lambda name: progress.update(task, advance=1, note=name))
        left = dissolve(volume)
    except BaseException:
        volume.close()
        raise
    for line in left:
        errors.print(f"note: left behind: {line}", soft_wrap=True)
    console.print(f"drained: {moved} file(s) brought back; {directory} is an ordinary directory", soft_wrap=True)


@main.command()
@directory_argument
@click.argument("pattern")
@click.argument("tier")
@plain_errors
def pin(directory: Path, pattern: str, tier: str) -> None:
    """Keep files whose path matches PATTERN on TIER; closed SST and blob files move there."""
    result = ask(volume_of(directory), "pin", pattern=pattern, tier=tier)
    console.print(f"pinned {pattern} to {tier}; {result['matching']} file(s) match now", soft_wrap=True)


@main.command()
@directory_argument
@click.argument("pattern")
@plain_errors
def unpin(directory: Path, pattern: str) -> None:
    """Remove a pin; files stay where they are until the policy moves them."""
    ask(volume_of(directory), "unpin", pattern=pattern)
    console.print(f"unpinned {pattern}", soft_wrap=True)


@main.command()
@directory_argument
@click.argument("pattern")
@click.argument("tier")
@json_option
@plain_errors
def migrate(directory: Path, pattern: str, tier: str, as_json: bool) -> None:
    """Move closed SST and blob files whose path matches PATTERN to TIER now; they stay there."""
    result: Any = {}
    with progress_bar() as progress:
        task = progress.add_task("moving", total=None, note="")
        for result in request(volume_of(directory), "migrate", pattern=pattern, tier=tier):
            if "moved" not in result:
                progress.update(task, total=result["of"], completed=result["done"])
    if as_json:
        click.echo(json.dumps(result))
    else:
        for path, why in result["skipped"].items():
            console.print(f"{path}: not moved: {why}", soft_wrap=True)
        console.print(f"moved {len(result['moved'])} file(s) to {tier}", soft_wrap=True)
    # Being there already is no failure, unless all were: then the command did nothing.
    if not result["moved"] or any("already" not in why for why in result["skipped"].values()):
        sys.exit(1)


@main.command()
@directory_argument
@click.argument("what", type=click.Choice(["warm", "drop"]))
@click.argument("pattern", default="*")
@plain_errors
def cache(directory: Path, what: str, pattern: str) -> None:
    """Fill the read cache with the files of slower tiers whose path matches PATTERN (default: all), or drop them."""
    result: Any = {}
    with progress_bar() as progress:
        task = progress.add_task("warming" if what == "warm" else "dropping", total=None, note="")
        for result in request(volume_of(directory), "cache", what=what, pattern=pattern):
            if "done" in result:
                progress.update(task, total=result["of"], completed=result["done"])
    if what == "drop":
        console.print(f"dropped {result['dropped']} file(s) from the cache", soft_wrap=True)
        return
    cached, total = format_size(result["cached"]), format_size(result["of"])
    console.print(f"cached {cached} of {total}, {result['files']} file(s)", soft_wrap=True)
    if result["why"] is not None:
        raise KeigoError(f"not all of it: {result['why']}")


@main.command()
@directory_argument
@config_option
@click.option("--repair", is_flag=True, help="Set right what can be set right.")
@plain_errors
def fsck(directory: Path, devices: Path, repair: bool) -> None:
    """Check the trees of an unmounted volume against its catalog, and the checksums of files that have one."""
    from keigo.serving.mounting import open_offline
    from keigo.tiers.fsck import check_checksums

    volume, findings = open_offline(load_config(devices), directory, apply=repair)
    try:
        with progress_bar() as progress:
            task = progress.add_task("checksums", total=None, note="")
            findings += check_checksums(volume, lambda done, of: progress.update(task, completed=done, total=of))
        files = sum(tier.files for tier in volume.tiers)
    finally:
        if repair:
            volume.close()
        else:
            volume.close_tables()
    for finding in findings:
        state = "repaired" if finding.repaired else "NOT repaired" if repair else "found"
        name = os.fsencode(os.fsdecode(finding.path) or ".").decode(errors="backslashreplace")
        console.print(f"{name}: {finding.problem}: {finding.detail} [{state}]", markup=False, soft_wrap=True)
    left = sum(not finding.repaired for finding in findings)
    console.print(f"{files} file(s) checked, {len(findings)} problem(s), {left} left", soft_wrap=True)
    if left:
        sys.exit(1)
