"""What keeps one run from helping or hurting the next: dropping the page cache, limiting memory by a control group."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keigo.errors import KeigoError
from keigo.units import format_size

CGROUPS: Final = Path("/sys/fs/cgroup")
_DROP: Final = Path("/proc/sys/vm/drop_caches")


class IsolationError(KeigoError):
    """What this machine, or this user, cannot do; the text says why."""


def check_may_drop() -> None:
    """Raises IsolationError unless `drop_page_cache` will work."""
    if not os.access(_DROP, os.W_OK):
        raise IsolationError(f"--drop-caches: {_DROP} can be written by root only")


def drop_page_cache() -> None:
    """Write back what is dirty, and forget all pages that the whole machine has cached. Raises IsolationError."""
    os.sync()
    try:
        _DROP.write_text("1\n")
    except OSError as error:
        raise IsolationError(f"--drop-caches: {_DROP}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Control groups that have the memory controller, of either version of cgroups."""

    root: Path
    named: str
    """Of its line in /proc/PID/cgroup: the controllers of version 1; none for version 2."""
    limit: str
    """The file that takes the limit in bytes, page cache included."""
    no_swap: tuple[str, ...]
    """Files, where the kernel has them, that a 0 keeps from swapping."""

    def group_of(self, pid: int) -> Path:
        """Where a process is. Raises IsolationError where it is in none."""
        for line in (_read(Path(f"/proc/{pid}/cgroup")) or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if self.named in controllers.split(",") and (self.named or not controllers):
                return self.root / path.lstrip("/")
        raise IsolationError(f"--memory: process {pid} is in no control group of {self.root}")


def memory_hierarchy(groups: Path = CGROUPS) -> Hierarchy:
    """The one that has the memory controller; each controller is in one only (cgroups(7)). Raises IsolationError."""
    if "memory" in (_read(groups / "cgroup.controllers") or "").split():
        return Hierarchy(groups, "", "memory.max", ("memory.swap.max",))
    if (groups / "memory" / "memory.limit_in_bytes").exists():
        return Hierarchy(groups / "memory", "memory", "memory.limit_in_bytes", ("memory.swappiness",))
    raise IsolationError(f"--memory: {groups} has no memory controller")


@contextmanager
def memory_limit(size: int, pids: Iterable[int]) -> Iterator[None]:
    """Hold the processes `pids` together to `size` bytes, page cache included and without swap, until the end.

    They are moved into a new control group at the top of the hierarchy (the kernel's Documentation/admin-guide:
    cgroup-v2.rst, and cgroup-v1/memory.rst), and back in the end. Pages that they had before are charged where they
    were. Raises IsolationError where the machine has no such control groups or the user may not make them.
    """
    hierarchy = memory_hierarchy()
    group = hierarchy.root / f"keigo-bench-{os.getpid()}"
    came_from = {pid: hierarchy.group_of(pid) for pid in pids}
    try:
        control = hierarchy.root / "cgroup.subtree_control"  # version 2 only
        if control.exists() and "memory" not in (_read(control) or "").split():
            control.write_text("+memory")
        group.mkdir()
    except OSError as error:
        raise IsolationError(f"--memory: {error.filename}: {error.strerror}") from error
    try:
        try:
            (group / hierarchy.limit).write_text(str(size))
            for name in hierarchy.no_swap:
                if (group / name).exists():
                    (group / name).write_text("0")
            for pid in came_from:
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise IsolationError(f"--memory {format_size(size)}: {error.filename}: {error.strerror}") from error
        yield
    finally:
        _give_back(came_from, group)


def _give_back(came_from: Mapping[int, Path], group: Path) -> None:
    """Move processes back to where they were, and remove the group. Raises IsolationError, having tried them all."""
    failed = None
    for pid, place in came_from.items():
        try:
            (place / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            pass  # it has ended meanwhile
        except OSError as error:
            failed = error
    try:
        group.rmdir()
    except OSError as error:
        failed = failed or error
    if failed is not None:
        raise IsolationError(f"--memory: {failed.filename}: {failed.strerror}") from failed


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
