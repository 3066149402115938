"""A testbed as a whole: up, down, and what it is doing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil

from keigo import mounts
from keigo.errors import KeigoError
from testbed import calibrate, server, stack, state
from testbed.parameters import Device
from testbed.state import HOME, Member, State

CONFIG: Final = "devices.yaml"
DATABASE: Final = "db"
TIER: Final = "keigo"


class BedError(KeigoError):
    """A testbed cannot come up or go down; one line."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device now."""

    member: Member
    loops: tuple[str, ...]
    mounted: bool
    memory: int | None
    """Bytes; None where its server is gone."""
    counts: Mapping[str, int]


def up(directory: Path, devices: Mapping[str, Device], dilation: float, say: Callable[[str], None]) -> State:
    """Bring devices up, fast to slow, in `directory`, which is made if missing; all or nothing. Raises KeigoError.

    `devices` are real figures; `dilation` makes them slower. `say` gets a line for each device and note.
    """
    if os.geteuid() != 0:
        raise BedError("must run as root: it mounts file systems")
    server.build()
    made = not directory.exists()
    where = Path(mounts.real_path(directory))
    for name in devices if not (where / HOME).exists() else ():
        # Checked before anything is made, so that what `down` finds by these names was made by `up`.
        if os.path.lexists(where / name):
            raise BedError(f"{where / name}: is there already; the device's mount point is made by up")
    try:
        where.mkdir(parents=True, exist_ok=True)
        (where / HOME).mkdir(mode=0o700)
    except FileExistsError as error:
        text = f"{directory}: a testbed is up here, or a crash left one: scripts/testbed down {directory}"
        raise BedError(text) from error
    except OSError as error:
        raise BedError(f"{directory}: {error.strerror}") from error
    members = tuple(Member(name, device.dilated(dilation)) for name, device in devices.items())
    found = State(dilation, members, made)
    notes: set[str] = set()
    try:
        state.save(where, found)
        for member in members:
            found = _with(found, _raise(where, member, notes, say))
            state.save(where, found)
        found = _configure(where, found, say)
    except BaseException as error:
        # Also when it was interrupted: what came up goes down again, and a failure to do so is told beside the cause.
        try:
            down(directory)
        except KeigoError as left:
            error.add_note(str(left))
            if isinstance(error, KeigoError):
                raise BedError(f"{error}; and then: {left}") from error
        raise
    return found


def _with(found: State, member: Member) -> State:
    members = tuple(member if other.name == member.name else other for other in found.members)
    return msgspec.structs.replace(found, members=members)


def _raise(directory: Path, member: Member, notes: set[str], say: Callable[[str], None]) -> Member:
    """Bring one device up; of its notes, say those that are not among `notes` yet, and add them."""
    where = stack.places(directory, member.name)
    for note in stack.make(where, member.device):
        if note not in notes:
            say(f"note: {note}")
            notes.add(note)
    member = _calibrated(where, member, say)
    say(f"{member.name} is up: {where.mount} ({member.device.about})")
    return member


def _calibrated(where: stack.Places, member: Member, say: Callable[[str], None]) -> Member:
    """Measure the way to a device, take it off, and say where it is longer than the device's own time."""
    try:
        reads, writes = calibrate.measure(where.image, where.mount, member.device)
    except OSError as error:
        raise BedError(f"{where.mount}: {error.strerror}") from error
    calibrate.apply(where.image, reads, writes)
    for direction, way, base in (
        ("read", reads, member.device.read.base_us),
        ("write", writes, member.device.write.base_us),
    ):
        if way.us > base:
            say(
                f"note: {member.name}: the way to the device takes {way.us:.0f} us, more than the {base:.0f} us of its "
                f"{direction}s; a larger --dilate helps"
            )
    return msgspec.structs.replace(member, reads=reads, writes=writes)


def recalibrate(directory: Path, say: Callable[[str], None]) -> State:
    """Measure the way to each device again, for `up` may have met a busy machine. Raises KeigoError."""
    where = Path(mounts.real_path(directory))
    found, _ = status(directory)
    for member in found.members:
        try:
            found = _with(found, _calibrated(stack.places(where, member.name), member, say))
        except BaseException:
            _keep_pace(where, member)
            raise
        state.save(where, found)
    return found


def _configure(directory: Path, found: State, say: Callable[[str], None]) -> State:
    """Make the tiers' directories and devices.yaml; the slowest device holds the data directory."""
    *faster, slowest = (member.name for member in found.members)
    lines = ["# Written by scripts/testbed up; emulated devices, fast to slow.", "volume: testbed", "", "tiers:"]
    for name in faster:
        path = directory / name / TIER
        path.mkdir(mode=0o700)
        lines += [f"  - name: {_quoted(name)}", f"    path: {_quoted(path)}"]
    (directory / slowest / DATABASE).mkdir(mode=0o700)
    where = _quoted(directory / slowest / DATABASE)
    lines += [f"  - name: {_quoted(slowest)}", f"    in_place: true              # {where}"]
    text = "\n".join(lines) + "\n"
    path = directory / CONFIG
    if path.exists():
        say(f"note: {path} is there already and stays as it is")
        return found
    found = msgspec.structs.replace(found, config=text)
    state.save(directory, found)
    path.write_text(text)
    return found


def _quoted(text: str | Path) -> str:
    """As YAML has it: a path may have `: ` or ` #` in it, and a device be named `1` or `null`."""
    return json.dumps(str(text), ensure_ascii=False)


def database(directory: Path, found: State) -> Path:
    """The data directory of a testbed: on the slowest device."""
    return directory / found.members[-1].name / DATABASE


def down(directory: Path) -> bool:
    """Undo all that is there of a testbed; False if nothing is.

    Raises KeigoError that names what remains, after undoing the rest.
    """
    where = Path(mounts.real_path(directory))
    if not (where / HOME).is_dir():
        return False
    try:
        found = state.load(where)
    except state.StateError:
        found = None  # a crash may have spoilt it; the images tell the names, too
    failures = []
    for name in _names(where, found):
        try:
            stack.remove(stack.places(where, name))
        except KeigoError as error:
            failures.append(str(error))
            for member in found.members if found else ():
                if member.name == name:
                    _keep_pace(where, member)
    if failures:
        raise BedError("; ".join(failures))
    _tidy(where, found)
    return True


def _keep_pace(directory: Path, member: Member) -> None:
    """Have a device be as slow as it was; calibrating it, and taking it down, let it answer at once."""
    image = stack.places(directory, member.name).image
    if member.reads is None or member.writes is None or mounts.mount_at(str(image)) is None:
        return
    try:
        calibrate.apply(image, member.reads, member.writes)
    except server.ServerError:
        return  # its server is dead, which `status` tells


def _names(directory: Path, found: State | None) -> list[str]:
    """Devices to undo, the last made first: those of the record, and images without one, which a crash can leave."""
    recorded = [member.name for member in found.members] if found else []
    images = {path.stem for path in (directory / HOME).glob("*.image")}
    return [*sorted(images - set(recorded)), *reversed(recorded)]


def _tidy(directory: Path, found: State | None) -> None:
    config = directory / CONFIG
    try:
        if found and found.config is not None and config.exists() and config.read_text() == found.config:
            config.unlink()
        for path in (directory / HOME).iterdir():
            path.unlink()
        (directory / HOME).rmdir()
        if found and found.made_directory and not any(directory.iterdir()):
            directory.rmdir()
    except OSError as error:
        raise BedError(f"{error.filename or directory}: {error.strerror}") from error


def status(directory: Path) -> tuple[State, list[DeviceStatus]]:
    """What is up in a directory. Raises BedError where nothing is."""
    where = Path(mounts.real_path(directory))
    found = state.load(where)
    if found is None:
        raise BedError(f"{directory}: no testbed is up here")
    return found, [_status_of(where, member) for member in found.members]


def _status_of(directory: Path, member: Member) -> DeviceStatus:
    where = stack.places(directory, member.name)
    loops = tuple(stack.loops_of(where.image))
    mounted = mounts.mount_at(str(where.mount)) is not None
    process = server.find(where.image)
    if process is None or process.status() == psutil.STATUS_ZOMBIE:
        return DeviceStatus(member, loops, mounted, None, {})
    return DeviceStatus(member, loops, mounted, server.memory(process), server.counts(where.image))
