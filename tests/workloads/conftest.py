"""A device that is soon full."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = tmp_path / "tiny"
    where.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, b"size=3m"):
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield where
    libc.umount2(os.fsencode(where), 2)
