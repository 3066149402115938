"""Loop devices and mounts for tests, taken away whatever happens."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


def command(*args: str | Path) -> str:
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def mounted(*args: str | Path, at: Path) -> Iterator[Path]:
    """`mount ARGS AT`."""
    at.mkdir(exist_ok=True)
    command("mount", *args, at)
    try:
        yield at
    finally:
        command("umount", "-l", at)


@contextmanager
def loop_device(size: int, sector: int = 512) -> Iterator[str]:
    """A block device in memory."""
    with tempfile.NamedTemporaryFile(prefix="keigo-test-", dir="/dev/shm") as image:
        image.truncate(size)
        done = subprocess.run(
            ["losetup", "--show", "-f", "-b", str(sector), image.name], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            yield device
        finally:
            command("losetup", "-d", device)


@contextmanager
def ext4(base: Path, size: int, sector: int = 512) -> Iterator[Path]:
    """A fresh ext4 of about `size` bytes on a loop device with such sectors, mounted below `base`."""
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(size, sector))
        command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", device)
        yield stack.enter_context(mounted(device, at=base / "ext4"))
