"""What a daemon does to a volume that another, which died under a live mount, has left: so that ids stay true.

The kernel knows files by their ids. The trees are the truth, and a scan finds all that is in them, but takes a name
that it does not know for a new file. So renames and links that were done and not recorded are recorded before the
scan, and files that are open without a name, which no scan finds, are taken up after it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from keigo.tiers import orphans
from keigo.tiers.catalog import Entry
from keigo.tiers.fds import lstat_or_none
from keigo.tiers.rename import Name
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BegunRename:
    """A rename that was begun: the names, what they stood for (ids; 0: nothing), and the inode numbers at home."""

    old: Name
    new: Name
    exchange: bool
    source: int
    target: int
    source_inode: int
    target_inode: int


@dataclass(frozen=True, slots=True)
class BegunLink:
    """A hard link that was begun: the file and its new name."""

    file: int
    new: Name


def home_of(volume: Volume, entry: Entry) -> Tier:
    """The tier whose tree tells what became of a name: a file's home, of directories the primary. The lock is held."""
    return volume.primary if entry.kind == "dir" else volume.tier_of(volume.record(entry.id))


def inode_at(volume: Volume, name: Name, tier: Tier) -> int:
    """The inode number behind a name on a tier; 0 where there is none. The lock is held."""
    directory = volume.directories.find(name[0], tier)
    status = None if directory is None else lstat_or_none(name[1], directory.fd)
    return 0 if status is None else status.st_ino


def settle(volume: Volume, renames: Collection[BegunRename], links: Collection[BegunLink]) -> None:
    """Record what was carried out and not recorded. Before the scan, after the intents; raises OSError."""
    with volume.lock:
        # A directory may have been renamed while names in it were changed: those are found once that is recorded.
        while any([_settle_link(volume, link) for link in links] + [_settle_rename(volume, r) for r in renames]):
            pass


def _settle_rename(volume: Volume, rename: BegunRename) -> bool:
    """Record a rename if it was done; whether it was, and was not recorded."""
    source, target = volume.catalog.entry(*rename.old), volume.catalog.entry(*rename.new)
    if rename.source == rename.target:
        return False  # two links of one file: whatever is done to them, it stays as it was
    if source is None or source.id != rename.source or not _is_done(volume, rename, source, target):
        return False
    log.warning("recording a rename that was done: %s", rename)
    _record(volume, rename, source, target)
    return True


def _settle_link(volume: Volume, link: BegunLink) -> bool:
    record = volume.catalog.file(link.file)
    if record is None or volume.catalog.entry(*link.new) is not None:
        return False
    tier = volume.tier_of(record)
    inode = inode_at(volume, link.new, tier)
    if not inode or inode != inode_at(volume, record.links[0], tier):
        return False
    log.warning("recording a link that was made: %s", link)
    record.links.append(link.new)
    volume.catalog.put_file(link.file, record)
    volume.catalog.put_entry(*link.new, Entry("special" if record.special else "file", link.file))
    return True


def _is_done(volume: Volume, rename: BegunRename, source: Entry, target: Entry | None) -> bool:
    home = home_of(volume, source)
    if inode_at(volume, rename.new, home) != rename.source_inode:
        return False
    if not rename.exchange:
        return not inode_at(volume, rename.old, home)
    return (
        target is not None
        and target.id == rename.target
        and inode_at(volume, rename.old, home_of(volume, target)) == rename.target_inode
    )


def _record(volume: Volume, rename: BegunRename, source: Entry, target: Entry | None) -> None:
    catalog = volume.catalog
    if not rename.exchange:
        if target is not None and target.kind == "dir":
            catalog.drop_dir(target.id)
        elif target is not None:
            _lost_name(volume, target.id, rename.new)
        catalog.drop_entry(*rename.old)
    elif target is not None:
        _put(volume, target, rename.new, rename.old)
    _put(volume, source, rename.old, rename.new)


def _lost_name(volume: Volume, file: int, name: Name) -> None:
    record = volume.record(file)
    record.links.remove(name)
    if record.links:
        volume.catalog.put_file(file, record)
    else:
        volume.catalog.drop_file(file)


def _put(volume: Volume, entry: Entry, old: Name, new: Name) -> None:
    volume.catalog.put_entry(*new, entry)
    if entry.kind == "dir":
        volume.catalog.put_dir(entry.id, *new)
    else:
        volume.renamed(entry.id, old, new)


def adopt_orphans(volume: Volume) -> None:
    """Take up the files that were open without a name. After the scan; raises OSError."""
    with volume.lock:
        for tier in volume.tiers:
            for file, status in orphans.kept(tier):
                if volume.catalog.file(file) is not None:
                    orphans.drop(tier, file)  # its name was not removed, or is about to be: then it is kept again
                    continue
                volume.orphans.adopt(file, tier, status)


def drop_unused_orphans(volume: Volume) -> None:
    """Let go of orphans that nobody has open, once all handles are restored."""
    with volume.lock:
        for file, record in list(volume.orphans.records.items()):
            if file not in volume.open_files.by_id:
                volume.orphans.let_go(file, volume.tier_of(record))
