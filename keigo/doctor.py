"""What a mount needs of this machine, and whether it is there: pure checks, a finding each, with what to do.

Nothing is changed, but that a file system is mounted for a moment over a temporary directory, to hear from the kernel
what it can do.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from keigo import mounts
from keigo.config import Config, ConfigError, TierConfig, check, load
from keigo.control import is_served
from keigo.devices.identity import device_of
from keigo.devices.staleness import examine
from keigo.units import format_size

Verdict = Literal["ok", "note", "bad"]
_PASSTHROUGH: Final = (6, 9)  # the first Linux that has it
_MEMORY: Final = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    verdict: Verdict
    """bad: a mount would fail; note: it works, less well or less safely than it could."""
    what: str
    do: str = ""
    """What to do about it; empty where nothing is to be done."""


def machine(kernel: str, passthrough: str | None) -> Iterator[Finding]:
    """The kernel and the tools. `passthrough`: why the kernel driver cannot be used; None: it can."""
    found = re.match(r"(\d+)\.(\d+)", kernel)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    yield _fuse()
    if passthrough is None:
        yield Finding("ok", f"Linux {kernel}: the kernel driver can be used")
    elif version < _PASSTHROUGH:
        text = f"Linux {kernel} has no FUSE passthrough: the portable driver carries every byte through Python"
        yield Finding("note", text, "Linux 6.9 or newer makes writes as fast as the device")
    else:
        yield Finding("note", f"the kernel driver cannot be used: {passthrough}", "run as root, outside of a sandbox")
    if os.geteuid() != 0:
        yield _unprivileged()
    if _in_pid_namespace():
        text = "this is a container with its own process ids: of processes outside of it no context is known"
        yield Finding("note", text, "run Keigo where the database runs, or on the host")
    for tool, use in (("fio", "keigo profile measures devices with it"),):
        if shutil.which(tool) is None:
            yield Finding("note", f"{tool} is not installed", f"{use}: apt-get install {tool}")
        else:
            yield Finding("ok", f"{tool} is installed")


def _fuse() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        why = "load it: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding("bad", f"/dev/fuse: {error.strerror}", why)
    return Finding("ok", "/dev/fuse can be opened")


def _unprivileged() -> Finding:
    if shutil.which("fusermount3") is None:
        return Finding("bad", "not root, and no fusermount3", "apt-get install fuse3, or run as root")
    try:
        allowed = "user_allow_other" in Path("/etc/fuse.conf").read_text().split()
    except OSError:
        allowed = False
    text = "not root: the portable driver, and only processes of this user may use the mount"
    return Finding("note", text, "" if allowed else "for others: user_allow_other in /etc/fuse.conf")


def _in_pid_namespace() -> bool:
    """Whether ids of processes here are others outside; a namespace without processes above it cannot tell."""
    try:
        line = re.search(r"^NSpid:(.*)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return line is not None and len(line[1].split()) > 1


def volume(path: Path, directory: Path | None) -> Iterator[Finding]:
    """A devices.yaml, its tiers and its profile; with the directory that is, or will be, mounted over."""
    try:
        config = load(path)
        served = is_served(config.volume)
        if directory is not None and not served:
            check(config, directory)
    except ConfigError as error:
        yield Finding("bad", str(error), "correct it")
        return
    yield Finding("ok", f"{path}: volume {config.volume}, {len(config.tiers)} tiers")
    places = {
        tier.name: place for tier in config.tiers if (place := tier.path or directory) is not None and place.is_dir()
    }
    for tier in config.tiers:
        if tier.path is None and (served or directory is None):
            continue  # hidden by the mount, or not told
        yield from _tier(tier, places.get(tier.name))
    yield from _shared(config, places)
    known = examine(config.source, places, os.uname().release, datetime.now(UTC))
    for note in known.notes:
        yield Finding("note", note, "keigo profile -d devices.yaml")
    if known.profile is None and not known.notes:
        text = "no profile: devices are known by their order only"
        yield Finding("note", text, f"keigo profile -d {path} --quick takes a minute or so")
    if directory is not None:
        yield mount(directory)


def _tier(tier: TierConfig, place: Path | None) -> Iterator[Finding]:
    if place is None:
        yield Finding("bad", f"tier {tier.name}: {tier.path}: no such directory", f"install -d -m 700 {tier.path}")
        return
    status = place.stat()
    if not tier.in_place and stat.S_IMODE(status.st_mode) & 0o077:
        text = f"tier {tier.name}: {place}: others can read it past the mount (mode {stat.S_IMODE(status.st_mode):o})"
        yield Finding("note", text, f"chmod 700 {place}")
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("bad", f"tier {tier.name}: {place}: cannot be written by this user", "run as its owner, or root")
        return
    room = os.statvfs(place)
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    if tier.capacity is None and not tier.in_place:
        text = f"tier {tier.name}: no capacity: all {format_size(size)} of its device may be filled"
        yield Finding("note", text, "give it one below what is free, if others use the device")
    elif tier.capacity is not None and tier.capacity > free:
        text = f"tier {tier.name}: capacity {format_size(tier.capacity)}, and {format_size(free)} are free now"
        yield Finding("note", text, "what Keigo has there already counts; else lower it")
    kind = device_of(place).filesystem
    if kind in _MEMORY:
        text = f"tier {tier.name}: {place} is memory ({kind}): its files do not outlive a reboot"
        yield Finding("note", text, "for tests only")
    elif not _has_direct_io(place):
        yield Finding("note", f"tier {tier.name}: {place}: no direct I/O: reads are kept in memory twice")
    else:
        yield Finding("ok", f"tier {tier.name}: {place}: {kind}, {format_size(free)} free")


def _has_direct_io(place: Path) -> bool:
    try:
        fd = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.EOPNOTSUPP)
    os.close(fd)
    return True


def _shared(config: Config, places: dict[str, Path]) -> Iterator[Finding]:
    devices: dict[int, list[str]] = {}
    for name, place in places.items():
        devices.setdefault(place.stat().st_dev, []).append(name)
    for names in devices.values():
        unbounded = [tier.name for tier in config.tiers if tier.name in names and tier.capacity is None]
        if len(names) > 1 and unbounded:
            text = f"tiers {', '.join(names)} are on one device, and {unbounded[0]} may fill all of it"
            yield Finding("note", text, "give each a capacity")


def mount(directory: Path) -> Finding:
    """What there is at a directory that is, or will be, mounted over."""
    there = mounts.mount_at(mounts.real_path(directory))
    if there is None:
        openers = mounts.openers_below(str(directory.resolve()))
        if openers:
            return Finding("bad", f"{directory}: files below are open: {openers[0]}", "stop it before you mount")
        return Finding("ok", f"{directory}: not mounted, and nobody has a file open there")
    if there.volume is None:
        return Finding("bad", f"{directory}: another file system is mounted here ({there.fstype})", "umount it")
    if is_served(there.volume):
        return Finding("ok", f"{directory}: volume {there.volume} is mounted and answers")
    holders = mounts.users_of(there)
    if holders:
        text = f"{directory}: the daemon of volume {there.volume} is dead, and {holders[0]}"
        return Finding("bad", text, "end that process, then mount again")
    return Finding("bad", f"{directory}: the daemon of volume {there.volume} is dead", "mount again")
