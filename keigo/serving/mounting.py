"""Whether a volume may be mounted over a directory, and the note of its mount, which outlives a daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from keigo import mounts
from keigo.config import Config, check
from keigo.control import is_served
from keigo.errors import KeigoError
from keigo.placement.policy import Policy
from keigo.policies import make_policy
from keigo.tiers.catalog import boot_id
from keigo.tiers.fds import Fd, open_dir, read_file, write_durably
from keigo.tiers.opening import Left, open_volume
from keigo.tiers.scan import Finding
from keigo.tiers.tier import STATE, Tier, TierError
from keigo.tiers.volume import Volume

_NOTE: Final = b"mounted.json"


class MountError(KeigoError):
    """The volume cannot be mounted; the text is one line that says why."""


class _Note(msgspec.Struct):
    """Contents of mounted.json: the mount that may still have holders after it was lazily detached."""

    boot: str
    mount_id: int
    device: str
    unique: int | None = None
    """See `mounts.unique_id`."""
    draining: bool = False
    """Whether the volume is drained: a daemon that takes over is to go on with it."""


def prepare(directory: Path) -> Path:
    """Make sure that a volume may be mounted over `directory`; returns its real path.

    A mount whose daemon is dead is unmounted first, unless a process still holds files of it. Raises MountError.
    """
    path = mounts.real_path(directory)
    mount = mounts.mount_at(path)
    if mount is not None and mount.volume is not None:
        if is_served(mount.volume):
            raise MountError(f"{directory}: is mounted already (volume {mount.volume})")
        holders = mounts.users_of(mount)
        if holders:
            raise MountError(
                f"{directory}: the daemon of volume {mount.volume} is dead and its files are still in use: "
                + "; ".join(map(str, holders[:5]))
                + ". End these processes and mount again"
            )
        try:
            mounts.unmount(path)
        except OSError as error:
            raise MountError(f"{directory}: the dead mount of volume {mount.volume}: {error.strerror}") from error
    elif mount is not None and mount.fstype.startswith("fuse"):
        raise MountError(f"{directory}: is a mount of {mount.fstype} already")
    below = mounts.mounts_below(path)
    if below:
        raise MountError(f"{directory}: another file system is mounted inside, at {below[0].path}")
    if not Path(path).is_dir():
        raise MountError(f"{directory}: no such directory")
    resolved = str(Path(path).resolve())
    openers = mounts.openers_below(resolved)
    if openers:
        raise MountError(
            f"{directory}: files below are open, and would be written underneath the mount: "
            + "; ".join(map(str, openers[:5]))
        )
    return Path(resolved)


def open_for_mount(
    config: Config, directory: Path, policy: Policy, *, apply: bool = True, left: Left | None = None
) -> tuple[Volume, list[Finding]]:
    """Open the volume unless an earlier mount of it still has holders. Raises MountError."""

    def locked(tier: Tier) -> None:
        if left is None:
            _refuse_detached(directory, tier)

    try:
        return open_volume(config, directory, policy, locked, apply=apply, left=left)
    except TierError as error:
        raise MountError(str(error)) from error


def open_offline(config: Config, directory: Path, *, apply: bool = True) -> tuple[Volume, list[Finding]]:
    """Open a volume that is not mounted, for `fsck` and `drain --offline`. Raises MountError."""
    path = mounts.real_path(directory)
    mount = mounts.mount_at(path)
    if mount is not None and mount.volume is not None:
        raise MountError(f"{directory}: volume {mount.volume} is mounted; umount it first")
    resolved = prepare(directory)
    check(config, resolved)
    return open_for_mount(config, resolved, make_policy(config), apply=apply)


def _refuse_detached(directory: Path, primary: Tier) -> None:
    """Refuse while a process holds files of an earlier mount of this volume that was detached lazily.

    It may still write them, past any daemon. That mount's daemon is dead: we have the tier's lock. Raises MountError.
    """
    try:
        last = _read_note(primary.state)
    except (FileNotFoundError, msgspec.MsgspecError):
        return
    except OSError as error:
        raise MountError(f"{directory}: {error}") from error
    mounted = mounts.mounts()
    if last.boot != boot_id() or any(mount.id == last.mount_id for mount in mounted):
        return
    # Numbers are used again once nobody holds the mount; where a mount that can be seen has one, it says nothing.
    devices = {last.device} - {mount.device for mount in mounted}
    holders = mounts.holders_of_dead(last.mount_id, devices, last.unique)
    if holders:
        raise MountError(
            f"{directory}: files of an earlier mount are still in use: " + "; ".join(map(str, holders[:5]))
        )


def _read_note(state: Fd) -> _Note:
    return msgspec.json.decode(read_file(state.fd, _NOTE), type=_Note)


def note_mount(volume: Volume, directory: Path, *, draining: bool = False) -> str | None:
    """Note that the volume is mounted; returns what to tell where there is no room for that. Raises OSError."""
    mount = mounts.mount_at(str(directory))
    if mount is None:
        return None
    note = _Note(boot_id(), mount.id, mount.device, mounts.unique_id(mount.path), draining)
    try:
        write_durably(volume.primary.state.fd, _NOTE, msgspec.json.encode(note))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Only a lazy unmount is not noticed without it; and who is to make room needs the mount.
        return f"tier {volume.primary.name}: {error.strerror}: do not umount with -l while files are open"
    return None


def forget_mount(volume: Volume) -> None:
    """Remove the note: the volume is unmounted. Raises OSError."""
    try:
        os.unlink(_NOTE, dir_fd=volume.primary.state.fd)
    except FileNotFoundError:
        pass


def was_draining(directory: Path, root: Fd) -> bool:
    """Whether the daemon that died was draining the volume; `root` is of its primary tier. Raises MountError."""
    try:
        return _read_note(open_dir(STATE, root.fd)).draining
    except FileNotFoundError:
        return False  # there was no room for it (`note_mount`)
    except (OSError, msgspec.MsgspecError) as error:
        raise MountError(f"{directory}: cannot be taken over: mounted.json: {error}") from error
