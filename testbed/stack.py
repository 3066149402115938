"""One device, from server to mounted file system, and down again.

Taking down asks the kernel what is there (mountinfo, /sys/block/loop*, /proc) and not a record, so it undoes whatever a
crash of `up`, of the server or of `down` itself has left.
"""

from __future__ import annotations

import errno
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keigo import mounts
from keigo.errors import KeigoError
from testbed import server
from testbed.parameters import Device

_BLOCKS: Final = Path("/sys/block")
REQUEST_BYTES: Final = 1 << 20
"""Largest request: what one FUSE request carries, so that the device sees the request that ext4 made."""
_DISCARD_BYTES: Final = 8 << 20
"""Largest discard: giving back 8 MiB takes 1 ms, and the device does nothing else meanwhile."""
_INODE_BYTES: Final = 256 << 10
"""Bytes of a device to an inode: inode tables are memory here, and an LSM's files are large."""
METADATA_SHARE: Final = _INODE_BYTES // 256
"""A new file system writes one byte of so many: an inode has 256."""
_DETACH_SECONDS: Final = 10


class StackError(KeigoError):
    """A part of a device could not be made or undone."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a device of a testbed lives."""

    image: Path
    """The file that its server presents: a mount point."""
    mount: Path
    """Its ext4."""


def places(directory: Path, name: str) -> Places:
    """Where the device `name` of the testbed in `directory` (a real path) lives."""
    return Places(directory / ".testbed" / f"{name}.image", directory / name)


def run(*command: str | Path) -> str:
    """Run a system program; its output. Raises StackError with its last line."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise StackError(f"{command[0]} is missing: run scripts/setup bench") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise StackError(f"{' '.join(map(str, command))}: {said[-1]}")
    return done.stdout.strip()


def loops_of(image: Path) -> list[str]:
    """Kernel names of the loop devices over an image; also when its server is dead, where losetup -j fails."""
    found = []
    for backing in sorted(_BLOCKS.glob("loop*/loop/backing_file")):
        try:
            if backing.read_text().rstrip("\n") == str(image):
                found.append(backing.parent.parent.name)
        except OSError:
            continue  # detached meanwhile
    return found


def make(where: Places, device: Device) -> list[str]:
    """Make a device and mount it; it answers at once until it is told its times. Returns notes. Raises KeigoError."""
    where.image.touch(mode=0o600)
    where.mount.mkdir(mode=0o755)
    notes = server.start(where.image, device.server_arguments())
    loop = run("losetup", "--direct-io=on", "--find", "--show", where.image)
    _tune(Path(loop).name, turns=device.head is not None)
    # All is laid out now, while the device answers at once: nothing is initialised lazily behind the first benchmark.
    lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    layout = ("-b", "4096", "-m", "0", "-i", str(_INODE_BYTES), "-J", f"size={_journal(device)}", "-E", lazy)
    run("mkfs.ext4", "-q", "-F", *layout, loop)
    # Deleted files give their memory back.
    run("mount", "-t", "ext4", "-o", "noatime,discard", loop, where.mount)
    return notes


def _journal(device: Device) -> int:
    """MiB; ext4's least is 4."""
    return max(4, min(64, device.size >> 26))


def _tune(loop: str, turns: bool) -> None:
    queue = _BLOCKS / loop / "queue"
    settings = {
        "scheduler": "none",
        "max_sectors_kb": str(REQUEST_BYTES >> 10),
        "discard_max_bytes": str(_DISCARD_BYTES),
        "rotational": str(int(turns)),
        "add_random": "0",
    }
    for name, value in settings.items():
        try:
            (queue / name).write_text(value)
        except OSError as error:
            raise StackError(f"{queue / name}: {value}: {error.strerror}") from error
    if (queue.parent / "loop/dio").read_text().strip() != "1":
        raise StackError(f"/dev/{loop}: the kernel refuses direct I/O on a FUSE file")
    depth = int((queue / "nr_requests").read_text())
    if depth < 128:
        raise StackError(f"/dev/{loop}: takes {depth} requests at a time, the testbed needs 128 (loop.hw_queue_depth)")


def remove(where: Places) -> None:
    """Undo what is there of a device. Raises KeigoError, naming who holds it; what was undone stays so."""
    if server.find(where.image) is not None and mounts.mount_at(str(where.image)) is not None:
        # What is still to be written back is not waited for at the device's pace.
        server.tell(where.image, "hold 0")
    _unmount_all(where.mount)
    for loop in loops_of(where.image):
        run("losetup", "-d", f"/dev/{loop}")
    _await_detached(where.image)
    _unmount_all(where.image)
    server.end(where.image)
    where.image.unlink(missing_ok=True)
    try:
        where.mount.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StackError(f"{where.mount}: {error.strerror}") from error


def _unmount_all(path: Path) -> None:
    while (mount := mounts.mount_at(str(path))) is not None:
        try:
            mounts.unmount(str(path))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise StackError(f"{path}: umount: {error.strerror}") from error
            raise StackError(f"{path} is in use: {_who(mount)}") from error


def _who(mount: mounts.Mount) -> str:
    inside = mounts.mounts_below(mount.path)
    if inside:
        return f"{inside[-1].path} is mounted ({inside[-1].fstype}); unmount it first"
    holders = mounts.users_of(mount)
    return ", ".join(map(str, holders)) if holders else "the kernel does not say by whom"


def _await_detached(image: Path) -> None:
    # losetup -d ends at once where somebody (udev, blkid) still looks at the device; the kernel then detaches it at
    # their close, of which nobody is told.
    deadline = time.monotonic() + _DETACH_SECONDS
    while loops_of(image):
        if time.monotonic() > deadline:
            raise StackError(f"/dev/{loops_of(image)[0]}: is held by another process and does not detach")
        time.sleep(0.01)
