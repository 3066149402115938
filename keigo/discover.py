"""Propose a devices.yaml from what is mounted, for `keigo init`.

The kind of a device comes from its kernel name (pmem, nvme) and from /sys/block/*/queue/rotational; within a kind more
free space counts as slower. Nothing is measured here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from keigo.units import format_size

# Fast to slow. A loop, virtio or device-mapper disk is what /sys says of it: usually "not rotational".
KINDS: Final = ("nvmm", "nvme", "ssd", "hdd")
_FILESYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs"})
_BOOT: Final = ("/boot", "/efi", "/snap", "/run", "/proc", "/sys")
_LEAST: Final = 1 << 30  # bytes free; a smaller file system is not worth being a tier


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A mounted file system that could hold a tier; `free` in bytes."""

    path: Path
    device: str
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


def _rotational(device: str) -> bool:
    """What /sys says of a device or of the disk that a partition is on."""
    base = Path("/sys/class/block") / device
    for place in (base, base.resolve().parent):
        try:
            return (place / "queue/rotational").read_text().strip() == "1"
        except OSError:
            continue
    return False


def find_mounts() -> list[MountInfo]:
    """Mounted, writable file systems on block devices, one per device."""
    found: dict[int, MountInfo] = {}
    for partition in psutil.disk_partitions(all=True):
        options = partition.opts.split(",")
        if partition.fstype not in _FILESYSTEMS or "ro" in options or partition.mountpoint.startswith(_BOOT):
            continue
        try:
            device_id = os.stat(partition.mountpoint).st_dev
            free = psutil.disk_usage(partition.mountpoint).free
        except OSError:
            continue
        name = os.path.basename(os.path.realpath(partition.device))
        kind = kind_of(name, _rotational(name))
        known = found.get(device_id)
        # Of bind mounts the one nearest to the root tells a user most.
        if known is None or len(partition.mountpoint) < len(str(known.path)):
            found[device_id] = MountInfo(Path(partition.mountpoint), name, kind, free, device_id)
    return list(found.values())


def _speed(mount: MountInfo) -> tuple[int, int]:
    return KINDS.index(mount.kind), mount.free


def _proposed_capacity(free: int) -> str:
    """80% of what is free, in whole GiB where that is at least one, else in MiB."""
    size = free * 4 // 5
    return f"{size >> 30}GiB" if size >> 30 else f"{max(1, size >> 20)}MiB"


def propose(directory: Path | None, mounts: Sequence[MountInfo]) -> str:
    """Text of a devices.yaml: DIR's device last and in place, the others fast to slow before it."""
    home = None if directory is None else directory.resolve().stat().st_dev
    others = sorted((m for m in mounts if m.device_id != home and m.free >= _LEAST), key=_speed)
    volume = "data" if directory is None else directory.resolve().name or "data"
    volume = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in volume)[:64]
    names: dict[str, int] = {}
    lines = [
        "# Proposed by `keigo init`. Read it, correct the order (fast to slow) and the capacities, then mount:",
        f"#     keigo mount {directory or 'DIR'} -d devices.yaml",
    ]
    if others:
        lines.append("# Make the directories first, each empty and closed to others:")
        lines += [f"#     install -d -m 700 {mount.path / 'keigo' / volume}" for mount in others]
    lines += ["", f"volume: {volume if volume.strip('.') else 'data'}", "", "tiers:"]
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
        "# Which LSM levels go where is derived from the order of the tiers; to say it yourself, see the example in",
        "# the repository (placement, pins, copy_limit).",
    ]
    return "\n".join(lines) + "\n"
