"""What must hold for a directory to become a tier of a volume that is mounted: all that its opening would refuse.

The next daemon opens it, under a live mount, where a refusal would leave the mount without anybody who answers. So
the same is done here first: the directory is locked, written, synced and read, and given back.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from keigo.config import TierConfig
from keigo.tiers.fds import O_DIR, Fd
from keigo.tiers.health import probe
from keigo.tiers.opening import volume_id
from keigo.tiers.tier import LOST_FOUND, STATE, Tier, TierError
from keigo.tiers.volume import Volume


def check_joining(volume: Volume, joining: TierConfig, mountpoint: Path) -> None:
    """Refuse a tier that the next daemon could not open, or should not. Raises TierError, with nothing left behind.

    `mountpoint` is a real path. An empty `.keigo` may stay; a directory that has it is as good as empty.
    """
    path = joining.path
    assert path is not None  # noqa: S101
    _check_place(volume, joining, path, mountpoint)
    try:
        root = Fd(os.open(path.resolve(strict=True), O_DIR))
    except OSError as error:
        raise TierError(f"tier {joining.name}: {path}: {error.strerror}") from error
    tier = Tier(len(volume.tiers), joining, root, str(path))
    fresh = not tier.has_state()
    found = first_file(root)
    if found is not None or (fresh and set(os.listdir(root.fd)) - {os.fsdecode(LOST_FOUND)}):
        what = "is not empty" if found is None else f"is not empty: it holds {os.fsdecode(found)}"
        raise TierError(f"tier {joining.name}: {path}: {what}")
    try:
        tier.lock()
        _check_identity(volume, tier)
        probe(tier)
    except (OSError, ValueError) as error:
        raise TierError(f"tier {joining.name}: {path}: cannot be used: {error}") from error
    finally:
        tier.close()


def _check_place(volume: Volume, joining: TierConfig, path: Path, mountpoint: Path) -> None:
    def refuse(text: str) -> TierError:
        return TierError(f"tier {joining.name}: {path}: {text}")

    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, ValueError) as error:
        raise refuse(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise refuse("is not a directory")
    if real.is_relative_to(mountpoint):
        raise refuse(f"is inside {mountpoint}, below the mount")
    if mountpoint.is_relative_to(real):
        raise refuse(f"contains {mountpoint}, which is mounted over")
    for tier in volume.tiers:
        if os.path.samestat(status, os.fstat(tier.root.fd)):
            raise refuse(f"is the directory of tier {tier.name} already")
        other = Path(os.readlink(f"/proc/self/fd/{tier.root.fd}"))
        if not tier.in_place and (real.is_relative_to(other) or other.is_relative_to(real)):
            raise refuse(f"and that of tier {tier.name} are one inside the other")


def _check_identity(volume: Volume, tier: Tier) -> None:
    identity = tier.identity()
    if identity is None:
        return
    if identity.id != volume_id(volume.primary):
        raise TierError(f"tier {tier.name}: {tier.label}: belongs to volume {identity.volume} ({identity.id})")
    if identity.tier != tier.name:
        raise TierError(f"tier {tier.name}: {tier.label}: is tier {identity.tier} of volume {identity.volume}")


def first_file(root: Fd, path: bytes = b"") -> bytes | None:
    """The path of something below `root` that is no directory, Keigo's own aside. Raises OSError."""
    for item in os.scandir(root.fd):
        name = os.fsencode(item.name)
        if not path and name in (STATE, LOST_FOUND):
            continue
        if not item.is_dir(follow_symlinks=False):
            return path + name
        below = Fd(os.open(name, O_DIR, dir_fd=root.fd))
        if (found := first_file(below, path + name + b"/")) is not None:
            return found
    return None
