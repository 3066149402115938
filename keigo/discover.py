"""Propose a devices.yaml from what is mounted, for `keigo init`.

The kind of a disk comes from its kernel name (pmem, nvme) and from /sys/class/block/*/queue/rotational; within a kind
more free space counts as slower. Nothing is measured here, nothing is created.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from keigo.config import POLICIES
from keigo.units import format_size

# Fast to slow. A loop or virtio disk, or a mapping over several, is what /sys says of it: usually "not rotational".
KINDS: Final = ("nvmm", "nvme", "ssd", "hdd")
_FILESYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs"})
_SYSTEM: Final = ("/boot", "/efi", "/snap", "/run", "/proc", "/sys")  # neither these nor what is below them
_BLOCKS: Final = Path("/sys/class/block")
_LEAST: Final = 1 << 30  # bytes free; a smaller file system is not worth being a tier


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A mounted file system that could hold a tier; `free` in bytes."""

    path: Path
    device: str
    """Kernel name of the disk (of its pool, for ZFS): file systems on one disk share its speed."""
    kind: str
    free: int
    device_id: int
    """st_dev of its files."""


def kind_of(device: str, rotational: bool) -> str:
    """Kind of a block device by its kernel name and whether it turns."""
    if device.startswith("pmem"):
        return "nvmm"
    if device.startswith("nvme"):
        return "nvme"
    return "hdd" if rotational else "ssd"


def disk_of(device: str, blocks: Path = _BLOCKS) -> str:
    """The disk below a partition, or below a mapping (LVM, LUKS) of one device; `blocks` is /sys/class/block."""
    place = (blocks / device).resolve()
    if (place / "partition").exists():
        return disk_of(place.parent.name, blocks)
    try:
        below = os.listdir(place / "slaves")
    except OSError:
        return device
    return disk_of(below[0], blocks) if len(below) == 1 else device


def _rotational(disk: str) -> bool:
    try:
        return (_BLOCKS / disk / "queue/rotational").read_text().strip() == "1"
    except OSError:
        return False


def find_mounts() -> list[MountInfo]:
    """Mounted, writable file systems on block devices, each once however often it is mounted."""
    found: dict[int, MountInfo] = {}
    for partition in psutil.disk_partitions(all=True):
        options = partition.opts.split(",")
        if partition.fstype not in _FILESYSTEMS or "ro" in options:
            continue
        if any(Path(partition.mountpoint).is_relative_to(place) for place in _SYSTEM):
            continue
        if not os.path.isdir(partition.mountpoint):  # containers have single files bound from the host's disk
            continue
        try:
            device_id = os.stat(partition.mountpoint).st_dev
            free = psutil.disk_usage(partition.mountpoint).free
        except OSError:
            continue
        if partition.fstype == "zfs":
            disk = partition.device.split("/")[0]
        else:
            disk = disk_of(os.path.basename(os.path.realpath(partition.device)))
        kind = kind_of(disk, _rotational(disk))
        known = found.get(device_id)
        # Of bind mounts the one nearest to the root tells a user most.
        if known is None or len(partition.mountpoint) < len(str(known.path)):
            found[device_id] = MountInfo(Path(partition.mountpoint), disk, kind, free, device_id)
    return list(found.values())


def _speed(mount: MountInfo) -> tuple[int, int]:
    return KINDS.index(mount.kind), mount.free


def _proposed_capacity(free: int) -> str:
    """80% of what is free, in whole GiB where that is at least one, else in MiB."""
    size = free * 4 // 5
    return f"{size >> 30}GiB" if size >> 30 else f"{max(1, size >> 20)}MiB"


def _one_per_disk(mounts: Sequence[MountInfo]) -> list[MountInfo]:
    """Of each disk the file system with the most room, fast to slow."""
    disks: dict[str, MountInfo] = {}
    for mount in sorted(mounts, key=lambda mount: mount.free, reverse=True):
        # A mount point with a line end in its name would break out of the comments.
        if mount.free >= _LEAST and str(mount.path).isprintable():
            disks.setdefault(mount.device, mount)
    return sorted(disks.values(), key=_speed)


def _proposed_cache(names: Mapping[str, int]) -> list[str]:
    """A read cache on the fastest tier, to be switched on."""
    fastest = next(iter(names), None)
    if fastest is None:
        return []
    return ["# A read cache for what stays on slower tiers:", f"# cache: {{tier: {fastest}, capacity: 10GiB}}"]


def propose(directory: Path | None, mounts: Sequence[MountInfo]) -> str:
    """Text of a devices.yaml: DIR's disk last and in place, the others fast to slow before it.

    Without DIR, the slowest disk is taken for the one that will hold it.
    """
    slowest = None
    if directory is None:
        others = _one_per_disk(mounts)
        slowest = others.pop() if others else None
    else:
        home = directory.stat().st_dev
        homes = {mount.device for mount in mounts if mount.device_id == home}
        others = _one_per_disk([mount for mount in mounts if mount.device not in homes])
    volume = "data" if directory is None else directory.resolve().name or "data"
    volume = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in volume)[:64]
    volume = volume if volume.strip(".") else "data"
    shown = shlex.quote(str(directory)) if directory is not None and str(directory).isprintable() else "DIR"
    names: dict[str, int] = {}
    lines = [
        "# Proposed by `keigo init`. Read it, correct the order (fast to slow) and the capacities, then mount:",
        f"#     keigo mount {shown} -d devices.yaml",
    ]
    if slowest is not None:
        lines.append(f"# DIR was not given; it is taken to be on {slowest.device}, mounted at {slowest.path}.")
    if others:
        lines.append("# Make the directories first, each empty and closed to others:")
        lines += [f"#     install -d -m 700 {shlex.quote(str(mount.path / 'keigo' / volume))}" for mount in others]
    lines += ["", f'volume: "{volume}"', "", "tiers:"]
    for mount in others:
        names[mount.kind] = names.get(mount.kind, 0) + 1
        name = mount.kind if names[mount.kind] == 1 else f"{mount.kind}{names[mount.kind]}"
        lines += [
            f"  - name: {name}",
            f"    path: {json.dumps(str(mount.path / 'keigo' / volume), ensure_ascii=False)}",
            f"    capacity: {_proposed_capacity(mount.free)}    # {mount.device}, {format_size(mount.free)} free",
        ]
    lines += ["  - name: here", "    in_place: true    # the directory that is mounted over"]
    if not others:
        lines += [
            "",
            "# Only one device was found. To add a faster one, put it above `here`:",
            "#   - name: nvme",
            "#     path: /mnt/nvme0/keigo",
            "#     capacity: 100GiB",
        ]
    lines += [
        "",
        "placement:",
        f"  policy: {POLICIES[0]}    # each file where it costs least, by role, level, heat and the devices' load",
        "# Without a profile the devices are known by their order only: `keigo profile -d devices.yaml` measures them.",
        *_proposed_cache(names),
        "# Other policies, pins and limits: see the example in the repository.",
    ]
    return "\n".join(lines) + "\n"
