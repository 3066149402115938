"""Names for files that are open and have none any more, so that the next daemon of the mount finds them.

    ROOT of the tier/.keigo/orphans/ID    a hard link to the file, from before its last name goes until its last close

Only a mount that a keeper watches over needs them. They are not durable and need not be: after a crash of the
machine nobody has the file open.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Final

from keigo.tiers.fds import Fd, open_dir, open_regular
from keigo.tiers.tier import Tier

ORPHANS: Final = b"orphans"
_REMOVED: Final = b"removed"


def directory(tier: Tier) -> Fd:
    """The directory of a tier's orphans, made where it is missing. Raises OSError."""
    try:
        os.mkdir(ORPHANS, 0o700, dir_fd=tier.state.fd)
    except FileExistsError:
        pass
    return open_dir(ORPHANS, tier.state.fd)


def clear(tier: Tier) -> None:
    """Remove what an earlier mount left. Raises OSError."""
    try:
        shutil.rmtree(ORPHANS, dir_fd=tier.state.fd)
    except FileNotFoundError:
        pass


def keep(tier: Tier, parent: Fd, name: bytes, file: int) -> None:
    """Link a file, which is about to lose `name`, its last one. Raises OSError."""
    into = directory(tier)
    try:
        os.link(name, b"%d" % file, src_dir_fd=parent.fd, dst_dir_fd=into.fd, follow_symlinks=False)
    except FileExistsError:
        pass  # a daemon died between this and the unlink, which is asked again


def drop(tier: Tier, file: int) -> None:
    """Remove a file's link: nobody has it open any more. Raises OSError."""
    found = directory(tier)
    os.unlink(b"%d" % file, dir_fd=found.fd)


def kept(tier: Tier) -> Iterator[tuple[int, os.stat_result]]:
    """(id, status) of a tier's orphans. Raises OSError."""
    try:
        found = open_dir(ORPHANS, tier.state.fd)
    except FileNotFoundError:
        return
    for name in os.listdir(found.fd):
        if name.isdecimal():
            yield int(name), os.stat(name, dir_fd=found.fd, follow_symlinks=False)


def open_orphan(tier: Tier, file: int, flags: int) -> Fd:
    """Open a file by its link. Raises OSError."""
    found = directory(tier)
    return open_regular(b"%d" % file, flags & (os.O_ACCMODE | os.O_SYNC | os.O_DSYNC), found.fd)


def removed_directory(tier: Tier) -> Fd:
    """A directory without a name, for one that was open when it was removed: all that is left of it. Raises OSError."""
    os.mkdir(_REMOVED, 0o700, dir_fd=tier.incoming.fd)
    try:
        return open_dir(_REMOVED, tier.incoming.fd)
    finally:
        os.rmdir(_REMOVED, dir_fd=tier.incoming.fd)
