"""Taking a tier out of a volume that is mounted: what is still on it, and the steps once no file is.

    guards      its LOCKs beside guards go to another tier; where the primary alone is left, guards go
    mirrors     empty directories, so that what is left is a tier, or empty
    members     volume.json without it: a volume without this tier opens, and one with it takes it for a new one
    devices.yaml without it, by the caller
    `.keigo`    by the next daemon, once the volume is open without the tier (`clear_left`)

Wherever that ends, the volume mounts: with the tier as long as devices.yaml has it, and without it from then on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from keigo import failpoints
from keigo.config import TierConfig
from keigo.lsm.roles import Role
from keigo.tiers import guard
from keigo.tiers.catalog import FileRecord
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, lstat_or_none
from keigo.tiers.intents import IntentError
from keigo.tiers.joining import first_file
from keigo.tiers.opening import Membership, members_of, put_aside, remove_mirrors, write_membership
from keigo.tiers.tier import IDENTITY, LOST_FOUND, STATE, Tier, TierError
from keigo.tiers.volume import Volume


@dataclass(frozen=True, slots=True)
class Staying:
    """A file that is still on a tier."""

    file: int
    path: str
    size: int
    """Bytes."""
    held: bool
    """Whether somebody has it open in a way that keeps it there."""


def files_on(volume: Volume, tier: Tier) -> list[Staying]:
    """The files of a tier, those without a name too, but for the LOCKs beside guards."""
    found = []
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.special or record.home != tier.name or _is_beside_guard(volume, record):
                continue
            held = volume.open_files.is_held(file)
            known = volume.open_files.by_id.get(file)
            size = record.size if known is None else known.size
            found.append(Staying(file, shown(volume.path(*record.links[0])), size, held))
        for file, record in volume.orphans.records.items():
            if record.home == tier.name:
                found.append(Staying(file, "(a deleted file)", record.size, held=True))
    return found


def _is_beside_guard(volume: Volume, record: FileRecord) -> bool:
    return record.role is Role.LOCK and any(
        name == guard.LOCK and directory in volume.guards.guarded for directory, name in record.links
    )


def locks_on(volume: Volume, tier: Tier) -> list[tuple[int, int]]:
    """(directory, file) of the LOCKs beside guards that a tier has. Raises TierError where one has other links."""
    found = []
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.special or record.home != tier.name or not _is_beside_guard(volume, record):
                continue
            if len(record.links) > 1:
                names = " and ".join(shown(volume.path(*link)) for link in record.links)
                raise TierError(f"tier {tier.name}: {names} are one file, which cannot move: remove one of them")
            found.append((record.links[0][0], file))
    return found


def take_out(volume: Volume, tier: Tier) -> Membership:
    """Make a volume forget a tier that has no files; returns what volume.json said, for `take_back`.

    The lock is held, and the mover at rest. Raises OSError, TierError; the tier is then a member as before, but guards
    may be gone. A mirror that is missing is made again where it is needed.
    """
    _check_intents(volume, tier)
    if len(volume.evacuation.staying) == 1:
        locks_on(volume, tier)
        volume.guards.remove_all()
    else:
        for directory, file in locks_on(volume, tier):
            _move_lock(volume, directory, file)
        _drop_moved_locks(volume, tier)
    failpoints.hit("leave.unguarded")
    found = first_file(tier.root)
    if found is not None:
        raise TierError(f"tier {tier.name}: {tier.label}: holds {shown(found)}, which the volume does not know")
    try:
        remove_mirrors(tier.root)
    finally:
        volume.directories.clear()
    if set(os.listdir(tier.root.fd)) - {os.fsdecode(STATE), os.fsdecode(LOST_FOUND)}:
        raise TierError(f"tier {tier.name}: {tier.label}: its directories cannot all be removed")
    os.fsync(tier.root.fd)
    failpoints.hit("leave.mirrors")
    before, after = _members(volume.primary), _members(volume.primary)
    after.tiers = [name for name in before.tiers if name != tier.name]
    try:
        write_membership(volume.primary, after)
    except OSError:  # it may say so all the same: a name can be there whose directory could not be synced
        take_back(volume, before)
        raise
    failpoints.hit("leave.forgotten")
    return before


def take_back(volume: Volume, before: Membership) -> None:
    """Write volume.json as it was. Raises OSError."""
    write_membership(volume.primary, before)


def _members(primary: Tier) -> Membership:
    try:
        return members_of(primary)
    except ValueError as error:
        raise TierError(f"tier {primary.name}: {primary.label}/.keigo/volume.json: {error}") from error


def _check_intents(volume: Volume, tier: Tier) -> None:
    """Refuse a tier on which something is to be finished: the next mount could not do it. Raises TierError."""
    volume.intents.finish(volume.roots)
    try:
        pending = volume.intents.pending()
    except IntentError as error:
        raise TierError(f"tier {tier.name}: {error}") from error
    for intent in pending.values():
        if any(step.tier == tier.name for step in intent.steps):
            raise TierError(f"tier {tier.name}: {tier.label}: not finished there: {intent.what}")


def _move_lock(volume: Volume, directory: int, file: int) -> None:
    """Copy a LOCK, which a database may have open, to the fastest tier that stays and is not the primary one."""
    record = volume.record(file)
    home = volume.tier_of(record)
    target = volume.guards.lock_tier
    here, there = volume.directories.at(directory, home), volume.directories.make(directory, target)
    if lstat_or_none(guard.LOCK, there.fd) is not None:
        os.unlink(guard.LOCK, dir_fd=there.fd)
    guard.copy_lock(here, there, guard.LOCK)
    os.fsync(there.fd)
    failpoints.hit("leave.locked")
    home.charge(-record.space, -1)
    target.charge(record.space, 1)
    record.home = target.name
    volume.catalog.put_file(file, record)
    volume.rehomed(file, target)


def _drop_moved_locks(volume: Volume, tier: Tier) -> None:
    """Remove what moved LOCKs have left on a tier, of an attempt that ended by an error too."""
    for directory in volume.guards.guarded:
        entry, here = volume.lookup(directory, guard.LOCK), volume.directories.find(directory, tier)
        moved = entry is not None and volume.record(entry.id).home != tier.name
        if moved and here is not None and lstat_or_none(guard.LOCK, here.fd) is not None:
            os.unlink(guard.LOCK, dir_fd=here.fd)


def clear_left(primary: Tier, name: str, root: Fd) -> str | None:
    """Remove `.keigo` of a tier that has left the volume; returns what stays of it, for people, or None.

    Done again after a crash, it ends with the same. Raises OSError, TierError.
    """
    label = os.readlink(f"/proc/self/fd/{root.fd}")
    tier = Tier(0, TierConfig(name, None, in_place=False, capacity=None), root, label)
    if not tier.has_state():
        return None
    tier.lock()
    try:
        identity = tier.identity()
        if identity is not None and identity.id != _members(primary).id:
            return None
        if lost := put_aside(tier):
            if identity is not None:
                os.unlink(IDENTITY, dir_fd=tier.state.fd)
            return f"{label}/.keigo/lost: {lost} file(s) that were put aside"
        tier.remove_state()
        return None
    finally:
        tier.close()
