"""New regular files: which tier each goes to, and how it comes to be there.

The policy says where. Before it come drains and tiers that leave; after it, tiers that turn out to be full.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from keigo import clock
from keigo.decisions import decided
from keigo.lsm.database import Belief
from keigo.lsm.roles import Role, role_of
from keigo.placement.policy import Choice, Context, NoRoom, fallback_order
from keigo.tiers.catalog import Entry, FileRecord
from keigo.tiers.directories import fail, shown
from keigo.tiers.fds import KEEP_FLAGS, Fd, own
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def create(
    volume: Volume,
    directory: int,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    flags: int,
    tid: int,
    belief: Belief,
) -> tuple[int, Fd]:
    """Create a regular file where the policy wants it, or on the next tier that has room, and open it.

    `belief` is what it is for, as far as is known, and `tid` the thread that creates it.

    Returns (file id, descriptor open for reading and writing); the caller ends with `OpenFiles.close`.
    """
    with volume.lock:
        volume.refuse_new(directory, name)
        role = role_of(name)
        volume.guards.mark(directory, role)
        context, size = volume.placing.context(directory, name, role, belief, tid)
        beside_guard = role is Role.LOCK and directory in volume.guards.guarded
        choice = _beside_guard(volume) if beside_guard else _choose(volume, context, size)
        tier, fd, reason = _create_on(volume, choice, directory, name, mode, uid, gid, flags)
        new = volume.catalog.new_id()
        volume.open_files.created(new, tier, size)
        record = FileRecord(
            tier.name,
            [(directory, name)],
            role=role,
            level=belief.level,
            created_level=belief.level,
            created=clock.now(),
            reason=reason,
            family=belief.family,
        )
        if choice.costs is not None:
            record.costs = [(cost.write, cost.read, cost.room) for cost in choice.costs]
        volume.catalog.put_file(new, record)
        volume.catalog.put_entry(directory, name, Entry("file", new))
        volume.placing.created(new, tier.index, context)
        decided(
            "create",
            path=shown(context.path),
            role=role.value,
            level=belief.level,
            family=belief.family,
            job=belief.job.value,
            thread=tid,
            size=size,
            tier=tier.name,
            reason=reason,
        )
        return new, fd


def _choose(volume: Volume, context: Context, size: int) -> Choice:
    evacuation = volume.evacuation
    if evacuation.draining:
        return Choice(volume.primary.index, "draining: new files go to the in-place tier")
    leaving = evacuation.leaving
    if leaving is not None and len(evacuation.staying) == 1:
        return Choice(volume.primary.index, f"{leaving.name} is being removed: no other tier is left")
    try:
        return volume.placing.choose(context, size)
    except NoRoom:
        if leaving is None:
            raise fail(errno.ENOSPC, context.path) from None
    log.warning("tier %s is not removed: no other has room for new files", leaving.name)
    evacuation.leaving = None
    return _choose(volume, context, size)


def _beside_guard(volume: Volume) -> Choice:
    """For a LOCK whose place on the primary tier the guard has, be it drained or another tier be removed."""
    others = [tier for tier in volume.tiers if tier is not volume.primary]
    other = next((tier for tier in others if tier is not volume.evacuation.leaving), others[0])
    return Choice(other.index, "beside the guard in the data directory")


def _create_on(
    volume: Volume, choice: Choice, directory: int, name: bytes, mode: int, uid: int, gid: int, flags: int
) -> tuple[Tier, Fd, str]:
    """Make the file; returns the tier that took it, and why it is there."""
    reason, chosen = choice.reason, volume.tiers[choice.tier]
    order = [chosen]
    if not volume.evacuation.draining:
        leaving, indices = volume.evacuation.leaving, fallback_order(choice.tier, len(volume.tiers))
        order = [tier for index in indices if (tier := volume.tiers[index]) is chosen or tier is not leaving]
    for tier in order:
        try:
            parent = volume.directories.make(directory, tier)
            how = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | flags & KEEP_FLAGS
            try:
                fd = Fd(os.open(name, how, 0o600, dir_fd=parent.fd))
            except FileExistsError:  # what a failed migration could not remove, perhaps
                volume.intents.finish(volume.roots)
                fd = Fd(os.open(name, how, 0o600, dir_fd=parent.fd))
        except OSError as error:
            tier.health.failed(error)
            # Not after EIO: the name may be there all the same, and would come back beside the file.
            if error.errno not in (*_FULL, errno.EROFS) or tier is order[-1]:
                raise
            log.warning("%s: tier %s: %s, trying the next", shown(name), tier.name, error.strerror)
            what = "had no space left" if error.errno in _FULL else f"failed: {error.strerror}"
            reason = f"{choice.reason}; {tier.name} {what}"
            continue
        try:
            above = volume.directories.at(directory, volume.primary)
            own(fd.fd, os.fstat(above.fd), mode, uid, gid, is_dir=False)
        except OSError:
            os.unlink(name, dir_fd=parent.fd)  # nobody would know of it, and a next create meet it
            raise
        return tier, fd, reason
    raise fail(errno.ENOSPC, name)
