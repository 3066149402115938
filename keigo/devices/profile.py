"""A measured profile: what each tier's device does at k concurrent requests, as `keigo profile` writes it.

The file is JSON beside devices.yaml (`devices.yaml` -> `devices.profile.json`). Units stand in the keys: `_us` is
microseconds, `_bytes` bytes, `bandwidth` bytes per second.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from keigo.devices.model import SMALL_BLOCK, DeviceModel
from keigo.errors import KeigoError

FORMAT: Final = 1
SECTOR: Final = 512
"""Bytes of the smallest requests that are measured, where file system and device take them."""
_MOST_BYTES: Final = 16 << 20
"""Of a profile's file; that of 64 tiers, measured without --quick, has 5 MiB."""

# Wide bounds, held when a profile is read: within them no arithmetic of ours overflows or divides by zero.
Positive = Annotated[float, msgspec.Meta(ge=1e-9, le=1e15)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
NoneOrMore = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]

Direction = Literal["read", "write"]
Pattern = Literal["random", "sequential"]


class ProfileError(KeigoError):
    """A profile cannot be read or written; one line that names the file."""


class Cell(msgspec.Struct, frozen=True):
    """One measured point: `k` threads, each with one request of `block_bytes` under way at any time."""

    direction: Direction
    pattern: Pattern
    k: Count
    block_bytes: Count
    requests: Count
    seconds: Positive
    """Wall time over which the requests were counted."""
    mean_us: Positive
    """Mean time of a request, from submission to completion."""
    p50_us: Positive
    p99_us: Positive
    beside: NoneOrMore = 0
    """Threads that did the same in the other direction meanwhile: a cell with some is a mixed one."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second of this direction."""
        return self.requests * self.block_bytes / self.seconds

    @property
    def modelled(self) -> bool:
        """Whether the model of the device is fitted to it: smaller requests tell of its slots alone."""
        return self.block_bytes >= SMALL_BLOCK


class DeviceId(msgspec.Struct, frozen=True):
    """What tells one device from another. Fields that a device lacks are empty."""

    filesystem: str
    """Type: ext4, tmpfs, ..."""
    uuid: str
    """UUID of the file system."""
    disk: str
    """Kernel name of the disk, nvme0n1; without one the source of the mount, such as a server's export."""
    model: str
    serial: str
    size_bytes: NoneOrMore
    """Of the file system."""


class TierProfile(msgspec.Struct, frozen=True):
    """One tier's device, measured."""

    tier: str
    device: DeviceId
    direct: bool
    """Whether the requests went past the page cache (O_DIRECT)."""
    memory: bool
    """Whether the device is memory (tmpfs, ramfs)."""
    file_bytes: NoneOrMore
    """Size of the file that the requests went to."""
    cells: tuple[Cell, ...]
    model: DeviceModel
    created: str = ""
    """When it was measured, where that was before the rest of the profile; else empty. `kernel` likewise."""
    kernel: str = ""


class Profile(msgspec.Struct, frozen=True):
    """All tiers of a devices.yaml, fast to slow, as far as they could be measured."""

    format: int
    created: str
    """ISO 8601, UTC."""
    kernel: str
    fio: str
    """Version."""
    quick: bool
    tiers: tuple[TierProfile, ...]

    def tier(self, name: str) -> TierProfile | None:
        """The profile of a tier by its name."""
        return next((tier for tier in self.tiers if tier.tier == name), None)


class Summary(msgspec.Struct, frozen=True):
    """One direction of a device in three figures."""

    latency_us: float
    """Mean time of a random 4 KiB request at k = 1."""
    saturation_k: int
    """Smallest k whose random 4 KiB throughput is at least 95% of the highest over all k."""
    bandwidth: float
    """Highest bytes per second at any block size, pattern and k."""


def profile_path(devices: Path) -> Path:
    """Where the profile of a devices.yaml is."""
    return devices.with_suffix(".profile.json")


def summary_of(cells: Sequence[Cell], direction: Direction) -> Summary:
    """Sum up what was measured of one direction. Raises ValueError without a random 4 KiB cell at k = 1."""
    plain = [cell for cell in cells if cell.direction == direction and not cell.beside]
    small = sorted((c for c in plain if c.pattern == "random" and c.block_bytes == 4096), key=lambda cell: cell.k)
    if not small or small[0].k != 1:
        raise ValueError(f"no random {direction} of 4 KiB at k = 1 was measured")
    peak = max(cell.bandwidth for cell in small)
    return Summary(
        latency_us=small[0].mean_us,
        saturation_k=next(cell.k for cell in small if cell.bandwidth >= 0.95 * peak),
        bandwidth=max(cell.bandwidth for cell in plain),
    )


def load_profile(path: Path) -> Profile | None:
    """Read a profile; None where there is none. Raises ProfileError."""
    try:
        raw = _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(raw, type=Profile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProfileError(f"{path}: is not a profile: {error}") from error
    if found.format != FORMAT:
        raise ProfileError(f"{path}: format {found.format}, this version knows {FORMAT}; run keigo profile again")
    return found


def _read(path: Path) -> bytes:
    """What is in a regular file of no more than 16 MiB: a mount must not wait for a FIFO, nor read a disk. OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return raw


def save_profile(path: Path, profile: Profile) -> None:
    """Write a profile in one piece: a crash leaves the old one. Raises ProfileError."""
    raw = msgspec.json.format(msgspec.json.encode(profile), indent=1)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with beside.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error
