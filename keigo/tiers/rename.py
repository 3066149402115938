"""Rename on a volume: what one rename(2) can do on one tier is left to it; the rest is done under an intent.

A rename touches several trees when it replaces a file that lives on another tier, exchanges two names, or moves a
directory that is mirrored. For each tier the step is the same: where only the source exists rename it, where both
exist exchange or replace, where only the target exists (in an exchange) rename that.
"""

from __future__ import annotations

import errno
import os

from keigo.lsm.roles import role_of
from keigo.tiers import guard
from keigo.tiers.catalog import Entry
from keigo.tiers.directories import fail, shown
from keigo.tiers.fds import RENAME_EXCHANGE, RENAME_NOREPLACE, Fd, lstat_or_none, open_path, renameat2
from keigo.tiers.intents import Ident, Intent, Op, Step, carry_out
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

Name = tuple[int, bytes]  # (directory id, name)


def rename(volume: Volume, old: Name, new: Name, flags: int) -> list[Fd]:
    """Rename, replace or exchange; `flags` as in renameat2(2).

    Returns descriptors whose closing frees a replaced file's blocks, for the caller to let go of outside the lock.
    Raises OSError; the names are then as before, unless it says EIO (see `intents.carry_out`).
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
        raise fail(errno.EINVAL)
    with volume.lock:
        return _rename(volume, old, new, flags)


def _rename(volume: Volume, old: Name, new: Name, flags: int) -> list[Fd]:
    for name in (old, new):
        if volume.reserved(*name):
            raise fail(errno.EPERM if name is new else errno.ENOENT, name[1])
    while volume.landing:  # paths in a landing migration's intent must stay true
        volume.idle.wait()
    volume.intents.finish(volume.roots)
    source = volume.catalog.entry(*old)
    target = volume.catalog.entry(*new)
    if source is None:
        raise fail(errno.ENOENT, old[1])
    if flags & RENAME_EXCHANGE:
        if target is None:
            raise fail(errno.ENOENT, new[1])
        if any(name == guard.LOCK and directory in volume.guards.guarded for directory, name in (old, new)):
            raise fail(errno.EBUSY, guard.LOCK)
        if source.id != target.id:
            _exchange(volume, old, new, source, target)
        return []
    if target is not None:
        if flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST, new[1])
        if source.id == target.id:
            return []  # two links of one file: POSIX says that nothing happens
        _check_replaceable(volume, source, target, new[1])
    if source.kind == "file":
        volume.guards.mark(new[0], role_of(new[1]))
    if source.kind == "dir" or volume.record(source.id).home == volume.primary.name:
        volume.guards.refuse(*new)
    if source.kind == "dir":
        _move_directory(volume, old, new, source, target)
        return []
    return _move_file(volume, old, new, source, target)


def _check_replaceable(volume: Volume, source: Entry, target: Entry, name: bytes) -> None:
    if target.kind == "dir":
        if source.kind != "dir":
            raise fail(errno.EISDIR, name)
        if not volume.catalog.empty(target.id):
            raise fail(errno.ENOTEMPTY, name)
    elif source.kind == "dir":
        raise fail(errno.ENOTDIR, name)


def _hold(directory: Fd, name: bytes) -> Fd:
    return Fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))


def _move_file(volume: Volume, old: Name, new: Name, source: Entry, target: Entry | None) -> list[Fd]:
    home = volume.tier_of(volume.record(source.id))
    parent = volume.directories.at(old[0], home)
    into = volume.directories.make(new[0], home)
    held = []
    undurable = None
    other = None if target is None else volume.tier_of(volume.record(target.id))
    if target is not None and other is not None:
        volume.touch(target.id)
        replaced = volume.directories.at(new[0], other)
        held.append(_hold(replaced, new[1]))
        volume.shelter(target.id, replaced, new[1])
    if target is None or other is home:
        os.rename(old[1], new[1], src_dir_fd=parent.fd, dst_dir_fd=into.fd)
    else:
        assert other is not None  # noqa: S101
        steps = [_step(volume, home, "rename", old, new), _step(volume, other, "unlink", new)]
        undurable = _carry_out(volume, f"rename {_show(volume, old)} over {_show(volume, new)}", steps)
    if target is not None:
        volume.unlinked(target.id, *new)
    volume.catalog.drop_entry(*old)
    volume.catalog.put_entry(*new, source)
    volume.renamed(source.id, old, new)
    if undurable is not None:
        raise OSError(errno.EIO, f"rename is done but may not be durable: {undurable}")
    return held


def _move_directory(volume: Volume, old: Name, new: Name, source: Entry, target: Entry | None) -> None:
    mirrors = [tier for tier, _ in volume.directories.mirrors(source.id)]
    for tier in mirrors:
        volume.directories.make(new[0], tier)
    if target is not None:
        volume.remove_empty(*new, target.id)
    steps = [_step(volume, tier, "rename", old, new) for tier in sorted(mirrors, key=lambda t: t is volume.primary)]
    undurable = _carry_out(volume, f"rename {_show(volume, old)} to {_show(volume, new)}", steps)
    volume.catalog.drop_entry(*old)
    volume.catalog.put_entry(*new, source)
    volume.catalog.put_dir(source.id, *new)
    volume.placing.paths_changed()
    if undurable is not None:
        raise OSError(errno.EIO, f"rename is done but may not be durable: {undurable}")


def _exchange(volume: Volume, old: Name, new: Name, source: Entry, target: Entry) -> None:
    steps = []
    for tier in volume.tiers:
        here, there = _exists(volume, tier, old), _exists(volume, tier, new)
        if here and there:
            steps.append(_step(volume, tier, "exchange", old, new))
        elif here:
            volume.directories.make(new[0], tier)
            steps.append(_step(volume, tier, "rename", old, new))
        elif there:
            volume.directories.make(old[0], tier)
            steps.append(_step(volume, tier, "rename", new, old))
    undurable = _carry_out(volume, f"exchange {_show(volume, old)} and {_show(volume, new)}", steps)
    for entry, before, after in ((source, old, new), (target, new, old)):
        volume.catalog.put_entry(*after, entry)
        if entry.kind == "dir":
            volume.catalog.put_dir(entry.id, *after)
            volume.placing.paths_changed()
        else:
            volume.renamed(entry.id, before, after)
    if undurable is not None:
        raise OSError(errno.EIO, f"exchange is done but may not be durable: {undurable}")


def _carry_out(volume: Volume, what: str, steps: list[Step]) -> OSError | None:
    if len(steps) == 1 and steps[0].op != "unlink":
        # One tier: the system call is atomic by itself.
        step = steps[0]
        source = volume.roots[step.tier]
        flags = RENAME_EXCHANGE if step.op == "exchange" else 0
        _rename_paths(source, step.path, step.target, flags)
        return None
    key = f"rename-{volume.catalog.new_id()}"
    return carry_out(volume.intents, key, Intent(what, steps), volume.roots)


def _rename_paths(root: Fd, path: bytes, target: bytes, flags: int) -> None:
    directory, name = open_path(root, path)
    target_dir, target_name = open_path(root, target)
    renameat2(directory.fd, name, target_dir.fd, target_name, flags)


def _exists(volume: Volume, tier: Tier, name: Name) -> bool:
    directory = volume.directories.find(name[0], tier)
    return directory is not None and lstat_or_none(name[1], directory.fd) is not None


def _step(volume: Volume, tier: Tier, op: Op, name: Name, target: Name | None = None) -> Step:
    directory = volume.directories.at(name[0], tier)
    status = os.stat(name[1], dir_fd=directory.fd, follow_symlinks=False)
    path = volume.path(*name)
    into = b"" if target is None else volume.path(*target)
    return Step(tier.name, op, path, Ident.of(status), into)


def _show(volume: Volume, name: Name) -> str:
    return shown(volume.path(*name))
