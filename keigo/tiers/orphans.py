"""Files that are open and have no name any more, and names of ours for them, by which the next daemon finds them.

    ROOT of the tier/.keigo/orphans/ID    a hard link to the file, from before its last name goes until its last close

Only a mount that a keeper watches over needs such links. They are not durable and need not be: after a crash of the
machine nobody has the file open.

Threads: `Volume.lock` guards `Orphans`; its callers hold it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Final

from keigo.tiers.catalog import FileRecord
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, open_dir, open_regular
from keigo.tiers.tier import Tier, space_of

log = logging.getLogger(__name__)

ORPHANS: Final = b"orphans"
_REMOVED: Final = b"removed"


class Orphans:
    """The files of a volume that are open and have no name."""

    def __init__(self, by_name: Mapping[str, Tier]) -> None:
        self._by_name = by_name
        self.records: dict[int, FileRecord] = {}
        self.sheltering = False
        """Whether files that are open get a name of ours when they lose their last: there may be a next daemon."""
        self.sheltered: set[int] = set()
        """Files that have one."""

    def shelter(self, file: int, tier: Tier, parent: Fd, name: bytes) -> None:
        """Before an open file on a tier loses its last name: give it one of ours."""
        try:
            keep(tier, parent, name, file)
        except OSError as error:  # the name must go all the same: a full device is to be emptied by it
            log.warning("%s: open, and would not outlive this daemon: %s", shown(name), error.strerror)
        else:
            self.sheltered.add(file)

    def adopt(self, file: int, tier: Tier, status: os.stat_result) -> None:
        """Take up a file that an earlier daemon has sheltered."""
        size, space = status.st_size, space_of(status)
        self.records[file] = FileRecord(tier.name, [], size=size, space=space, mtime_ns=status.st_mtime_ns)
        self.sheltered.add(file)
        tier.charge(space, 1)

    def let_go(self, file: int, tier: Tier) -> None:
        """Nobody has a file of a tier open any more: if it has no name, it is gone."""
        if file in self.sheltered:
            self.sheltered.discard(file)
            try:
                drop(tier, file)
            except OSError as error:  # the next mount empties the directory
                log.error("a removed file keeps its room on tier %s: %s", tier.name, error.strerror)
        record = self.records.pop(file, None)
        if record is not None:
            self._by_name[record.home].charge(-record.space, -1)


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
