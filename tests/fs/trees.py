"""What a directory holds, as plain data, for comparing a mount with a plain directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

OLD = 10**15  # nanoseconds: times before January 12, 1970 are the tests' own, and compared; others are just new


def describe(status: os.stat_result) -> dict[str, Any]:
    """Attributes that must agree. The size of a directory is its file system's affair."""
    found = {name: getattr(status, name) for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")}
    if stat.S_ISDIR(status.st_mode):
        del found["st_size"]
    found["mtime"] = status.st_mtime_ns if status.st_mtime_ns < OLD else "new"
    return found


def tree(root: Path, *, contents: bool = True) -> dict[str, Any]:
    """Everything in a directory: attributes, targets, which names are one file; contents and extended attributes."""
    found: dict[str, Any] = {}
    same: dict[int, str] = {}

    def walk(directory: Path) -> None:
        for name in sorted(os.listdir(directory)):
            path = directory / name
            status = path.lstat()
            shown = path.relative_to(root).as_posix()
            entry = describe(status) | {"first": same.setdefault(status.st_ino, shown)}
            if stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            elif contents:
                entry["xattrs"] = {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}
            if contents and stat.S_ISREG(status.st_mode):
                entry["contents"] = path.read_bytes()
            found[shown] = entry
            if stat.S_ISDIR(status.st_mode):
                walk(path)

    walk(root)
    return found | {".": describe(root.stat())}
