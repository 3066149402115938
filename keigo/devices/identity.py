"""Which device a directory is on: what tells it from another, found without rights beyond reading the directory."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import uuid
from pathlib import Path
from typing import Final

from keigo.devices.profile import DeviceId
from keigo.mounts import Mount, mounts

MEMORY: Final = frozenset({"tmpfs", "ramfs"})
"""File systems whose device is memory."""

_GETFSUUID: Final = 0x80111500  # FS_IOC_GETFSUUID, _IOR(0x15, 0, struct fsuuid2): a length byte and 16 bytes; Linux 6.9
_MODELS: Final = ("device/model",)
# NVMe and virtio, SCSI (its `serial` is in a binary page), and a mapping over several disks.
_SERIALS: Final = ("serial", "device/serial", "wwid", "device/wwid", "dm/uuid")


def device_of(directory: Path, sys: Path = Path("/sys"), by_uuid: Path = Path("/dev/disk/by-uuid")) -> DeviceId:
    """The device below a directory. Raises OSError where the directory cannot be opened."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount = _mount_of(fd)
        room = os.fstatvfs(fd)
        number = os.fstat(fd).st_dev
        filesystem = "" if mount is None else mount.fstype
        # Each mount of a tmpfs has a UUID of its own, yet the same memory below.
        fs_uuid = "" if filesystem in MEMORY else _uuid_by_ioctl(fd)
    finally:
        os.close(fd)
    size = room.f_blocks * room.f_frsize
    if filesystem in MEMORY:
        return DeviceId(filesystem, "", "", "", "", size)
    source = "" if mount is None else mount.source
    device = _block_device(number, source, sys)
    if device is None:
        # A server and its export, or a pool, tell as much as a disk.
        return DeviceId(filesystem, fs_uuid, source, "", "", size)
    # It brings psutil along, 2.5 MiB that a daemon without a profile need not have.
    from keigo.discover import disk_of

    blocks = sys / "class/block"
    disk = disk_of(device, blocks)
    return DeviceId(
        filesystem,
        fs_uuid or _uuid_by_link(device, by_uuid),
        disk,
        _first(blocks / disk, _MODELS),
        _first(blocks / disk, _SERIALS),
        size,
    )


def same_device(one: DeviceId, other: DeviceId) -> bool:
    """Whether figures measured on one hold for the other.

    Model and serial number say most: a disk stays the same under a new file system of the same type, and a clone has
    the UUID of its origin. A serial without a model is a virtual disk's, which need not be unique: there, and without
    a serial, the UUID decides; without either, all that is left. Kernel names of disks change between boots.
    """
    if one.filesystem != other.filesystem:
        return False
    if one.filesystem in MEMORY:
        return True
    if one.serial and other.serial:
        if (one.serial, one.model) != (other.serial, other.model):
            return False
        if one.model:
            return True
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    return (one.disk, one.model, one.size_bytes) == (other.disk, other.model, other.size_bytes)


def shown(device: DeviceId) -> str:
    """A device in a few words, for people."""
    if device.filesystem in MEMORY:
        return f"{device.filesystem} (memory)"
    words = [device.model, device.disk, device.filesystem]
    return " ".join(word for word in words if word) or "an unknown device"


def _mount_of(fd: int) -> Mount | None:
    """The mount through which a descriptor was opened; st_dev would not do, for each btrfs subvolume has its own."""
    match = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    wanted = int(match[1]) if match else -1
    return next((mount for mount in mounts() if mount.id == wanted), None)


def _uuid_by_ioctl(fd: int) -> str:
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, _GETFSUUID, buffer)
    except OSError:  # an older kernel, or a file system without a UUID
        return ""
    raw = bytes(buffer[1 : 1 + buffer[0]])
    if not any(raw):  # images of virtual machines have such
        return ""
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 else raw.hex()


def _uuid_by_link(device: str, links: Path) -> str:
    """The name of udev's link to a block device."""
    try:
        names = sorted(os.listdir(links))
    except OSError:
        return ""
    return next((name for name in names if os.path.basename(os.path.realpath(links / name)) == device), "")


def _block_device(number: int, source: str, sys: Path) -> str | None:
    """Kernel name of the block device of a file system; None where it has none (NFS, ZFS, FUSE)."""
    if os.major(number) == 0:  # btrfs, and what has no block device
        try:
            found = os.stat(source)
        except (OSError, ValueError):
            return None
        if not stat.S_ISBLK(found.st_mode):
            return None
        number = found.st_rdev
    place = sys / f"dev/block/{os.major(number)}:{os.minor(number)}"
    return place.resolve().name if place.exists() else None


def _first(place: Path, names: tuple[str, ...]) -> str:
    for name in names:
        try:
            text = (place / name).read_text(errors="replace").strip()
        except OSError:
            continue
        if text:
            return " ".join(text.split())
    return ""
