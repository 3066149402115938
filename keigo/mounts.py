"""Mounts and who holds them, from /proc.

A dead daemon's mount cannot be reached by path (every call says ENOTCONN), so what is known of it comes from
/proc/self/mountinfo, and who holds files of it from the mount id in /proc/PID/fdinfo (proc(5)).
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FSTYPE: Final = "fuse.keigo"
SOURCE: Final = "keigo:"
_AT_FDCWD: Final = -100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_SIZE: Final = 256  # of struct statx (include/uapi/linux/stat.h)
_STX_MNT_ID: Final = 0x90
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    id: int
    device: str
    """major:minor"""
    path: str
    fstype: str
    source: str

    @property
    def volume(self) -> str | None:
        """Name of the Keigo volume that is mounted here."""
        if self.fstype != FSTYPE or not self.source.startswith(SOURCE):
            return None
        return self.source.removeprefix(SOURCE)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a file open."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) has {self.path}"


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(text))
    return os.fsdecode(raw)


def mounts() -> list[Mount]:
    """All mounts of this process's mount namespace, the newest last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, source, *_) = before.split(" "), after.split(" ")
        found.append(Mount(int(fields[0]), fields[2], _unescape(fields[4]), fstype, _unescape(source)))
    return found


def mount_at(path: str) -> Mount | None:
    """The topmost mount whose mount point is `path` (absolute, without symbolic links)."""
    return next((mount for mount in reversed(mounts()) if mount.path == path), None)


def mounts_below(path: str) -> list[Mount]:
    """Mounts inside a directory."""
    prefix = path.rstrip("/") + "/"
    return [mount for mount in mounts() if mount.path.startswith(prefix)]


def real_path(directory: Path) -> str:
    """`directory` made absolute with symbolic links resolved, without touching the directory itself.

    It may be a dead mount, on which any call fails.
    """
    absolute = Path(os.path.abspath(directory))
    return str(absolute.parent.resolve() / absolute.name)


def unmount(path: str) -> None:
    """umount(2), never lazy: a writer that goes on below a detached mount would share a database with the next.

    Raises OSError, EBUSY where files are open.
    """
    if os.geteuid() != 0:
        import subprocess

        done = subprocess.run(["fusermount3", "-u", path], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            import errno

            raise OSError(errno.EBUSY, done.stderr.strip() or "fusermount3 -u failed")
        return
    if _libc.umount2(os.fsencode(path), 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _processes() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/comm").read_text(errors="replace").strip()
        except OSError:
            continue
        yield int(entry), command


def _read(path: str) -> str:
    """A file of /proc; empty where the process is gone or not ours to look at."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _files_on(mount_ids: set[int], devices: set[str]) -> Iterator[tuple[Holder, str]]:
    """Open files on one of the mounts, mapped files of one of the devices (major:minor), each with its own link.

    The link, below /proc/PID, leads to the file itself, also where no path does.
    """
    maps = {f"{int(d.split(':')[0]):02x}:{int(d.split(':')[1]):02x}" for d in devices}
    for pid, command in _processes():
        for fd in _listed(f"/proc/{pid}/fd"):
            match = re.search(r"^mnt_id:\s*(\d+)$", _read(f"/proc/{pid}/fdinfo/{fd}"), re.MULTILINE)
            if match and int(match[1]) in mount_ids:
                link = f"/proc/{pid}/fd/{fd}"
                yield Holder(pid, command, _link(link)), link
        for line in _read(f"/proc/{pid}/maps").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[3] in maps:
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                yield Holder(pid, command, fields[5]), f"/proc/{pid}/map_files/{begin:x}-{end:x}"


def unique_id(path: str) -> int | None:
    """What tells the mount that `path` is on from all others since the machine was started; None before Linux 6.8.

    Asks no file system: answers for a dead mount, too, and does not wait for one that hangs. Raises OSError: EACCES
    on a FUSE mount that does not serve us (`allow_other`).
    """
    status = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_MNT_ID_UNIQUE, status) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    (known,) = struct.unpack_from("I", status, 0)
    (found,) = struct.unpack_from("Q", status, _STX_MNT_ID)
    return int(found) if known & _STATX_MNT_ID_UNIQUE else None


def _is_on(link: str, unique: int | None) -> bool:
    """Whether a file is, or may be, on the dead FUSE mount with this unique id, or where that is not known, on any.

    Such a mount has no cache to answer statfs from, as it may have for stat: ENOTCONN. Whom it does not serve, root
    included, it tells zeros instead, dead or not (fuse_statfs in the kernel's fs/fuse/inode.c); no other file system
    has blocks of no size.
    """
    try:
        found = None if unique is None else unique_id(link)
        return os.statvfs(link).f_bsize == 0 if found is None else found == unique
    except (FileNotFoundError, ProcessLookupError):
        return False  # closed, unmapped or ended meanwhile
    except OSError:
        return True  # ENOTCONN; or, as EPERM for a mapping, it cannot be known


def holders_of_dead(mount_id: int, devices: set[str], unique: int | None) -> list[Holder]:
    """Processes with an open or a mapped file on a dead FUSE mount that cannot be seen any more.

    Its id and device (major:minor) alone prove nothing: the kernel uses both again at once when nobody holds the mount,
    and what has them now may have been detached, or mounted while we look. `unique`: see `unique_id`.
    """
    found: dict[int, Holder] = {}
    for holder, link in _files_on({mount_id}, devices):
        if holder.pid not in found and _is_on(link, unique):
            found[holder.pid] = holder
    return list(found.values())


def users_of(mount: Mount) -> list[Holder]:
    """Processes that keep a mount busy: open and mapped files, working directories."""
    found: dict[int, Holder] = {}
    for holder, _ in _files_on({mount.id}, {mount.device}):
        found.setdefault(holder.pid, holder)
    for pid, command in _processes():
        for name in ("cwd", "root"):
            path = _link(f"/proc/{pid}/{name}")
            if path == mount.path or path.startswith(mount.path + "/"):
                found.setdefault(pid, Holder(pid, command, path))
    return list(found.values())


def _is_removed(path: str) -> bool:
    """Whether a link of /proc is to a file without a name, or a directory: a mount hides nothing of it."""
    return path.endswith(" (deleted)") and not os.path.lexists(path)


def openers_below(directory: str) -> list[Holder]:
    """Processes with a file open or mapped below a directory that is not a mount; directories and cwd do not count."""
    prefix = directory.rstrip("/") + "/"
    found = {}
    for pid, command in _processes():
        for fd in _listed(f"/proc/{pid}/fd"):
            path = _link(f"/proc/{pid}/fd/{fd}")
            if path.startswith(prefix) and not Path(path).is_dir() and not _is_removed(path):
                found[pid] = Holder(pid, command, path)
        for line in _read(f"/proc/{pid}/maps").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(prefix):
                found.setdefault(pid, Holder(pid, command, fields[5]))
    return list(found.values())
