"""Who has a file open where a mount is to be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keigo.mounts import openers_below


@contextmanager
def held(path: Path, flags: int) -> Iterator[int]:
    """Another process has it open; its pid."""
    fd = os.open(path, flags)
    process = subprocess.Popen(["sleep", "600"], pass_fds=[fd])
    os.close(fd)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_open_files_below_a_directory(tmp_path: Path) -> None:
    below = tmp_path / "data"
    below.mkdir()
    assert openers_below(str(below)) == []
    with held(tmp_path / "data-elsewhere", os.O_CREAT):
        assert openers_below(str(below)) == []
    with held(below / "file", os.O_CREAT) as pid:
        (holder,) = openers_below(str(below))
        assert (holder.pid, holder.path) == (pid, str(below / "file"))


def test_what_has_no_name_any_more_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    with held(tmp_path, os.O_RDWR | os.O_TMPFILE), held(tmp_path / "gone", os.O_RDONLY | os.O_DIRECTORY):
        (tmp_path / "gone").rmdir()
        assert openers_below(str(tmp_path)) == []
    with held(tmp_path / "odd (deleted)", os.O_CREAT) as pid:
        assert [holder.pid for holder in openers_below(str(tmp_path))] == [pid]
