"""What keeps one run from helping or hurting the next: dropping the page cache, limiting memory by a control group."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def memory_limit(size: int, pids: Iterable[int], root: Path = CGROUPS) -> Iterator[None]:
    """Hold the processes `pids` together to `size` bytes, page cache included and without swap, until the end.

    They are moved into a new control group (version 2; the kernel's Documentation/admin-guide/cgroup-v2.rst) at the top
    of the hierarchy, and back in the end. Pages that they had before are charged where they were. Raises
    IsolationError where the machine has no such control groups or the user may not make them.
    """
    group = root / f"keigo-bench-{os.getpid()}"
    controllers = _read(root / "cgroup.controllers")
    if controllers is None or "memory" not in controllers.split():
        raise IsolationError(f"--memory: {root} has no memory controller of cgroup version 2")
    came_from = {pid: _group_of(pid, root) for pid in pids}
    try:
        if "memory" not in (_read(root / "cgroup.subtree_control") or "").split():
            (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
    except OSError as error:
        raise IsolationError(f"--memory: {error.filename}: {error.strerror}") from error
    try:
        try:
            (group / "memory.max").write_text(str(size))
            if (group / "memory.swap.max").exists():
                (group / "memory.swap.max").write_text("0")
            for pid in came_from:
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise IsolationError(f"--memory {format_size(size)}: {error.filename}: {error.strerror}") from error
        yield
    finally:
        for pid, place in came_from.items():
            try:
                (place / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                pass  # it has ended meanwhile
        group.rmdir()


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _group_of(pid: int, root: Path) -> Path:
    for line in (_read(Path(f"/proc/{pid}/cgroup")) or "").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return root / path.lstrip("/")
    raise IsolationError(f"--memory: process {pid} is in no control group of version 2")
